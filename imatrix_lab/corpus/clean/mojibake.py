"""Repair UTF-8 that was read as Windows-1252 or Latin-1, where that is certain.

It is certain if there is a strict round trip: every non-ASCII character of the paragraph goes back
to one byte, the bytes are UTF-8, and what they spell is in the language's script, Latin-1 or common
punctuation. A paragraph with clear signs of mojibake that does not pass is dropped. (ftfy repairs
more cases, by guessing; a corpus can do without the paragraph.)
"""

import re
from collections.abc import Sequence

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.clean.report import CHANGES, PARAGRAPHS, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules

_BYTE = {chr(byte): byte for byte in range(0x80, 0x100)}
"""Character -> byte for 0x80–0xFF: Latin-1, and what Windows-1252 has instead."""
for _byte in range(0x80, 0xA0):
    if _character := bytes([_byte]).decode("cp1252", "ignore"):
        _BYTE[_character] = _byte
_TABLE = str.maketrans({character: chr(byte) for character, byte in _BYTE.items()})
_TAIL = "".join(re.escape(c) for c, byte in _BYTE.items() if byte < 0xC0)
# Capitals before a quotation mark or dash are ordinary ("GROẞ“"): of 2-byte sequences those
# whose second character is a C1 control, a sign or a currency; of longer ones the whole sequence.
_PAIR_TAIL = "".join(
    re.escape(c) for c, byte in _BYTE.items() if byte < 0xC0 and c not in "“”‘’‚„…–—›‹»«°·¡¿\xa0®™´"
)
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")
_GATE = re.compile(f"[\u00c2-\u00f4][{_TAIL}]")
SIGN = re.compile(
    f"[\u00c2-\u00df][{_PAIR_TAIL}]|Ã[{_TAIL}]|Â[\xa0®°·´»«]"
    f"|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}"
)


def repair(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Repair or drop each paragraph with signs of mojibake."""
    for draft in drafts:
        text = draft.text
        if text.isascii() or not _GATE.search(text):
            continue
        kept = []
        for paragraph in draft.paragraphs:
            if not _GATE.search(paragraph) or not SIGN.search(paragraph):
                kept.append(paragraph)
            elif (better := _repaired(paragraph, rules.script)) is not None:
                report.count("repaired", CHANGES, draft.document.id, paragraph)
                kept.append(better)
            else:
                report.count("not repairable", PARAGRAPHS, draft.document.id, paragraph)
        draft.paragraphs = kept


def _repaired(text: str, script: str) -> str | None:
    for _ in range(3):  # some text was misread twice
        try:
            text = text.translate(_TABLE).encode("latin-1").decode("utf-8")
        except UnicodeError:
            return None
        if not SIGN.search(text):
            points = scripts.code_points(text)
            own, latin = scripts.letters_of(script)[points], scripts.letters_of("Latn")[points]
            is_foreign = ((own == 1) & (latin == 1)).any()
            return None if is_foreign or _CONTROLS.search(text) else text
    return None
