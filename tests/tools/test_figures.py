"""Every table of numbers in README and docs is made by a command, or says why not."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from click import Command, Context, Group

from imatrix_lab.cli.main import cli

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("figures", ROOT / "tools" / "figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)
ENTRIES = figures.read()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def listed():
    for entry in ENTRIES["measured"].values():
        yield from entry["sections"]
    yield from ENTRIES["by-hand"]
    yield from ENTRIES["explained"]["sections"]


def test_every_section_with_a_table_of_numbers_is_listed():
    found = {
        f"{page.relative_to(ROOT)}#{title}" for page in PAGES for title, _ in figures.sections(page)
    }
    assert found <= set(listed()), "name what makes these numbers in docs/figures.toml"


def test_every_listed_section_exists_once():
    sections = list(listed())
    assert len(sections) == len(set(sections))
    for section in sections:
        page, _, title = section.partition("#")
        assert re.search(rf"^#+ {re.escape(title)}$", (ROOT / page).read_text(), re.M), section


@pytest.mark.parametrize("name", ENTRIES["measured"])
def test_every_command_exists(name):
    makefile = (ROOT / "Makefile").read_text()
    for command in ENTRIES["measured"][name]["commands"]:
        program, *arguments = shlex.split(command)
        if program == "make":
            assert f"\n{arguments[0]}:" in makefile, command
        elif program == "python":
            assert (ROOT / arguments[0]).is_file(), command
        elif program == "imatrix-lab":
            assert options_exist(cli, arguments), command
        else:
            assert program == "pip", command


def options_exist(command, arguments):
    """Whether a command has the options that it is given."""
    while isinstance(command, Group):
        context = Context(command)
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
    assert isinstance(command, Command)
    known = {option for parameter in command.params for option in parameter.opts}
    return {a for a in arguments if a.startswith("--")} <= known


def test_a_table_of_numbers_is_told_from_one_of_words(tmp_path):
    page = tmp_path / "page.md"
    numbers = "## A\n\n| | KLD |\n|---|---:|\n| x | 0.148 |\n| y | **.5** |\n\n"
    words = "## B\n\n| file | 3 words |\n|---|---|\n| x | for 4 bits |\n| y | Q4_K_M |\n"
    printed = "## C\n\n```\n# not a title\nnb 0.1133 0.2\nen 0.1343 -0.3\n```\n\n"
    command = "## D\n\n    lab --ctx 1.5 --x 2.5\n"
    page.write_text(numbers + words + printed + command)
    assert [title for title, _ in figures.sections(page)] == ["A", "C"]


def test_a_log_of_this_commit_is_not_made_again_and_a_failed_command_leaves_none(tmp_path):
    log, counted = tmp_path / "x-0.log", tmp_path / "n"
    command = f"echo once >> {counted}; cat {counted}"
    for _ in range(2):
        assert figures.make(command, log)
    assert counted.read_text() == "once\n"
    assert log.read_text().splitlines()[0].startswith(f"$ {command}  # at ")
    assert not figures.make("false", tmp_path / "y-0.log")
    assert not (tmp_path / "y-0.log").exists()
