"""Definitions and languages as data: what is refused, and the user's own."""

import pytest

from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.errors import UsageError
from imatrix_lab.tasks import definition
from imatrix_lab.tasks.locale import get_locale, load_locales

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
    ("old", "new", "names"),
    [
        ("title", "titel", ["'titel'", "'title'?"]),
        ("files", "file", ["'file'", "[source]", "'files'?"]),
        ("question =", "questoin =", ["'questoin'", "[fields]", "'question'?"]),
        ('"mixeval"', '"mixevall"', ["scorer", "'mixevall'", "'mixeval'?"]),
        ('"{a}"', '"{a}"\ngold_is = "leter"', ["gold_is", "'leter'", "'letter'?"]),
        ("max_tokens = 8", 'variant = "tokens"', ["variant", "'tokens'", "'token'?"]),
        ('"mixeval"', '"choice"', ["options", "[fields]"]),
        ("max_tokens = 8", 'max_tokens = "8"', ["max_tokens", "'8'"]),
        ('"mine"', '"other"', ["'other'", "mine.toml"]),
        ('licence = "CC0-1.0"', "", ["'licence'"]),
        ("[source]", "[source", ["TOML"]),
        ('["x.json"]', "[1]", ["source.files", "1"]),
    ],
)
def test_mistakes_are_named(old, new, names, tmp_path):
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(UsageError) as raised:
        definition.load(path)
    assert raised.value.where == str(path)
    assert all(name in raised.value.what for name in names)


def test_unknown_names(tmp_path):
    with pytest.raises(UsageError) as raised:
        definition.get("belebel")
    assert "'belebele'?" in raised.value.what
    assert set(definition.load_all()) < set(raised.value.fix.replace(";", "").split())
    with pytest.raises(UsageError) as raised:
        definition.get(str(tmp_path / "no.toml"))
    assert raised.value.where == str(tmp_path / "no.toml")
    with pytest.raises(UsageError) as raised:
        get_locale("xx")
    assert "tasks/languages/xx.toml" in raised.value.fix


@pytest.mark.parametrize(
    ("old", "new"),
    [("[answer]", "[anser]"), ("[numbers]", "[numbers]\nmark = 1"), ("translate =", "translat =")],
)
def test_mistakes_in_a_language(old, new):
    folder = user_dir().parent / "tasks" / "languages"
    folder.mkdir(parents=True)
    text = (data_dir("tasks") / "languages" / "nb.toml").read_text(encoding="utf-8")
    path = write(folder, text.replace(old, new), "nb")
    with pytest.raises(UsageError) as raised:
        get_locale("nb")
    assert raised.value.where == str(path)


def test_every_language_has_every_word():
    locales = load_locales()
    assert len(locales) >= 20
    for locale in locales.values():
        assert set(locale.words) == set(locales["en"].words), locale.code
        assert locale.answer.letter and locale.answer.tail and locale.identify.labels


def test_only_a_commit_pins(tmp_path):
    for revision, is_pinned in (("a" * 40, True), ("refs/convert/parquet", False), ("", False)):
        text = GOOD.replace("files", f'hub = "a/b"\nrevision = "{revision}"\nfiles')
        assert definition.load(write(tmp_path, text)).source.is_pinned() == is_pinned
