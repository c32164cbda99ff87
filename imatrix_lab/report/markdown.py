"""A study as Markdown: the same parts and numbers as the page, tables in place of pictures."""

import re
from collections.abc import Iterator
from pathlib import Path

from imatrix_lab.core.files import write_whole
from imatrix_lab.report.blocks import Block, Code, Picture, Statements, Table
from imatrix_lab.report.build import outline
from imatrix_lab.report.cells import Cell
from imatrix_lab.report.results import Results
from imatrix_lab.report.sections.flips import right, tally
from imatrix_lab.report.text import visible

_GLYPHS = {"better": "▲", "worse": "▼", "equivalent": "◆", "undecided": "○"}


def write(results: Results, path: Path) -> None:
    """Write the report, whole or not at all; equal results give equal bytes."""
    write_whole(path, text(results))


def text(results: Results) -> str:
    """Return the report."""
    report = outline(results)
    lines = [f"# {plain(report.title)}", ""]
    lines += [line for sentence in report.answer for line in (f"**{plain(sentence)}**", "")]
    lines += [f"- {plain(name)}: {plain(value)}" for name, value in report.facts]
    lines += ["", *(f"> {plain(warning)}" for warning in report.warnings), ""]
    for section in report.sections:
        lines += [f"## {plain(section.title)}", ""]
        lines += [line for paragraph in section.words for line in (plain(paragraph), "")]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def plain(value: str) -> str:
    """Return foreign text on one line, with Markdown and HTML escaped."""
    value = " ".join(visible(value).split())
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", value)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table | Picture):
        yield from table(block.table if isinstance(block, Picture) else block)
    elif isinstance(block, Code):
        yield f"{plain(block.title)}:"
        yield from ("", fenced(block.text))
    elif isinstance(block, Statements):
        yield f"### {plain(block.title)}"
        yield ""
        yield from (f"- {plain(s)} {plain(detail)}".rstrip() for s, detail in block.pairs)
    else:
        yield f"### {plain(block.title)} ({tally(block.shown, block.n_more)})"
        for f in block.shown:
            for name, value in {
                f"Item {f.item_id}": f.prompt,
                "Right": f.gold,
                f"{f.a}: {right(f.score_a)}": f.output_a,
                f"{f.b}: {right(f.score_b)}": f.output_b,
            }.items():
                yield from ("", f"{plain(name)}:", "", fenced(value))


def table(block: Table) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"### {plain(block.caption)}"
    yield ""
    yield f"| {' | '.join(plain(c) or '&nbsp;' for c in block.columns)} |"
    yield f"|{'|'.join('--:' if i in block.numeric else '---' for i in range(len(block.columns)))}|"
    for row in block.rows:
        yield f"| {' | '.join(map(_cell, row))} |"
    if block.note:
        yield from ("", plain(block.note))


def _cell(cell: Cell) -> str:
    glyph = next((g for name, g in _GLYPHS.items() if name in cell.mark.split()), "")
    more = f"({plain('; '.join(cell.more))})" if cell.more else ""
    return " ".join(filter(None, (glyph, plain(cell.text), more)))


def fenced(value: str) -> str:
    """Return text as it stands between fences longer than any in it."""
    value = visible(value).replace("\r", "\n")
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{value}\n{fence}"
