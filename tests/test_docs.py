"""The documentation names every command, and no command that is not there."""

import re
from pathlib import Path

import click
import pytest

from imatrix_lab.cli.main import cli
from imatrix_lab.corpus import languages

ROOT = Path(__file__).parent.parent
TEXTS = {p.name: p.read_text() for p in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}


def leaves(group, words=()):
    """Commands that do something, subcommands before their group."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*words, name))
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield (*words, name), command


LEAVES = dict(leaves(cli))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_is_in_the_table(words):
    (row,) = re.findall(rf"^\| `{words[0]}` \|.*$", TEXTS["README.md"], re.MULTILINE)
    assert f"`{words[-1]}`" in row


@pytest.mark.parametrize("name", TEXTS)
def test_commands_and_options_in_the_text_exist(name):
    for line in re.findall(r"^ *\$?\s*imatrix-lab (.+)$", TEXTS[name], re.MULTILINE):
        words = line.split("#")[0].split()
        command = next((c for w, c in LEAVES.items() if tuple(words[: len(w)]) == w), None)
        assert command is not None, line
        known = {o for p in command.params for o in p.opts} | {"-h", "--help"}
        assert {w for w in words if w.startswith("-")} <= known, line


def test_make_targets_in_the_text_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [*TEXTS.values(), *(p.read_text() for p in (ROOT / "tools").glob("*.py"))]
    named = re.findall(r"(?m)(?:^ {4}|`)make ([a-z-]+)", "\n".join(texts))
    assert {"quant", "bench-memory"} <= set(named) <= targets


def test_the_number_of_languages_is_true():
    n = sum(language.script != "Zyyy" for language in languages.load_all().values())
    assert f"{n} languages" in TEXTS["README.md"]


def test_the_tree_names_every_folder():
    folders = {p.parent.name for p in (ROOT / "imatrix_lab").glob("*/__init__.py")}
    assert {f for f in folders if f"\n{f}/" not in TEXTS["README.md"]} == set()
