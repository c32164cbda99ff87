"""Every command that help, README and docs show is one: its options exist, and its tasks run."""

import re
import shlex
from pathlib import Path

import click
import pytest

from imatrix_lab.cli.main import cli
from imatrix_lab.core.progress import Silent
from imatrix_lab.tasks import definition, run
from imatrix_lab.types import ComputeOptions, TaskRequest

ROOT = Path(__file__).parents[2]
TASK = cli.get_command(click.Context(cli), "task")
COMMANDS = {
    n: TASK.get_command(click.Context(TASK), n) for n in TASK.list_commands(click.Context(TASK))
}
TEXTS = [
    *((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/tasks.md")),
    *(command.help for command in COMMANDS.values()),
]
EXAMPLES = sorted(
    {
        match[1].partition("#")[0].strip()
        for text in TEXTS
        for match in re.finditer(r"^ +imatrix-lab task (.+)$", text, re.MULTILINE)
    }
)


def test_every_command_has_an_example():
    assert {line.split()[0] for line in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(line)
    for word in words:
        if re.search(r"\.(gguf|parquet|json)$|^task-runs$", word):
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            (Path(word).touch if "." in word else Path(word).mkdir)()
    given = COMMANDS[name].make_context(name, words).params
    if name == "run":
        codes = tuple(given["langs"].split(","))
        compute = ComputeOptions("cpu")
        request = TaskRequest(given["tasks"], codes, (), tmp_path, compute, data=given["data"])
        assert run.pairs(map(definition.get, request.tasks), request, Silent())


def test_the_definition_in_the_docs_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", TEXTS[1], re.DOTALL)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    assert definition.get(str(tmp_path / "mine.toml")).languages == {"nb": "nob"}
