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

from imatrix_lab.tasks.locale import Locale
from imatrix_lab.tasks.scorers import numbers

_ALONE = frozenset(":,.!?;'।。")


@dataclass(frozen=True)
class Match:
    """Whether an answer is right; `keys` are its parts that were compared, `gold` what matched."""

    is_right: bool
    keys: tuple[str, ...]
    gold: str = ""


def match(answer: str, golds: Sequence[str], locale: Locale) -> Match:
    """Compare an answer with the gold answers."""
    keys, marks = key_parts(answer, locale), locale.numbers
    values = [numbers.value(key, marks) for key in keys]
    key_numbers = {*values, *(number for key in keys for number in numbers.find(key, marks))}
    texts = [key for key, value in zip(keys, values, strict=True) if value is None]
    for gold in golds:
        number = numbers.value(gold, marks)
        in_text = number is None and any(_contains(text, gold) for text in texts)
        if in_text or (number is not None and number in key_numbers):
            return Match(True, keys, gold)
    return Match(False, keys)


def key_parts(answer: str, locale: Locale) -> tuple[str, ...]:
    """Return the parts of an answer that may hold the short answer, in lower case."""
    whole = numbers.plain_digits(unicodedata.normalize("NFC", answer)).strip().strip(".").lower()
    lines, keys = whole.split("\n"), []
    for line in lines:
        tails = list(_tails(line, locale))
        if line is lines[-1] and "=" in line:
            tails.append(line.rpartition("=")[2].strip())
        if tails and (key := min(tails, key=len)) not in _ALONE:
            keys.append(key)
    return tuple(keys) or (whole,)


def _tails(line: str, locale: Locale) -> Iterable[str]:
    """Yield what stands after each tail word in a line, and before the head words after it."""
    for word in locale.answer.tail:
        if locale.answer.inside_words or not locale.spaces:
            _, *tails = line.rsplit(word, 1)
        else:
            _, *tails = re.split(rf"(?<!\w){re.escape(word.strip())}(?!\w)", line)
        if tails:
            yield _before(tails[-1], locale)
    if locale.answer.head and (cut := _before(line, locale)) != line.strip():
        yield cut


def _before(text: str, locale: Locale) -> str:
    for word in locale.answer.head:
        if head := text.rpartition(word)[0].strip():
            return head
    return text.strip()


def _contains(key: str, gold: str) -> bool:
    """Return whether a gold answer is in a key; one letter needs a space beside it, or nothing."""
    gold = unicodedata.normalize("NFC", gold).strip().lower()
    if len(gold) == 1:
        return key.strip() == gold or f" {gold}" in key or f"{gold} " in key
    return bool(gold) and gold in key
