// Preloaded: what a disk does to a program. For files below $FAULTS_DIR,
//
//   FAULTS_LOG=FILE    each write and fsync is logged by inode, so that a simulated power cut can
//                      take back what was not flushed (tools/faults.py)
//   FAULTS_FULL=N      the N-th write and all after it fail: no space is left
//
// Writes within glibc (stdio) are not seen here: whoever reads the log takes a changed file without
// an fsync for not flushed.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *folder, *log_name;
static long full_at;
static int log_fd = -1;
static long *count;  // shared by all programs of a run, in a file beside the log

// Reads the environment, at a program's start and where a process has forked for another trial.
__attribute__((constructor)) void faults_start(void) {
    folder = getenv("FAULTS_DIR");
    log_name = getenv("FAULTS_LOG");
    const char *full = getenv("FAULTS_FULL");
    full_at = full ? atol(full) : 0;
    if (!folder || !log_name) return;
    log_fd = syscall(SYS_openat, AT_FDCWD, log_name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    char name[4096];
    snprintf(name, sizeof name, "%s.count", log_name);
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof *count)) return;
    void *shared = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) count = shared;
}

// The inode of a file below the folder, else 0.
static unsigned long ours(int fd) {
    if (!folder || log_fd < 0 || fd < 0) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    const size_t length = strlen(folder);
    if (strncmp(path, folder, length) || path[length] != '/') return 0;
    struct stat st;
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? st.st_ino : 0;
}

static void note(char what, unsigned long inode) {
    char line[32];
    const int n = snprintf(line, sizeof line, "%c %lu\n", what, inode);
    syscall(SYS_write, log_fd, line, n);
}

// Whether a write to this file fails.
static int fails(int fd) {
    const unsigned long inode = ours(fd);
    if (!inode) return 0;
    note('W', inode);
    if (!count) return 0;
    const long n = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    if (!full_at || n < full_at) return 0;
    errno = ENOSPC;
    return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    return fails(fd) ? -1 : real(fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    return fails(fd) ? -1 : real(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(pwrite64);
    return fails(fd) ? -1 : real(fd, data, n, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    return fails(fd) ? -1 : real(fd, parts, n);
}
ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    REAL(sendfile);
    return fails(to) ? -1 : real(to, from, at, n);
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    REAL(sendfile64);
    return fails(to) ? -1 : real(to, from, at, n);
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    REAL(copy_file_range);
    return fails(to) ? -1 : real(from, a, to, b, n, flags);
}

static int flushed(int fd, int result) {
    const unsigned long inode = result == 0 ? ours(fd) : 0;
    if (inode) note('F', inode);
    return result;
}
int fsync(int fd) {
    REAL(fsync);
    return flushed(fd, real(fd));
}
int fdatasync(int fd) {
    REAL(fdatasync);
    return flushed(fd, real(fd));
}

// FAULTS_CLOCK=SECONDS: the clock of the day is off by so much, FAULTS_AFTER=SECONDS after the start.
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    static time_t began;
    const char *off = getenv("FAULTS_CLOCK"), *after = getenv("FAULTS_AFTER");
    const int result = real(clock, now);
    if (result || !off || clock != CLOCK_REALTIME) return result;
    if (!began) began = now->tv_sec;
    if (now->tv_sec - began >= (after ? atol(after) : 0)) now->tv_sec += atol(off);
    return result;
}
