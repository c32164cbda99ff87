"""``imatrix-lab store``: list and clean the cache."""

import time

import click
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stdout
from imatrix_lab.core.format import size


@click.group()
def store() -> None:
    """What is kept on this disk."""


@store.command("ls")
@options.JSON
def store_ls(as_json: bool) -> None:
    """List artefacts, unfinished builds, and their sizes.

    \b
    Example:
      imatrix-lab store ls
    """
    session = options.session()
    rows = [
        (a.manifest["kind"], a.path.name, a.size_bytes(), (time.time() - a.last_used_s()) / 86400)
        for a in session.store.artifacts()
    ]
    rows += [("unfinished", p.name, n, (time.time() - p.stat().st_mtime) / 86400)
             for p, n in session.store.unfinished()]  # fmt: skip
    if as_json:
        return options.emit(
            [dict(zip(("kind", "name", "size_bytes", "unused_days"), r, strict=True)) for r in rows]
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind")
    table.add_column("name", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("unused for", justify="right")
    for kind, name, size_bytes, days in rows:
        table.add_row(kind, name, size(size_bytes), f"{days:.0f} d")
    table.add_row("", f"in {session.store.root}", size(sum(r[2] for r in rows)), "")
    stdout.print(table)


@store.command("gc")
@click.option(
    "--days",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="Remove what was not used for this long; 0 is everything.",
)
def store_gc(days: float) -> None:
    """Remove what has not been used lately. Files in your output folder stay.

    \b
    Example:
      imatrix-lab store gc --days 7
    """  # fmt: skip
    session = options.session()
    removed = session.store.collect_garbage(days * 86400)
    for path, size_bytes in removed:
        session.progress.say(f"removed {path.parent.name}/{path.name} ({size(size_bytes)})")
    session.progress.say(f"{len(removed)} removed, {size(sum(n for _, n in removed))} in all")
