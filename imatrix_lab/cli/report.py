"""``imatrix-lab report``: a study's results as a page, as Markdown, as JSON."""

from pathlib import Path

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stderr

FILE = options.PathType(dir_okay=False)


@click.command()
@click.argument("run", metavar="RUN", type=options.PathType())
@click.option("--html", "page", type=FILE, help="Write one self-contained HTML file.")
@click.option("--md", "text", type=FILE, help="Write Markdown.")
@click.option("--json", "data", type=FILE, help="Write JSON.")
def report(run: Path, page: Path | None, text: Path | None, data: Path | None) -> None:
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
    for path, write in ((page, html.write), (text, markdown.write)):
        if path:
            write(study, path)
            stderr.print(f"report: {path}", markup=False, soft_wrap=True)
    if data:
        results.write(data, study)
        stderr.print(f"results: {data}", markup=False, soft_wrap=True)
