"""llama.cpp is asked once whether it loads a model."""

import os
import shutil

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.models.loading import warnings_of
from imatrix_lab.models.resolve import resolve


def test_a_model_whose_name_is_no_utf8_is_loaded(tiny, tools, store_at, tmp_path):
    path = tmp_path / os.fsdecode(b"mod\xe8le-f16.gguf")
    shutil.copy(tiny, path)
    session = Session(store_at(tmp_path / "store"), Silent())
    assert isinstance(warnings_of(tools, resolve(str(path), session), session), tuple)
