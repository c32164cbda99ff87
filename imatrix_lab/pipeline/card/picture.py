"""The picture of a card: KLD against size, a colour for each text, SVG."""

import io
import math
from collections.abc import Sequence
from typing import Any

from imatrix_lab.imatrix.plots import STYLE
from imatrix_lab.llamacpp import size_types
from imatrix_lab.pipeline.card.scores import Scored, Scores
from imatrix_lab.report.svg import MARKS, look, palette

NAME = "kld-by-size.svg"


def svg(scores: Scores) -> str:
    """Return the picture, on white: the Hub shows it in light and dark pages alike.

    Filled marks are the files; hollow ones are standard mixes of their sizes.
    """
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context(STYLE):
        _figure(scores).savefig(out, format="svg", metadata={"Date": None}, facecolor="white")
    return out.getvalue()


def _figure(scores: Scores) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    figure: Any = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    largest = max(s.size_bytes for s in (*scores.files, *scores.standards))
    unit, unit_name = (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")
    for k, text in enumerate(scores.texts()):
        _series(axes, [s for s in scores.files if s.summary.text == text], text, k, unit)
        rest = [s for s in scores.standards if s.summary.text == text]
        _series(axes, rest, "", k, unit)
    for name in dict.fromkeys(s.file for s in scores.files):
        top = max((s for s in scores.files if s.file == name), key=_height)
        place = (top.size_bytes / unit, _height(top))
        axes.annotate(
            top.summary.type.removeprefix(size_types.PREFIX), place, (0, 5), ha="center", size=8,
            textcoords="offset points",
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.08)
    axes.set_xlabel(f"size of the file, {unit_name}")
    hollow = "; hollow: standard mixes" * bool(scores.standards)
    axes.set_title(
        f"KLD from the original, nats a token; bars: 95 % CI{hollow}", size=9, loc="left"
    )
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _height(scored: Scored) -> float:
    kld = scored.summary.kld_mean
    return kld.estimate if math.isnan(kld.high) else kld.high


def _series(axes: Any, scored: Sequence[Scored], text: str, k: int, unit: int) -> None:
    """Draw files (with the name of their text), or standard mixes (without one)."""
    points = sorted(scored, key=lambda s: s.size_bytes)
    if not points:
        return
    colour, mark = look(k)
    intervals = [s.summary.kld_mean for s in points]
    below = [0.0 if math.isnan(i.low) else max(0.0, i.estimate - i.low) for i in intervals]
    above = [0.0 if math.isnan(i.high) else i.high - i.estimate for i in intervals]
    axes.errorbar(
        [s.size_bytes / unit for s in points], [i.estimate for i in intervals],
        yerr=[below, above], label=text or None, color=palette()[f"series-{colour}"],
        marker=MARKS[mark], markersize=6, linewidth=0, elinewidth=1.2,
        markerfacecolor=None if text else "white",
    )  # fmt: skip
