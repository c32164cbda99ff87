"""``imatrix-lab doctor``: check the installation."""

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import stdout


@click.command()
@options.JSON
def doctor(as_json: bool) -> None:
    """What is there, what is missing, and the command that mends each gap.

    \b
    Example:
      imatrix-lab doctor
    """

    from imatrix_lab.pipeline import doctor as examination

    session = options.session()
    findings = examination.examine(session.store)
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
