"""Which mojibake is repaired, and what is left alone."""

import pytest

from imatrix_lab.corpus.clean import mojibake
from imatrix_lab.corpus.clean.rules import Rules
from tests.corpus.clean.one_step import PROSE, after, reasons


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("Latn", "Blåbærsyltetøy på brød – «godt», sa han."),
        ("Latn", "Der Spaß kostet 5 €"),
        ("Mlym", "മലയാളം ഒരു ദ്രാവിഡ ഭാഷയാണ്."),
        ("Cyrl", "Привет, мир — как дела?"),
        ("Jpan", "これは日本語の文章です。"),
        ("Deva", "यह हिन्दी का वाक्य है।"),
    ],
)
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_mojibake_is_repaired_where_it_is_certain(script: str, text: str, wrong: str) -> None:
    broken = text.encode().decode(wrong, "replace" if wrong == "cp1252" else "strict")
    if "\ufffd" in broken:
        pytest.skip("this reader loses bytes")
    fixed, report = after(mojibake.repair, f"{broken}\n\n{PROSE}", Rules(script, ("xx",)))
    assert fixed == f"{text}\n\n{PROSE}"
    assert reasons(report) == {"repaired"}


def test_mojibake_twice_over_and_beyond_repair() -> None:
    twice = "blåbær".encode().decode("latin-1").encode().decode("latin-1")
    assert after(mojibake.repair, twice)[0] == "blåbær"
    text, report = after(mojibake.repair, f"blÃ¥bÃ¦r og жук\n\n{PROSE}")
    assert text == PROSE
    assert reasons(report) == {"not repairable"}


@pytest.mark.parametrize(
    "text",
    [
        "Er det GROẞ“ eller «CAFÉ»?", "„Spaß“ – „Gruß“ — „ß“", "à… la carte, é” et è", "Ä°C",
        "naïve façade",
        "São Paulo, Ângela, ÃO", "Å… ja! Æ—nei", "Ð er islandsk, ð også", "«Ö»", "ČŘŽ š ž",
        "Ünlü İstanbul",
    ],
)  # fmt: skip
def test_good_text_is_not_taken_for_mojibake(text: str) -> None:
    kept, report = after(mojibake.repair, text)
    assert (kept, reasons(report)) == (text, set())
