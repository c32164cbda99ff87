"""What is personal is replaced; what only looks like it survives. All numbers are made up."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.corpus.clean import personal
from imatrix_lab.corpus.clean import personal as checksums
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Draft, Rules
from imatrix_lab.types import Document


def replaced(text: str) -> tuple[str, set[str]]:
    report = Report()
    draft = Draft(Document("d", text, "test", "none"), [text])
    personal.replace([draft], Rules("Latn", ("en",)), report)
    return draft.text, {reason for _, reason, _ in report.counts}


@pytest.mark.parametrize(
    ("text", "wanted", "reason"),
    [
        ("Write to kari.nordmann@firma.no now", "Write to name@example.com now", "e-mail"),
        ("Mail: ole+list@mail.firma.co.uk.", "Mail: name@example.com.", "e-mail"),
        ("Ring +47 22 85 50 50 i dag", "Ring +00 00 00 00 00 i dag", "telephone"),
        ("Tlf. 22 85 50 51, eller kom.", "Tlf. 00 00 00 00, eller kom.", "telephone"),
        (
            "Call (617) 253-1234 or 617-253-1235.",
            "Call (000) 000-0000 or 000-000-0000.",
            "telephone",
        ),
        ("+44 (0)20 7946 0123", "+00 (0)00 0000 0000", "telephone"),
        ("電話:03-1234-5678まで", "電話:00-0000-0000まで", "telephone"),
        ("फोन: ०११-२३४५६७८९", "फोन: 000-00000000", "telephone"),
        ("Appelez le 01 42 68 53 01.", "Appelez le 00 00 00 00 00.", "telephone"),
        ("from 84.208.17.33 at night", "from 192.0.2.1 at night", "IP address"),
        ("from 2a01:79c:cebd:9e40::17 at", "from 2001:db8::1 at", "IP address"),
        ("SSN 219-09-9998", "SSN 000-00-0000", "identity number"),
        ("card 4539 1488 0343 6467.", "card 0000 0000 0000 0000.", "card"),
        ("IBAN NO93 8601 1117 947", "IBAN NO00 0000 0000 000", "account"),
        ("IBAN DE89370400440532013000!", "IBAN DE00000000000000000000!", "account"),
        ("personnummer 811218-9876", "personnummer 000000-0000", "identity number"),
        ("hetu 131052-308T on", "hetu 000000-000T on", "identity number"),
        ("cpr 070761-4285", "cpr 000000-0000", "identity number"),
    ],
)
def test_personal_data_become_stand_ins(text: str, wanted: str, reason: str) -> None:
    assert replaced(text) == (wanted, {reason})


def test_numbers_with_check_digits_are_found_whatever_they_are() -> None:
    """Numbers made from their rules, so that no one's real number is written down here."""
    rng = random.Random(3)
    norwegian = next(
        n for _ in range(100_000)
        if checksums.norwegian(n := f"{rng.randrange(1, 29):02d}{rng.randrange(1, 13):02d}"
                                    f"{rng.randrange(10**7):07d}")
    )  # fmt: skip
    aadhaar = next(
        n for _ in range(1000) if checksums.verhoeff(n := str(rng.randrange(2 * 10**11, 10**12)))
    )
    tax = next(
        n for _ in range(1000) if checksums.german_tax(n := str(rng.randrange(10**10, 10**11)))
    )
    for text in (
        f"fnr. {norwegian} her", f"fnr {norwegian[:6]} {norwegian[6:]}",
        f"{aadhaar[:4]} {aadhaar[4:8]} {aadhaar[8:]}", f"Identifikationsnummer {tax}.",
    ):  # fmt: skip
        found, reasons = replaced(text)
        assert reasons == {"identity number"}, text
        assert not set(found) & set("123456789")


@pytest.mark.parametrize(
    ("test", "good", "bad"),
    [
        (checksums.luhn, "79927398713", "79927398710"),  # the worked example of the standard
        (checksums.verhoeff, "2363", "2364"),  # the worked example in the literature
        (checksums.finnish, "131052-308T", "131052-308U"),  # the authority's own example
        (checksums.iban, "GB82WEST12345698765432", "GB82WEST12345698765423"),
        (checksums.german_tax, "86095742719", "86095742718"),  # the ministry's example
        (checksums.swedish, "8112189876", "8112189875"),  # the tax agency's example
    ],
)
def test_check_digits_against_published_examples(test, good: str, bad: str) -> None:
    assert test(good)
    assert not test(bad)


@pytest.mark.parametrize(
    "text",
    [
        "In 1998–2004, and 2010/2011, it rose.", "Prisen er 1 250 000 kroner, eller 12 345 678,90.",
        "ISBN 978-0-306-40615-7 and 0-306-40615-2, ISSN 2049-3630",
        "12.05.2021 kl. 14:30:00, 2021-05-12T10:11:12",
        "pi is 3.14159265358979 and e 2.718281828",
        "version 10.200.33.44 and v1.2.3.4, section 4.10.2.3",
        "192.168.1.10, 10.0.0.1, 127.0.0.1, 203.0.113.9 and 8.8.8.8",
        "fe80::1, ::1, 2001:db8::7, 10:20:30:40",
        "1234567890123456789 and 1000000000000000", "Population: 331,893,745; 1.380.004.385",
        "+5 °C, +12 %, 2+2=4",
        "DOI 10.1000/182, arXiv 2601.18306, RFC 5737", "from 1914-1918 to 1939-1945",
        "0-1, 3-2, 110-98, 21-17",
        "name@example.org, user@localhost", "01-02-2020 and 2020-02-01",
        "1 2 3 4 5 6 7 8 9 10 11 12",
        "order no. 12345678, case 2018/12345-6", "Psalm 119:105, Matt 5:3-12; 6:9",
        "1/2 + 3/4 = 5/4",
        "the score was 6-4 7-6 6-7 3-6 7-5", "N 59° 54' 50.0\", E 10° 45' 8.0\"",
        "90210-1234 (ZIP+4)",
        "2 147 483 647 og 18 446 744 073 709 551 615", "MCMXCIX 0047",
        "telt 12, tel aviv 2012–2014",
    ],
)  # fmt: skip
def test_other_numbers_survive(text: str) -> None:
    assert replaced(text) == (text, set())


def test_long_numbers_are_hardly_ever_taken_for_personal() -> None:
    """Numbers at random, as prose writes them: bare, in groups of three, with decimals."""
    rng = random.Random(5)
    n, hits = 4000, 0
    for i in range(n):
        value = rng.randrange(10 ** rng.randrange(5, 19))
        text = (f"{value}", f"{value:,}", f"{value:,}".replace(",", " "), f"{value / 100:.2f}")[
            i % 4
        ]
        hits += bool(replaced(f"I alt {text} stykker.")[1])
    assert hits <= n // 500


def test_cleaning_again_finds_nothing() -> None:
    text = "kari@firma.no, +47 22 85 50 50, 84.208.17.33, NO93 8601 1117 947, 4539 1488 0343 6467"
    once, reasons = replaced(text)
    assert len(reasons) == 5
    assert replaced(once) == (once, set())


@pytest.mark.parametrize("kind", personal.KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_every_match_has_the_part_that_is_looked_for_first(kind, data) -> None:
    match = kind.pattern.search(data.draw(st.from_regex(kind.pattern)))
    assert match and kind.part.search(match.group())
