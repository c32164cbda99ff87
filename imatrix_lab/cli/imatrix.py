"""Importance matrices: make, look into, check and mix them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from imatrix_lab.cli import options
from imatrix_lab.cli.lazy import LazyGroup
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.files import sha256_file
from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix import merge as merging

if TYPE_CHECKING:
    from imatrix_lab.imatrix import statistics
    from imatrix_lab.imatrix.findings import Findings
    from imatrix_lab.imatrix.format import Imatrix

FILE = click.Path(path_type=Path)


MORE = {
    "diff": ("imatrix_diff", "Compare two importance matrices by role and layer."),
    "predict": ("imatrix_predict", "Predict what quants would lose, without running a model."),
}


@click.group(cls=LazyGroup, lazy=MORE)
def imatrix() -> None:
    """Make, look into, check, mix and compare importance matrices."""


@imatrix.command("build")
@options.MODEL
@click.option(
    "--corpus",
    "text",
    required=True,
    metavar="TEXT",
    help="A language or mixture, a folder made by `corpus build`, or a text file.",
)
@options.TOKENS
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file. [default: MODEL-LANGUAGE.imatrix.gguf here]",
)
@options.COMPUTE
@click.option("--parse-special", is_flag=True, help="The text has chat tokens: tokenize them so.")
@click.option("--process-output", is_flag=True, help="Collect for the output matrix too.")
@options.JSON
def imatrix_build(model: str, text: str, out: Path | None, as_json: bool, **rest: Any) -> None:
    """Run llama-imatrix over a text; goes on from where a stopped run was.

    \b
    Example:
      imatrix-lab imatrix build --model model-f16.gguf --corpus nb
    """  # fmt: skip

    from imatrix_lab.imatrix import format
    from imatrix_lab.pipeline import tune

    session = options.session()
    request = options.request(text, (), model=model, **rest)
    path = tune.imatrix(request, out, session)
    found = format.read(path)
    if as_json:
        facts = {"file": path, "n_tensors": len(found.entries), "n_chunks": found.chunk_count}
        return options.emit({**facts, "n_ctx": found.chunk_size, "language": found.language})
    windows = f"{found.chunk_count} windows of {found.chunk_size} tokens"
    session.progress.say(f"{len(found.entries)} tensors over {windows}")
    click.echo(path)


@imatrix.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=FILE)
@options.JSON
def show(files: tuple[Path, ...], as_json: bool) -> None:
    """What is in importance matrices: tokens, text, health, and the energy of each role.

    \b
    Example:
      imatrix-lab imatrix show nb.imatrix.gguf
    """

    from imatrix_lab.imatrix import format, statistics
    from imatrix_lab.imatrix import validate as checking

    found = {path: format.read(path) for path in files}
    if as_json:
        return options.emit([_facts(path, one) for path, one in found.items()])
    for path, one in found.items():
        _print_facts(path, one)
        _print_roles(statistics.of(one))
        _print_findings(checking.check(one))


def _facts(path: Path, found: Imatrix) -> dict[str, Any]:

    from imatrix_lab.imatrix import statistics
    from imatrix_lab.imatrix import validate as checking

    return {
        "file": path,
        "format": "dat" if found.legacy else "gguf",
        "language": found.language,
        "n_tensors": len(found.entries),
        "n_tokens": found.n_tokens(),
        "n_chunks": found.chunk_count,
        "n_ctx": found.chunk_size,
        "datasets": found.datasets,
        "metadata": dict(found.metadata),
        "findings": checking.check(found).all,
        "tensors": statistics.of(found),
    }


def _print_facts(path: Path, found: Imatrix) -> None:

    from imatrix_lab.imatrix import format
    from imatrix_lab.imatrix import merge as merging

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    about = "about " if found.legacy else ""
    rows = {
        "file": str(path),
        "format": "legacy .dat" if found.legacy else "GGUF",
        "language": found.language or "not said",
        "tensors": str(len(found.entries)),
        "tokens": f"{about}{found.n_tokens():,} in {found.chunk_count} windows"
        f" of {about}{found.chunk_size}",
        "text": ", ".join(found.datasets) or "not said",
        "repaired": found.metadata.get(format.REPAIRED, ""),
        "merged": found.metadata.get(merging.KEY, ""),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    stdout.print(table)


def _print_roles(rows: list[statistics.TensorStatistics]) -> None:
    """Print means over the tensors of each role; shares of one are in percent."""
    roles: dict[str, list[statistics.TensorStatistics]] = {}
    for row in rows:
        roles.setdefault(row.role, []).append(row)
    names = ("role", "tensors", "tokens", "energy", "in top 1 %", "evenness", "active", "unhit")
    table = new_table(*names)
    for role, those in roles.items():
        table.add_row(
            escape(role), str(len(those)), f"{_mean(t.n_tokens for t in those):,.0f}",
            f"{_mean(t.energy for t in those):.4g}",
            f"{100 * _mean(t.top_share for t in those):.1f} %",
            f"{100 * _mean(t.entropy_share for t in those):.1f} %",
            f"{100 * _mean(t.active for t in those):.1f} %",
            str(sum(t.n_unhit for t in those)),
        )  # fmt: skip
    stdout.print(table)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _print_findings(found: Findings) -> None:
    for finding in found.all:
        effect = "" if finding.effect == "none" else f"\n  effect: {finding.effect}"
        remedy = f"\n  remedy: {finding.remedy}" if finding.remedy else ""
        words = f"{finding.severity}: {finding.what}{effect}{remedy}"
        stdout.print(words, markup=False, soft_wrap=True)
    if not found.all:
        stdout.print("nothing wrong")


@imatrix.command()
@click.argument("path", metavar="FILE", type=FILE)
@click.option(
    "--model", required=True, metavar="MODEL", help="The model it is for; see `model show`."
)
@click.option(
    "--repair", "target", type=FILE, metavar="OUT",
    help="Write a file in which is mended what has a sound remedy.",
)  # fmt: skip
@options.JSON
def check(path: Path, model: str, target: Path | None, as_json: bool) -> None:
    """Whether an importance matrix may be used for a model; status 1 if not.

    \b
    Example:
      imatrix-lab imatrix check some-download.dat --model model-f16.gguf
    """

    from imatrix_lab.imatrix import expected, format, repair
    from imatrix_lab.imatrix import validate as checking
    from imatrix_lab.imatrix.findings import ERROR
    from imatrix_lab.models.convert import resolve

    session = options.session()
    wants = expected.of(resolve(model, session))
    found = format.read(path)
    done: tuple[str, ...] = ()
    if target:
        found, done = repair.repair(found, wants)
    findings = checking.check(found, wants)
    errors = findings.of(ERROR)
    if as_json:
        options.emit({"file": path, "findings": findings.all, "repaired": done})
    else:
        _print_findings(findings)
    if target and errors:
        raise BadImatrix(
            f"this cannot be repaired: {'; '.join(e.what for e in errors)}", where=path,
            fix=errors[0].remedy,
        )  # fmt: skip
    if target:
        format.write(target, found)
        session.progress.say(f"{target}: {'; '.join(done) or 'nothing to repair, the same again'}")
    click.get_current_context().exit(1 if errors else 0)


class _Weighted(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``FILE`` or ``FILE=WEIGHT``; ``nb`` may stand for a file named so."""

    name = "file"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Path, float]:
        """Return file and weight; what is neither fails with the command that makes a file."""
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition("=")
        if Path(value).exists() or not name:
            name, number = str(value), "1"
        path = Path(name)
        if not path.exists() and re.fullmatch(r"[\w-]+", name):
            path = _named(name)
        try:
            weight = float(number)
        except ValueError:
            self.fail(f"{number!r} in {value!r} is not a weight, such as 0.75")
        if not path.exists():
            raise UsageError(
                f"there is no file {name!r}; a mixture is made of files, one a language",
                fix=f"imatrix-lab imatrix build --model MODEL --corpus {name} --out {name}.gguf",
            )
        return path, weight


