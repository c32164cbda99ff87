"""Where the package's data files and the user's own lie."""

import os
import re
import shlex
import sys
from pathlib import Path

import platformdirs

HOST_PATH = re.compile(r"^(?:/|~/|[A-Za-z]:\\)[^/\\]+[/\\]|(?<![\w.])/(?:home|Users|root)/")
"""A path of somebody's machine."""


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` as the home folder, if there is one; shells leave ``--x=~/y``."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def data_dir(name: str) -> Path:
    """Return a folder of data files: the checkout's, or the wheel's copy."""
    package = Path(__file__).parents[1]
    packaged = package / "_data" / name
    return packaged if packaged.exists() else package.parent / name


def user_dir() -> Path:
    """Return the user's own corpora: ``$IMATRIX_LAB_DATA/corpora``, by default where data goes."""
    override = os.environ.get("IMATRIX_LAB_DATA")
    return expanded(override or platformdirs.user_data_dir("imatrix-lab")) / "corpora"


def without_folders(text: str) -> str:
    """Return the name alone of a file on somebody's machine; any other text as it is."""
    return re.split(r"[/\\]", text)[-1] if HOST_PATH.search(text) else text


def pip_install(*words: str) -> str:
    """Return the command that installs into this Python, whose ``pip`` need not be on the path."""
    return shlex.join([sys.executable, "-m", "pip", "install", *words])
