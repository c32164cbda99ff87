"""``imatrix-lab report``: a study's results as a page, as Markdown, as JSON."""

from pathlib import Path

import click

from imatrix_lab.cli.terminal import stderr

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--html", "page", type=FILE, help="One file that needs nothing else.")
@click.option("--md", "text", type=FILE, help="The same as Markdown.")
@click.option("--json", "data", type=FILE, help="The same as JSON.")
def report(run: Path, page: Path | None, text: Path | None, data: Path | None) -> None:
    """The report of a study: RUN is its folder or its results.json.

    Without options it is put beside the results, as report.html.

    \b
    Example:
      imatrix-lab report studies/quick-nb --html report.html --md report.md
    """

    from imatrix_lab.report import html, markdown, results

    found = results.read(run)
    if not (page or text or data):
        page = (run if run.is_dir() else run.parent) / "report.html"
    for path, write in ((page, html.write), (text, markdown.write)):
        if path:
            write(found, path)
            stderr.print(f"report: {path}", markup=False, soft_wrap=True)
    if data:
        results.write(data, found)
        stderr.print(f"results: {data}", markup=False, soft_wrap=True)
