"""UTF-8 that was read as Windows-1252 or Latin-1: put right where that is certain.

Certain is a strict round trip: every character beyond ASCII of the paragraph goes back to one
byte, the bytes are UTF-8, and what they spell is in the language's script, Latin-1 or common
punctuation. A paragraph with clear signs of it that does not pass is dropped. (ftfy guesses more
cases, at the price of guessing; a corpus can do without the paragraph.)
"""

import functools
import re
from collections.abc import Sequence

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.clean.report import CHANGES, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules


def _repertoire() -> dict[str, int]:
    """Return character -> byte for 0x80–0xFF: Windows-1252, Latin-1 where that has none."""
    found = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", "ignore")
        if character:
            found[character] = byte
    return found


_BYTE = _repertoire()
_TABLE = str.maketrans({character: chr(byte) for character, byte in _BYTE.items()})
_TAIL = "".join(re.escape(c) for c, byte in _BYTE.items() if byte < 0xC0)
# Capitals before a quotation mark or dash are ordinary ("GROẞ“"): of 2-byte sequences those
# whose second character is a C1 control, a sign or a currency; of longer ones the whole sequence.
_PAIR_TAIL = "".join(
    re.escape(c) for c, byte in _BYTE.items() if byte < 0xC0 and c not in "“”‘’‚„…–—›‹»«°·¡¿\xa0®™´"
)
_GATE = re.compile(f"[\u00c2-\u00f4][{_TAIL}]")
SIGN = re.compile(
    f"[\u00c2-\u00df][{_PAIR_TAIL}]|Ã[{_TAIL}]|Â[\xa0®°·´»«]"
    f"|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}"
)


def repair(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Repair or drop each paragraph that shows signs of it."""
    for draft in drafts:
        text = draft.text
        if text.isascii() or not _GATE.search(text) or not SIGN.search(text):
            continue
        kept = []
        for paragraph in draft.paragraphs:
            if not SIGN.search(paragraph):
                kept.append(paragraph)
            elif (better := _repaired(paragraph, rules.script)) is not None:
                report.count("repaired", CHANGES, draft.document.id, paragraph)
                kept.append(better)
            else:
                report.count("not repairable", PARAGRAPHS, draft.document.id, paragraph)
        draft.paragraphs = kept


def _repaired(text: str, script: str) -> str | None:
    """Return the text as it was meant, or None where that is not certain."""
    for _ in range(3):  # some text has gone through it twice
        try:
            text = text.translate(_TABLE).encode("latin-1").decode("utf-8")
        except UnicodeError:
            return None
        if not SIGN.search(text):
            return text if _plausible(text, script) else None
    return None


def _plausible(text: str, script: str) -> bool:
    """Return whether all letters are of the script or Latin, and nothing is a control."""
    points = scripts.code_points(text)
    own, latin = scripts.letters_of(script)[points], scripts.letters_of("Latn")[points]
    return not ((own == 1) & (latin == 1)).any() and not _controls().search(text)


@functools.cache
def _controls() -> re.Pattern[str]:
    return re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")
