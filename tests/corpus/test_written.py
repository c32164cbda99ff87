"""The texts in corpora/written/: whole, parallel, clean, and in their language."""

import json
import unicodedata

import pytest

from imatrix_lab.core import paths
from imatrix_lab.corpus import chat, languages
from imatrix_lab.corpus.clean import clean
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Rules
from imatrix_lab.types import Document

FOLDER = paths.data_dir("corpora") / "written"
CODES = ["en", "ml", "nb", "nn"]
WORDS = {"ml": (105, 200)}


def documents(code):
    lines = (FOLDER / code / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_folder_is_one_of_these():
    assert sorted(p.name for p in FOLDER.iterdir() if p.is_dir()) == CODES


@pytest.mark.parametrize("code", CODES)
def test_documents(code):
    found = documents(code)
    assert [d["id"] for d in found] == [f"{code}-{i:02d}" for i in range(1, 41)]
    assert [d["kind"] for d in found] == [d["kind"] for d in documents("en")]
    low, high = WORDS.get(code, (150, 250))
    for d in found:
        assert low <= sum(any(map(str.isalnum, w)) for w in d["text"].split()) <= high, d["id"]
        assert d["text"] == unicodedata.normalize("NFC", d["text"]).strip(), d["id"]
        assert not any(c in d["text"] for c in "\r\t\u200b\u200c\u200d\ufeff\u00ad"), d["id"]
        assert all(line == line.strip() for line in d["text"].split("\n")), d["id"]
    assert len({d["text"] for d in found}) == 40


@pytest.mark.parametrize("code", CODES)
def test_chats(code):
    found = list(chat.read(FOLDER / code / "chats.jsonl"))
    assert [name for name, _ in found] == [f"{code}-chat-{i:02d}" for i in range(1, 21)]
    for name, messages in found:
        assert 2 <= len(messages) <= 6 and messages[-1]["role"] == "assistant", name


@pytest.mark.parametrize("code", CODES)
def test_cleaning_finds_nothing_to_drop(code):
    """Good prose passes; dialogue and figures are prose too."""
    found = [Document(d["id"], d["text"], "written", "CC0-1.0") for d in documents(code)]
    report = Report()
    kept = list(clean(found, Rules.of(languages.get(code)), report))
    assert [d.text for d in kept] == [d.text for d in found], report.samples
