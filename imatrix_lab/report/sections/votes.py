"""What people said of answers whose quant they did not know."""

from imatrix_lab.report import cells
from imatrix_lab.report.blocks import Section, Table
from imatrix_lab.report.cells import Cell, row
from imatrix_lab.report.lookup import View


def votes(view: View) -> Section | None:
    """Return the tally of each two systems."""
    rows = [
        row(
            view.of_model(p.model) + view.text(p.text), p.a, p.b,
            *(Cell(f"{n:,}", n) for n in (p.n_people, p.n_prompts, p.n_wins_a, p.n_ties,
                                          p.n_wins_b)),
            *cells.interval(p, plus=True), Cell(p.verdict, mark=p.verdict),
        )
        for p in view.results.preferences
    ]  # fmt: skip
    words = [p.plain for p in view.results.preferences]
    columns = ("language", "A", "B", "people", "prompts", "A wins", "ties", "B wins",
               "A − B, points", "low", "high", "A is")  # fmt: skip
    return (
        Section("votes", "Votes of people", words, [Table("In numbers", columns, rows)])
        if rows
        else None
    )
