"""Sensitivities as a picture: a panel for each role, by depth, languages side by side.

Filled marks are for types with a scale and a minimum, hollow ones for those with a scale.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.core.outputs import Rules, replacing_equal
from imatrix_lab.imatrix.plots import STYLE, check
from imatrix_lab.quantize.sensitivity import KINDS, Sensitivity
from imatrix_lab.report.svg import MARKS, look, palette

_PANEL_INCHES, _LEGEND_INCHES, _ACROSS = (2.6, 2.1), 0.5, 4
_OTHERS = "tensors alone"


def draw(path: Path, sensitivities: Sequence[Sensitivity], rules: Rules | None = None) -> None:
    """Plot coefficients with their intervals as SVG or PNG, by the file name's suffix."""
    check(path)
    import matplotlib as mpl

    with mpl.rc_context(STYLE), replacing_equal(path, rules or Rules()) as temporary:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        _figure(sensitivities).savefig(temporary, format=path.suffix[1:], metadata=metadata)


def panels(sensitivities: Sequence[Sensitivity]) -> dict[str, list[str]]:
    """Return the groups of each role, in order of depth; others together."""
    panels: dict[str, list[str]] = {}
    for group in dict.fromkeys(g for s in sensitivities for g in s.coefficients):
        role, _, band = group.rpartition(".")
        panels.setdefault(role if role and band.isdigit() else _OTHERS, []).append(group)
    return {role: sorted(groups, key=_band) for role, groups in panels.items()}


def _band(group: str) -> int:
    band = group.rpartition(".")[2]
    return int(band) if band.isdigit() else 0


def _figure(sensitivities: Sequence[Sensitivity]) -> Any:
    from matplotlib.figure import Figure

    by_role = panels(sensitivities)
    across = min(_ACROSS, len(by_role))
    down = -(-len(by_role) // across)
    size = across * _PANEL_INCHES[0], down * _PANEL_INCHES[1] + _LEGEND_INCHES
    figure: Any = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for panel, (role, groups) in zip(axes, by_role.items(), strict=False):
        for k, sensitivity in enumerate(sensitivities):
            for kind in KINDS:
                _series(panel, groups, (sensitivity, kind), k, len(sensitivities))
        names = groups if role == _OTHERS else [str(_band(g)) for g in groups]
        panel.set_xticks(range(len(groups)), names)
        panel.set_xlim(-0.5, len(groups) - 0.5)
        panel.set_title(role, size=9, loc="left")
        panel.set_yscale("log")
    for panel in axes[len(by_role) :]:
        panel.set_visible(False)
    figure.supylabel("nats a token for each unit of relative error", size=9)
    figure.supxlabel("band of layers, from the input on", size=9)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=4, frameon=False, fontsize=8)
    return figure


def _series(panel: Any, groups: list[str], shown: tuple[Sensitivity, str], k: int, n: int) -> None:
    (sensitivity, kind), (number, mark) = shown, look(k)
    known = [(i, sensitivity.coefficients[g][kind]) for i, g in enumerate(groups)
             if g in sensitivity.coefficients]  # fmt: skip
    is_hollow = kind == "scale"
    shift = (k - (n - 1) / 2 + (-0.2 if is_hollow else 0.2)) * 0.5 / n
    values = [c.kld_nats_per_error for _, c in known]
    below = [c.kld_nats_per_error - (c.ci95_low or c.kld_nats_per_error) for _, c in known]
    above = [(c.ci95_high or c.kld_nats_per_error) - c.kld_nats_per_error for _, c in known]
    colour = palette()[f"series-{number}"]
    panel.errorbar(
        [i + shift for i, _ in known], values, yerr=[below, above],
        label=None if is_hollow else sensitivity.language, color=colour, marker=MARKS[mark],
        markerfacecolor="none" if is_hollow else colour, markersize=4, linewidth=0, elinewidth=1.2,
    )  # fmt: skip
