"""``imatrix-lab publish``: finished files to the Hugging Face Hub, with their evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.format import size

if TYPE_CHECKING:
    from imatrix_lab.publish.files import Collected

PAGE = "card.html"
"""The card as a page, in the folder that is published; it stays there."""


@click.command()
@click.argument("folder", type=options.PathType(), metavar="FOLDER")
@click.option("--to", "repo", required=True, metavar="USER/NAME",
              help="The repository on the Hub; made if it is not there.")  # fmt: skip
@click.option("--scores", "records", multiple=True, type=options.PathType(exists=True),
              metavar="DIR", help="Records of `score run` for the card; may be repeated."
              " [default: scores, if it is there]")  # fmt: skip
@click.option("--private", "is_private", is_flag=True, help="Nobody else sees a new repository.")
@click.option("--with-text", is_flag=True,
              help="Give calibration and held-out text too, where its licences allow.")  # fmt: skip
@click.option("--replace", is_flag=True,
              help="Replace files of these names that are in the repository.")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Show what would be sent, and the card as a page; send nothing.")  # fmt: skip
@options.JSON
def publish(folder: Path, repo: str, dry_run: bool, as_json: bool, **rest: Any) -> None:
    """Send a folder of `tune` or `quantize` to the Hugging Face Hub, with a model card.

    Files first, the card last, then a tag. Stopped, the same command goes on. The token is that of
    `hf auth login`.

    \b
    Example:
      imatrix-lab publish quants --to user/Model-nb-GGUF --dry-run
    """
    from imatrix_lab.core.hub_http import endpoint
    from imatrix_lab.publish import files, upload

    session = options.session()
    upload.check_repo(repo)
    collected = files.collect(folder, repo, rest["records"], rest["with_text"], dry_run, session)
    for note in collected.notes:
        session.progress.say(f"note: {note}")
    if dry_run:
        return _show(folder, repo, collected, as_json)
    tag = upload.upload(
        repo, collected.items, rest["is_private"], rest["replace"], session.progress
    )
    if as_json:
        return options.emit({"repo": repo, "tag": tag})
    stdout.print(f"{endpoint()}/{repo}/tree/{tag}", markup=False, soft_wrap=True)
    return None


def _show(folder: Path, repo: str, collected: Collected, as_json: bool) -> None:
    """Print every file and what would be done about it; write the card as a page."""
    from imatrix_lab.core.files import write_whole
    from imatrix_lab.core.outputs import Rules, any_file, check_file
    from imatrix_lab.errors import FetchFailed, UsageError
    from imatrix_lab.publish import preview, upload

    page, mark = folder / PAGE, preview.MARK.encode()
    check_file(page, Rules(), lambda path: "" if mark in path.read_bytes() else any_file(path))
    states: dict[str, str] = {}
    try:
        states = upload.diff(repo, collected.items).states()
    except (FetchFailed, UsageError) as error:
        stderr.print(f"note: not compared with the Hub: {error.what}", markup=False, soft_wrap=True)
    write_whole(page, preview.page(collected.card(), collected.picture()))
    sizes = {item.name: size(item.size_bytes) for item in collected.items}
    names = ("file", "size", "on the Hub")
    rows = [(n, sizes.get(n, ""), states.get(n, "")) for n in dict.fromkeys((*sizes, *states))]
    if as_json:
        return options.emit([dict(zip(names, row, strict=True)) for row in rows])
    table = new_table(*names)
    for row in rows:
        table.add_row(*row)
    stdout.print(table)
    stderr.print(f"the card as a page: {page}", markup=False, soft_wrap=True)
    return None
