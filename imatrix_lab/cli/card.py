"""``imatrix-lab card``: a model card for files that others made."""

from pathlib import Path

import click

from imatrix_lab.cli import options


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--scores", "records", multiple=True, type=options.PathType(exists=True),
              metavar="DIR", help="Records of `score run`; may be repeated.")  # fmt: skip
@click.option("--to", "repo", default="", metavar="USER/NAME",
              help="The repository on the Hub that the card is for.")  # fmt: skip
@click.option("--out", type=options.PathType(), default=Path("card"), show_default=True,
              help="Folder for card, picture and results.")  # fmt: skip
@options.FORCE
def card(
    files: tuple[str, ...], records: tuple[Path, ...], repo: str, out: Path, force: bool
) -> None:
    """Write the model card of any GGUF files: what their headers and your records say.

    \b
    Example:
      imatrix-lab card Model-Q4_K_M.gguf Model-Q3_K_M.gguf --scores scores
    """
    from imatrix_lab.publish import others

    options.echo(*others.write(files, records, repo, out, options.session(), force))
