"""Labels of names in any script, and names whose bytes are no text."""

import errno
import json
import os
from pathlib import Path

import pytest

from imatrix_lab.core import files, names
from imatrix_lab.errors import ImatrixLabError

SCRIPTS = ["日本語", "русский", "മലയാളം", "ക്\u200cഷ", "עברית", "हिन्दी", "Bokmål", "한국어", "ไทย"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_labels_keep_the_letters_and_marks_of_every_script(name: str) -> None:
    assert names.slug(name) == names.model_label(name) == names.readable(name) == name


def test_what_would_fold_to_one_label_stays_apart() -> None:
    words = [
        "c++",
        "c#",
        "🎉",
        "🎈",
        "a" * 300,
        "a" * 299,
        "മ" * 80,
        "മ" * 81,
        "x\udce9",
        "x\udce8",
    ]
    for label in (names.slug, names.model_label):
        labels = [label(word) for word in words]
        assert len(set(labels)) == len(words)
        assert max(len(text.encode()) for text in labels) <= names.MODEL_BYTES
        assert [label(text) for text in labels] == labels
    assert names.slug("my text.v2") == "my-text-v2"
    assert names.slug("a\u030al") == names.slug("ål")


@pytest.mark.parametrize(
    "name", ["caf\udce9", "a\nb", "\x1b[2J", "\u202e", "\ud800", "../x", 'q"<>|']
)
def test_no_label_has_what_a_file_or_a_terminal_cannot_take(name: str) -> None:
    for label in (names.slug(name), names.model_label(name)):
        assert label.isprintable() and label.encode() and not set(label) & set('/<>:"|?*\\')
    assert names.readable(name).isprintable()


def test_bytes_that_are_no_text_are_readable_and_valid_json() -> None:
    name = os.fsdecode("caf\xe9 ø".encode("latin-1")[:4] + " ø".encode())
    assert names.readable(name) == "caf\\xe9 ø"
    assert json.loads(files.canonical_json({name: [name]})) == {"caf\\xe9 ø": ["caf\\xe9 ø"]}


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk like FAT: no links of any kind, and no modes."""

    def refuse(*args: object, **settings: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("link", "symlink", "chmod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)


def test_a_disk_without_links_gets_copies(tmp_path: Path, no_links: None) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    files.place(source, tmp_path / "placed")
    files.link(source, tmp_path / "linked")
    for name in ("placed", "linked"):
        assert not (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    longest = tmp_path / ("മ" * 85)
    files.write_whole(longest, "text")
    assert longest.read_text(encoding="utf-8") == "text"
    with pytest.raises(ImatrixLabError, match="too long: 258 bytes"):
        files.write_whole(tmp_path / ("മ" * 86), "text")
