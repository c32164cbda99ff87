"""Languages are data: ``corpora/<code>.toml``. Adding one touches no code."""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.errors import UsageError

_KEYS = {"code", "name", "native_name", "script", "aliases", "source"}


@dataclass(frozen=True)
class Source:
    """Files of one source that hold text in a language.

    Attributes
    ----------
    name, kind, version, sha256, licence, origin, note : the pinned source, from ``sources.toml``.
    files : paths inside it.
    """

    name: str
    kind: str
    version: str
    sha256: str
    licence: str
    origin: str
    note: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """One language: BCP 47 code, names, ISO 15924 script, other codes meant, sources in order."""

    code: str
    name: str
    native_name: str
    script: str
    aliases: tuple[str, ...]
    sources: tuple[Source, ...]


def data_dir(name: str) -> Path:
    """Return a folder of data files: the checkout's, or the wheel's copy."""
    packaged = Path(__file__).parent / "_data" / name
    return packaged if packaged.exists() else Path(__file__).parent.parent / name


def load_all(folder: Path | None = None) -> dict[str, Language]:
    """Return every language by code.

    Raises
    ------
    UsageError : a file with an unknown key, an unknown source, or a code that is not its name.
    """
    folder = folder or data_dir("corpora")
    return dict(_load_all(folder))


@functools.cache
def _load_all(folder: Path) -> tuple[tuple[str, Language], ...]:
    pinned = _read(folder / "sources.toml")
    found = []
    for path in sorted(folder.glob("*.toml")):
        if path.name != "sources.toml":
            language = _parse(path, _read(path), pinned)
            found.append((language.code, language))
    return tuple(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not valid TOML: {error}", where=path) from error


def _parse(path: Path, raw: dict[str, Any], pinned: dict[str, Any]) -> Language:
    for key in raw:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise UsageError(
                f"unknown key {key!r}" + (f"; {near[0]!r}?" if near else ""), where=path
            )
    try:
        sources = tuple(
            Source(name=s["use"], files=tuple(s["files"]), **pinned[s["use"]])
            for s in raw["source"]
        )
        language = Language(
            raw["code"], raw["name"], raw["native_name"], raw["script"],
            tuple(raw["aliases"]), sources,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise UsageError(f"missing or misplaced key {error}", where=path) from error
    if language.code != path.stem:
        raise UsageError(f"code is {language.code!r}, the file is called {path.name}", where=path)
    return language


def get(word: str, folder: Path | None = None) -> Language:
    """Return the language a user named by code, alias or name.

    Raises
    ------
    UsageError : none is called that; the message lists what there is.
    """
    languages = load_all(folder)
    wanted = word.strip().casefold()
    for language in languages.values():
        names = (language.code, *language.aliases, language.name, language.native_name)
        if wanted in {n.casefold() for n in names}:
            return language
    near = difflib.get_close_matches(wanted, languages, 3, 0.5)
    raise UsageError(
        f"no corpus for a language called {word!r}"
        + (f" (near: {', '.join(near)})" if near else ""),
        fix=f"one of: {' '.join(languages)}",
    )
