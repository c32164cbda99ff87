"""What is dropped as boilerplate, and what is running text."""

import pytest

from imatrix_lab.corpus.clean import boilerplate
from imatrix_lab.corpus.clean.rules import Rules
from tests.corpus.clean.one_step import LATIN, PROSE, after, reasons


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Vi bruker informasjonskapsler for å gi deg en bedre opplevelse.", "notice"),
        ("Les mer »", "notice"),
        ("Hjem | Nyheter | Sport | Kontakt", "menu"),
        ("Kunne ikke åpne filen %s: %d feil.", "placeholder"),
        ("Velkommen, {username}!", "placeholder"),
        ("Siste nytt", "fragment"),
        ("- Hjemmesiden vår\n- Om oss som arbeider her\n- Kontakt\n- Logg inn på siden", "list"),
    ],
)
def test_boilerplate(text: str, reason: str) -> None:
    kept, report = after(boilerplate.drop, f"{PROSE}\n\n{text}")
    assert kept == PROSE
    assert reasons(report) == {reason}


@pytest.mark.parametrize(
    "text",
    [
        "Overskrift uten punktum\n\n" + PROSE,
        "– Nei.\n\n– Jo!\n\n– Hva mener du?\n\n" + PROSE,
        "Prisen steg 5 % i fjor, til $2 milliarder, og 100 % av dem tapte.",
        "Jeg spiste en hel pakke cookies, sa han, " + PROSE * 3,
        "1. Bløtlegg steinen i ti minutter.\n2. Hold kniven i femten grader.\n3. Prøv den.",
        "Vinteren kommer,\nog snøen laver ned\npå taket, på trærne,\npå alt som er.",
        "「そうだね」\n\n彼は笑った。",
    ],
)
def test_running_text_is_not_boilerplate(text: str) -> None:
    rules = Rules("Jpan", ("ja",)) if "「" in text else LATIN
    kept, report = after(boilerplate.drop, text, rules)
    assert (kept, reasons(report)) == (text, set())
