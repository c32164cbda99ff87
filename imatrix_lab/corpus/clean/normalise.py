"""Unicode, normalised as far as the script allows: what looks the same is the same.

NFC for all; never NFKC, which would change full-width forms in Chinese and Japanese, superscripts
and fractions. What is invisible goes where it means nothing: the joiners mean something in
Arabic and Indic scripts (and inside emoji), the zero-width space in scripts without spaces, the
directional marks in those written from the right.

Malayalam has two spellings of its six chillus, consonant + virama + ZWJ and the atomic letters of
Unicode 5.1; NFC does not unify them. The atomic ones are written (The Unicode Standard,
chapter 12, "Malayalam", on chillu characters and their legacy representation). Its cluster nṯa has
three spellings: ന്റ (na, virama, rra: nearly all modern text has this one), ൻ്റ (chillu n, virama,
rra: the Standard's choice, rare) and ൻറ (chillu n, rra: older fonts; also the true spelling of n
followed by ṟ). They are left as they were written: the last is ambiguous, and of the first two
the Standard's is not what people or models write. Old ന്‍റ becomes ൻറ as the chillu rule says.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from imatrix_lab.corpus.clean.report import CHANGES, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules, split

INDIC = {"Deva", "Beng", "Guru", "Gujr", "Orya", "Taml", "Telu", "Knda", "Mlym", "Sinh"}
JOINING = {"Arab", "Syrc", "Mong", "Nkoo", "Thaa"}
RIGHT_TO_LEFT = {"Arab", "Hebr", "Syrc", "Thaa", "Nkoo"}
WITHOUT_SPACES = {"Thai", "Laoo", "Khmr", "Mymr", "Tibt"}

CHILLU = {"ണ": "ൺ", "ന": "ൻ", "ര": "ർ", "ല": "ൽ", "ള": "ൾ", "ക": "ൿ"}

_VIRAMAS = "".join(
    chr(c) for c in range(0x900, 0xE00) if unicodedata.combining(chr(c)) == 9
)  # canonical combining class 9 is Virama
_EMOJI = "\u2600-\u27bf\ufe0f\U0001f000-\U0001faff"
_ARABIC = "\u0620-\u064a\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f"

Change = tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _compatible(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match.group())


@functools.cache
def changes(script: str, prose: bool) -> tuple[re.Pattern[str], tuple[Change, ...]]:
    """Return (what shows that there is something to do, the changes in order) for a script."""
    zero_width = {
        "\u00ad", "\u180e", "\u200b", "\u2060", "\u2061", "\u2062", "\u2063", "\u2064", "\ufeff",
    }  # fmt: skip
    if script in WITHOUT_SPACES:
        zero_width.remove("\u200b")
    if script not in RIGHT_TO_LEFT:
        zero_width |= set(
            map(chr, (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
        )
    found: list[Change] = [
        ("line ends", re.compile("[\x0b\x0c\x85\u2028\u2029]"), "\n"),
        (
            "control",
            re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufff9-\ufffb]"),
            "",
        ),
        ("private use", re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff\ufdd0-\ufdef\uffff]"), ""),
        ("invisible", re.compile(f"[{''.join(sorted(zero_width))}]+"), ""),
        # of Arabic presentation forms the ligatures FDF0–FDFF stand for words and are written so
        ("compatibility", re.compile("[ﬀ-ﬆ\ufb50-\ufd3d\ufd50-\ufdc7\ufe70-\ufefc]"), _compatible),
    ]
    if script == "Mlym":
        found.append(("chillu", re.compile("([ണനരലളക])\u0d4d\u200d"), lambda m: CHILLU[m.group(1)]))
    found.append(("joiners", re.compile(_idle_joiners(script)), ""))
    if script == "Arab":  # one that ends an abbreviation (هـ) is spelling, not decoration
        found.append(("tatweel", re.compile(f"(?<=[{_ARABIC}])\u0640+(?=[{_ARABIC}])"), ""))
    if prose:
        found.append(("spaces", re.compile("[\t\xa0\u2000-\u200a\u202f\u205f]| {2,}"), " "))
        found.append(
            ("spaces", re.compile(" {2,}| (?=\n)|(?<=\n) "), lambda m: m.group()[2:] and " ")
        )
    # one class of everything above; the patterns themselves look closer
    signs = "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u0640\u180e\u2028-\u202e\u200b-\u200f\u2060-\u206f"
    signs += "ﬀ-ﬆ\ufb50-\ufdef\ufe70-\ufeff\ufff9-\uffff\ud800-\uf8ff\U000f0000-\U0010ffff"
    signs += "\t\xa0\u2000-\u200a\u202f\u205f" if prose else ""
    return re.compile(f"[{signs}]" + ("|  | \n|\n " if prose else "")), tuple(found)


def _idle_joiners(script: str) -> str:
    """Return the pattern of joiners (ZWNJ 200C, ZWJ 200D) that mean nothing where they stand."""
    joiner = "[\u200c\u200d]"
    if script in INDIC:
        # they choose a form beside a virama; ZWNJ does nothing at the end of a word
        letter = rf"(?=[^\W\d_{_EMOJI}])"
        beside = f"(?<![{_VIRAMAS}{_EMOJI}]){joiner}(?![{_VIRAMAS}{_EMOJI}])"
        return f"{beside}|(?<=[{_VIRAMAS}])\u200c(?!{letter})|(?<={joiner}){joiner}"
    if script in JOINING:
        return rf"(?<![^\W\d_{_EMOJI}]){joiner}|{joiner}(?![\w{_EMOJI}])|(?<={joiner}){joiner}"
    if script in WITHOUT_SPACES:
        return f"(?<={joiner}){joiner}"
    return f"(?<![{_EMOJI}]){joiner}|{joiner}(?![{_EMOJI}])"


def normalise(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Normalise every paragraph, and drop those in which characters were lost (U+FFFD)."""
    signs, todo = changes(rules.script, rules.prose)
    for draft in drafts:
        before = draft.text
        text = before
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
            report.count("NFC", CHANGES, draft.document.id, _around(before, text))
        if signs.search(text):
            for reason, pattern, new in todo:
                changed, n = pattern.subn(new, text)
                if n:
                    report.count(reason, CHANGES, draft.document.id, _around(text, changed), n)
                    text = changed
        if text is not before:
            if not unicodedata.is_normalized("NFC", text):
                text = unicodedata.normalize("NFC", text)  # what was parted may compose now
            draft.paragraphs = split(text)
        if rules.prose:
            draft.paragraphs = [p.strip() for p in draft.paragraphs]
        if "\ufffd" in text:
            kept = []
            for paragraph in draft.paragraphs:
                if "\ufffd" in paragraph:
                    report.count("replacement character", PARAGRAPHS, draft.document.id, paragraph)
                else:
                    kept.append(paragraph)
            draft.paragraphs = kept


def _around(before: str, after: str) -> str:
    """Return the neighbourhood of the first difference, as it was."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # first place where the beginnings differ
        middle = (low + high) // 2
        if before[: middle + 1] == after[: middle + 1]:
            low = middle + 1
        else:
            high = middle
    return before[max(0, low - 40) : low + 40]
