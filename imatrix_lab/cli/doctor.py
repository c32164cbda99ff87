"""``imatrix-lab doctor``: check the installation."""

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stdout


@click.command()
@options.JSON
def doctor(as_json: bool) -> None:
    """Check the installation, and print how to fix what is missing.

    \b
    Example:
      imatrix-lab doctor
    """
    from imatrix_lab.pipeline.doctor import examine

    findings = examine(options.session())
    if as_json:
        options.emit(findings)
    else:
        table = new_table("state", "name", "detail", n_text=3, header=False)
        for finding in findings:
            fix = f"\n→ {finding.fix}" if finding.fix else ""
            state = "ok" if finding.ok else "MISSING" if finding.needed else "optional"
            table.add_row(state, finding.name, escape(finding.detail + fix))
        stdout.print(table)
    if any(f.needed and not f.ok for f in findings):
        raise click.exceptions.Exit(1)
