"""``imatrix-lab report``: a study's results as a page, as Markdown, as JSON."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import Terminal, stderr
from imatrix_lab.core.outputs import Other, Rules, any_file, check_file
from imatrix_lab.errors import ImatrixLabError

if TYPE_CHECKING:
    from imatrix_lab.report.results import Results

FILE = options.PathType()


@click.command()
@click.argument("run", metavar="RUN", type=options.PathType())
@click.option("--html", "page", type=FILE, help="Write one self-contained HTML file.")
@click.option("--md", "text", type=FILE, help="Write Markdown.")
@click.option("--json", "data", type=FILE, help="Write JSON.")
@options.FORCE
def report(run: Path, page: Path | None, text: Path | None, data: Path | None, force: bool) -> None:
    """Write the report of a study; RUN is its folder or its results.json.

    Without options it is written next to the results, as report.html.

    \b
    Example:
      imatrix-lab report studies/quick-nb --html report.html --md report.md
    """
    from imatrix_lab.report import html, markdown, results

    study = results.read(run)
    if not (page or text or data):
        page = (run if run.is_dir() else run.parent) / "report.html"
    rules = Rules((run / results.FILE if run.is_dir() else run,), force, Terminal())
    others = (_other_page(study), _other_text(study), _other_data(study))
    for path, other in zip((page, text, data), others, strict=True):
        if path:
            check_file(path, rules, other)
            path.parent.mkdir(parents=True, exist_ok=True)
    for path, write in ((page, html.write), (text, markdown.write)):
        if path:
            write(study, path)
            stderr.print(f"report: {path}", markup=False, soft_wrap=True)
    if data:
        results.write(data, study)
        stderr.print(f"results: {data}", markup=False, soft_wrap=True)


def _other_page(study: Results) -> Other:
    from markupsafe import escape

    from imatrix_lab.report.text import visible

    name = f"imatrix_lab study · {escape(visible(study.name))}<"
    marks = (b'content="imatrix_lab"', name.encode())

    def other(path: Path) -> str:
        content = path.read_bytes()
        return "" if all(mark in content for mark in marks) else any_file(path)

    return other


def _other_text(study: Results) -> Other:
    from imatrix_lab.report import markdown

    head = markdown.text(study).partition("\n")[0].encode()
    return lambda path: "" if path.read_bytes().startswith(head + b"\n") else any_file(path)


def _other_data(study: Results) -> Other:
    from imatrix_lab.report import results

    def other(path: Path) -> str:
        with contextlib.suppress(ImatrixLabError):
            return "" if results.read(path).name == study.name else any_file(path)
        return any_file(path)

    return other
