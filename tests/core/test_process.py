"""core/process, with tiny real programs."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imatrix_lab.core import process
from imatrix_lab.errors import MissingTool, ToolFailed

Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Make an executable of a few lines of shell."""

    def make(body: str) -> Path:
        path = tmp_path / f"program-{len(list(tmp_path.iterdir()))}"
        path.write_text("#!/bin/sh\n" + textwrap.dedent(body))
        path.chmod(0o755)
        return path

    return make


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
    except ProcessLookupError:
        return False
    return bool(state.strip()) and not state.strip().startswith("Z")


def gone_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path) -> str:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.02)
    pytest.fail(f"{path.name} never came")


def test_output_comes_in_pieces_while_the_program_runs(script: Script, tmp_path: Path) -> None:
    """Without line ends, as llama-imatrix prints its windows; the program waits for our answer."""
    answer = tmp_path / "answer"
    program = script(
        f"""
        printf '[1]4.2,'
        while [ ! -e {answer} ]; do sleep 0.02; done
        printf '[2]4.1,' >&2
        """
    )
    pieces: list[str] = []

    def hear(piece: str) -> None:
        pieces.append(piece)
        answer.touch()

    done = process.run([program], on_output=hear, timeout_s=20)
    assert pieces == ["[1]4.2,", "[2]4.1,"]
    assert done.tail == "[1]4.2,[2]4.1,"
    assert done.returncode == 0


def test_characters_cut_in_two_are_whole(script: Script) -> None:
    pieces: list[str] = []
    program = script(r"printf '\303'; sleep 0.3; printf '\245\n'; printf 'end \303'")
    done = process.run([program], on_output=pieces.append)
    assert done.tail == "å\nend �"
    assert "" not in pieces


def test_tail_is_bounded_and_log_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "all.log"
    log.write_text("before\n")
    code = "import sys; sys.stdout.buffer.write(b'x' * 300_000 + b'\\xff\\xfe' + b'the end')"
    done = process.run([sys.executable, "-c", code], log=log)
    assert len(done.tail) == process.TAIL_CHARS
    assert done.tail.endswith("x\ufffd\ufffdthe end")
    assert log.read_bytes() == b"before\n" + b"x" * 300_000 + b"\xff\xfethe end"


def test_the_log_can_be_followed(script: Script, tmp_path: Path) -> None:
    log, seen = tmp_path / "all.log", []
    process.run([script("echo step 1")], log=log, on_output=lambda _: seen.append(log.read_text()))
    assert seen == ["step 1\n"]


def test_no_shell_takes_part(script: Script) -> None:
    done = process.run([script('printf "%s|" "$@"'), "a b", "$HOME", "*", "; echo no"])
    assert done.tail == "a b|$HOME|*|; echo no|"


def test_standard_input_is_empty(script: Script) -> None:
    assert process.run([script("cat; echo done")], timeout_s=20).tail == "done\n"


def test_missing_tool(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match="no such program") as caught:
        process.run([tmp_path / "llama-imatrix"])
    assert "llama-imatrix" in caught.value.what
    assert "doctor" in str(caught.value.fix)
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    with pytest.raises(MissingTool, match="not executable"):
        process.run([plain])
    with pytest.raises(MissingTool, match="no such program"):
        process.run([plain / "llama-imatrix"])
    plain.chmod(0o755)
    with pytest.raises(MissingTool, match="not a program for this machine"):
        process.run([plain])


def test_tool_failed_says_status_and_last_error(script: Script, tmp_path: Path) -> None:
    program = script("echo loading; echo 'error: no such tensor'; echo bye; exit 7")
    log = tmp_path / "log"
    with pytest.raises(ToolFailed) as caught:
        process.run([program, "-x"], log=log)
    error = caught.value
    assert error.what == f"{program.name} failed (exit 7): error: no such tensor"
    assert error.tail == "loading\nerror: no such tensor\nbye\n"
    assert str(log) in str(error)
    assert process.run([program], check=False).returncode == 7


@pytest.mark.parametrize(
    ("library", "fix"), [("libcuda.so.1", "NVIDIA's driver"), ("libblas.so.3", "libblas.so.3")]
)
def test_a_library_that_is_not_there_has_a_remedy(script: Script, library: str, fix: str) -> None:
    said = f"bin/a: error while loading shared libraries: {library}: cannot open shared object file"
    with pytest.raises(ToolFailed, match="exit 127") as error:
        process.run([script(f"echo '{said}'; exit 127")])
    assert fix in (error.value.fix or "")


def test_tool_failed_names_the_signal(script: Script) -> None:
    with pytest.raises(ToolFailed, match=r"\(SIGSEGV, .*\): it printed nothing"):
        process.run([script("kill -SEGV $$")])
    # what was printed before is no reason, and llama.cpp's time and level say nothing
    program = script("echo '0.00.034.168 I perplexity: 2 chunks'; kill -ILL $$")
    with pytest.raises(ToolFailed, match="its last line was: perplexity: 2 chunks\n"):
        process.run([program])


