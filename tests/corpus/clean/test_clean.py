"""The whole of cleaning: order, counts, duplicates, workers, bounds."""

import dataclasses
import json
import random
from collections.abc import Iterator

import pytest

from imatrix_lab.corpus import languages
from imatrix_lab.corpus.clean import clean
from imatrix_lab.corpus.clean import duplicates as dup
from imatrix_lab.corpus.clean.duplicates import HashSet
from imatrix_lab.corpus.clean.language import identifier
from imatrix_lab.corpus.clean.report import Report
from imatrix_lab.corpus.clean.rules import Rules
from imatrix_lab.errors import UsageError
from imatrix_lab.types import Document

RULES = Rules("Latn", ("en",))
WORDS = (  # noqa: SIM905
    "river morning window teacher garden letter market winter bridge kitchen harbour engine paper"
    " neighbour bicycle library village doctor summer evening station forest children question"
).split()


def sentence(rng: random.Random) -> str:
    a, b, c, d = rng.sample(WORDS, 4)
    n = rng.randrange(2, 9000)
    return (
        f"The {a} by the {b} was older than anyone knew, and number {n} of the {c} had to wait for"
        f" the {d} until it was done."
    )


def documents(n: int, seed: int = 1) -> Iterator[Document]:
    rng = random.Random(seed)
    for i in range(n):
        paragraphs = [" ".join(sentence(rng) for _ in range(3)) for _ in range(4)]
        if i % 3 == 0:
            paragraphs.insert(1, f"<b>Mail</b> me at someone{i}@firm.com, please.&nbsp;")
        if i % 5 == 0:
            paragraphs.append("Read more")
        yield Document(f"d{i:04d}", "\n\n".join(paragraphs), "made", "CC0-1.0")


def cleaned(found, rules: Rules = RULES, workers: int = 1) -> tuple[list[Document], Report]:
    report = Report()
    return list(clean(found, rules, report, workers)), report


def test_order_origin_and_counts() -> None:
    given = list(documents(30))
    found, report = cleaned(given)
    assert [d.id for d in found] == [d.id for d in given]
    assert {(d.source, d.licence) for d in found} == {("made", "CC0-1.0")}
    assert "Mail me at name@example.com, please." in found[0].text.split("\n\n")
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["documents_in"] == facts["documents_out"] == 30
    assert facts["bytes_in"] == sum(len(d.text.encode()) for d in given)
    assert facts["bytes_out"] == sum(len(d.text.encode()) for d in found)
    assert facts["pii_removed"] == 10
    assert facts["steps"]["markup"] == {"entities": {"changes": 10}, "html": {"changes": 20}}
    assert facts["steps"]["boilerplate"] == {"notice": {"paragraphs_dropped": 6}}
    assert facts["language_share"] == 1.0
    kinds = {(s["step"], s["reason"]) for s in report.samples}
    assert ("personal", "e-mail") in kinds
    assert all(len(s["text"]) <= 300 and s["id"].startswith("d0") for s in report.samples)
    assert len([s for s in report.samples if s["reason"] == "e-mail"]) == 3


def test_the_same_output_and_report_from_any_number_of_workers(monkeypatch) -> None:
    monkeypatch.setattr("imatrix_lab.corpus.clean.BATCH_CHARS", 8_000)
    one, report_one = cleaned(documents(60))
    two, report_two = cleaned(documents(60), workers=2)
    assert one == two
    assert report_one == report_two


def test_duplicates_near_ones_and_repeats() -> None:
    first, second, third = documents(3)
    copy = dataclasses.replace(first, id="copy")
    words = second.text.split(" ")
    words[40] = "cellar"
    near = dataclasses.replace(second, id="near", text=" ".join(words))
    repeat = dataclasses.replace(
        third, id="repeat",
        text=third.text.split("\n\n")[0] + "\n\n" + next(documents(1, 9)).text,
    )  # fmt: skip
    found, report = cleaned([first, second, third, copy, near, repeat])
    assert [d.id for d in found] == ["d0000", "d0001", "d0002", "repeat"]
    assert report.as_dict()["duplicates_removed"] == 2
    assert report.as_dict()["steps"]["duplicates"] == {
        "near-duplicate document": {"documents_dropped": 1},
        "same document": {"documents_dropped": 1},
        "same paragraph": {"paragraphs_dropped": 1},
    }
    assert third.text.split("\n\n")[0] not in found[-1].text


