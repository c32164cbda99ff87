"""A study as one HTML file that needs nothing else: no network, no other file.

A content security policy forbids every request, and every script and style but the page's own
two, which it names by hash. Jinja escapes all text, and hidden characters are shown.
"""

import base64
import hashlib
import itertools
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from imatrix_lab.core.files import write_whole
from imatrix_lab.report import svg
from imatrix_lab.report.build import outline
from imatrix_lab.report.results import Results
from imatrix_lab.report.sections import flips
from imatrix_lab.report.sections.verdicts import VERDICTS
from imatrix_lab.report.text import visible


def write(results: Results, path: Path) -> None:
    """Write the page, whole or not at all; equal results give equal bytes."""
    write_whole(path, page(results))


def page(results: Results) -> str:
    """Return the page."""
    folder = resources.files("imatrix_lab.report") / "templates"
    names = ("page.html", "body.html", "page.css", "page.js")
    shell, inside, css, script = ((folder / name).read_text("utf-8") for name in names)
    environment = jinja2.Environment(
        autoescape=True, finalize=visible, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    sheet, numbers, panels = svg.Sheet(), itertools.count(1), itertools.count(1)
    environment.globals.update(
        draw=lambda panel: Markup(svg.svg(panel, next(panels), sheet)), mark=svg.look,
        right=flips.right, tally=flips.tally, verdicts=VERDICTS, symbols=Markup(_symbols()),
        count=lambda: next(numbers), kind=lambda block: type(block).__name__.lower(),
    )  # fmt: skip
    report = outline(results)
    body = environment.from_string(inside).render(report=report)
    css += sheet.css()  # of the pictures, which were drawn with the body
    return environment.from_string(shell).render(
        title=report.title, body=Markup(body), css=Markup(css), script=Markup(script),
        css_hash=_hash(css), script_hash=_hash(script),
    )  # fmt: skip


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _symbols() -> str:
    marks = {str(i): m for i, m in enumerate(svg.MARKS)} | svg.VERDICT_MARKS
    paths = {n: "L".join(f"{x} {-y}" for x, y in corners) for n, corners in marks.items()}
    return "".join(
        f'<symbol id="mark-{name}" viewBox="-1.5 -1.5 3 3"><path d="M{path}Z"/></symbol>'
        for name, path in paths.items()
    )
