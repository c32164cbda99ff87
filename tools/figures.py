"""Make the figures in README and docs anew, and find those that no command makes.

    make figures                          hours; stopped, it goes on with the next command
    make figures FLAGS="sizes statistics"

`docs/figures.toml` names, for each section with measured numbers, the commands that print them.
What they print goes into figures/NAME.log, with the commit and the date; a log of this commit is
not made again. The numbers are put into the docs by hand, but where a command writes them itself.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "figures.toml"
_NUMBER = re.compile(r"[~−+*<]*\.?\d[\d.,]*(?![\w-])")
_DECIMAL = re.compile(r"(?<![\w./-])[−+-]?\d+\.\d+")
_ROWS_MIN = 2
"""Rows with a number that make a table one of figures."""


def main() -> int:
    """Run the commands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="entries of docs/figures.toml; all without")
    names, entries = parser.parse_args().names, measured()
    if unknown := set(names) - set(entries):
        parser.error(f"no {', '.join(sorted(unknown))} in {TABLE}; there are: {', '.join(entries)}")
    folder, failed = ROOT / "figures", []
    folder.mkdir(exist_ok=True)
    for name in names or entries:
        if not all(make(c, folder / f"{name}-{i}.log") for i, c in enumerate(entries[name])):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}; see {folder}", file=sys.stderr)
    return bool(failed)


def make(command: str, log: Path) -> bool:
    """Run a command unless its log is of this commit; return whether it ended well."""
    commit = _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else "")
    first = f"$ {command}  # at {commit}, "
    if log.exists() and log.read_text().startswith(first):
        return True
    part = log.with_suffix(".part")
    print(f"{command} > {log}", flush=True)
    with part.open("w") as file:
        file.write(f"{first}{datetime.now(UTC):%Y-%m-%d}\n")
        file.flush()
        status = subprocess.call(
            command, shell=True, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
    if status == 0:
        part.replace(log)
    return status == 0


def measured() -> dict[str, list[str]]:
    """Return the commands of each entry."""
    return {name: entry["commands"] for name, entry in read()["measured"].items()}


def read() -> Mapping[str, Any]:
    """Return docs/figures.toml."""
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def sections(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the title and the lines of each section of a page that has a table of numbers.

    What a program printed counts too: lines of code with several decimals.
    """
    title, lines, n_rows, is_fenced = "", list[str](), 0, False
    for line in [*path.read_text(encoding="utf-8").splitlines(), "# "]:
        if line.startswith("```"):
            is_fenced = not is_fenced
        elif line.startswith("#") and not is_fenced:
            if n_rows >= _ROWS_MIN:
                yield title, lines
            title, lines, n_rows = line.lstrip("# "), [], 0
        is_code = is_fenced or line.startswith("    ")
        n_rows += len(_DECIMAL.findall(line)) > 1 if is_code else _has_number(line)
        lines.append(line)


def _has_number(line: str) -> bool:
    cells = line.split("|")[2:-1] if line.startswith("|") else []
    return any(_NUMBER.match(cell.strip()) for cell in cells)


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


if __name__ == "__main__":
    sys.exit(main())
