"""The same report as Markdown."""

import re

import pytest

from imatrix_lab.report import markdown
from imatrix_lab.report.build import outline
from tests.report import made_up


@pytest.mark.parametrize("make", [made_up.study, made_up.hostile], ids=["plain", "hostile"])
def test_tables_keep_their_columns(make):
    """Outside of fences, every row of a table has as many cells as its head."""
    text = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", markdown.text(make()))
    columns = None
    n_tables = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        n = len(re.findall(r"(?<!\\)\|", line)) - 1
        n_tables += columns is None
        columns = columns or n
        assert n == columns, line
    assert n_tables > 15
    assert not re.search("<(script|iframe|img|svg)", text)


def test_the_same_parts_and_numbers_as_the_page(golden):
    results = made_up.study()
    text = markdown.text(results)
    for section in outline(results).sections:
        assert f"## {section.title}" in text
        golden(section.id, "\n".join([section.title, *section.words]))
    assert "▲ better (−0.139; −0.159 … −0.119; 13.9 × noise)" in text
    assert markdown.text(made_up.study()) == text


def test_answers_stand_between_fences_that_they_cannot_close():
    value = "a ```` b\n```\n# head"
    assert markdown.fenced(value) == f"`````text\n{value}\n`````"


def test_what_markdown_would_take_up_is_escaped():
    assert markdown.plain("a|b\n*c* <d> [e](f) `g`") == (
        r"a\|b \*c\* &lt;d&gt; \[e\](f) \`g\`"
    )  # fmt: skip


def test_nothing_came():
    assert markdown.text(made_up.empty()).startswith("# quick-nb\n")
