"""Whether a short answer in free text is right: MixEval's rule for free form.

After Ni et al., 2024 (arXiv 2406.06565). Of each line, the key is the shortest text that follows
the last of a word such as «is» or «answer» (or ``=``, in the last line); without any, the whole
answer is the key. A key is right when a gold answer is in it, in whatever case, or when a number
in it is a gold number.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers import numbers

_ALONE = frozenset(":,.!?;'।。")


@dataclass(frozen=True)
class Match:
    """What was read from an answer, and whether it is right.

    Attributes
    ----------
    keys : the parts of the answer that were compared with the gold answers.
    gold : the gold answer that was found; empty where none was.
    """

    is_right: bool
    keys: tuple[str, ...]
    gold: str = ""


def match(answer: str, golds: Sequence[str], speech: Speech) -> Match:
    """Compare an answer with the gold answers."""
    keys = key_parts(answer, speech)
    found_numbers = set(_numbers(keys, speech))
    texts = [key for key in keys if _value(key, speech) is None]
    for gold in golds:
        wanted = _value(gold, speech)
        if wanted is not None:
            if wanted in found_numbers:
                return Match(True, keys, gold)
        elif any(_contains(text, gold) for text in texts):
            return Match(True, keys, gold)
    return Match(False, keys)


def key_parts(answer: str, speech: Speech) -> tuple[str, ...]:
    """Return the parts of an answer that may hold the short answer, in lower case."""
    whole = numbers.plain_digits(unicodedata.normalize("NFC", answer)).strip().strip(".").lower()
    lines = whole.split("\n")
    keys = []
    for line in lines:
        tails = list(_tails(line, speech))
        if line is lines[-1] and "=" in line:
            tails.append(line.rpartition("=")[2].strip())
        if tails:
            key = min(tails, key=len)
            if key not in _ALONE:
                keys.append(key)
    return tuple(keys) or (whole,)


def _tails(line: str, speech: Speech) -> Iterable[str]:
    """Yield what stands after each tail word in a line, and before the head words after it."""
    for word in speech.tail:
        if speech.inside_words or not speech.spaces:
            _, found, tail = line.rpartition(word)
        else:
            parts = re.split(rf"(?<!\w){re.escape(word.strip())}(?!\w)", line)
            found, tail = ("" if len(parts) == 1 else word), parts[-1]
        if found:
            yield _before(tail, speech)
    if speech.head and (cut := _before(line, speech)) != line.strip():
        yield cut


def _before(text: str, speech: Speech) -> str:
    for word in speech.head:
        head, found, _ = text.rpartition(word)
        if found and head.strip():
            return head.strip()
    return text.strip()


def _contains(key: str, gold: str) -> bool:
    """Return whether a gold answer is in a key; one letter needs a space beside it, or nothing."""
    wanted = unicodedata.normalize("NFC", gold).strip().lower()
    if len(wanted) == 1:
        return key.strip() == wanted or f" {wanted}" in key or f"{wanted} " in key
    return bool(wanted) and wanted in key


def _numbers(keys: Iterable[str], speech: Speech) -> Iterable[float]:
    for key in keys:
        yield from numbers.find(key, speech.decimal, speech.groups)
        if (whole := _value(key, speech)) is not None:
            yield whole


def _value(text: str, speech: Speech) -> float | None:
    return numbers.value(text, speech.decimal, speech.groups)
