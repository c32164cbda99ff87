"""``imatrix``: make, show, check and merge importance matrices."""

from __future__ import annotations

import itertools
import shlex
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.lazy import LazyGroup
from imatrix_lab.cli.terminal import Terminal, new_table, stderr, stdout
from imatrix_lab.core.outputs import Rules, check_file, replaceable
from imatrix_lab.core.paths import expanded
from imatrix_lab.errors import BadImatrix, UsageError

if TYPE_CHECKING:
    from imatrix_lab.imatrix.devices import DeviceEstimate
    from imatrix_lab.imatrix.findings import Findings
    from imatrix_lab.imatrix.format import Imatrix
    from imatrix_lab.imatrix.passes import Estimate
    from imatrix_lab.imatrix.statistics import TensorStatistics

FILE = options.PathType()
MERGE_BY = ("energy", "tokens")
WINDOWS = ("stream", "document")
"""`merge.BY` and `windows.KINDS`, which are slow to import."""
MORE = {
    "diff": ("imatrix_diff", "Compare importance matrices by role and layer."),
    "predict": ("imatrix_predict", "Predict what quants lose, without running a model."),
}


@click.group(cls=LazyGroup, lazy=MORE)
def imatrix() -> None:
    """Make, show, check, merge and compare importance matrices."""


