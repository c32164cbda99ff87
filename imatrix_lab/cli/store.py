"""``imatrix-lab store``: list and clean the cache."""

import time

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stdout
from imatrix_lab.core.format import size


@click.group()
def store() -> None:
    """List and clean the cache."""


@store.command("ls")
@options.JSON
def store_ls(as_json: bool) -> None:
    """List finished results and unfinished builds with their sizes.

    \b
    Example:
      imatrix-lab store ls
    """
    cache = options.session().store
    now = time.time()
    rows = [
        (a.manifest["kind"], a.path.name, a.size_bytes(), (now - a.last_used_s()) / 86400)
        for a in cache.artifacts()
    ]
    for path, size_bytes in cache.unfinished():
        rows.append(("unfinished", path.name, size_bytes, (now - path.stat().st_mtime) / 86400))
    if as_json:
        return options.emit(
            [dict(zip(("kind", "name", "size_bytes", "unused_days"), r, strict=True)) for r in rows]
        )
    table = new_table("kind", "name", "size", "unused for", n_text=2)
    for kind, name, size_bytes, days in rows:
        table.add_row(kind, name, size(size_bytes), f"{days:.0f} d")
    table.add_row("", f"in {cache.root}", size(sum(r[2] for r in rows)), "")
    stdout.print(table)


@store.command("gc")
@click.option(
    "--days",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="Remove what has not been used for this long; 0 removes everything.",
)
def store_gc(days: float) -> None:
    """Remove cached results that have not been used lately; your own files stay.

    \b
    Example:
      imatrix-lab store gc --days 7
    """  # fmt: skip
    session = options.session()
    removed = session.store.collect_garbage(days * 86400)
    for path, size_bytes in removed:
        session.progress.say(f"removed {path.parent.name}/{path.name} ({size(size_bytes)})")
    total = size(sum(size_bytes for _, size_bytes in removed))
    session.progress.say(f"{len(removed)} removed, {total} in all")
