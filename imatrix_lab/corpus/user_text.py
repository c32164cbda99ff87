"""Text of the user's own: one reader for every command that takes some.

A file is plain text, or has rows of which one column is the text. A row's text may be a string, a
list of paragraphs, or a chat, whose messages are its paragraphs.
"""

import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.names import readable
from imatrix_lab.corpus import opened, tables
from imatrix_lab.corpus.documents import JOINT, lines
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

SAMPLE_ROWS = 64
_PARAGRAPH_CHARS_MAX = 1 << 24
"""Longer ones are cut, so that no file need be read whole."""
_PROSE_CHARS = 20
"""Columns whose texts are shorter, as a rule, are names and labels."""
_PARTS = ("content", "text", "value")
"""Keys of a chat's message, or of a part of one, that have its text."""
_ABOUT = re.compile(r"(.*_)?(id|uuid|hash|sha\d*|md5|url|uri|link|file|path|date|time|timestamp)")
BESIDE = ("id", "source", "licence")


@dataclass(frozen=True)
class Passage:
    """The text of one row, its number (see `tables.rows`), and the row."""

    number: int
    text: str
    row: Mapping[str, Any]


class UserText:
    """A file of text; `format` is `tables.TEXT`, or one with rows, whose text is in `column`.

    Raises `BadText` at once for what is no text, a column that is not there, or no one column.
    `column` is "" where rows are texts themselves. `left_out` counts rows by reason.
    """

    def __init__(self, path: Path, field: str = ""):
        self.path, self.field = path, field
        self.name, self.stem = readable(path.name), readable(path.stem)
        self.format = tables.format_of(path)
        self.column = ""
        self.left_out: Counter[str] = Counter()
        self.n_rows = self.first_left_out = 0
        if self.has_rows:
            sample = [row for _, row in itertools.islice(tables.rows(path), SAMPLE_ROWS)]
            self.column = _column(sample, field, path)

    @property
    def has_rows(self) -> bool:
        """Whether it is more than plain text."""
        return self.format != tables.TEXT

    @property
    def is_exact(self) -> bool:
        """Whether it is plain text that needs no conversion: then its bytes are the text."""
        return not self.has_rows and opened.is_as_it_is(self.path)

    def passages(self, keep_blank: bool = False) -> Iterator[Passage]:
        """Yield the texts of the rows, streamed; `BadText` if no row has any.

        With `keep_blank` also those that are empty or blank, which may then be all.
        """
        self.left_out.clear()
        self.n_rows = n_texts = 0
        needed = list(dict.fromkeys([self.column, *BESIDE])) if self.column else None
        for number, value in tables.rows(self.path, needed):
            self.n_rows += 1
            row = value if isinstance(value, Mapping) else {}
            text, problem = self._text(value, keep_blank)
            if problem:
                self.first_left_out = self.first_left_out if self.left_out else number
                self.left_out[problem] += 1
                continue
            n_texts += 1
            yield Passage(number, text, row)
        if not self.n_rows and not keep_blank:
            raise BadText("this file has no rows", where=self.path, fix="check the file")
        if self.n_rows and not n_texts:
            reasons = "; ".join(f"{n:,} {why}" for why, n in self.left_out.items())
            what = f"this file has no text in its {self.n_rows:,} rows{self._in()}: {reasons}"
            raise BadText(what, where=self.path, fix="--field NAME, or another file")

    def _text(self, value: Any, keep_blank: bool) -> tuple[str, str]:
        """Return (text, "") of a row, or ("", why it has none)."""
        if isinstance(value, Mapping):
            if None in value:
                return "", "with more cells than columns"
            value = value.get(self.column)
        text = text_of(value)
        if text is None or not (keep_blank or text.strip()):
            return "", "without text"
        try:
            text.encode()  # JSON can spell half a character
        except UnicodeEncodeError:
            return "", "not in UTF-8" if isinstance(value, bytes) else "with half a character"
        return text, ""

    def _in(self) -> str:
        return f" (column {self.column})" if self.column else ""

    def documents(self, keep_cr: bool = False) -> Iterator[Document]:
        """Yield a document for each row, or one for a plain text.

        Id, source and licence are the row's own, if it has them; `BadText` if an id repeats.
        """
        if not self.has_rows:
            yield Document(self.stem, self.whole(keep_cr), self.name, "unknown")
            return
        ids: set[str] = set()
        for passage in self.passages(keep_blank=True):
            own = passage.row.get("id")
            document_id = str(own or f"{self.stem}/{passage.number:06d}")
            if document_id in ids:
                what = f"the id {document_id!r} occurs twice: again in row {passage.number}"
                raise BadText(what, where=self.path, fix="a file with other ids, or with none")
            ids.add(document_id)
            facts = (str(passage.row.get(key) or "unknown") for key in BESIDE[1:])
            yield Document(document_id, passage.text, *facts)

    def whole(self, keep_cr: bool = False) -> str:
        r"""Return a plain text with ``\n`` line ends, or with `keep_cr` as llama.cpp reads it."""
        if not keep_cr:
            return "".join(tables.plain_text(self.path))
        with opened.opened(self.path) as file:
            try:
                return file.read().decode()
            except UnicodeDecodeError:
                list(lines(self.path))  # raises, with the place
                raise

    def paragraphs(self) -> Iterator[str]:
        """Yield texts to be joined by blank lines: of the rows, or a plain text's paragraphs.

        Joined, a plain text's paragraphs are the text, but for blanks around it.
        """
        if self.has_rows:
            for passage in self.passages():
                yield passage.text.replace("\r\n", "\n").replace("\r", "\n").strip()
            return
        last: list[str] = []  # the last one with text, and blank ones after it
        for part in _split(tables.plain_text(self.path)):
            if not part.strip():
                last += [part] if last else []
                continue
            yield from last
            last = [part if last else part.lstrip()]
        if not last:
            raise BadText("this text is empty", where=self.path, fix="check the file")
        yield last[0].rstrip()

    def say(self, say: Callable[[str], None]) -> None:
        """Tell which column was read, where that was chosen, and which rows were left out."""
        if self.column not in ("", "text", self.field):
            say(f"note: {self.name} is read as {self.format}, its text from {self.column}")
        if self.left_out:
            n = sum(self.left_out.values())
            reasons = ", ".join(f"{k:,} {why}" for why, k in self.left_out.items())
            what = f"{n:,} of {self.n_rows:,} rows{self._in()} left out: {reasons}"
            say(f"note: {self.name}: {what}; the first is row {self.first_left_out}")


