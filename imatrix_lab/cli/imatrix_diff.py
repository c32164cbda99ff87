"""``imatrix diff``: how importance matrices differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape

from imatrix_lab.cli import options
from imatrix_lab.cli.terminal import new_table, stderr, stdout
from imatrix_lab.errors import UsageError

if TYPE_CHECKING:
    from imatrix_lab.imatrix import distance

LAYERS_SHOWN = 5
"""Those that differ most; the rest is in the JSON."""

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("files", metavar="FILE FILE...", nargs=-1, required=True, type=FILE)
@click.option(
    "--noise", nargs=2, multiple=True, type=FILE, metavar="SAMPLE SAMPLE",
    help="Two files from different text of one language, to read differences against; repeatable.",
)  # fmt: skip
@click.option(
    "--plot", type=FILE, metavar="[OUT]", is_flag=False, flag_value="diff.svg",
    help="Draw it: OUT.svg or OUT.png, or diff.svg; the first file against the others by layer"
    " and, from three files, every two.",
)  # fmt: skip
@options.JSON
def diff(
    files: tuple[Path, ...], noise: tuple[tuple[Path, Path], ...], plot: Path | None, as_json: bool
) -> None:
    """How importance matrices of one model differ: overall, by role and by layer.

    \b
    Example:
      imatrix-lab imatrix diff nb.gguf en.gguf --noise nb-1.gguf nb-2.gguf --plot nb-en.svg
    """

    from imatrix_lab.imatrix import align, distance, format, plots

    if len(files) < 2:
        raise UsageError("two files or more are compared", fix="imatrix-lab imatrix diff A B")
    read = [(path, format.read(path)) for path in files]
    found = distance.compare(read, align.labels(read))
    samples = [[(path, format.read(path)) for path in pair] for pair in noise]
    floor = distance.noise_floor(samples, found.tensors) if samples else None
    everything = [one for files in (read, *samples) for _, one in files]
    if note := align.note_on_models(everything):
        stderr.print(note, markup=False, soft_wrap=True)
    if plot:
        plots.draw(plot, found, floor)
        stderr.print(f"picture: {plot}", markup=False)
    result = distance.summary(found, floor)
    n_tokens = {label: one.n_tokens() for label, (_, one) in zip(found.labels, read, strict=True)}
    if as_json:
        values = {m: v.tolist() for m, v in found.values.items()}
        tensors = {"names": found.tensors, "tokens": found.tokens.tolist(), **values}
        if floor:
            tensors["noise"] = {m: v.tolist() for m, v in floor.by_tensor.items()}
            tensors["noise_highest_tv"] = floor.highest.tolist()
        return options.emit({**result, "n_tokens": n_tokens, "by_tensor": tensors})
    _print_matrix(found)
    _print_groups("role", result["roles"], len(result["roles"]))
    _print_groups("layer", result["layers"], LAYERS_SHOWN)
    _print_verdict(result["overall"], floor, n_tokens)
    if found.n_left_out:
        stderr.print(f"note: {found.n_left_out} tensors are not in all of the files, left out")


def _print_matrix(found: distance.Comparison) -> None:
    if len(found.labels) < 3:
        return
    values = found.matrix("tv")
    table = new_table("total variation", *map(escape, found.labels))
    for label, row in zip(found.labels, values, strict=True):
        table.add_row(escape(label), *(f"{value:.3f}" for value in row))
    stdout.print(table)


def _print_groups(name: str, groups: list[dict[str, Any]], shown: int) -> None:
    """Print the groups that differ most, each measure with its noise in brackets."""

    from imatrix_lab.imatrix import distance

    titles = {"tv": "total variation", "cosine": "cosine", "rank": "rank", "top": "top 1 %"}
    table = new_table(name, *titles.values(), "tensors above noise")
    for group in groups[:shown]:
        noise = group.get("noise", {})
        cells = [
            f"{group[m]:.3f}" + (f" ({noise[m]:.3f})" if noise else "") for m in distance.MEASURES
        ]
        above = f"{group['above_noise']} of {group['tensors']}" if noise else ""
        table.add_row(escape(str(group["name"])), *cells, above)
    stdout.print(table)


def _print_verdict(
    overall: dict[str, Any], floor: distance.Floor | None, n_tokens: dict[str, int]
) -> None:
    words = (
        f"{100 * overall['tv']:.1f} % of the energy moves, mean over {overall['tensors']} tensors"
    )
    if floor is None:
        words += "; how much that is, two samples of one language tell: --noise"
    else:
        noise = overall["noise"]["tv"]
        times = f", {overall['tv'] / noise:.1f} times as much" if noise else ""
        words += (
            f"{times}: between two samples of one language {100 * noise:.1f} %;"
            f" {overall['above_noise']} tensors are above the noise of every pair of samples;"
            f" {overall['above_by_chance']:.0f} would be by chance"
        )
    stdout.print(words, markup=False, soft_wrap=True)
    least = min(n_tokens.values())
    if floor and floor.n_tokens < 0.9 * least:
        stderr.print(
            f"note: the samples have {floor.n_tokens:,} tokens, the files {least:,} or more:"
            " with so many the noise would be less",
            markup=False,
        )
