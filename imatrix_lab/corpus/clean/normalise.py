"""Normalise Unicode as far as the script allows, so that equal-looking text is equal.

NFC for all; never NFKC, which would change full-width forms in Chinese and Japanese, superscripts
and fractions. Invisible characters go where they mean nothing: joiners mean something in Arabic
and Indic scripts (and inside emoji), the zero-width space in scripts without spaces, directional
marks in scripts written from the right.

Malayalam has two spellings of its six chillus, consonant + virama + ZWJ and the atomic letters of
Unicode 5.1; NFC does not unify them, so the atomic ones are used (The Unicode Standard,
chapter 12, "Malayalam", on chillu characters and their legacy representation). Its cluster nṯa has
three spellings: ന്റ (na, virama, rra: nearly all modern text has this one), ൻ്റ (chillu n, virama,
rra: the Standard's choice, rare) and ൻറ (chillu n, rra: older fonts; also the true spelling of n
followed by ṟ). They are left as they are: the last is ambiguous, and people and models write the
first rather than the Standard's. Old ന്‍റ becomes ൻറ as the chillu rule says.
"""

import functools
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.corpus.clean.report import CHANGES, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules, split

INDIC = {"Deva", "Beng", "Guru", "Gujr", "Orya", "Taml", "Telu", "Knda", "Mlym", "Sinh"}
JOINING = {"Arab", "Syrc", "Mong", "Nkoo", "Thaa"}
RIGHT_TO_LEFT = {"Arab", "Hebr", "Syrc", "Thaa", "Nkoo"}
WITHOUT_SPACES = {"Thai", "Laoo", "Khmr", "Mymr", "Tibt"}

CHILLU = {"ണ": "ൺ", "ന": "ൻ", "ര": "ർ", "ല": "ൽ", "ള": "ൾ", "ക": "ൿ"}

_VIRAMAS = "".join(
    chr(c) for c in range(0x900, 0xE00) if unicodedata.combining(chr(c)) == 9
)  # canonical combining class 9 is Virama
_SPACES = re.compile(" {2,}")
_LINE_EDGES = re.compile(" ?\n ?")
_EMOJI = "\u2600-\u27bf\ufe0f\U0001f000-\U0001faff"
_ARABIC = "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f"

_Change = tuple[str, str, str | Callable[[re.Match[str]], str]]


def _changes(script: str, prose: bool) -> Iterator[_Change]:
    """Yield (reason, pattern, replacement) in order."""
    yield "control", "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufff9-\ufffb]", ""
    yield "line ends", "[\x0b\x0c\x85\u2028\u2029]", "\n"
    yield "private use", "[\ue000-\uf8ff\U000f0000-\U0010ffff\ufdd0-\ufdef\uffff]", ""
    hidden = "\xad\u180e\u2060-\u2064\ufeff"
    hidden += "" if script in WITHOUT_SPACES else "\u200b"
    hidden += "" if script in RIGHT_TO_LEFT else "\u200e\u200f\u202a-\u202e\u2066-\u2069"
    yield "invisible", f"[{hidden}]", ""
    # of Arabic presentation forms the ligatures FDF0–FDFF stand for words and are written so
    forms = "[ﬀ-ﬆ\ufb50-\ufd3d\ufd50-\ufdc7\ufe70-\ufefc]"
    yield "compatibility", forms, lambda m: unicodedata.normalize("NFKC", m.group())
    if script == "Mlym":
        yield "chillu", "[ണനരലളക]\u0d4d\u200d", lambda m: CHILLU[m.group()[0]]
    yield "joiners", _idle_joiners(script), ""
    if script == "Arab":  # one that ends an abbreviation (هـ) is spelling, not decoration
        yield "tatweel", f"(?<=[{_ARABIC}])\u0640+(?=[{_ARABIC}])", ""
    if prose:
        yield "spaces", "[\t\xa0\u2000-\u200a\u202f\u205f]", " "


