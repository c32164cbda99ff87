"""Files that once ended in a traceback: each is read as its command reads it, and refused in words.

``broken/FORMAT.what-is-wrong``; the formats are those of `tools/fuzz_targets.py`.
"""

import importlib
import sys
from pathlib import Path

import pytest

from imatrix_lab.errors import ImatrixLabError

TOOLS = Path(__file__).parents[1] / "tools"
BROKEN = sorted((Path(__file__).parent / "broken").iterdir())
ANSWERS = {"endpoint", "digests", "journal"}
"""Formats in which what is broken counts for nothing, instead of being refused."""


@pytest.fixture(scope="module")
def targets():
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("fuzz_targets")
    sys.path.remove(str(TOOLS))


@pytest.mark.parametrize("path", BROKEN, ids=lambda p: p.name)
def test_what_was_found_stays_mended(path, targets, tmp_path):
    name = path.name.partition(".")[0]
    target = targets.ALL[name]
    (case, *_) = target.honest(tmp_path / "honest")
    (tmp_path / "inputs").mkdir()
    copy = tmp_path / "inputs" / case.path.name
    copy.write_bytes(case.path.read_bytes())
    target.read(copy)  # the honest one can be read
    copy.write_bytes(path.read_bytes())
    if name in ANSWERS:
        target.read(copy)
    else:
        with pytest.raises(ImatrixLabError):
            target.read(copy)
