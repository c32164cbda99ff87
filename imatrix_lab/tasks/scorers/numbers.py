"""Numbers in text: digits of any script, and the decimal marks of a language."""

import math
import re
import unicodedata
from collections.abc import Sequence

PLACES = 2
"""Two numbers are the same when they agree to so many decimals."""

_SPACES = "\u00a0\u202f\u2009"


def plain_digits(text: str) -> str:
    """Return a text with the decimal digits of every script as 0 to 9, and ASCII signs."""
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() and not c.isascii() else _SIGNS.get(c, c)
        for c in text
    )


_SIGNS = {"−": "-", "٫": ".", "٬": ",", "，": ",", "．": "."}


def value(text: str, decimal: str = ".", groups: str = ",") -> float | None:
    """Return the number that a text is and nothing else, to `PLACES` decimals; None if it is none.

    A mark that cannot separate groups of three digits is taken for a decimal mark in languages
    that have that one: ``1.5`` is one and a half in German too, ``1.500`` is not.
    """
    text = plain_digits(text.strip())
    groups = _known(text, groups)
    whole = rf"\d{{1,3}}(?:[{re.escape(groups)}]\d{{3}})+" if groups else r"\d+"
    mark = re.escape(decimal)
    number = rf"[-+]?(?:(?P<whole>{whole}|\d+)(?:{mark}(?P<rest>\d*))?|{mark}(?P<bare>\d+))"
    found = re.fullmatch(number + r"(?P<power>[eE][-+]?\d{1,3})?", text)
    if not found:
        return value(text, ".", "") if decimal != "." else None
    digits = "".join(c for c in found["whole"] or "0" if c.isdecimal())
    sign = "-" if text.startswith("-") else ""
    rest = found["rest"] or found["bare"] or ""
    read = float(f"{sign}{digits}.{rest or '0'}{found['power'] or ''}")
    return round(read, PLACES) if math.isfinite(read) else None


def find(text: str, decimal: str = ".", groups: str = ",") -> list[float]:
    """Return the numbers in a text, in order."""
    text = plain_digits(text)
    marks = re.escape(decimal + ".")
    between = re.escape(_known(text, groups))
    grouped = rf"\d{{1,3}}(?:[{between}]\d{{3}})+(?!\d)" if between else r"(?!)"
    pattern = rf"(?<![\w.])-?(?:{grouped}|\d+|(?=[{marks}]\d))(?:[{marks}]\d+)?(?:[eE][-+]?\d+)?"
    read = (value(m[0], decimal, groups) for m in re.finditer(pattern, text))
    return [number for number in read if number is not None]


def _known(text: str, groups: str) -> str:
    """Return the marks of groups; a language that has a space has the narrow ones too."""
    return groups + _SPACES if " " in groups else groups


def answer(text: str, phrases: Sequence[str], decimal: str, groups: str) -> float | None:
    """Return the number a solution ends with: after the last announcing phrase, or the last one.

    Parameters
    ----------
    phrases : what announces an answer, such as «the answer is».
    """
    flat = plain_digits(text)
    lowered = flat.lower()
    ends = [lowered.rfind(phrase.lower()) + len(phrase) for phrase in phrases
            if phrase.lower() in lowered]  # fmt: skip
    if ends and (after := find(flat[max(ends) :], decimal, groups)):
        return after[0]
    every = find(flat, decimal, groups)
    return every[-1] if every else None
