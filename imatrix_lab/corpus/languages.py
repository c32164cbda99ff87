"""Languages are data: ``corpora/<code>.toml``. Adding one touches no code.

``corpora/sources.toml`` holds what is shared by the languages that use a source; a language's
own file says which sources it has, in order of preference, and which part of each is its own.
The user's folder (`user_dir`) adds to the package's: a language or a source there replaces the one
of the same name, and each ``own/<code>/<name>.toml`` adds a text of the user's to that language.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import regex

from imatrix_lab.core.config import TABLE, TEXTS, Keys, check, nearest, read_toml
from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.corpus import language_names
from imatrix_lab.errors import UsageError

LICENCE_CLASSES = ("public-domain", "permissive", "share-alike", "copyleft")
"""From free to strict; a corpus has the strictest class of its sources."""

CLEAN = {"document_chars_min": int, "paragraph_chars_min": int, "script_share_min": float}
"""Thresholds that a language may set for cleaning, and their types."""

SCRIPT_PARTS = {
    "Jpan": ("Hira", "Kana", "Hani"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Kore": ("Hang", "Hani"),
}
"""Scripts that stand for several of Unicode's, or have another name there."""

_REQUIRED, _OPTIONAL = True, False


def _keys(required: str, optional: str = "", **others: tuple[Any, bool]) -> Keys:
    """Return keys of a table: names of texts, and others with their types."""
    texts = dict.fromkeys(required.split(), (str, _REQUIRED))
    return {**texts, **dict.fromkeys(optional.split(), (str, _OPTIONAL)), **others}


_SETTINGS = {
    "hub": _keys("repo config split text", "revision id"),
    "pypi": _keys("package version sha256 extractor", files=(TEXTS, _REQUIRED)),
    "debian": _keys("package extractor", files=(TEXTS, _REQUIRED)),
    "files": _keys("", "field format", files=(tuple[Any, ...], _REQUIRED)),
    "written": _keys("file"),
}
"""Settings of each kind of source, for its module in `corpus.sources`."""
_FILE = _keys("path sha256", size_bytes=(int, _REQUIRED), mtime_ns=(int, _REQUIRED))
"""One of a user's own files, as it was when it was added."""
_FACTS = _keys(
    "kind licence licence_class origin note", heldout=(bool, _OPTIONAL), tokens=(int, _OPTIONAL)
)
"""Of a source of any kind."""
_LANGUAGE = _keys(
    "code name native_name script",
    aliases=(TEXTS, _REQUIRED),
    labels=(TEXTS, _REQUIRED),
    clean=(TABLE, _OPTIONAL),
    source=(tuple[Any, ...], _REQUIRED),
)


@dataclass(frozen=True)
class Source:
    """One place that text in a language comes from, read by `corpus.sources`' module `kind`.

    `licence` is an SPDX expression. A `heldout` source is calibrated on only if the user names it.
    `tokens` is a rough count after cleaning, in the demo model's vocabulary; 0: not measured.
    """

    name: str
    kind: str
    licence: str
    licence_class: str
    origin: str
    note: str
    settings: Mapping[str, Any]
    heldout: bool = False
    tokens: int = 0


@dataclass(frozen=True)
class Language:
    """One language, or program code; its code is BCP 47, its script ISO 15924 (code: `Zyyy`).

    `labels` are what language identification may call it; empty if it does not know it.
    `sources` are in order of preference; `faults` say why a file of the user's was not added.
    """

    code: str
    name: str
    native_name: str
    script: str
    aliases: tuple[str, ...]
    labels: tuple[str, ...]
    sources: tuple[Source, ...]
    clean: Mapping[str, float] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


def load_all(folder: Path | None = None) -> dict[str, Language]:
    """Return every language by code: the package's and the user's, or those of one folder.

    A fault in a text of the user's own breaks only its language, in `get`.
    """
    folders = (folder,) if folder else (data_dir("corpora"), user_dir())
    return dict(_loaded(folders, tuple(_stamps(folders))))


def _stamps(folders: Iterable[Path]) -> Iterator[tuple[Path, int, int]]:
    """Yield what changes when a file does, for the cache: studies load hundreds of times."""
    for folder in folders:
        for path in sorted((*folder.glob("*.toml"), *folder.glob("own/*/*.toml"))):
            stat = path.stat()
            yield path, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=4)
def _loaded(
    folders: tuple[Path, ...], stamps: tuple[tuple[Path, int, int], ...]
) -> dict[str, Language]:
    shared: dict[str, Any] = {}
    for folder in folders:
        if (folder / "sources.toml").exists():
            shared |= read_toml(folder / "sources.toml")
    paths = [p for folder in folders for p in sorted(folder.glob("*.toml"))]
    languages = {p.stem: _language(p, shared) for p in paths if p.name != "sources.toml"}
    return {code: _with_own(languages[code], folders) for code in sorted(languages)}


