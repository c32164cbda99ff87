"""A language that is added as a file, and what is built from it."""

from dataclasses import replace

import pytest

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.extract import EXTRACTORS
from imatrix_lab.corpus.sources import KINDS, files, pypi
from imatrix_lab.errors import UsageError

FAROESE = """
code = "fo"
name = "Faroese"
native_name = "føroyskt"
script = "Latn"
aliases = ["fao"]
labels = ["fo"]

[[source]]
use = "sagas"
files = [{{ path = "{path}", sha256 = "{sha256}", size_bytes = {size_bytes}, mtime_ns = 0 }}]
"""
SHARED = """
[sagas]
kind = "files"
licence = "CC0-1.0"
licence_class = "public-domain"
origin = "a test"
note = "made up"
"""


def test_a_language_is_added_and_read_without_touching_code(tmp_path, own_store):
    text = tmp_path / "sagas.txt"
    text.write_text("Havið er stórt.\n\nTað er kalt.\n", encoding="utf-8")
    facts = {"path": text, "sha256": sha256_file(text), "size_bytes": text.stat().st_size}
    (tmp_path / "fo.toml").write_text(FAROESE.format(**facts), encoding="utf-8")
    (tmp_path / "sources.toml").write_text(SHARED, encoding="utf-8")
    language = languages.get("føroyskt", tmp_path)
    pinned = files.reach(language.sources[0], Session(own_store, Silent()))
    (found,) = files.documents(pinned, language, Session(own_store, Silent()))
    assert found.text == "Havið er stórt.\n\nTað er kalt."
    assert (found.source, found.licence) == ("sagas", "CC0-1.0")


def test_every_kind_that_languages_know_has_a_module():
    assert set(KINDS) == set(languages._SETTINGS)


def test_an_unknown_extractor_is_told(own_store):
    language = languages.get("sw")
    (source,) = (s for s in language.sources if s.name == "dataset-build")
    odd = replace(source, settings={**source.settings, "extractor": "pdf"})
    pinned = pypi.reach(odd, Session(own_store, Silent()))
    with pytest.raises(UsageError, match="'pdf'") as caught:
        list(pypi.documents(pinned, language, Session(own_store, Silent())))
    assert set(EXTRACTORS) <= set(caught.value.fix.split())
