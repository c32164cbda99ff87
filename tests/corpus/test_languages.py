"""languages.py, and the files in corpora/."""

import re
import shutil
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pytest

from imatrix_lab.core import paths
from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError

SHIPPED = sorted(p for p in paths.data_dir("corpora").glob("*.toml") if p.stem != "sources")

FAROESE = """
code = "fo"
name = "Faroese"
native_name = "føroyskt"
script = "Latn"
aliases = ["fao"]
labels = ["fo"]

[clean]
script_share_min = 1

[[source]]
use = "dataset-build"
files = ["dataset_build/data/fao/fao.txt", "more.txt"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of languages with nothing but the sources in it."""
    path = tmp_path / "corpora"
    path.mkdir()
    shutil.copy(paths.data_dir("corpora") / "sources.toml", path)
    with (path / "sources.toml").open("a", encoding="utf-8") as file:
        file.write('\n[own]\nkind = "files"\nlicence = "MIT"\nlicence_class = "permissive"\n')
        file.write('origin = "o"\nnote = "n"\n')
    return path


def test_every_shipped_file_is_a_language() -> None:
    assert len(SHIPPED) > 30
    assert list(languages.load_all()) == [p.stem for p in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_language(path: Path) -> None:
    found = languages.get(path.stem)
    assert found.code == "code" or re.fullmatch(r"[a-z]{2,3}(-[A-Z][a-z]{3})?", found.code)
    assert re.fullmatch(r"[A-Z][a-z]{3}", found.script)
    assert found.name
    assert found.native_name
    assert found.sources
    for source in found.sources:
        assert source.licence
        assert source.origin
        assert source.note
        for name in source.settings.get("files", []):
            inside = PurePosixPath(name)
            assert not inside.is_absolute()
            assert ".." not in inside.parts
            assert "\\" not in name
            assert str(inside) == name
        if source.kind == "pypi":
            assert re.fullmatch(r"[0-9a-f]{64}", source.settings["sha256"])
        if source.kind == "hub":
            assert re.fullmatch(r"[0-9a-f]{40}", source.settings["revision"])


def test_text_written_here_is_held_out() -> None:
    written = {s.name: s for n in languages.load_all().values() for s in n.sources if s.heldout}
    assert list(written) == ["written"]
    assert written["written"].licence == "CC0-1.0"


def test_the_languages_that_papers_calibrate_on_are_there() -> None:
    assert {
        "en",
        "fr",
        "sw",
        "zh",
        "xh",
        "st",
        "zu",
        "yo",
        "ig",
        "ha",
        "nb",
        "nn",
        "ml",
        "ta",
        "code",
    } <= set(languages.load_all())


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
            for name in source.settings.get("files", []):
                users[source.settings["package"], name].append(language.code)
            if "config" in source.settings:
                users[source.settings["repo"], source.settings["config"]].append(language.code)
    assert {k: v for k, v in users.items() if len(v) > 1} == {}


@pytest.mark.parametrize("word", ["nb", "no", "nob", "nor", "NB", " nb ", "Norsk Bokmål"])
def test_words_for_norwegian(word: str) -> None:
    assert languages.get(word).code == "nb"


def test_an_unknown_language_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'nbb'.*near: nb") as caught:
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
    assert source.settings["files"] == ["dataset_build/data/fao/fao.txt", "more.txt"]
    assert source.settings["package"] == "dataset-build"
    assert found.clean == {"script_share_min": 1}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("native_name", "native_nmae", r"'native_nmae'; 'native_name'\?"),
        ("aliases", "zzz", "key 'zzz'"),
        ("script_share_min", "script_shear_min", r"\[clean\]; 'script_share_min'\?"),
        ("script_share_min = 1", 'script_share_min = "1"', "script_share_min: '1'"),
        ('labels = ["fo"]', "labels = [1]", "labels: 1"),
        ('labels = ["fo"]', 'labels = "fo"', "labels: 'fo'"),
        ('code = "fo"', 'code = "nb"', r"'nb'.*fo\.toml"),
        ('name = "Faroese"', "", "missing key 'name'"),
        ('use = "dataset-build"', 'use = "dataset-bulid"', r"'dataset-bulid'; 'dataset-build'\?"),
        ('use = "dataset-build"', "use = 1", "use ="),
        ("files = [", "fiels = [", r"'fiels' in \[dataset-build\]; 'files'\?"),
        ("files = [", "licence_class = 'free'\nfiles = [", "licence_class .* 'free'"),
        ("files = [", "kind = 'pypy'\nfiles = [", r"'pypy'; 'pypi'\?"),
        ("files = [", "kind = 'debian'\nfiles = [", "'version'"),
        ('script = "Latn"', 'script = "Latin1"', "'Latin1'"),
        ('script = "Latn"', 'script = "Xxxx"', "'Xxxx'"),
        ('use = "dataset-build"', 'use = "dataset-build"\nname = "my/web"', "'my/web'"),
        ('use = "dataset-build"', 'use = "dataset-build"\nname = "../../x"', r"'\.\./\.\./x'"),
        ('use = "dataset-build"', 'use = "own"', r"\.files"),
        (
            '", "more.txt"]',
            '"]\n[[source]]\nuse = "own"\nfiles = [{ path = "/a.txt" }]',
            "'sha256'",
        ),
        ("[[source]]", "[source]", "source: "),
        ("[[source]]", "[[source]", "TOML"),
        (
            "[[source]]",
            "[[source]]\nuse = 'dataset-build'\nfiles = []\n[[source]]",
            "'dataset-build'",
        ),
    ],
)
def test_a_mistake_is_told(folder: Path, old: str, new: str, words: str) -> None:
    assert old in FAROESE
    path = folder / "fo.toml"
    path.write_text(FAROESE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError, match=words) as caught:
        languages.load_all(folder)
    assert caught.value.where == str(path)


def test_the_users_folder_is_laid_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "data" / "corpora"
    (own / "own" / "fo").mkdir(parents=True)
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(tmp_path / "data"))
    (own / "fo.toml").write_text(FAROESE, encoding="utf-8")
    text = 'kind = "files"\nlicence = "MIT"\nlicence_class = "permissive"\n'
    text += 'origin = "o"\nnote = "n"\nfiles = []\n'
    mine = own / "own" / "fo" / "mine.toml"
    mine.write_text(text, encoding="utf-8")
    found = languages.load_all()
    assert {p.stem for p in SHIPPED} | {"fo"} == set(found)
    assert [s.name for s in found["fo"].sources] == ["dataset-build", "mine"]
    mine.write_text(text.replace("files = ", "fiels = "), encoding="utf-8")
    assert languages.get("nb") == found["nb"]
    (fault,) = languages.load_all()["fo"].faults.items()
    assert fault == (str(mine), "unknown key 'fiels' in [mine]; 'files'?")
    with pytest.raises(UsageError, match="'fiels'"):
        languages.get("fo")
