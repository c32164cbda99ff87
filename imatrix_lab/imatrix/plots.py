"""Plots of a comparison: files x files, and a profile over layers by role.

Lines have the colours and marks of the report's charts, which the colour-blind can tell apart.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.outputs import Rules, replacing_equal
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix.distance import Distances, NoiseFloor
from imatrix_lab.imatrix.format import layer_and_role
from imatrix_lab.report.svg import MARKS, look, palette

SUFFIXES = (".svg", ".png")
_HEAT_INCHES, _PANEL_INCHES, _LEGEND_INCHES = 0.5, (3.0, 2.2), 0.35
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "imatrix_lab",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "figure.dpi": 150,
}

Panel = tuple[str, list[int]]  # a title, and the rows of `Distances.tensors` it shows


def check(path: Path) -> None:
    """Raise UsageError for a suffix that is not drawn."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a plot is {' or '.join(SUFFIXES)}, not {path.name}")


def draw(
    path: Path, distances: Distances, floor: NoiseFloor | None, rules: Rules | None = None
) -> None:
    """Plot the total variation as SVG or PNG, by the file name's suffix.

    With three files or more: a heat map of every two. Always: each other file against the first,
    layer by layer, in a panel for each role; roles with the same values share a panel.
    """
    check(path)
    import matplotlib as mpl

    with mpl.rc_context(STYLE), replacing_equal(path, rules or Rules()) as temporary:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        _figure(distances, floor).savefig(temporary, format=path.suffix[1:], metadata=metadata)


def _figure(distances: Distances, floor: NoiseFloor | None) -> Any:
    from matplotlib.figure import Figure

    panels, n_files = _panels(distances), len(distances.labels)
    across = min(len(panels), 2 if n_files > 2 else 3)
    down = -(-len(panels) // across)
    heat = 2.4 + _HEAT_INCHES * n_files if n_files > 2 else 0.0
    width, height = across * _PANEL_INCHES[0], down * _PANEL_INCHES[1] + _LEGEND_INCHES
    figsize = heat + width, max(height + 0.4, heat * 0.8)
    figure: Any = Figure(figsize=figsize, layout="constrained")
    right = figure
    if heat:
        left, right = figure.subfigures(1, 2, width_ratios=(heat, width))
        _heat_map(left, distances, floor)
    axes = right.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    _profiles(right, axes, distances, floor, panels)
    return figure


def _heat_map(figure: Any, distances: Distances, floor: NoiseFloor | None) -> None:
    """Draw every two files; the diagonal is the noise floor, if known."""
    values = distances.matrix("tv")
    np.fill_diagonal(values, floor.overall("tv") if floor else np.nan)
    axes = figure.subplots()
    axes.set_anchor("N")
    top = float(np.nanmax(values))
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top or 1)
    ticks = range(len(distances.labels))
    axes.set_xticks(ticks, distances.labels, rotation=45, ha="right")
    axes.set_yticks(ticks, distances.labels)
    axes.grid(visible=False)
    for i, j in itertools.product(ticks, ticks):
        if np.isfinite(values[i, j]):
            shade = "black" if values[i, j] > 0.6 * top else "white"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=shade, size=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="share of energy that moves")
    if floor:
        bar.ax.axhline(floor.overall("tv"), color="white", linewidth=2)
    about = "diagonal: two samples of one language" if floor else "mean over all tensors"
    axes.set_title(f"Total variation, every two files\n{about}", size=9, loc="left")


def _profiles(
    figure: Any, grid: Any, distances: Distances, floor: NoiseFloor | None, panels: list[Panel]
) -> None:
    axes, colours = grid.flatten(), palette()
    label = "noise: two samples of one language"
    noise = {"color": colours["band"], "linewidth": 0, "label": label}
    top = 0.0
    for panel, (title, rows) in zip(axes, panels, strict=False):
        layers = [layer_and_role(distances.tensors[i])[0] for i in rows]
        for k, label in enumerate(distances.labels[1:]):
            colour, mark = look(k)
            values = distances.values["tv"][rows, 0, k + 1]
            style = {"color": colours[f"series-{colour}"], "linewidth": 1.2, "markersize": 4}
            panel.plot(layers, values, marker=MARKS[mark], label=label, **style)
            top = max(top, float(np.nanmax(values, initial=0)))
        if floor:
            known = floor.by_tensor["tv"][rows]
            panel.fill_between(layers, 0, known, **noise)
            top = max(top, float(np.nanmax(known, initial=0)))
        panel.set_title(title, size=9, loc="left")
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    for panel in axes[max(0, len(panels) - grid.shape[1]) : len(panels)]:
        panel.set_xlabel("layer")
        panel.tick_params(labelbottom=True)
    axes[0].set_ylim(0, 1.05 * top or 1)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel("share of energy that moves", size=9)
    figure.suptitle(f"Total variation from {distances.labels[0]}", size=9, x=0.02, ha="left")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _panels(distances: Distances) -> list[Panel]:
    roles: dict[str, list[int]] = {}
    for i, name in enumerate(distances.tensors):
        layer, role = layer_and_role(name)
        if layer is not None:
            roles.setdefault(role, []).append(i)
    panels: dict[tuple[Any, bytes], tuple[list[str], list[int]]] = {}
    for role, rows in roles.items():
        layers = tuple(layer_and_role(distances.tensors[i])[0] for i in rows)
        key = layers, distances.values["tv"][rows].tobytes()
        panels.setdefault(key, ([], rows))[0].append(role)
    return [(", ".join(names), rows) for names, rows in panels.values()]
