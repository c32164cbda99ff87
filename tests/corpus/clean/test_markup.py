"""What is removed as markup, and what only looks like it."""

import pytest

from imatrix_lab.corpus.clean import boilerplate, markup, mojibake, personal
from tests.corpus.clean.one_step import PROSE, after, reasons


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("<p>One <b>bold</b> word.</p><!-- x\n\ny --><p>Two.</p>", "One bold word.\n\nTwo."),
        ("a<script>var a = 1;\n\nb();</script>b", "ab"),
        ("Fish &amp; chips &lt;b&gt;now&lt;/b&gt; &#233;", "Fish & chips now é"),
        ("if a < b and c > d, x<y", "if a < b and c > d, x<y"),
        ("In [[Oslo|the city]], [[Bergen]].{{cite|x}}[[File:A.jpg|thumb]]", "In the city, Bergen."),
        ("== History ==\n\n'''Oslo''' is ''big''.", "History\n\nOslo is big."),
        ("## Heading\n\nA **bold** and *slanted* [link](https://a.b/c) word.",
         "Heading\n\nA bold and slanted link word."),
        ("2 * 3 * 4 = 24, snake_case_name, /dev/snd/*, hyphen-* and $HOME_X (or $B)",) * 2,
        ("\\section{Intro}\n\nAs \\emph{said}~\\cite{me}.", "Intro\n\nAs said."),
        ("[b]Hi[/b] [url=http://x.y]there[/url] [1]", "Hi there [1]"),
        ("Text.\n\nhttps://example.org/a?b=c\n\nMail: a@b.no\n\nSee https://example.org today.",
         "Text.\n\nSee https://example.org today."),
        ("Mengden {{}, {{}}} er ikke tom.", "Mengden {{}, {{}}} er ikke tom."),
    ],
)  # fmt: skip
def test_marks_go_and_text_stays(before: str, expected: str) -> None:
    assert after(markup.strip, before)[0] == expected


@pytest.mark.parametrize(
    "text",
    ["| a | b |\n| 1 | 2 |", "{{Infobox unclosed", "$x_1^2 + \\alpha$", "<custom-tag attr>",
     "\\begin{x}", "int main() {\nreturn 0;\n}"],
)  # fmt: skip
def test_what_stays_marked_is_dropped(text: str) -> None:
    kept, report = after(markup.strip, f"{PROSE}\n\n{text}")
    assert kept == PROSE
    assert "marks remain" in reasons(report)


@pytest.mark.parametrize("code", ["a = 1;\nb = 2;", "}\nelse }", "x;  \n y}"])
def test_lines_of_a_program_go_where_the_text_has_signs(code: str) -> None:
    """Also from a paragraph that has no other sign."""
    prose = f"{PROSE} The name is snake_case."
    assert after(markup.strip, f"{prose}\n\n{code}")[0] == prose


def test_hostile_marks_take_linear_time() -> None:
    """Each would take hours if a pattern looked to the end of the text from every sign."""
    for sign in ("<!--", "<script>", "{{", "[[", "''", "**", "`", "[b", "\\emph{", "<a ", "{|"):
        after(markup.strip, sign * 20_000)
    after(mojibake.repair, "Ã" * 50_000)
    after(personal.replace, "1-" * 50_000 + "@" * 50_000 + "1:" * 20_000)
    after(boilerplate.drop, "a | " * 20_000)