def test_the_lsh_takes_what_its_formula_says() -> None:
    """Share of pairs with a common band, for texts that share a known part of their shingles."""
    rng = random.Random(2)
    for changed, low, high in ((0.0, 1.0, 1.0), (0.02, 0.5, 1.0), (0.25, 0.0, 0.05)):
        hits = 0
        for _ in range(60):
            words = [f"{rng.choice(WORDS)}{rng.randrange(99)}" for _ in range(400)]
            other = [w if rng.random() > changed else "changed" for w in words]
            a, b = dup.bands([" ".join(words), " ".join(other)])
            hits += bool(set(a) & set(b))
        assert low <= hits / 60 <= high, changed


def test_very_short_texts_have_no_bands() -> None:
    assert dup.bands(["one two three", "", "one two three four " * 40])[:2] == [[], []]
    assert dup.bands([]) == []


def test_short_documents_go_at_last_and_emptied_ones_are_counted() -> None:
    found, report = cleaned([
        Document("a", "This is one short sentence of a page.", "x", "y"),
        Document("b", "Home\n\nNews\n\nContact", "x", "y"),
        Document("c", "", "x", "y"),
    ])  # fmt: skip
    assert found == []
    steps = report.as_dict()["steps"]
    assert steps["length"]["short document"] == {"documents_dropped": 1}
    assert steps["boilerplate"]["nothing left"] == {"documents_dropped": 1}
    dropped = sum(n for (_, _, unit), n in report.counts.items() if unit == "documents_dropped")
    assert dropped == report.documents_in - report.documents_out


def test_thresholds_come_from_the_language() -> None:
    @dataclasses.dataclass(frozen=True)
    class Language:
        script: str = "Latn"
        labels: tuple[str, ...] = ("en",)
        clean: dict[str, float] = dataclasses.field(default_factory=dict)

    rules = Rules.of(Language(clean={"document_chars_min": 10, "script_share_min": 0.9}))
    assert rules == Rules("Latn", ("en",), document_chars_min=10, script_share_min=0.9)
    found, _ = cleaned([Document("a", "This is one short sentence of a page.", "x", "y")], rules)
    assert len(found) == 1
    assert Rules("Hans", ("zh",)).document_min < Rules("Latn", ("en",)).document_min


def test_code_keeps_its_form_but_not_its_addresses() -> None:
    code = (
        "def f(x):\n    if x < 3 and x > 1:\n\treturn '<b>%s</b>' % x  # by someone@firm.com\n" * 8
    )
    found, report = cleaned([Document("a", code, "x", "y")], Rules("Zyyy", ()))
    assert found[0].text == code.strip("\n").replace("someone@firm.com", "name@example.com")
    assert report.as_dict()["language_share"] is None


def test_windows_line_ends_and_many_blank_lines() -> None:
    text = next(documents(1)).text
    found, _ = cleaned([Document("a", text.replace("\n\n", "\r\n \r\n\r\n"), "x", "y")])
    again, _ = cleaned([Document("a", text, "x", "y")])
    assert found == again


def test_cleaning_what_is_clean_changes_nothing() -> None:
    once, _ = cleaned(documents(30))
    twice, report = cleaned(once)
    assert twice == once
    assert sum(report.counts.values()) == 0


def test_it_streams() -> None:
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        for document in documents(10**9):
            taken += 1
            yield document

    next(iter(clean(endless(), RULES, Report())))
    assert taken < 2_000


def test_a_hash_set_is_exact_below_its_limit_and_bounded_above() -> None:
    rng = random.Random(1)
    values = [rng.getrandbits(64) for _ in range(5_000)]
    seen = HashSet(limit=10_000)
    assert all(seen.add(v) for v in values)
    assert not any(seen.add(v) for v in values)
    assert all(v in seen for v in values)
    assert rng.getrandbits(64) not in seen
    small = HashSet(limit=1_000)
    for value in values:
        small.add(value)
    assert all(v in small for v in values[-1_000:])
    assert not any(v in small for v in values[:2_500])
    assert seen.add(0) and not seen.add(0) and not seen.add(1)


def test_an_error_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(UsageError, match="'xx'") as caught:
        cleaned(documents(3), Rules("Latn", ("xx",)), workers=2)
    assert caught.value.fix


def test_every_language_s_labels_are_ones_that_the_identifier_gives() -> None:
    known = set(identifier().labels)
    for language in languages.load_all().values():
        assert set(language.labels) <= known, language.code
