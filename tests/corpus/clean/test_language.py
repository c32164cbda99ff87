"""Foreign paragraphs and documents are dropped."""

import pytest

from imatrix_lab.corpus.clean import language
from imatrix_lab.corpus.clean.rules import Rules
from imatrix_lab.errors import UsageError
from tests.corpus.clean.one_step import after, reasons

NB = (
    "Regjeringen la i går fram et forslag som skal gjøre det lettere for unge å kjøpe sin første"
    " bolig, men opposisjonen mener at det ikke kommer til å hjelpe dem som trenger det mest."
)
EN = (
    "The government yesterday put forward a proposal that should make it easier for young people to"
    " buy their first home, but the opposition says it will not help those who need it most."
)


def both(drafts, rules, report) -> None:
    language.by_script(drafts, rules, report)
    language.by_words([d for d in drafts if d.paragraphs], rules, report)


def test_foreign_paragraphs_and_what_is_among_them_go() -> None:
    text = f"{NB}\n\n{EN}\n\nSee also: home.\n\n{EN}\n\nJa.\n\n{NB}\n\n{NB}"
    kept, report = after(both, text)
    assert kept == f"{NB}\n\nJa.\n\n{NB}\n\n{NB}"
    assert report.counts["it", "paragraph in en", "paragraphs_dropped"] == 2
    assert report.counts["it", "among foreign ones", "paragraphs_dropped"] == 1
    report.labels = ("no",)
    assert report.as_dict()["language_share"] == 1.0
    assert 0.5 < report.as_dict()["language_share_in"] < 0.7


def test_a_foreign_document_goes_whole() -> None:
    kept, report = after(both, f"{EN}\n\n{EN}\n\n{NB}")
    assert kept == ""
    assert reasons(report) == {"document in en"}
    kept, report = after(both, EN, Rules("Mlym", ("ml",)))
    assert (kept, reasons(report)) == ("", {"script of the document"})


def test_a_label_that_the_model_lacks_is_an_error() -> None:
    with pytest.raises(UsageError, match="'nob'") as caught:
        after(both, NB, Rules("Latn", ("nob",)))
    assert "no" in caught.value.fix.split()
