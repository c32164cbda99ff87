"""Which option an answer in free text chose: MixEval's rule for multiple choice.

After Ni et al., 2024 (arXiv 2406.06565). In this order: the letter after a phrase that announces
the answer (the last one), the first letter in parentheses, the first letter that stands alone, and
the one option that is written out. Where several are, the original takes the first of them, and
where none is, it draws one; here a letter in bold, quotes or code is read, or nothing is parsed.

That is the order for English, which the original reads. In other languages a marked letter at the
very start comes first, a word of one letter («I», «O») is no option unless a mark follows it or the
text ends, and neither is a letter after «not».
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from imatrix_lab.tasks.locale import Locale

LETTERS = string.ascii_uppercase
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Full-width characters of East Asian text to ASCII."""
_MARKS = r"[*_`\"'«»“”(\[{$\\]"
_NO_WORD = r"(?![^\W\d_\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]|\p{M})"
"""A letter that begins no word; East Asian text follows without a space."""


@dataclass(frozen=True)
class Reading:
    """Place of the chosen option, from 0 (None: not parsed), and the rule that matched."""

    option: int | None
    how: str = ""


def read(answer: str, options: Sequence[str], locale: Locale) -> Reading:
    """Return which of the options that were shown, at most 26, an answer chose."""
    text = " " + " ".join(answer.translate(_NARROW).split()) + " "
    known = LETTERS[: len(options)]
    for how, pattern, which in _rules(locale, known):
        if letters := regex.findall(pattern, text):
            return Reading(known.index(letters[which]), how)
    written = _written(text, options)
    if len(written) == 1:
        return Reading(written[0], "text")
    if marked := re.search(rf"(?<!\w){_MARKS}+([{known}])(?!\w)", text):
        return Reading(known.index(marked[1]), "marked")
    return Reading(None)


def _rules(locale: Locale, known: str) -> list[tuple[str, str, int]]:
    """Return name and pattern of what names a letter, in order, and which of several counts."""
    answer = locale.answer
    phrases = "|".join(map(re.escape, sorted(answer.letter, key=len, reverse=True)))
    boundary = r"(?<![^\W\d_])" if locale.spaces else ""
    opening = rf"(?:{_MARKS}|boxed\{{|text\{{)*"
    not_negated = not_a_word = ""
    if not answer.inside_words:  # beyond MixEval's own rules
        if negations := "|".join(map(re.escape, answer.negations)):
            not_negated = rf"(?<!\b(?i:{negations})\s+\W?)"
        if own := "".join(set(answer.one_letter) & set(known)):
            not_a_word = rf"(?![{own}],?\s+\S)"  # at the end, or with a mark, it is a letter
    rules = [
        ("announced", rf"{boundary}(?i:{phrases})\s*:?\s*{opening}([{known}]){_NO_WORD}", -1),
        ("parenthesis", rf"{not_negated}\(([{known}])\)", 0),
        ("letter", rf"(?<![\w°]){not_negated}{not_a_word}([{known}])[.:),]?\s", 0),
    ]
    marked = ("marked", rf"^\s*{_MARKS}+([{known}]){_NO_WORD}", 0)
    return rules if answer.inside_words else [marked, *rules]


def _written(text: str, options: Sequence[str]) -> list[int]:
    """Return the options whose words are in a text; not those that are a part of another such."""
    text = text.casefold()
    written = {
        i: words
        for i, words in enumerate(map(_words, options))
        if words and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
    }
    return [
        i
        for i, words in written.items()
        if not any(words in other and words != other for other in written.values())
    ]


def _words(option: str) -> str:
    """Return an option without a letter of its own, its case and its final full stop."""
    bare = re.sub(r"^\s*\(?[A-Z][).:]\s*", "", option.translate(_NARROW))
    return " ".join(bare.casefold().split()).rstrip(" .")