def _split(pieces: Iterator[str]) -> Iterator[str]:
    """Yield what stands between blank lines, as `str.split` of the whole would; not too much."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split(JOINT)
        yield from whole
        if len(rest) > _PARAGRAPH_CHARS_MAX:
            yield rest
            rest = ""
    yield rest


def text_of(value: Any) -> str | None:
    """Return the text of a string, a list of paragraphs, a message or a chat; None: it has none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return next((text for key in _PARTS if (text := text_of(value.get(key)))), None)
    if isinstance(value, list | tuple):
        texts = [text for entry in value if (text := text_of(entry)) and text.strip()]
        return JOINT.join(texts) if texts else None
    return None


def _column(rows: Sequence[Any], field: str, path: Path) -> str:
    """Return the column with the text: the one asked for, a usual one, or the only one."""
    names = tables.columns_of(rows)
    listed = ", ".join(names)
    if not names:  # rows are texts
        return ""
    if field and field not in names:
        what = f"this file has no column {field}; it has: {listed}"
        raise BadText(what, where=path, fix=f"--field {_best(rows, names)}")
    if field:
        return field
    usual = [n for key in tables.TEXT_COLUMNS for n in names if n.lower() == key]
    if known := next((name for name in usual if _texts(rows, name)), ""):
        return known
    written = [name for name in names if _texts(rows, name)]
    words = [
        name
        for name in written
        if not _ABOUT.fullmatch(name.lower()) and any(map(str.isalpha, "".join(_texts(rows, name))))
    ]
    prose = [name for name in words if _is_prose(_texts(rows, name))]
    if not prose and not _has_nested(rows, {*names} - {*written}):  # which may hold the text
        prose = words or usual
    if len(prose) == 1:
        return prose[0]
    if not prose:
        fix = f"--field {words[0]}, or another file" if words else "another file"
        raise BadText(f"no column of this file is text: {listed}", where=path, fix=fix)
    what = f"this file has no column text; which is its text: {listed}?"
    raise BadText(what, where=path, fix=f"--field {_best(rows, names)}")


def _texts(rows: Sequence[Any], name: str) -> list[str]:
    values = (text_of(row.get(name)) for row in rows if isinstance(row, Mapping))
    return [text for text in values if text and text.strip()]


def _has_nested(rows: Sequence[Any], names: set[str]) -> bool:
    values = (row.get(name) for row in rows if isinstance(row, Mapping) for name in names)
    return any(value and isinstance(value, dict | list) for value in values)


def _is_prose(texts: Sequence[str]) -> bool:
    return statistics.fmean(map(len, texts)) >= _PROSE_CHARS


def _best(rows: Sequence[Any], names: Sequence[str]) -> str:
    """Return the column with the longest texts."""
    length = {name: sum(map(len, _texts(rows, name))) for name in names}
    return max(names, key=length.__getitem__, default="text")
