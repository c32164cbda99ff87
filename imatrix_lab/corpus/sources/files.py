"""The user's own text: txt, jsonl or parquet of any size, read where it lies."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import sha256_file, write_whole
from imatrix_lab.core.paths import user_dir
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.documents import (
    DOCUMENT_CHARS,
    gathered,
    json_texts,
    lines,
    paragraphs,
    parquet_rows,
    tidy,
)
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned, row_id, still_the_same
from imatrix_lab.errors import BadText, UsageError
from imatrix_lab.types import Document

PIECE_CHARS_MAX = 1 << 20

_CLASSES = {
    "public-domain": r"CC0|PDDL|Unlicense|0BSD|public.domain",
    "permissive": r"MIT|BSD|Apache|ISC|Zlib|ODC-By|CC-BY-\d",
    "share-alike": r"CC-BY-SA-\d|ODbL",
}


def add(paths: Sequence[Path], code: str, name: str, licence: str, field: str = "") -> Source:
    """Register texts of the user's as a source of a language; return it.

    The files stay where they are. They are read once, for their sha256; nothing else of the
    user's is changed than one file in `languages.user_dir`, which an earlier text of that
    language and name leaves to this one.

    Parameters
    ----------
    field : of jsonl and parquet, which holds the text (default ``text``).

    Raises
    ------
    UsageError : no such language, a name that does not do, or a file of another kind.
    BadText : a file that is not there.
    """
    language = languages.get(code)
    languages.check_name(name)
    target = user_dir() / "own" / language.code / f"{name}.toml"
    if not target.exists() and name in {s.name for s in language.sources}:
        raise UsageError(f"{language.name} has a source called {name} already", fix="--name OTHER")
    entries = [_entry(path) for path in paths]
    if len({Path(e["path"]).name for e in entries}) < len(entries):
        raise UsageError("two of these files have one name, and ids are made of names")
    raw: dict[str, Any] = {
        "kind": "files",
        "licence": licence,
        "licence_class": licence_class(licence),
        "origin": f"own text: {name}",
        "note": ", ".join(Path(e["path"]).name for e in entries)[:200],
        "files": entries,
    }
    if field:
        raw["field"] = field
    source = languages.source(name, raw, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, "".join(f"{key} = {_toml(value)}\n" for key, value in raw.items()))
    return source


def licence_class(licence: str) -> str:
    """Return the class of an SPDX expression; what is not known counts as the strictest."""
    parts = re.split(r"\s+(?:AND|OR|WITH)\s+", licence)
    fitting = []
    for part in parts:
        found = [c for c, pattern in _CLASSES.items() if re.match(pattern, part, re.IGNORECASE)]
        fitting.append(found[0] if found else "copyleft")
    return max(fitting, key=languages.LICENCE_CLASSES.index)


def _entry(path: Path) -> dict[str, Any]:
    path = path.absolute()
    _reader(path)
    try:
        facts = path.stat()
        return {
            "path": str(path),
            "sha256": sha256_file(path),
            "size_bytes": facts.st_size,
            "mtime_ns": facts.st_mtime_ns,
        }
    except OSError as error:
        raise BadText(f"this text cannot be read: {error.strerror}", where=path) from error


def _reader(path: Path) -> Callable[[Path, str], Iterator[tuple[str, str]]]:
    if path.suffix not in _READERS:
        raise UsageError(f"{path.name} is none of {', '.join(_READERS)}", where=path)
    return _READERS[path.suffix]


def _toml(value: Any) -> str:
    """Return a string, a number, or a list of tables as TOML, in which JSON's strings are valid."""
    if isinstance(value, list):
        tables = (", ".join(f"{k} = {_toml(v)}" for k, v in entry.items()) for entry in value)
        return "[\n" + "".join(f"  {{ {table} }},\n" for table in tables) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def reach(source: Source, session: Session) -> Pinned:
    """Look whether the files are as they were added; hash only one whose time has changed."""
    for entry in source.settings["files"]:
        path = Path(entry["path"])
        again = f"imatrix-lab corpus add … --name {source.name}"
        try:
            facts = path.stat()
        except OSError as error:
            raise BadText(
                f"the text {source.name} is gone: {error.strerror}", where=path, fix=again
            ) from error
        same = facts.st_size == entry["size_bytes"] and (
            facts.st_mtime_ns == entry["mtime_ns"] or sha256_file(path) == entry["sha256"]
        )
        if not same:
            raise BadText(f"the text {source.name} has changed", where=path, fix=again)
    return Pinned(source, "own", sha256_of(source))


def sha256_of(source: Source) -> str:
    """Return the sha256 of the list of theirs, as the files were when they were added."""
    return hashlib.sha256(
        "\n".join(e["sha256"] for e in source.settings["files"]).encode()
    ).hexdigest()


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield the documents of every file, streamed."""
    source = pinned.source
    still_the_same(pinned, reach(source, session), language)
    field = str(source.settings.get("field", "text"))
    for entry in source.settings["files"]:
        path = Path(entry["path"])
        for key, text in _reader(path)(path, field):
            if text := tidy(text):
                name = f"{source.name}/{path.name}/{key}"
                yield Document(name, text, source.name, source.licence)


def text_file(path: Path, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield (number, text) of a plain text: at form feeds, or at paragraphs, about a page each.

    Whether there are form feeds is seen from the first mebibyte.
    """
    with path.open("rb") as file:
        whole = b"\f" in file.read(PIECE_CHARS_MAX)
    chars = PIECE_CHARS_MAX if whole else DOCUMENT_CHARS
    number = 0
    pages = _pages(path) if whole else [paragraphs(_lines(path))]
    for page in pages:
        for text in gathered(page, chars):
            yield f"{number:06d}", text
            number += 1


def _pages(path: Path) -> Iterator[Iterator[str]]:
    """Yield the paragraphs of each page; a page must be read to its end before the next."""
    found = _lines(path)
    rest: list[str] = []
    over = False

    def page() -> Iterator[str]:
        nonlocal over
        while True:
            line = rest.pop() if rest else next(found, None)
            if line is None:
                over = True
                return
            before, feed, after = line.partition("\f")
            yield before
            if feed:
                rest.append(after)
                return

    while not over:
        yield paragraphs(page())


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text, however they end, very long ones in pieces."""
    for line in lines(path, PIECE_CHARS_MAX):
        yield from line.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def jsonl_file(path: Path, field: str = "text") -> Iterator[tuple[str, str]]:
    """Yield (id and number, text) of a file with a JSON object a line; see `json_texts`."""
    for number, entry, text in json_texts(path, field):
        yield row_id(number, entry.get("id")), text


def parquet_file(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Yield (id and number, text) of a Parquet file.

    Raises
    ------
    BadText : not a Parquet file, or none with such a column of strings.
    """
    for number, row in enumerate(parquet_rows(path, [field, "id"])):
        if field not in row:
            raise BadText(f"there is no column {field}", where=path, fix="--field NAME")
        if isinstance(row[field], str):
            yield row_id(number, row.get("id")), row[field]


_READERS = {
    ".txt": text_file,
    ".jsonl": jsonl_file,
    ".parquet": parquet_file,
}
