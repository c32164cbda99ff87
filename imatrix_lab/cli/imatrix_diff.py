"""``imatrix diff``: how importance matrices differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.core.outputs import Rules, check_file, replaceable
from imatrix_lab.core.paths import expanded
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.imatrix.distance import Distances, NoiseFloor

LAYERS_SHOWN = 5
"""The layers that differ most; ``--json`` has all."""
MEASURES = {
    "tv": "total variation", "cosine": "cosine", "rank": "rank", "top": "top 1 %",
    "mean": "mean", "products": "products",
}  # fmt: skip
"""The last two are of moments, where all files have them."""
FILE = options.PathType()


@click.command()
@click.argument("files", metavar="FILE FILE...", nargs=-1, required=True)
@click.option(
    "--noise", nargs=2, multiple=True, metavar="SAMPLE SAMPLE",
    help="Two files from different text of one language, as the noise level; repeatable.",
)  # fmt: skip
@click.option(
    "--plot", type=FILE, metavar="[OUT]", is_flag=False, flag_value="diff.svg",
    help="Plot the first file against each other one by layer, and with three files or more a"
    " heat map, to OUT.svg or OUT.png. [without OUT: diff.svg]",
)  # fmt: skip
@options.FORCE
@options.JSON
def diff(
    files: tuple[str, ...], noise: tuple[tuple[str, str], ...], plot: Path | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare importance matrices of one model: overall, by role and by layer.

    \b
    Example:
      imatrix-lab imatrix diff nb.gguf en.gguf --noise nb-1.gguf nb-2.gguf --plot nb-en.svg
    """
    from imatrix_lab.imatrix import align, distance, format

    if len(files) < 2:
        raise UsageError("need two files or more", fix="imatrix-lab imatrix diff A B")
    session = options.session()

    def read(word: str) -> tuple[Path, format.Imatrix]:
        path = options.imatrix_file(word, session)
        return path, format.read(path)

    names = (*files, *(word for pair in noise for word in pair))
    rules = Rules(tuple(map(expanded, names)), force, session.progress)
    if plot:
        from imatrix_lab.imatrix import plots

        plots.check(plot)
        check_file(plot, rules, replaceable)
    compared = [read(word) for word in files]
    distances = distance.compare(compared, align.labels(compared))
    samples = [[read(word) for word in pair] for pair in noise]
    floor = distance.noise_floor(samples, distances.tensors) if samples else None
    if note := align.note_on_models(i for group in (compared, *samples) for _, i in group):
        stderr.print(note, markup=False, soft_wrap=True)
    if plot:
        plots.draw(plot, distances, floor, rules)
        stderr.print(f"plot: {plot}", markup=False)
    summary = distance.summary(distances, floor)
    tokens = [imatrix.n_tokens() for _, imatrix in compared]
    if as_json:
        n_tokens = dict(zip(distances.labels, tokens, strict=True))
        by_tensor = _by_tensor(distances, floor)
        return options.emit({**summary, "n_tokens": n_tokens, "by_tensor": by_tensor})
    if len(files) > 2:
        table = new_table("total variation", *map(escape, distances.labels))
        for label, row in zip(distances.labels, distances.matrix("tv"), strict=True):
            table.add_row(escape(label), *(f"{value:.3f}" for value in row))
        stdout.print(table)
    _print_groups("role", summary["roles"])
    _print_groups("layer", summary["layers"][:LAYERS_SHOWN])
    _print_verdict(summary["overall"], floor, min(tokens))
    if "products" not in distances.values and any(i.more for _, i in compared):
        note = "note: moments are compared only where every file has them (imatrix build --moments)"
        stderr.print(note, markup=False, soft_wrap=True)
    if distances.n_skipped:
        stderr.print(f"note: {distances.n_skipped} tensors are not in all files: skipped")


def _by_tensor(distances: Distances, floor: NoiseFloor | None) -> dict[str, Any]:
    values = {m: v.tolist() for m, v in distances.values.items()}
    data = {"names": distances.tensors, "tokens": distances.tokens.tolist(), **values}
    if floor:
        data["noise"] = {m: v.tolist() for m, v in floor.by_tensor.items()}
        data["noise_highest_tv"] = floor.highest.tolist()
    return data


def _print_groups(name: str, groups: list[dict[str, Any]]) -> None:
    """Print groups, each measure with its noise in brackets."""
    measures = {m: title for m, title in MEASURES.items() if m in groups[0]}
    table = new_table(name, *measures.values(), "tensors above noise")
    for group in groups:
        noise = group.get("noise", {})
        cells = [f"{group[m]:.3f}" + (f" ({noise[m]:.3f})" if m in noise else "") for m in measures]
        above = f"{group['above_noise']} of {group['tensors']}" if noise else ""
        table.add_row(escape(str(group["name"])), *cells, above)
    stdout.print(table)


def _print_verdict(overall: dict[str, Any], floor: NoiseFloor | None, n_tokens: int) -> None:
    mean = f"mean over {overall['tensors']} tensors"
    verdict = f"{100 * overall['tv']:.1f} % of the energy moves, {mean}"
    if floor is None:
        verdict += "; compare it with two samples of one language: --noise"
    else:
        noise = overall["noise"]["tv"]
        times = f", {overall['tv'] / noise:.1f} times the noise" if noise else ""
        verdict += (
            f"{times} ({100 * noise:.1f} % between two samples of one language);"
            f" {overall['above_noise']} tensors are above the noise of every pair of samples"
            f" ({overall['above_by_chance']:.0f} expected by chance)"
        )
    stdout.print(verdict, markup=False, soft_wrap=True)
    if floor and floor.n_tokens < 0.9 * n_tokens:
        sizes = f"the samples have {floor.n_tokens:,} tokens, the files at least {n_tokens:,}"
        stderr.print(f"note: {sizes}: larger samples would have less noise", markup=False)