def test_tool_failed_without_an_error_line_has_the_last(script: Script) -> None:
    with pytest.raises(ToolFailed, match=r"\(exit 1\): second$"):
        process.run([script("echo first; echo second; exit 1")])


def test_time_out_ends_a_program_that_ignores_sigterm(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.5)
    mark = tmp_path / "pid"
    program = script(f"trap '' TERM; echo $$ > {mark}; echo begun; while :; do sleep 0.1; done")
    began = time.monotonic()
    with pytest.raises(ToolFailed, match=r"did not finish within 1\.5 s") as caught:
        process.run([program], timeout_s=1.5)
    assert time.monotonic() - began < 10
    assert caught.value.tail == "begun\n"
    assert gone_within(int(mark.read_text()), 2)


def test_time_out_lets_a_program_end_by_itself(script: Script, tmp_path: Path) -> None:
    """SIGTERM comes first: ninja and others tidy up."""
    mark = tmp_path / "tidied"
    program = script(f"trap 'touch {mark}; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    with pytest.raises(ToolFailed) as caught:
        process.run([program], timeout_s=1.5)
    assert caught.value.tail == "ready\n"
    assert mark.exists()


def test_time_out_holds_for_a_program_that_closed_its_output(script: Script) -> None:
    began = time.monotonic()
    with pytest.raises(ToolFailed, match="did not finish"):
        process.run([script("exec >&- 2>&-; sleep 30")], timeout_s=0.5)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_ends_the_child_and_its_children(
    script: Script, tmp_path: Path, stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 1.0)
    pid = tmp_path / "grandchild"
    ignore = "trap '' TERM;" if stubborn else ""
    grandchild = script(f"{ignore} echo $$ > {pid}; while :; do sleep 0.1; done")
    child = script(f"{grandchild} & while [ ! -s {pid} ]; do sleep 0.02; done; echo ready; wait")

    def interrupt(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run([child], on_output=interrupt, timeout_s=60)
    gone = gone_within(int(pid.read_text()), 2)
    if not gone:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert gone


def test_an_error_in_on_output_ends_the_child(script: Script, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = script(f"echo $$ > {pid}; echo ready; exec sleep 60")
    with pytest.raises(ZeroDivisionError):
        process.run([program], on_output=lambda _: 1 // 0)
    assert gone_within(int(pid.read_text()), 2)


def test_environment(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "nb")
    monkeypatch.setenv("LANGUAGE", "nb")
    monkeypatch.setenv("LC_ALL", "nb_NO.ISO-8859-1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    hostile = ("LLAMA_ARG_CACHE_TYPE_K", "GGML_X", "OMP_NUM_THREADS", "CXXFLAGS", "LD_PRELOAD", "X")
    hostile += ("HF_TOKEN", "IMATRIX_LAB_API_KEY")
    for name in hostile:
        monkeypatch.setenv(name, "1" if name != "LD_PRELOAD" else "")
    lines = process.run([script("env")], env={"EXTRA": "more"}).tail.splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    assert "LANG" not in found
    assert "LANGUAGE" not in found
    assert found["LC_ALL"] == "C.UTF-8"
    assert (found["https_proxy"], found["EXTRA"]) == ("http://127.0.0.1:9", "more")
    assert not found.keys() & set(hostile) and found["PATH"] == os.environ["PATH"]
    assert os.environ["LANG"] == "nb"


def test_our_own_environment_is_cleaned_for_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = ("LLAMA_CPP_DIR", "GGML_VK_VISIBLE_DEVICES", "OTHER")
    for name in ("GGML_X", "LLAMA_ARG_THREADS", "OMP_NUM_THREADS", *kept):
        monkeypatch.setenv(name, "1")
    process.clean_own_environment()
    assert {
        n for n in ("GGML_X", "LLAMA_ARG_THREADS", "OMP_NUM_THREADS") if n in os.environ
    } == set()
    assert all(os.environ[name] == "1" for name in kept)


@pytest.mark.parametrize(
    ("signum", "fix"),
    [("ILL", "imatrix-lab doctor"), ("KILL", "--batch"), ("SEGV", None), ("ABRT", None)],
)
def test_a_signal_has_its_own_words_and_remedy(
    script: Script, signum: str, fix: str | None
) -> None:
    with pytest.raises(ToolFailed, match=f"SIG{signum}, ") as caught:
        process.run([script(f"kill -{signum} $$")])
    assert caught.value.crashed == (signum != "KILL")  # that one comes from outside
    assert caught.value.fix is None if fix is None else fix in str(caught.value.fix)


def test_a_child_ends_soon_when_its_parent_is_killed(script: Script, tmp_path: Path) -> None:
    """By SIGPIPE, at its next output."""
    pid = tmp_path / "pid"
    child = script(f"echo $$ > {pid}; while :; do echo working || exit 1; sleep 0.05; done")
    code = f"from imatrix_lab.core import process; process.run([{str(child)!r}])"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        child_pid = int(wait_for(pid))
        assert alive(child_pid)
        parent.kill()
    assert gone_within(child_pid, 5)


def test_ctrl_c_on_the_terminal_reaches_only_us(script: Script) -> None:
    """The child has a session of its own, so that we end it in our order."""
    with_session = process.run([script("ps -o sid= -p $$; echo $$")]).tail.split()
    assert with_session[0] == with_session[1]
    assert int(with_session[0]) != os.getsid(0)


def test_background_runs_beside_us_and_ends_with_the_block(script: Script, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = script("echo $$; echo $WORD; exec sleep 60")
    with process.background([program], log=log, env={"WORD": "hello"}) as running:
        wait_for(log)
        running.check()
        assert running.tail().split()[0] == str(running.process.pid)
        assert alive(running.process.pid)
    assert not alive(running.process.pid)
    assert log.read_text().endswith("hello\n")


def test_background_that_ended_says_why(script: Script, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process.background([script("echo 'error: no port'; exit 3")], log=log) as running:
        assert gone_within(running.process.pid, 20)
        with pytest.raises(ToolFailed, match=r"ended \(exit 3\): error: no port") as caught:
            running.check()
    assert caught.value.log == log


def test_background_that_ignores_sigterm(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.3)
    log = tmp_path / "log"
    program = script("trap '' TERM; echo ready; while :; do sleep 0.1; done")
    with pytest.raises(ZeroDivisionError), process.background([program], log=log) as running:
        wait_for(log)
        _ = 1 / 0
    assert gone_within(running.process.pid, 2)


def test_background_without_a_program(tmp_path: Path) -> None:
    with pytest.raises(MissingTool), process.background([tmp_path / "none"], log=tmp_path / "log"):
        pass


def test_background_ends_when_we_are_killed(script: Script, tmp_path: Path) -> None:
    """Although it prints nothing that could fail."""
    pid, log = tmp_path / "pid", tmp_path / "log"
    child = script(f"echo $$ > {pid}; exec sleep 60")
    code = (
        "import pathlib, time; from imatrix_lab.core import process\n"
        f"with process.background([{str(child)!r}], log=pathlib.Path({str(log)!r})): time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        child_pid = int(wait_for(pid))
        parent.kill()
    assert gone_within(child_pid, 20)


def _square(n: int) -> int:
    return n * n


def _die(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def _my_process(n: int) -> tuple[int, int]:
    return n, os.getpid()


def test_in_order_gives_results_in_order_from_any_number_of_processes() -> None:
    for workers in (1, 2):
        assert list(process.in_order(_square, range(20), workers)) == [n * n for n in range(20)]


def test_in_order_takes_items_as_they_are_needed() -> None:
    taken = []
    found = process.in_order(_square, (taken.append(n) or n for n in range(1000)), 2)
    assert next(found) == 0
    assert len(taken) <= 6


def test_a_worker_that_dies_is_an_error_with_a_way_out() -> None:
    with pytest.raises(ToolFailed, match="worker process died") as caught:
        list(process.in_order(_die, range(6), 2))
    assert "--workers" in caught.value.fix


def test_ending_the_iterator_ends_the_workers() -> None:
    found = process.in_order(_my_process, range(1000), 2)
    pids = {next(found)[1] for _ in range(4)}
    assert os.getpid() not in pids
    found.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_when_we_are_killed_or_interrupted(tmp_path: Path, signum: int) -> None:
    """Ctrl-C goes to the whole group; only the parent may speak of it."""
    program = tmp_path / "parent.py"
    program.write_text(
        "import sys, time\n"
        "from imatrix_lab.core import process\n"
        "import worker\n"
        "if __name__ == '__main__':\n"
        "    for pid in process.in_order(worker.pid, range(10**6), 2):\n"
        "        print(pid, flush=True)\n"
        "        time.sleep(0.05)\n"
    )
    (tmp_path / "worker.py").write_text("import os\ndef pid(n):\n    return os.getpid()\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
        start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stderr is not None
    pids = {int(parent.stdout.readline()) for _ in range(6)}
    if signum == signal.SIGINT:
        os.killpg(parent.pid, signum)
    else:
        parent.kill()
    said = parent.communicate()[1].decode()
    assert said.count("Traceback") == (signum == signal.SIGINT)
    until = time.monotonic() + 10
    while time.monotonic() < until and any(map(alive, pids)):
        time.sleep(0.05)
    assert not any(map(alive, pids))
