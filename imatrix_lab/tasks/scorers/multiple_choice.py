"""Which option an answer in free text chose: MixEval's rule for multiple choice.

After Ni et al., 2024 (arXiv 2406.06565). In this order: the letter after a phrase that announces
the answer (the last one), the first letter in parentheses, the first letter that stands alone, and
the one option that is written out. Where several are, the original takes the first of them, and
where none is, it draws one at random. Here a letter in bold, quotes or code is read instead,
and without one nothing is parsed.

That is the order for English, which the original reads. In other languages a marked letter at the
very start comes first, a word of one letter («I», «O») is no option unless a mark follows it or the
text ends, and neither is a letter after «not».
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from imatrix_lab.tasks.locale import Speech

LETTERS = string.ascii_uppercase
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width characters of East Asian text to ASCII."""
_MARKS = r"[*_`\"'«»“”(\[{$\\]"
_NO_WORD = r"(?![^\W\d_\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]|\p{M})"
"""A letter that begins no word; East Asian text follows without a space."""


@dataclass(frozen=True)
class Reading:
    """What was read from an answer.

    Attributes
    ----------
    option : place of the option, from 0; None where nothing was parsed.
    how : the rule that found it: ``announced``, ``parenthesis``, ``letter``, ``text``, ``marked``.
    """

    option: int | None
    how: str = ""


def read(answer: str, options: Sequence[str], speech: Speech) -> Reading:
    """Return the option that an answer chose.

    Parameters
    ----------
    options : as they were shown, at most 26.
    """
    text = " " + " ".join(answer.translate(_NARROW).split()) + " "
    known = LETTERS[: len(options)]
    for how, pattern, which in _rules(speech, known):
        if found := regex.findall(pattern, text):
            return Reading(known.index(found[which]), how)
    written = _written(text, options)
    if len(written) == 1:
        return Reading(written[0], "text")
    if marked := re.search(rf"(?<!\w){_MARKS}+([{known}])(?!\w)", text):
        return Reading(known.index(marked[1]), "marked")
    return Reading(None)


def _rules(speech: Speech, known: str) -> list[tuple[str, str, int]]:
    """Return name and pattern of what names a letter, in order, and which of several counts."""
    phrases = "|".join(map(re.escape, sorted(speech.letter, key=len, reverse=True)))
    boundary = r"(?<![^\W\d_])" if speech.spaces else ""
    announced = (
        rf"{boundary}(?i:{phrases})\s*:?\s*(?:{_MARKS}|boxed\{{|text\{{)*([{known}]){_NO_WORD}"
    )
    rules = [
        ("announced", announced, -1),
        ("parenthesis", rf"\(([{known}])\)", 0),
        ("letter", rf"(?<![\w°])([{known}])[.:),]?\s", 0),
    ]
    if speech.inside_words:  # MixEval's own order and words
        return rules
    words = "|".join(map(re.escape, speech.negations))
    sure = rf"(?<!\b(?i:{words})\s+\W?)" if words else ""
    own = "".join(set(speech.one_letter) & set(known))
    word = rf"(?![{own}],?\s+\S)" if own else ""  # at the end, or with a mark, it is a letter
    return [
        ("marked", rf"^\s*{_MARKS}+([{known}]){_NO_WORD}", 0),
        rules[0],
        ("parenthesis", rf"{sure}\(([{known}])\)", 0),
        ("letter", rf"(?<![\w°]){sure}{word}([{known}])[.:),]?\s", 0),
    ]


def _written(text: str, options: Sequence[str]) -> list[int]:
    """Return the options whose words are in a text, in its order.

    An option that is a part of another one that is there too does not count.
    """
    flat = text.casefold()
    there: dict[int, tuple[int, str]] = {}
    for i, option in enumerate(options):
        words = _words(option)
        if words and (found := re.search(rf"(?<!\w){re.escape(words)}(?!\w)", flat)):
            there[i] = found.start(), words
    whole = [
        i
        for i, (_, words) in there.items()
        if not any(words in other and words != other for _, other in there.values())
    ]
    return sorted(whole, key=lambda i: there[i][0])


def _words(option: str) -> str:
    """Return an option without a letter of its own, its case and its final full stop."""
    bare = re.sub(r"^\s*\(?[A-Z][).:]\s*", "", option.translate(_NARROW))
    return " ".join(bare.casefold().split()).rstrip(" .")
