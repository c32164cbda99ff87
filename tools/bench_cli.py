"""How long help takes: processor time of ``imatrix-lab … -h``, beside an empty Python and click.

    python tools/bench_cli.py

Help must not wait for numpy and its kin: `imatrix_lab.cli.lazy` imports a command's module when the
command is called, and a command imports its stage when it runs. Aim: 0.3 s for each.
"""

import os
import subprocess
import sys
from pathlib import Path

import click

from imatrix_lab.cli.main import cli

RUNS = 5
LAB = str(Path(sys.executable).with_name("imatrix-lab"))


def processor_s(argv: list[str]) -> float:
    """Return the least user and system time of a few runs, in seconds."""
    times = []
    for _ in range(RUNS):
        before = os.times()
        subprocess.run(argv, check=True, capture_output=True)
        after = os.times()
        times.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )
    return min(times)


def commands(group: click.Group, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the words of every group and command."""
    context = click.Context(group)
    listed = [words]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = (*words, name)
        listed += commands(command, below) if isinstance(command, click.Group) else [below]
    return listed


def main() -> None:
    """Print a line for each command."""
    print(f"{'python -c 0':32} {processor_s([sys.executable, '-c', '0']):.2f} s")
    print(f"{'import click':32} {processor_s([sys.executable, '-c', 'import click']):.2f} s")
    for words in commands(cli):
        text = " ".join(("imatrix-lab", *words, "-h"))
        print(f"{text:32} {processor_s([LAB, *words, '-h']):.2f} s")


if __name__ == "__main__":
    main()