def _named(name: str) -> Path:
    """Return the one file in this folder that a language's short name can mean.

    Raises
    ------
    UsageError : it can mean several.
    """
    plain = {f"{name}.gguf", f"{name}.imatrix.gguf"}
    found = [
        p for p in sorted(Path().iterdir())
        if p.name in plain or p.name.endswith(f"-{name}.imatrix.gguf")
    ]  # fmt: skip
    if len(found) > 1:
        raise UsageError(
            f"{name} may mean {' or '.join(map(str, found))}",
            fix=f"name the file: {found[0]}=WEIGHT",
        )
    return found[0] if found else Path(name)


@imatrix.command()
@click.argument("files", metavar="FILE[=WEIGHT]...", nargs=-1, required=True, type=_Weighted())
@click.option(
    "-o", "--out", required=True, type=FILE, help="The mixture; a .dat in the legacy format."
)
@click.option(
    "--by", type=click.Choice(merging.BY), default=merging.BY[0], show_default=True,
    help="energy: a file counts by its weight alone; tokens: also by its tokens, as llama.cpp.",
)  # fmt: skip
@click.option(
    "--leave-one-out", is_flag=True, help="Also write the mixtures that lack one file each."
)
@options.JSON
def merge(
    files: tuple[tuple[Path, float], ...], out: Path, by: str, leave_one_out: bool, as_json: bool
) -> None:
    """Mix importance matrices of one model; no model is run.

    \b
    Example:
      imatrix-lab imatrix merge nb=0.75 en=0.25 -o mix.gguf

    nb is nb.gguf, nb.imatrix.gguf or MODEL-nb.imatrix.gguf, whichever is here.
    """

    from imatrix_lab.imatrix import align, format
    from imatrix_lab.imatrix import merge as merging

    parts = [merging.Part(p, format.read(p), weight, sha256_file(p)) for p, weight in files]
    if note := align.note_on_models([p.imatrix for p in parts]):
        stderr.print(note, markup=False, soft_wrap=True)
    targets, mixtures = [out], iter([merging.merge(parts, by)])
    if leave_one_out:
        targets += _without(out, parts)
        mixtures = itertools.chain(mixtures, merging.without_each(parts, by))
    made = []
    for target, one in zip(targets, mixtures, strict=True):
        format.write(target, one)
        made.append({"file": target, **one.metadata})
        stderr.print(f"{one.language}: {one.n_tokens():,} tokens", markup=False)
        if not as_json:
            click.echo(target)
    if as_json:
        options.emit(made)


def _without(out: Path, parts: list[merging.Part]) -> list[Path]:
    """Return a name for each mixture that lacks a file; numbered where files are called alike."""

    from imatrix_lab.imatrix import align

    names = [Path(n).stem for n in align.labels([(p.path, p.imatrix) for p in parts])]
    if len({n.casefold() for n in names}) < len(names):
        names = [f"{name}-{i}" for i, name in enumerate(names, 1)]
    return [out.with_name(f"{out.stem}-without-{name}{out.suffix}") for name in names]
