"""Where results go: an output never replaces an input, or a file not made here for the same thing.

What writes to a path of the user's calls `check_file` or `check_folder` before any work. A file
that says what it is (an imatrix, a quant, a report) is replaced by the same kind of thing made by
the same request; one that cannot say (`replacing_equal`) only by equal bytes. ``--force`` replaces
any other file too, and says first what it is; an input is never replaced.
"""

import contextlib
import filecmp
import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imatrix_lab.core.files import disk_error, replacing
from imatrix_lab.core.format import size
from imatrix_lab.core.names import readable
from imatrix_lab.core.progress import Progress, Silent
from imatrix_lab.errors import UsageError

Other = Callable[[Path], str]
"""Says what a file is that must not be replaced; "" of one that may be."""


def any_file(path: Path) -> str:
    """Return what a file is of which nothing more is known."""
    return f"a file of {size(path.stat().st_size)} that imatrix-lab did not write for this"


def other_bytes(source: Path) -> Other:
    """Return what tells files that are not equal to `source`."""

    def other(path: Path) -> str:
        return "" if filecmp.cmp(source, path, shallow=False) else any_file(path)

    return other


def replaceable(path: Path) -> str:
    """Let any file be replaced, for now: its bytes are judged when the new ones are there."""
    return ""


@dataclass(frozen=True)
class Rules:
    """What a command reads, which no output replaces; what else ``--force`` replaces is said."""

    inputs: tuple[Path, ...] = ()
    force: bool = False
    progress: Progress = field(default_factory=Silent)
    announced: set[Path] = field(default_factory=set)

    def announce(self, path: Path, what: str) -> None:
        """Say once what will be replaced."""
        if path not in self.announced:
            self.announced.add(path)
            self.progress.say(f"--force: {readable(str(path))} will be replaced: {what}")


def check_file(path: Path, rules: Rules, other: Other = any_file) -> None:
    """Raise unless a file can be put at `path`; what else stands there is judged by `other`.

    Raises UsageError: it is an input, a folder, a device, or something to keep; ImatrixLabError:
    the disk does not take it.
    """
    try:
        _check_file(path, rules, other)
    except OSError as error:
        raise disk_error(error, path) from error


def _check_file(path: Path, rules: Rules, other: Other) -> None:
    if any(is_same(path, file) for file in _files(rules.inputs)):
        what = "the output would replace an input of this command"
        raise UsageError(what, where=path, fix="choose another name for the output")
    if path.is_dir():
        fix = f"name a file in it: {shlex.quote(str(path / 'NAME'))}{path.suffix}"
        raise UsageError("this is a folder, not a file", where=path, fix=fix)
    if os.path.lexists(path) and not path.is_file():
        what = "a link that leads nowhere" if path.is_symlink() else "a device"
        fix = "choose a file's name, in a folder that exists"
        raise UsageError(
            f"{what}, not a file: results are put into place whole", where=path, fix=fix
        )
    _check_writable(path.parent)
    if path.exists() and (what := other(path)):
        if not rules.force:
            fix = "choose another name or folder for the output, or add --force, which replaces it"
            raise UsageError(f"not replaced: {what}", where=path, fix=fix)
        rules.announce(path, what)


def check_folder(out: Path) -> None:
    """Raise unless files can be put into a folder, which need not exist.

    Raises UsageError: it, or one above it, is a file; ImatrixLabError: the disk does not take it.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError("the output folder is a file", where=out, fix="--out FOLDER")
    try:
        _check_writable(out)
    except OSError as error:
        raise disk_error(error, out) from error


def _check_writable(folder: Path) -> None:
    """Try the folder, or the one in which it will be made."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder", where=folder, fix="--out FOLDER")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except FileNotFoundError as error:  # such as /proc
        what = "cannot write here: this folder takes no files"
        raise UsageError(what, where=existing, fix="choose another place for the output") from error
    except OSError as error:
        raise disk_error(OSError(error.errno, error.strerror, str(existing)), existing) from error


@contextlib.contextmanager
def replacing_equal(path: Path, rules: Rules) -> Iterator[Path]:
    """Give a temporary name, as `files.replacing` does, for a file that is quickly made.

    Where another file stands, it is replaced only if its bytes are the same, or by force.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        yield temporary
        check_file(path, rules, other_bytes(temporary))


def is_same(a: Path, b: Path) -> bool:
    """Whether two paths are one file, by a link or by letters in another case too."""
    with contextlib.suppress(OSError):
        if a.samefile(b):
            return True
    return str(_real(a)).casefold() == str(_real(b)).casefold()


def _real(path: Path) -> Path:
    """Return a path without links; the file's own name is kept, which may be missing."""
    return Path(os.path.realpath(path.parent)) / path.name


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield inputs; those of a folder are the files in it."""
    for path in paths:
        yield from path.iterdir() if path.is_dir() else (path,)