def _language(path: Path, shared: Mapping[str, Any]) -> Language:
    raw = read_toml(path)
    check(raw, _LANGUAGE, path)
    if raw["code"] != path.stem:
        raise UsageError(f"code is {raw['code']!r}, the file is called {path.name}", where=path)
    if not _is_script(raw["script"]):
        raise UsageError(f"script is a code of ISO 15924, not {raw['script']!r}", where=path)
    limits = {key: (value_type, _OPTIONAL) for key, value_type in CLEAN.items()}
    check(raw.get("clean", {}), limits, path, "clean")
    sources = _sources(raw.pop("source"), shared, path)
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Language(**facts, sources=sources)


@functools.cache
def _is_script(code: str) -> bool:
    if code in SCRIPT_PARTS:
        return True
    try:
        return bool(re.fullmatch("[A-Z][a-z]{3}", code) and regex.compile(rf"\p{{Script={code}}}"))
    except regex.error:
        return False


def _sources(entries: Iterable[Any], shared: Mapping[str, Any], path: Path) -> tuple[Source, ...]:
    sources: dict[str, Source] = {}
    for entry in entries:
        used = entry.get("use") if isinstance(entry, dict) else None
        if not isinstance(used, str):
            raise UsageError("a [[source]] needs use = a name in sources.toml", where=path)
        if used not in shared:
            near = nearest(used, shared)
            raise UsageError(f"no source is called {used!r}{near}", where=path)
        name = str(entry.get("name", used))
        if name in sources:
            raise UsageError(f"two sources are called {name!r}: give one a name", where=path)
        own = {key: value for key, value in entry.items() if key not in {"use", "name"}}
        sources[name] = source(name, {**shared[used], **own}, path)
    return tuple(sources.values())


def source(name: str, raw: Mapping[str, Any], path: Path) -> Source:
    """Return a source from its table in the file `path`, every field checked."""
    check_name(name, path)
    kind = raw.get("kind")
    if kind not in _SETTINGS:
        near = nearest(str(kind), _SETTINGS)
        raise UsageError(f"{name}: unknown kind of source {kind!r}{near}", where=path)
    check(raw, {**_FACTS, **_SETTINGS[kind]}, path, name)
    if (given := raw["licence_class"]) not in LICENCE_CLASSES:
        classes = ", ".join(LICENCE_CLASSES)
        raise UsageError(f"{name}: licence_class is one of {classes}, not {given!r}", where=path)
    if kind == "files":
        for entry in raw["files"]:
            check(entry, _FILE, path, f"{name}.files")
    facts = {key: raw[key] for key in _FACTS if key in raw}
    settings = {key: value for key, value in raw.items() if key not in _FACTS}
    return Source(name=name, settings=settings, **facts)


def check_name(name: str, path: Path | None = None) -> None:
    """Raise `UsageError` for a source's name that cannot be part of ids and names of folders."""
    if not regex.fullmatch(r"[\p{L}\p{N}][\p{L}\p{M}\p{N}_.-]{0,39}", name):
        what = f"a source's name has up to 40 letters, digits, dots and hyphens, not {name!r}"
        raise UsageError(what, where=path)


def _with_own(language: Language, folders: Sequence[Path]) -> Language:
    sources = {s.name: s for s in language.sources}
    faults = {}
    for folder in folders:
        for path in sorted((folder / "own" / language.code).glob("*.toml")):
            try:
                if path.stem in sources:
                    raise UsageError(f"{language.name} already has a source called {path.stem}")
                sources[path.stem] = source(path.stem, read_toml(path), path)
            except UsageError as error:
                faults[str(path)] = error.what
    return replace(language, sources=tuple(sources.values()), faults=faults)


def get(word: str, folder: Path | None = None) -> Language:
    """Return the language a user named: by code, name, tag or locale (`language_names`).

    Raises `UsageError` for a word that means none, or several.
    """
    languages = load_all(folder)
    codes = _named(word, languages) or language_names.meanings(word, languages)
    if not codes:
        what = f"no corpus for a language called {word!r}{language_names.unknown(word, languages)}"
        raise UsageError(what, fix=f"one of: {' '.join(languages)}")
    if len(codes) > 1:
        which = " or ".join(f"{c} ({languages[c].name})" for c in codes)
        raise UsageError(f"{word!r} can mean {which}", fix="use the code")
    language = languages[codes[0]]
    for path, why in language.faults.items():
        raise UsageError(why, where=path, fix="correct or delete this file")
    return language


def code(word: str) -> str:
    """Return the code of the language that a word means; any other word unchanged."""
    try:
        return get(word).code
    except UsageError:
        return word


def is_name(word: str) -> bool:
    """Return whether a word is a code or a name in our own files."""
    return bool(_named(word, load_all()))


def _named(word: str, languages: Mapping[str, Language]) -> list[str]:
    name = language_names.plain(word)
    return [code for code, n in languages.items() if name in language_names.own_names(n)]