@imatrix.command("build")
@options.MODEL
@click.option(
    "--corpus", "text", required=True, metavar="TEXT",
    help="A language or mixture, a folder made by `corpus build`, or a file of text.",
)  # fmt: skip
@options.FIELD
@options.TOKENS
@click.option("--out", type=FILE, help="[default: ./MODEL-LANGUAGE.imatrix.gguf]")
@options.COMPUTE
@click.option("--parse-special", is_flag=True, help="Parse chat tokens in the text.")
@click.option("--process-output", is_flag=True, help="Collect for the output matrix too.")
@click.option(
    "--windows", type=click.Choice(WINDOWS), default=WINDOWS[0], show_default=True,
    help="stream: one stream of tokens, cut every --ctx; document: no window straddles two texts.",
)  # fmt: skip
@click.option("--moments", is_flag=True, help="E[x] and 256-wide blocks of E[x xᵀ] too.")
@click.option("--full", default="", metavar="REGEX", help="All of E[x xᵀ] for these matrices.")
@click.option(
    "--memory", "memory_bytes", type=options.Size(), metavar="SIZE",
    help="Main memory it may use, e.g. 20GiB: a larger model is read as seldom as that allows."
    " [default: what is free]",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what is read, memory and time; run nothing.")
@options.FORCE
@options.JSON
def imatrix_build(
    model: str, text: str, out: Path | None, as_json: bool, dry_run: bool, **rest: Any
) -> None:
    """Collect an importance matrix on a text; continues an interrupted run.

    \b
    Example:
      imatrix-lab imatrix build --model model-f16.gguf --corpus nb
      imatrix-lab imatrix build --model 70b-q8_0.gguf --corpus nb --memory 20GiB --dry-run
    """
    from imatrix_lab.imatrix import format
    from imatrix_lab.pipeline import tune

    if rest["full"] and not rest["moments"]:
        raise click.UsageError("--full needs --moments")
    session = options.session()
    request = options.request(options.language(text, session.progress), (), model=model, **rest)
    if dry_run:
        estimate = tune.imatrix_estimate(request, out, session)
        return options.emit(estimate.facts()) if as_json else _print_estimate(estimate)
    path = tune.imatrix(request, out, session)
    built = format.read(path)
    if as_json:
        facts = {"file": path, "n_tensors": len(built.entries), "n_chunks": built.chunk_count}
        return options.emit({**facts, "n_ctx": built.chunk_size, "language": built.language})
    session.progress.say(f"{len(built.entries)} tensors over {built.windows()} tokens")
    options.echo(path)


def _print_estimate(estimate: Estimate | DeviceEstimate) -> None:
    for line in estimate.lines():
        stdout.print(line, markup=False, soft_wrap=True)


@imatrix.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@options.JSON
def show(files: tuple[str, ...], as_json: bool) -> None:
    """Show importance matrices: tokens, text, problems, and the energy of each role.

    \b
    Example:
      imatrix-lab imatrix show nb.imatrix.gguf
    """
    from imatrix_lab.imatrix import format, statistics, validate

    session = options.session()
    paths = [options.imatrix_file(word, session) for word in files]
    imatrices = {path: format.read(path) for path in paths}
    if as_json:
        return options.emit([_facts(path, imatrix) for path, imatrix in imatrices.items()])
    for path, imatrix in imatrices.items():
        _print_facts(path, imatrix)
        _print_roles(statistics.of(imatrix))
        _print_findings(validate.check(imatrix))


def _facts(path: Path, imatrix: Imatrix) -> dict[str, Any]:
    from imatrix_lab.imatrix import moments, statistics, validate

    return {
        "file": path,
        "format": "dat" if imatrix.legacy else "gguf",
        "language": imatrix.language,
        "n_tensors": len(imatrix.entries),
        "n_tokens": imatrix.n_tokens(),
        "n_chunks": imatrix.chunk_count,
        "n_ctx": imatrix.chunk_size,
        "windows": WINDOWS[imatrix.by_document],
        "datasets": imatrix.datasets,
        "metadata": dict(imatrix.metadata),
        "moments": moments.facts(path),
        "findings": validate.check(imatrix).all,
        "tensors": statistics.of(imatrix),
    }


def _print_facts(path: Path, imatrix: Imatrix) -> None:
    from imatrix_lab.imatrix.format import REPAIRED
    from imatrix_lab.imatrix.merge import KEY

    about = "about " if imatrix.legacy else ""
    windows = imatrix.windows() + (", each in one document" if imatrix.by_document else "")
    rows = {
        "file": str(path),
        "format": "legacy .dat" if imatrix.legacy else "GGUF",
        "language": imatrix.language or "unknown",
        "tensors": str(len(imatrix.entries)),
        "tokens": f"{about}{imatrix.n_tokens():,} in {windows}",
        "text": ", ".join(imatrix.datasets) or "unknown",
        "moments": _moments(path),
        "repaired": imatrix.metadata.get(REPAIRED, ""),
        "merged": imatrix.metadata.get(KEY, ""),
    }
    table = new_table("", "", n_text=2, header=False)
    for name, value in rows.items():
        if value:
            table.add_row(name, escape(value))
    stdout.print(table)


def _moments(path: Path) -> str:
    from imatrix_lab.core.format import size
    from imatrix_lab.imatrix import moments

    if not (facts := moments.facts(path)):
        return ""
    whole = f", {facts['n_whole']} of them whole" if facts["n_whole"] else ""
    blocks = f"E[x] and {facts['block']}-wide blocks of E[x xᵀ]"
    return f"{blocks} for {facts['n_inputs']} inputs{whole}; {size(facts['size_bytes'])}"


def _print_roles(tensors: list[TensorStatistics]) -> None:
    roles = defaultdict(list)
    for tensor in tensors:
        roles[tensor.role].append(tensor)
    names = ("role", "tensors", "tokens", "energy", "in top 1 %", "evenness", "active", "no tokens")
    table = new_table(*names)
    for role, group in roles.items():
        columns = zip(*((t.top_share, t.entropy_share, t.active) for t in group), strict=True)
        shares = [f"{100 * fmean(values):.1f} %" for values in columns]
        n_tokens, energy = fmean(t.n_tokens for t in group), fmean(t.energy for t in group)
        n_unhit = sum(t.n_unhit for t in group)
        cells = (f"{n_tokens:,.0f}", f"{energy:.4g}", *shares, str(n_unhit))
        table.add_row(escape(role), str(len(group)), *cells)
    stdout.print(table)


def _print_findings(findings: Findings) -> None:
    for finding in findings.all:
        effect = "" if finding.effect == "none" else f"\n  effect: {finding.effect}"
        remedy = f"\n  fix: {finding.remedy}" if finding.remedy else ""
        text = f"{finding.severity}: {finding.what}{effect}{remedy}"
        stdout.print(text, markup=False, soft_wrap=True)
    if not findings.all:
        stdout.print("no problems")


@imatrix.command()
@click.argument("file", metavar="FILE")
@click.option("--model", required=True, metavar="MODEL", help="Its model; see `model show`.")
@click.option("--repair", "target", type=FILE, metavar="OUT", help="Write a repaired copy.")
@options.FORCE
@options.JSON
def check(file: str, model: str, target: Path | None, force: bool, as_json: bool) -> None:
    """Check whether an importance matrix can be used for a model; exit status 1 if not.

    \b
    Example:
      imatrix-lab imatrix check some-download.dat --model model-f16.gguf
    """
    from imatrix_lab.imatrix import expected, format, moments, repair, validate
    from imatrix_lab.models.resolve import files_of, resolve

    session = options.session()
    path = options.imatrix_file(file, session)
    imatrix = format.read(path)  # and other errors before a large model is hashed
    rules = Rules((path, *files_of(model)), force, session.progress)
    if target:
        is_dat = target.suffix == ".dat"
        check_file(target, rules, replaceable if is_dat else format.other_than({}, ""))
    tensors = expected.of(resolve(model, session))
    changes: tuple[str, ...] = ()
    if target:
        imatrix, changes = repair.repair(imatrix, tensors)
    findings = validate.check(imatrix, tensors).with_more(moments.check(path))
    errors = findings.of("error")
    if as_json:
        options.emit({"file": path, "findings": findings.all, "repaired": changes})
    else:
        _print_findings(findings)
    if target and errors:
        problems = "; ".join(e.what for e in errors)
        raise BadImatrix(f"cannot be repaired: {problems}", where=path, fix=errors[0].remedy)
    if not target and any(finding.mendable for finding in findings.all):
        words = ["imatrix-lab", "imatrix", "check", str(path), "--model", model, "--repair"]
        session.progress.say(f"to repair: {shlex.join([*words, f'{path.stem}-repaired.gguf'])}")
    if target:
        format.write(target, imatrix, rules=rules)
        session.progress.say(f"{target}: {'; '.join(changes) or 'nothing to repair, a copy'}")
    click.get_current_context().exit(1 if errors else 0)


def _weighted(word: str) -> tuple[Path, float]:
    """Return file and weight of ``FILE`` or ``FILE=WEIGHT``; FILE may be a language's code."""
    name, _, number = word.rpartition("=")
    if expanded(word).exists() or not name:
        name, number = word, "1"
    path = options.imatrix_file(name, options.session(), may_lack=True)
    if not path.exists() and not Path(name).suffix and len(Path(name).parts) == 1:
        path = _by_language(options.language(name, Terminal()))
    try:
        weight = float(number)
    except ValueError:
        raise click.BadParameter(f"{number!r} in {word!r} is not a weight, such as 0.75") from None
    if not path.exists():
        raise options.no_imatrix(name)
    return path, weight


def _by_language(name: str) -> Path:
    """Return the one file in this folder that a language's code can mean."""
    exact = {f"{name}.gguf", f"{name}.imatrix.gguf"}
    ending = f"-{name}.imatrix.gguf"
    paths = [p for p in sorted(Path().iterdir()) if p.name in exact or p.name.endswith(ending)]
    if len(paths) > 1:
        what = f"{name} is ambiguous: {' or '.join(map(str, paths))}"
        raise UsageError(what, fix=f"name the file: {shlex.quote(str(paths[0]))}=0.5")
    return paths[0] if paths else Path(name)


@imatrix.command()
@click.argument("files", metavar="FILE[=WEIGHT]...", nargs=-1, required=True, type=_weighted)
@click.option("-o", "--out", required=True, type=FILE, help="A name ending in .dat: legacy format.")
@click.option(
    "--by", type=click.Choice(MERGE_BY), default=MERGE_BY[0], show_default=True,
    help="energy: by weight alone; tokens: also by number of tokens, as llama-imatrix does.",
)  # fmt: skip
@click.option("--leave-one-out", is_flag=True, help="Also write each mixture that lacks one file.")
@options.FORCE
@options.JSON
def merge(
    files: tuple[tuple[Path, float], ...], out: Path, by: str, leave_one_out: bool, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Mix importance matrices of one model; no model is run.

    \b
    Example:
      imatrix-lab imatrix merge nb=0.75 en=0.25 -o mix.gguf

    nb is nb.gguf, nb.imatrix.gguf or MODEL-nb.imatrix.gguf, whichever is here.
    """
    from imatrix_lab.core.files import sha256_file
    from imatrix_lab.imatrix import align, format
    from imatrix_lab.imatrix.merge import MergeInput, other_than, without_each
    from imatrix_lab.imatrix.merge import merge as mix

    rules = Rules(tuple(path for path, _ in files), force, Terminal())
    check_file(out, rules, other_than(files, by))
    inputs = [MergeInput(p, format.read(p), weight, sha256_file(p)) for p, weight in files]
    if note := align.note_on_models(i.imatrix for i in inputs):
        stderr.print(note, markup=False, soft_wrap=True)
    targets, mixtures = [out], iter([mix(inputs, by)])
    if leave_one_out:
        names = [Path(n).stem for n in align.labels([(i.path, i.imatrix) for i in inputs])]
        if len({n.casefold() for n in names}) < len(names):  # several files have one name
            names = [f"{name}-{i}" for i, name in enumerate(names, 1)]
        targets += [out.with_name(f"{out.stem}-without-{name}{out.suffix}") for name in names]
        mixtures = itertools.chain(mixtures, without_each(inputs, by))
        rests = ([f for f in files if f is not left] for left in files)
        for target, rest in zip(targets[1:], rests, strict=True):
            check_file(target, rules, other_than(rest, by))
    written = []
    for target, mixture in zip(targets, mixtures, strict=True):
        format.write(target, mixture, rules=rules if out.suffix == ".dat" else None)
        written.append({"file": target, **mixture.metadata})
        stderr.print(f"{mixture.label}: {mixture.n_tokens():,} tokens", markup=False)
        if not as_json:
            options.echo(target)
    if as_json:
        options.emit(written)
