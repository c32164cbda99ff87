"""``imatrix-lab task translate``: a benchmark in another language."""

from pathlib import Path
from typing import Any

import click

from imatrix_lab.cli import options
from imatrix_lab.cli.task import DATA, LIMIT
from imatrix_lab.cli.task_judge import CHAT, chat_with
from imatrix_lab.cli.terminal import stderr
from imatrix_lab.core.outputs import Rules
from imatrix_lab.tasks import definition


@click.command("translate")
@click.argument("name", metavar="TASK")
@click.option("--to", required=True, metavar="CODE", help="The language to translate into.")
@click.option("--from", "source", default="en", show_default=True, metavar="CODE")
@CHAT
@DATA
@LIMIT
@click.option("--out", type=options.PathType(), default=Path("translated"),
              show_default=True, help="Folder for the items and the review file.")  # fmt: skip
@options.FORCE
@options.JSON
def translate(
    name: str, to: str, source: str, as_json: bool, data: Path | None, out: Path,
    limit: int | None, **chat_options: Any,
) -> None:  # fmt: skip
    """Translate a task by a model; a person reviews what is flagged.

    \b
    Example:
      imatrix-lab task translate mixeval --to nb --endpoint http://host:8080/v1 --model big
    """
    from imatrix_lab.tasks.load import check_data
    from imatrix_lab.tasks.locale import get_locale
    from imatrix_lab.tasks.translate import TranslateRequest, check, translate

    session = options.session()
    task, to = definition.get(name), options.language(to, session.progress)
    source = options.language(source, session.progress)
    get_locale(to)
    check_data(task, data)  # what is wrong is told before llama.cpp is built
    request = TranslateRequest(task, source, to, data, out, limit)
    rules = Rules((data,) if data else (), chat_options.pop("force"), session.progress)
    check(request, rules)
    with chat_with(chat_options, session) as chat:
        check(request, rules, chat.model)
        files = translate(request, chat, session.progress)
    if as_json:
        return options.emit(files)
    options.echo(files.items)
    n_left_out = files.n_left_out
    left_out = f"{n_left_out:,} items left out, not translated; " if n_left_out else ""
    stderr.print(
        f"{files.n_texts:,} texts, {files.n_flagged:,} to review in {files.review}; {left_out}"
        f"run it: task run {name} --langs {to} --data {files.items}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return None