_SIGNS = {"chillu": "\u200d", "joiners": "\u200c\u200d", "tatweel": "\u0640"}
"""Characters without which a change cannot apply, where the pattern is more than a class."""


@functools.cache
def _compiled(
    script: str, prose: bool
) -> tuple[NDArray[np.uint16], tuple[tuple[str, re.Pattern[str], Any], ...]]:
    """Return the changes, and for each code point the bits of those that may apply."""
    changes = tuple((reason, re.compile(p), new) for reason, p, new in _changes(script, prose))
    characters = "".join(map(chr, range(0x110000)))
    bits = np.zeros(0x110000, np.uint16)
    for i, (reason, pattern, _) in enumerate(changes):
        signs = f"[{_SIGNS[reason]}]" if reason in _SIGNS else pattern.pattern
        for match in re.finditer(f"(?:{signs})+", characters):
            bits[match.start() : match.end()] |= 1 << i
    return bits, changes


def _idle_joiners(script: str) -> str:
    """Return the pattern of joiners (ZWNJ 200C, ZWJ 200D) that mean nothing where they are.

    What must come before is looked at from behind the joiner, hence the dots.
    """
    joiner = "[\u200c\u200d]"
    doubled = f"(?<={joiner}{joiner})"
    if script in INDIC:  # they choose a form beside a virama, ZWNJ not at the end of a word
        beside = f"[{_VIRAMAS}{_EMOJI}]"
        ends = rf"(?<=[{_VIRAMAS}]\u200c)(?![^\W\d_]|{joiner})"
        return f"(?s){joiner}(?:(?<!{beside}.)(?!{beside})|{ends}|{doubled})"
    if script in JOINING:
        before = rf"(?<![^\W\d_{_EMOJI}].)(?<!{joiner}.)"
        return rf"(?s){joiner}(?:{before}|(?![\w{_EMOJI}]|{joiner})|{doubled})"
    if script in WITHOUT_SPACES:
        return joiner + doubled
    return f"(?s){joiner}(?:(?<![{_EMOJI}].)|(?![{_EMOJI}]))"


def normalise(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Normalise every paragraph, and drop those in which characters were lost (U+FFFD)."""
    for draft in drafts:
        before = draft.text
        text = _changed(before, draft, rules, report)
        # is_normalized() does the same work where it is not sure, as in Malayalam
        if not text.isascii() and (composed := unicodedata.normalize("NFC", text)) != text:
            report.count("NFC", CHANGES, draft.document.id, _around(text, composed))
            text = composed
        if text is not before:
            draft.paragraphs = split(text)
        if rules.prose:
            draft.paragraphs = [p for p in map(_spaced, draft.paragraphs) if p]
        if "\ufffd" in text:
            damaged = [i for i, p in enumerate(draft.paragraphs) if "\ufffd" in p]
            draft.drop(dict.fromkeys(damaged, "replacement character"), report)


def _changed(text: str, draft: Draft, rules: Rules, report: Report) -> str:
    bits, changes = _compiled(rules.script, rules.prose)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    may_apply = int(np.bitwise_or.reduce(bits[points], initial=0))
    for i, (reason, pattern, new) in enumerate(changes):
        if may_apply >> i & 1:
            changed, n = pattern.subn(new, text)
            if n:
                report.count(reason, CHANGES, draft.document.id, _around(text, changed), n)
                text = changed
    return text


def _spaced(paragraph: str) -> str:
    if "  " in paragraph:
        paragraph = _SPACES.sub(" ", paragraph)
    if "\n" in paragraph and (" \n" in paragraph or "\n " in paragraph):
        paragraph = _LINE_EDGES.sub("\n", paragraph)
    return paragraph.strip()


def _around(before: str, after: str) -> str:
    places = range(min(len(before), len(after)))
    n_equal = bisect_left(places, True, key=lambda i: before[: i + 1] != after[: i + 1])
    return before[max(0, n_equal - 40) : n_equal + 40]
