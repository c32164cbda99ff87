"""Whether a model answers in the language asked for: the share of lines and of words.

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

from imatrix_lab.tasks import locale as speeches
from imatrix_lab.tasks.locale import Speech

LETTERS_MIN = 12
"""Shorter lines («Ja!», «1.») say nothing of their language, unless the answer has no other."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_WIDE = 3
"""A Han or kana character says as much as so many letters."""


@dataclass(frozen=True)
class Share:
    """How much of an answer is in the language asked for.

    Attributes
    ----------
    lines, words : shares. Words are those of lines in the language; where it has another script,
        without those in Latin script.
    n_lines : how many were long enough to tell.
    """

    lines: float
    words: float
    n_lines: int

    def words_said(self) -> str:
        """Return it in words."""
        return f"lines {self.lines:.3f}, words {self.words:.3f} of {self.n_lines} lines"


def share(answer: str, speech: Speech) -> Share | None:
    """Return the share of an answer in a language; None where nothing can be told."""
    lines = [line for line in answer.splitlines() if _weight(line)]
    long = [line for line in lines if _weight(line) >= LETTERS_MIN]
    judged = long or ([" ".join(lines)] if lines else [])
    if not judged:
        return None
    inside = [is_in(line, speech) for line in judged]
    words = [_words(line) for line in judged]
    latin_is_outside = not _is_latin("".join(speech.words.values()))
    right = sum(
        not (latin_is_outside and _is_latin(word))
        for line, good in zip(words, inside, strict=True)
        for word in line
        if good
    )
    return Share(sum(inside) / len(inside), right / sum(map(len, words)), len(judged))


def is_in(line: str, speech: Speech) -> bool:
    """Return whether a line is in a language."""
    label = _label(line)
    rivals = _neighbours()
    if label in {name for one in rivals for name in one.labels}:
        words = set(re.findall(r"[^\W\d_]+", line.lower()))
        counts = {one.code: len(words & set(one.markers)) for one in rivals}
        best = max(counts.values())
        winners = [code for code, n in counts.items() if n == best]
        if best and len(winners) == 1:
            return winners[0] == speech.code
    return label in (speech.labels or (speech.code,))


def _label(line: str) -> str:
    return str(_identifier().classify(line)[0])


@functools.cache
def _identifier() -> Any:
    return LanguageIdentifier.from_model_file(MODEL_FILE)


@functools.cache
def _neighbours() -> tuple[Speech, ...]:
    return tuple(one for one in speeches.load_all().values() if one.markers)


def _weight(line: str) -> int:
    return sum(_WIDE if c >= "\u2e80" else 1 for c in line if c.isalpha())


def _is_latin(text: str) -> bool:
    """Return whether there is a letter of the Latin script in a text."""
    return regex.search(r"\p{Latin}", text) is not None


def _words(line: str) -> list[str]:
    """Return what stands between spaces and has a letter; characters in scripts without spaces."""
    found: list[str] = []
    for run in line.split():
        rest = regex.sub(_UNSPACED, "", run)
        found += regex.findall(_UNSPACED, run)
        found += [rest] if any(c.isalpha() for c in rest) else []
    return found
