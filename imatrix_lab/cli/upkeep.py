"""The commands that look after the machine: toolchain, store, doctor."""

from __future__ import annotations

import time

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab import doctor as examination
from imatrix_lab import toolchain as tools
from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stdout
from imatrix_lab.errors import MissingTool


@click.group()
def toolchain() -> None:
    """llama.cpp's programs and libraries."""


@toolchain.command("build")
@options.BACKEND
def toolchain_build(backend: str | None) -> None:
    """Build llama.cpp if it is not built; print its folder.

    \b
    Example:
      imatrix-lab toolchain build --backend cuda
    """
    store, terminal = options.surroundings()
    click.echo(tools.get(store, backend or tools.default_backend(), terminal).bin_dir)


@toolchain.command("path")
@options.BACKEND
def toolchain_path(backend: str | None) -> None:
    """Print the folder with the programs.

    \b
    Example:
      $(imatrix-lab toolchain path)/llama-bench --help
    """
    click.echo(_found(backend).bin_dir)


@toolchain.command("version")
@options.BACKEND
@options.JSON
def toolchain_version(backend: str | None, as_json: bool) -> None:
    """Print commit, backend and compiler: what goes into every signature.

    \b
    Example:
      imatrix-lab toolchain version
    """
    signature = _found(backend).signature()
    if as_json:
        return options.emit(signature)
    click.echo(" ".join(f"{k}={v}" for k, v in signature.items()))


def _found(backend: str | None) -> tools.Toolchain:
    store, _ = options.surroundings()
    found = tools.find(store, backend or tools.default_backend())
    if found is None:
        raise MissingTool("llama.cpp is not built", fix="imatrix-lab toolchain build")
    return found


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
    found, _ = options.surroundings()
    rows = [
        (a.manifest["kind"], a.path.name, a.size_bytes(), (time.time() - a.last_used_s()) / 86400)
        for a in found.artifacts()
    ]
    rows += [("unfinished", p.name, n, (time.time() - p.stat().st_mtime) / 86400)
             for p, n in found.unfinished()]  # fmt: skip
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
        table.add_row(kind, name, f"{size_bytes / 2**20:.1f} MiB", f"{days:.0f} d")
    table.add_row("", f"in {found.root}", f"{sum(r[2] for r in rows) / 2**20:.1f} MiB", "")
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
    found, terminal = options.surroundings()
    removed = found.collect_garbage(days * 86400)
    for path, size_bytes in removed:
        terminal.say(f"removed {path.parent.name}/{path.name} ({size_bytes / 2**20:.1f} MiB)")
    terminal.say(f"{len(removed)} removed, {sum(n for _, n in removed) / 2**20:.1f} MiB in all")


@click.command()
@options.JSON
def doctor(as_json: bool) -> None:
    """What is there, what is missing, and the command that mends each gap.

    \b
    Example:
      imatrix-lab doctor
    """
    found, _ = options.surroundings()
    findings = examination.examine(found)
    if as_json:
        options.emit(findings)
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for f in findings:
            table.add_row(
                "ok" if f.ok else "GAP",
                f.name,
                escape(f.detail + (f"\n→ {f.fix}" if f.fix else "")),
            )
        stdout.print(table)
    if any(f.needed and not f.ok for f in findings):
        raise click.exceptions.Exit(1)
