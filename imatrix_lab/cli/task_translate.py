"""``imatrix-lab task translate``: a benchmark in another language."""

from pathlib import Path
from typing import Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.task import DATA, LIMIT
from imatrix_lab.cli.task_judge import CHAT, chat_with
from imatrix_lab.cli.terminal import Terminal, stderr
from imatrix_lab.tasks import definition as definitions


@click.command()
@click.argument("name", metavar="TASK")
@click.option("--to", required=True, metavar="CODE", help="The language to translate into.")
@click.option("--from", "source", default="en", show_default=True, metavar="CODE")
@CHAT
@DATA
@LIMIT
@click.option("--out", type=click.Path(path_type=Path), default=Path("translated"),
              show_default=True, help="Folder for the items and the review file.")  # fmt: skip
@options.JSON
def translate(
    name: str, to: str, source: str, as_json: bool, data: Path | None, out: Path,
    limit: int | None, **asked: Any,
) -> None:  # fmt: skip
    """Translate a task by a model; a person reviews what is flagged.

    \b
    Example:
      imatrix-lab task translate mixeval --to nb --endpoint http://host:8080/v1 --model big
    """

    from imatrix_lab.tasks import translate as translating

    terminal = Terminal()
    one, to = definitions.get(name), options.language(to, terminal)
    with chat_with(asked, terminal) as chat:
        found = translating.translate(
            one, source, to, data=data, out=out, limit=limit, chat=chat, progress=terminal
        )
    if as_json:
        return options.emit(found)
    click.echo(found.items)
    left_out = f"{found.n_left_out:,} items left out, not translated; " if found.n_left_out else ""
    stderr.print(
        f"{found.n_texts:,} texts, {found.n_flagged:,} to review in {found.review}; {left_out}"
        f"run it: task run {name} --langs {to} --data {found.items}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return None
