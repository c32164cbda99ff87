"""The user's own text: files of any size, read where they are."""

import contextlib
import hashlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import sha256_file, write_whole
from imatrix_lab.core.names import HALVES, readable
from imatrix_lab.core.outputs import Other, Rules, any_file, check_file
from imatrix_lab.core.paths import user_dir
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import languages, opened
from imatrix_lab.corpus.documents import DOCUMENT_CHARS, gathered, lines, paragraphs, tidy
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources.base import Pinned, check_unchanged, row_id
from imatrix_lab.corpus.tables import JSON_LINES, PARQUET, TEXT
from imatrix_lab.corpus.user_text import UserText
from imatrix_lab.errors import BadText, UsageError
from imatrix_lab.types import Document

PIECE_CHARS_MAX = 1 << 20

_BY_SUFFIX = {".txt": TEXT, ".jsonl": JSON_LINES, ".parquet": PARQUET}
"""What a source's files are if it does not say."""

_CLASSES = {
    "public-domain": r"CC0|PDDL|Unlicense|0BSD|public.domain",
    "permissive": r"MIT|BSD|Apache|ISC|Zlib|ODC-By|CC-BY-\d",
    "share-alike": r"CC-BY-SA-\d|ODbL",
}


def add(
    paths: Sequence[Path],
    code: str,
    name: str,
    licence: str,
    field: str = "",
    rules: Rules | None = None,
) -> Source:
    """Register the user's files as a source of a language, in a file of `user_dir`; return it.

    The texts stay where they are; `field` is the column with the text, in files with rows.
    """
    language = languages.get(code)
    languages.check_name(name)
    target = registration(language.code, name)
    if not target.exists() and name in {s.name for s in language.sources}:
        raise UsageError(f"{language.name} has a source called {name} already", fix="--name OTHER")
    texts = [UserText(path, field) for path in paths]
    for text in texts:
        next(text.passages() if text.has_rows else text.paragraphs())  # raises without any
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
        "field": _column(texts) or "text",
    }
    if any(text.format != _BY_SUFFIX.get(text.path.suffix) for text in texts):
        raw["format"] = ", ".join(text.format for text in texts)
    source = languages.source(name, raw, target)
    check_file(target, rules or Rules(), _other_than([e["path"] for e in entries]))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, "".join(f"{key} = {_toml(value)}\n" for key, value in raw.items()))
    return source


def registration(code: str, name: str) -> Path:
    """Return the file that makes the user's text a source of a language; without it, it is none."""
    return user_dir() / "own" / code / f"{name}.toml"


def _other_than(paths: Sequence[str]) -> Other:
    """Return what tells sources of other files from one of these, which may have changed."""

    def other(path: Path) -> str:
        with contextlib.suppress(tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError):
            old = [e["path"] for e in tomllib.loads(path.read_text(encoding="utf-8"))["files"]]
            if sorted(old) == sorted(paths):
                return ""
            return f"a source of other files: {', '.join(Path(p).name for p in old)[:200]}"
        return any_file(path)

    return other


def licence_class(licence: str) -> str:
    """Return the class of an SPDX expression; an unknown licence counts as the strictest."""

    def class_of(name: str) -> str:
        fits = (c for c, pattern in _CLASSES.items() if re.match(pattern, name, re.IGNORECASE))
        return next(fits, "copyleft")

    names = re.split(r"\s+(?:AND|OR|WITH)\s+", licence)
    return max(map(class_of, names), key=languages.LICENCE_CLASSES.index)


def _entry(path: Path) -> dict[str, Any]:
    path = path.absolute()
    if HALVES.search(str(path)):  # a source is a TOML file, which is text
        raise UsageError("this name is not text", where=readable(path), fix="rename the file")
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


def _column(texts: Sequence[UserText]) -> str:
    columns = {text.column: text.path.name for text in texts if text.column}
    if len(columns) > 1:
        places = ", ".join(f"{column} of {name}" for column, name in columns.items())
        what = f"the text is in different columns: {places}"
        raise UsageError(what, fix="add each file under a name of its own, or --field NAME")
    return next(iter(columns), "")


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
    for entry in source.settings["files"]:
        file = UserText(Path(entry["path"]), str(source.settings.get("field", "")))
        try:
            for key, text in _texts(file):
                if text := tidy(text):
                    document_id = f"{source.name}/{file.path.name}/{key}"
                    yield Document(document_id, text, source.name, source.licence)
        finally:
            file.say(session.progress.say)


def _texts(file: UserText) -> Iterator[tuple[str, str]]:
    """Yield (number, perhaps after an id of its own, and text) of pages or rows."""
    if not file.has_rows:
        yield from text_file(file.path)
        return
    for passage in file.passages():
        yield row_id(passage.number, passage.row.get("id")), passage.text


def text_file(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (number, text): cut at form feeds if the first MiB has any, else after each page."""
    with opened.opened(path) as file:
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
