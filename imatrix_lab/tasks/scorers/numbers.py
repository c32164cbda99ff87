"""Numbers in text: digits of any script, and the decimal marks of a language."""

import math
import re
import unicodedata
from collections.abc import Sequence

from imatrix_lab.tasks.locale import Numbers

PLACES = 2
"""Two numbers are the same when they agree to so many decimals."""
ENGLISH = Numbers(".", ",")
_SPACES = "\u00a0\u202f\u2009"
_SIGNS = {"−": "-", "٫": ".", "٬": ",", "，": ",", "．": "."}


def plain_digits(text: str) -> str:
    """Return a text with the decimal digits of every script as 0 to 9, and ASCII signs."""
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else _SIGNS.get(c, c)
        for c in text
    )


def value(text: str, marks: Numbers = ENGLISH) -> float | None:
    """Return the number that a text is and nothing else, to `PLACES` decimals; None if it is none.

    A mark that cannot separate groups of three digits is taken for a decimal mark in languages
    that have that one: ``1.5`` is one and a half in German too, ``1.500`` is not.
    """
    text = plain_digits(text.strip())
    groups = _group_marks(marks)
    whole = rf"\d{{1,3}}(?:[{groups}]\d{{3}})+" if groups else r"\d+"
    mark = re.escape(marks.decimal)
    pattern = rf"[-+]?(?:(?P<whole>{whole}|\d+)(?:{mark}(?P<rest>\d*))?|{mark}(?P<bare>\d+))"
    match = re.fullmatch(pattern + r"(?P<power>[eE][-+]?\d{1,3})?", text)
    if not match:
        return value(text, Numbers(".", "")) if marks.decimal != "." else None
    digits = "".join(c for c in match["whole"] or "0" if c.isdecimal())
    sign = "-" if text.startswith("-") else ""
    rest = match["rest"] or match["bare"] or "0"
    number = float(f"{sign}{digits}.{rest}{match['power'] or ''}")
    return round(number, PLACES) if math.isfinite(number) else None


def find(text: str, marks: Numbers = ENGLISH) -> list[float]:
    """Return the numbers in a text, in order."""
    decimal, groups = re.escape(marks.decimal + "."), _group_marks(marks)
    grouped = rf"\d{{1,3}}(?:[{groups}]\d{{3}})+(?!\d)" if groups else r"(?!)"
    whole = rf"(?<![\w.])-?(?:{grouped}|\d+|(?=[{decimal}]\d))"
    pattern = rf"{whole}(?:[{decimal}]\d+)?(?:[eE][-+]?\d+)?"
    values = (value(word, marks) for word in re.findall(pattern, plain_digits(text)))
    return [number for number in values if number is not None]


def _group_marks(marks: Numbers) -> str:
    """Return marks of groups for a pattern; a language with a space has the narrow ones too."""
    return re.escape(marks.groups + _SPACES if " " in marks.groups else marks.groups)


def answer(text: str, phrases: Sequence[str], marks: Numbers) -> float | None:
    """Return the number after the last phrase such as «the answer is», else the last one."""
    text = plain_digits(text)
    lower = text.lower()
    ends = [lower.rfind(p.lower()) + len(p) for p in phrases if p.lower() in lower]
    if ends and (after := find(text[max(ends) :], marks)):
        return after[0]
    every = find(text, marks)
    return every[-1] if every else None
