"""Pictures of a comparison: files x files, and a profile over layers by role.

Colours tell apart for the colour-blind: viridis, and the palette of Okabe and Ito. Lines differ
in their marks too.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import replacing
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix.distance import Comparison, Floor
from imatrix_lab.imatrix.format import layer_and_role

SUFFIXES = (".svg", ".png")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX"
_FLOOR = "#999999"
_HEAT_INCHES, _PANEL_INCHES, _LEGEND_INCHES = 0.5, (3.0, 2.2), 0.35


def draw(path: Path, found: Comparison, floor: Floor | None) -> None:
    """Draw the total variation of some files, as SVG or PNG by the name's end.

    With three files and more: every two of them, as a heat map. Always: each of the others
    against the first, layer by layer, in a panel for each role; roles with the same input have
    the same values and share a panel.

    Raises
    ------
    UsageError : another suffix.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"a picture is {' or '.join(SUFFIXES)}, not {path.name}")
    import matplotlib as mpl

    style = {
        "svg.fonttype": "none", "svg.hashsalt": "imatrix_lab", "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.alpha": 0.3, "axes.axisbelow": True, "figure.dpi": 150,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = _figure(found, floor)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)


def _figure(found: Comparison, floor: Floor | None) -> Any:
    from matplotlib.figure import Figure

    panels = _panels(found)
    n_files = len(found.labels)
    across = min(len(panels), 2 if n_files > 2 else 3)
    down = -(-len(panels) // across)
    heat = 2.4 + _HEAT_INCHES * n_files if n_files > 2 else 0.0
    width, height = across * _PANEL_INCHES[0], down * _PANEL_INCHES[1] + _LEGEND_INCHES
    figure = Figure(figsize=(heat + width, max(height + 0.4, heat * 0.8)), layout="constrained")
    if heat:
        halves: Any = figure.subfigures(1, 2, width_ratios=(heat, width))
        _heat_map(halves[0], found, floor)
    _profiles(halves[1] if heat else figure, found, floor, panels, (down, across))
    return figure


def _heat_map(figure: Any, found: Comparison, floor: Floor | None) -> None:
    """Draw every two files; the diagonal is the noise floor, where it is known."""
    values = found.matrix("tv")
    np.fill_diagonal(values, floor.overall("tv") if floor else np.nan)
    axes = figure.subplots()
    axes.set_anchor("N")
    top = float(np.nanmax(values))
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=top or 1)
    places = range(len(found.labels))
    axes.set_xticks(places, found.labels, rotation=45, ha="right")
    axes.set_yticks(places, found.labels)
    axes.grid(visible=False)
    for i, j in itertools.product(places, places):
        if np.isfinite(values[i, j]):
            shade = "black" if values[i, j] > 0.6 * top else "white"
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=shade, size=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="share of energy that moves")
    if floor:
        bar.ax.axhline(floor.overall("tv"), color="white", linewidth=2)
    words = "diagonal: two samples of one language" if floor else "mean over all tensors"
    axes.set_title(f"Total variation, every two files\n{words}", size=9, loc="left")


def _profiles(
    figure: Any, found: Comparison, floor: Floor | None, panels: list[tuple[str, list[int]]],
    shape: tuple[int, int],
) -> None:  # fmt: skip
    axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False).flatten()
    top = 0.0
    for place, (title, rows) in zip(axes, panels, strict=False):
        layers = [layer_and_role(found.tensors[i])[0] for i in rows]
        for k in range(1, len(found.labels)):
            values = found.values["tv"][rows, 0, k]
            place.plot(
                layers, values, color=_COLOURS[(k - 1) % len(_COLOURS)], linewidth=1.2,
                marker=_MARKS[(k - 1 + (k - 1) // len(_COLOURS)) % len(_MARKS)], markersize=2.5,
                label=found.labels[k],
            )  # fmt: skip
            top = max(top, float(np.nanmax(values, initial=0)))
        if floor:
            known = floor.by_tensor["tv"][rows]
            place.fill_between(layers, 0, known, color=_FLOOR, alpha=0.45, linewidth=0,
                               label="noise: two samples of one language")  # fmt: skip
            top = max(top, float(np.nanmax(known, initial=0)))
        place.set_title(title, size=9, loc="left")
    for place in axes[len(panels) :]:
        place.set_visible(False)
    for place in axes[max(0, len(panels) - shape[1]) : len(panels)]:
        place.set_xlabel("layer")
        place.tick_params(labelbottom=True)
    axes[0].set_ylim(0, 1.05 * top or 1)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    figure.supylabel("share of energy that moves", size=9)
    figure.suptitle(f"Total variation from {found.labels[0]}", size=9, x=0.02, ha="left")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _panels(found: Comparison) -> list[tuple[str, list[int]]]:
    """Return title and tensors of each panel; roles with equal values together."""
    roles: dict[str, list[int]] = {}
    for i, name in enumerate(found.tensors):
        layer, role = layer_and_role(name)
        if layer is not None:
            roles.setdefault(role, []).append(i)
    panels: list[tuple[list[str], list[int]]] = []
    for name, rows in roles.items():
        same = next((p for p in panels if _alike(found, p[1], rows)), None)
        if same:
            same[0].append(name)
        else:
            panels.append(([name], rows))
    return [(", ".join(names), rows) for names, rows in panels]


def _alike(found: Comparison, one: Sequence[int], other: Sequence[int]) -> bool:
    values = found.values["tv"]
    places = [[layer_and_role(found.tensors[i])[0] for i in rows] for rows in (one, other)]
    return places[0] == places[1] and np.array_equal(
        values[list(one)], values[list(other)], equal_nan=True
    )
