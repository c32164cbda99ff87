"""languages.py, and the files in corpora/."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from imatrix_lab import languages
from imatrix_lab.errors import UsageError

SHIPPED = sorted(p for p in languages.data_dir("corpora").glob("*.toml") if p.stem != "sources")

FAROESE = """
code = "fo"
name = "Faroese"
native_name = "føroyskt"
script = "Latn"
aliases = ["fao"]

[[source]]
use = "dataset-build"
files = ["dataset_build/data/fao/fao.txt", "more.txt"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of languages with nothing but the sources in it."""
    path = tmp_path / "corpora"
    path.mkdir()
    shutil.copy(languages.data_dir("corpora") / "sources.toml", path)
    return path


def test_every_shipped_file_is_a_language() -> None:
    assert len(SHIPPED) > 30
    assert list(languages.load_all()) == [p.stem for p in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_language(path: Path) -> None:
    found = languages.get(path.stem)
    assert re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?(-[A-Z]{2})?", found.code)
    assert re.fullmatch(r"[A-Z][a-z]{3}", found.script)
    assert found.name
    assert found.native_name
    assert found.sources
    for source in found.sources:
        assert source.licence
        assert source.version
        assert source.origin
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.files
        for name in source.files:
            assert len(name) > 1  # a string where a list was meant falls into letters
            inside = PurePosixPath(name)
            assert not inside.is_absolute()
            assert ".." not in inside.parts
            assert "\\" not in name
            assert inside.suffix
            assert str(inside) == name


def test_no_word_means_two_languages() -> None:
    meanings = defaultdict(set)
    for language in languages.load_all().values():
        for word in (language.code, *language.aliases, language.name, language.native_name):
            meanings[word.casefold()].add(language.code)
    assert {w: codes for w, codes in meanings.items() if len(codes) > 1} == {}


def test_no_file_serves_two_languages() -> None:
    users = defaultdict(list)
    for language in languages.load_all().values():
        for source in language.sources:
            for name in source.files:
                users[source.name, name].append(language.code)
    assert {k: v for k, v in users.items() if len(v) > 1} == {}


@pytest.mark.parametrize("word", ["nb", "no", "nob", "nor", "NB", " nb ", "Norsk Bokmål"])
def test_words_for_norwegian(word: str) -> None:
    assert languages.get(word).code == "nb"


def test_an_unknown_language_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"called 'nbb'.*near: nb") as caught:
        languages.get("nbb")
    assert set(languages.load_all()) <= set(str(caught.value.fix).split())
    with pytest.raises(UsageError):
        languages.get("")


def test_a_new_language_is_a_file(folder: Path) -> None:
    (folder / "fo.toml").write_text(FAROESE, encoding="utf-8")
    (found,) = languages.load_all(folder).values()
    assert languages.get("føroyskt", folder) == languages.get("FAO", folder) == found
    assert (found.code, found.script, found.aliases) == ("fo", "Latn", ("fao",))
    (source,) = found.sources
    assert source.name == "dataset-build"
    assert source.files == ("dataset_build/data/fao/fao.txt", "more.txt")
    assert source.sha256 == languages.get("nb").sources[0].sha256


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("native_name", "native_nmae", r"unknown key 'native_nmae'; 'native_name'\?"),
        ("aliases", "zzz", "unknown key 'zzz'\\n"),
        ('code = "fo"', 'code = "nb"', r"code is 'nb', the file is called fo\.toml"),
        ('name = "Faroese"', "", "missing or misplaced key 'name'"),
        ('use = "dataset-build"', 'use = "dataset-bulid"', "dataset-bulid"),
        ("files = [", "fiels = [", "missing or misplaced key 'files'"),
        ("[[source]]", "[source]", "misplaced"),
        ("[[source]]", "[[source]", "not valid TOML"),
    ],
)
def test_a_mistake_is_told(folder: Path, old: str, new: str, words: str) -> None:
    assert old in FAROESE
    path = folder / "fo.toml"
    path.write_text(FAROESE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=words) as caught:
        languages.load_all(folder)
    assert str(path) in str(caught.value)
