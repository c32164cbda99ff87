"""Whether a model answers in the language it should: the share of lines and of words.

After Marchisio et al., 2024 (arXiv 2406.20052), with py3langid. Bokmål, Nynorsk and Danish are
taken for each other in short lines, so that among neighbours the words that only one of them
writes so decide (`markers` in ``tasks/languages``), and the identifier where there are none.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from imatrix_lab.tasks.locale import Locale, load_locales

LETTERS_MIN = 12
"""Shorter lines («Ja!», «1.») say nothing of their language, unless the answer has no other."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WIDE = 3
"""A Han or kana character says as much as so many letters."""


@dataclass(frozen=True)
class Share:
    """The shares of an answer's lines and words in the language, of `n_lines` long enough to tell.

    Words are those of lines in the language; where it has another script, without Latin ones.
    """

    lines: float
    words: float
    n_lines: int


def share(answer: str, locale: Locale) -> Share | None:
    """Return the share of an answer in a language; None where nothing can be told."""
    lines = [line for line in answer.splitlines() if _weight(line)]
    if not lines:
        return None
    lines = [line for line in lines if _weight(line) >= LETTERS_MIN] or [" ".join(lines)]
    inside = [is_in(line, locale) for line in lines]
    words = [_words(line) for line in lines]
    latin_is_outside = not _is_latin("".join(locale.words.values()))
    n_right = sum(
        not (latin_is_outside and _is_latin(word))
        for line, is_inside in zip(words, inside, strict=True)
        for word in line
        if is_inside
    )
    return Share(sum(inside) / len(inside), n_right / sum(map(len, words)), len(lines))


def is_in(line: str, locale: Locale) -> bool:
    """Return whether a line is in a language."""
    label = str(_identifier().classify(line)[0])
    rivals = _neighbours()
    if any(label in rival.identify.labels for rival in rivals):
        words = set(re.findall(r"[^\W\d_]+", line.lower()))
        counts = {rival.code: len(words & set(rival.identify.markers)) for rival in rivals}
        best = max(counts.values())
        winners = [code for code, n in counts.items() if n == best]
        if best and len(winners) == 1:
            return winners[0] == locale.code
    return label in (locale.identify.labels or (locale.code,))


@functools.cache
def _identifier() -> Any:
    return LanguageIdentifier.from_model_file(MODEL_FILE)


@functools.cache
def _neighbours() -> tuple[Locale, ...]:
    return tuple(locale for locale in load_locales().values() if locale.identify.markers)


def _weight(line: str) -> int:
    return sum(_WIDE if c >= "\u2e80" else 1 for c in line if c.isalpha())


def _is_latin(text: str) -> bool:
    return regex.search(r"\p{Latin}", text) is not None


def _words(line: str) -> list[str]:
    """Return what stands between spaces and has a letter; characters in scripts without spaces."""
    words: list[str] = []
    for run in line.split():
        words += regex.findall(_UNSPACED, run)
        rest = regex.sub(_UNSPACED, "", run)
        if any(c.isalpha() for c in rest):
            words.append(rest)
    return words
