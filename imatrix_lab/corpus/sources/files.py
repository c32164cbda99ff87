"""The user's own text: txt, jsonl or parquet files of any size, read where they are."""

import hashlib
import itertools
import json
import re
import shlex
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
from imatrix_lab.corpus.sources.base import Pinned, check_unchanged, row_id
from imatrix_lab.errors import BadText, UsageError
from imatrix_lab.types import Document

PIECE_CHARS_MAX = 1 << 20

_CLASSES = {
    "public-domain": r"CC0|PDDL|Unlicense|0BSD|public.domain",
    "permissive": r"MIT|BSD|Apache|ISC|Zlib|ODC-By|CC-BY-\d",
    "share-alike": r"CC-BY-SA-\d|ODbL",
}


def add(paths: Sequence[Path], code: str, name: str, licence: str, field: str = "") -> Source:
    """Register the user's files as a source of a language, in a file of `user_dir`; return it.

    The texts stay where they are; `field` holds the text in jsonl and parquet (default ``text``).
    """
    language = languages.get(code)
    languages.check_name(name)
    target = user_dir() / "own" / language.code / f"{name}.toml"
    if not target.exists() and name in {s.name for s in language.sources}:
        raise UsageError(f"{language.name} has a source called {name} already", fix="--name OTHER")
    entries = [_entry(path) for path in paths]
    if len({Path(e["path"]).name for e in entries}) < len(entries):
        raise UsageError("two of these files have the same name, but ids are made of names")
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
    """Return the class of an SPDX expression; an unknown licence counts as the strictest."""

    def class_of(name: str) -> str:
        fits = (c for c, pattern in _CLASSES.items() if re.match(pattern, name, re.IGNORECASE))
        return next(fits, "copyleft")

    names = re.split(r"\s+(?:AND|OR|WITH)\s+", licence)
    return max(map(class_of, names), key=languages.LICENCE_CLASSES.index)


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
        raise UsageError(f"{path.name} is not one of {', '.join(_READERS)}", where=path)
    return _READERS[path.suffix]


def _toml(value: Any) -> str:
    """Return a string, a number, or a list of tables as TOML, in which JSON's strings are valid."""
    if isinstance(value, list):
        tables = (", ".join(f"{k} = {_toml(v)}" for k, v in entry.items()) for entry in value)
        return "[\n" + "".join(f"  {{ {table} }},\n" for table in tables) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def reach(source: Source, session: Session) -> Pinned:
    """Check that the files are as they were added; hash only one whose time has changed."""
    fix = _add_again(source)
    for entry in source.settings["files"]:
        path = Path(entry["path"])
        try:
            facts = path.stat()
        except OSError as error:
            what = f"the text {source.name} is missing: {error.strerror}"
            raise BadText(what, where=path, fix=fix) from error
        is_same = facts.st_size == entry["size_bytes"] and (
            facts.st_mtime_ns == entry["mtime_ns"] or sha256_file(path) == entry["sha256"]
        )
        if not is_same:
            raise BadText(f"the text {source.name} has changed", where=path, fix=fix)
    return Pinned(source, "own", sha256_of(source))


def _add_again(source: Source) -> str:
    """Return the command that takes a source's files as they are now."""
    files = shlex.join(entry["path"] for entry in source.settings["files"])
    known = (user_dir() / "own").glob(f"*/{source.name}.toml")
    code = next((path.parent.name for path in known), "LANGUAGE")
    field = source.settings.get("field", "")
    fix = f"imatrix-lab corpus add {files} --lang {code} --name {source.name}"
    fix += f" --licence {shlex.quote(source.licence)}"
    return fix + (f" --field {shlex.quote(field)}" if field else "")


def sha256_of(source: Source) -> str:
    """Return the sha256 of the list of the files' sha256, as they were when they were added."""
    digests = "\n".join(e["sha256"] for e in source.settings["files"])
    return hashlib.sha256(digests.encode()).hexdigest()


def documents(pinned: Pinned, language: Language, session: Session) -> Iterator[Document]:
    """Yield the documents of every file, streamed."""
    source = pinned.source
    check_unchanged(pinned, reach(source, session), language)
    field = str(source.settings.get("field", "text"))
    for entry in source.settings["files"]:
        path = Path(entry["path"])
        for key, text in _reader(path)(path, field):
            if text := tidy(text):
                document_id = f"{source.name}/{path.name}/{key}"
                yield Document(document_id, text, source.name, source.licence)


def text_file(path: Path, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield (number, text): cut at form feeds if the first MiB has any, else after each page."""
    with path.open("rb") as file:
        has_feeds = b"\f" in file.read(PIECE_CHARS_MAX)
    chars = PIECE_CHARS_MAX if has_feeds else DOCUMENT_CHARS
    pages = _pages(path) if has_feeds else [paragraphs(_lines(path))]
    texts = itertools.chain.from_iterable(gathered(page, chars) for page in pages)
    for number, text in enumerate(texts):
        yield f"{number:06d}", text


def _pages(path: Path) -> Iterator[Iterator[str]]:
    """Yield the paragraphs of each page; a page must be read to its end before the next."""
    for _, page in itertools.groupby(_numbered(path), key=lambda entry: entry[0]):
        yield paragraphs(line for _, line in page)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    page = 0
    for line in _lines(path):
        for i, part in enumerate(line.split("\f")):
            page += i > 0
            yield page, part


def _lines(path: Path) -> Iterator[str]:
    for line in lines(path, PIECE_CHARS_MAX):
        yield from line.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def jsonl_file(path: Path, field: str = "text") -> Iterator[tuple[str, str]]:
    """Yield (id and number, text) of a file with a JSON object on each line; see `json_texts`."""
    for number, entry, text in json_texts(path, field):
        yield row_id(number, entry.get("id")), text


def parquet_file(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Yield (id and number, text) of a Parquet file; `BadText` if it has no such column."""
    for number, row in enumerate(parquet_rows(path, [field, "id"])):
        if field not in row:
            raise BadText(f"this file has no column {field}", where=path, fix="--field NAME")
        if isinstance(row[field], str):
            yield row_id(number, row.get("id")), row[field]


_READERS = {".txt": text_file, ".jsonl": jsonl_file, ".parquet": parquet_file}
