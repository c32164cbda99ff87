"""How data say which option is right: a place from 0 or 1, a letter, its text, or one-hot.

All items of a language are looked at before any is asked, for one row alone can be read in more
than one way.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FROM_0, FROM_1, LETTER, TEXT, ONE_HOT = KINDS = ("from 0", "from 1", "letter", "text", "one-hot")
WORDS = {
    FROM_0: "count from 0",
    FROM_1: "count from 1",
    LETTER: "are letters",
    TEXT: "are options' texts",
    ONE_HOT: "are one-hot",
}
_FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False,
          "1.": True, "0.": False}  # fmt: skip
Pair = tuple[Any, Sequence[str]]
"""What a row's column says, and its options."""


class Contradiction(ValueError):
    """No one way to read them fits the golds; `kind` may be what the definition should say."""

    def __init__(self, what: str, kind: str = ""):
        super().__init__(what)
        self.kind = kind


def place(raw: Any, kind: str, options: Sequence[str]) -> int | None:
    """Return the place of the right option, from 0; None if a gold cannot be read so."""
    readers = {LETTER: _by_letter, TEXT: _by_text, ONE_HOT: _by_flags}
    if kind in readers:
        return readers[kind](raw, options)
    number = _number(raw)
    right = None if number is None else number - (kind == FROM_1)
    return right if right is not None and 0 <= right < len(options) else None


def kind_of(pairs: Sequence[Pair]) -> tuple[str, bool]:
    """Return the one of `KINDS` that fits the golds of all items, and whether only it does.

    Rows that can be read in no way do not count. Raises Contradiction.
    """
    fits = {kind: [place(*_pair(pair, kind)) for pair in pairs] for kind in KINDS}
    readable = [any(fits[kind][i] is not None for kind in KINDS) for i in range(len(pairs))]
    if not any(readable):
        return FROM_0, True
    whole = [
        kind
        for kind in KINDS
        if all(p is not None for p, ok in zip(fits[kind], readable, strict=True) if ok)
    ]
    if not whole:
        raise Contradiction(_mixed(pairs))
    if ONE_HOT in whole:
        return ONE_HOT, True
    readings = {kind: [p for p in fits[kind] if p is not None] for kind in whole}
    rival = next((k for k in whole if readings[k] != readings[whole[0]]), None)
    if rival is None or {whole[0], rival} == {FROM_0, FROM_1}:
        texts = [k for k in whole if k in (LETTER, TEXT) and readings[k] != readings[whole[0]]]
        if not texts:
            return whole[0], rival is None
        rival = texts[0]
    what = f"may {WORDS[whole[0]].replace('are', 'be')} or {WORDS[rival].replace('are', 'be')}"
    raise Contradiction(f"the golds {what}, and the data do not tell which")


def check(pairs: Sequence[Pair], kind: str) -> None:
    """Raise Contradiction if a definition's `gold_is` cannot be what the data mean."""
    if not pairs:
        return
    fitting = [place(*_pair(pair, kind)) is not None for pair in pairs]
    if all(fitting):
        return
    try:
        other, is_sure = kind_of(pairs)
    except Contradiction:
        return  # rows that do not fit are left out, and counted
    misread = not any(fitting) or {kind, other} == {FROM_0, FROM_1}
    if is_sure and other != kind and misread:
        readable = any(place(*_pair(pair, other)) is not None for pair in pairs)
        if readable:
            what = f"the definition says gold_is = {kind!r}, but all golds {WORDS[other]}"
            raise Contradiction(what, other)


def _pair(pair: Pair, kind: str) -> tuple[Any, str, Sequence[str]]:
    return pair[0], kind, pair[1]


def _mixed(pairs: Iterable[Pair]) -> str:
    """Say how many golds are of which kind."""
    counts = Counter(_one_kind(pair) for pair in pairs)
    words = [f"{n:,} {word}" for word, n in counts.most_common() if word]
    return f"the golds are not of one kind: {', '.join(words)}"


def _one_kind(pair: Pair) -> str:
    raw, options = pair
    number = _number(raw)
    if number is not None:
        if number == 0:
            return "count from 0"
        if number == len(options):
            return "count from 1"
        return "are other numbers"
    return next(
        (WORDS[k] for k in (LETTER, TEXT, ONE_HOT) if place(raw, k, options) is not None), ""
    )


def _single(raw: Any) -> str:
    """Return a gold's text; of a list that of its first entry."""
    entries = [e for e in (raw if isinstance(raw, list) else [raw]) if e is not None]
    text = unicodedata.normalize("NFKC", str(entries[0])) if entries else ""
    return " ".join(text.split())


def _number(raw: Any) -> int | None:
    if isinstance(raw, list) and len(raw) > 1:
        return None
    try:
        value = float(_single(raw))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _by_letter(raw: Any, options: Sequence[str]) -> int | None:
    """Read ``C``, ``(c)``, ``C.``, and ``C. Oslo`` where that is the third option."""
    match = re.fullmatch(r"\(?\s*([A-Za-z])\s*[.):]*(.*)", _single(raw))
    if not match:
        return None
    right = string.ascii_uppercase.find(match[1].upper())
    rest = match[2].strip()
    if right >= len(options) or (rest and _plain(rest) != _plain(options[right])):
        return None
    return right


def _by_text(raw: Any, options: Sequence[str]) -> int | None:
    words = _single(raw)
    exact = [i for i, option in enumerate(options) if " ".join(option.split()) == words]
    alike = exact or [i for i, option in enumerate(options) if _plain(option) == _plain(words)]
    return alike[0] if exact or len(alike) == 1 else None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .。।")


def _by_flags(raw: Any, options: Sequence[str]) -> int | None:
    """Read one flag for each option, of which one is set: a list, or its text in a table."""
    if isinstance(raw, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", raw, re.DOTALL):
        raw = re.findall(r"[\w.]+", raw)
    elif isinstance(raw, str):
        raw = re.split(r"[\s,;|]+", raw.strip())
    if isinstance(raw, Mapping) or not isinstance(raw, list) or len(raw) != len(options):
        return None
    flags = [_FLAGS.get(str(entry).strip().casefold()) for entry in raw]
    return flags.index(True) if None not in flags and flags.count(True) == 1 else None
