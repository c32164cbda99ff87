"""Definitions and languages as data: what is refused, and the user's own."""

import pytest

from imatrix_lab.core.paths import user_dir
from imatrix_lab.errors import UsageError
from imatrix_lab.tasks import definition, locale

GOOD = """
name = "mine"
title = "My own"
scorer = "mixeval"
licence = "CC0-1.0"
citation = "me"
[source]
files = ["x.json"]
[fields]
question = "{q}"
gold = "{a}"
[prompt]
ask = "{question}"
max_tokens = 8
"""


def write(tmp_path, text, name="mine"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_users_own_task(tmp_path):
    assert definition.get(str(write(tmp_path, GOOD))).title == "My own"
    folder = user_dir().parent / "tasks"
    folder.mkdir(parents=True)
    write(folder, GOOD)
    assert definition.get("mine").source.files == ("x.json",)
    assert "mine" in definition.load_all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title", "titel", "unknown key 'titel'; 'title'?"),
        ("files", "file", "unknown key 'file' in \\[source\\]; 'files'?"),
        ("question =", "questoin =", "unknown key 'questoin' in \\[fields\\]; 'question'?"),
        ('"mixeval"', '"mixevall"', "scorer is one of .* not 'mixevall'; 'mixeval'?"),
        ('"mixeval"', '"choice"', "needs options"),
        ("max_tokens = 8", 'max_tokens = "8"', "is not a whole number"),
        ('"mine"', '"other"', "the file is called mine.toml"),
        ('licence = "CC0-1.0"', "", "missing key 'licence'"),
        ("[source]", "[source", "not valid TOML"),
        ('["x.json"]', "[1]", "source.files: 1 is not a text"),
    ],
)
def test_mistakes_are_named(old, new, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        definition.load(write(tmp_path, GOOD.replace(old, new)))


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(UsageError, match="'belebele'\\?"):
        definition.get("belebel")
    with pytest.raises(UsageError, match="cannot be read"):
        definition.get(str(tmp_path / "no.toml"))
    with pytest.raises(UsageError, match="no prompts for the language 'xx'"):
        locale.get("xx")


def test_every_language_has_every_word():
    found = locale.load_all()
    words = set(found["en"].words)
    assert len(found) >= 20
    for one in found.values():
        assert set(one.words) == words, one.code
        assert one.letter and one.tail and one.labels


def test_only_a_commit_pins(tmp_path):
    for revision, is_pinned in (("a" * 40, True), ("refs/convert/parquet", False), ("", False)):
        text = GOOD.replace("files", f'hub = "a/b"\nrevision = "{revision}"\nfiles')
        assert definition.load(write(tmp_path, text)).source.is_pinned() == is_pinned
