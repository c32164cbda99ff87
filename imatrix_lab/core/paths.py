"""Where the package's data files and the user's own lie."""

import os
import shlex
import sys
from pathlib import Path

import platformdirs


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


def pip_install(*words: str) -> str:
    """Return the command that installs into this Python, whose ``pip`` need not be on the path."""
    return shlex.join([sys.executable, "-m", "pip", "install", *words])
