"""Small pictures as SVG with the colours and fonts of the page.

matplotlib draws with stand-in colours; each style it writes becomes a class whose colours are the
page's variables, so that one picture serves light, dark and paper, and no style attribute is left.
"""

import io
import math
import re
import warnings
from collections.abc import Sequence
from importlib import resources
from typing import Any

from markupsafe import escape

from imatrix_lab.core import format
from imatrix_lab.report import text
from imatrix_lab.report.blocks import Chart, Forest, ForestRow, Strips

WIDTH, HEIGHT, ROW_HEIGHT = 300.0, 210.0, 22.0
"""In units of the picture; one is a pixel or a little more."""
FONT = 10.5
N_COLOURS = 8

_ROLES = {"ink": "#010101", "muted": "#010102", "line": "#010103", "band": "#010104",
          "paper": "#010105", "better": "#010106", "worse": "#010107", "equivalent": "#010108",
          "undecided": "#010109"}  # fmt: skip
_SERIES = tuple(f"#0102{i:02x}" for i in range(N_COLOURS))
_VARIABLES = {colour: name for name, colour in _ROLES.items()} | {
    colour: f"series-{i}" for i, colour in enumerate(_SERIES)
}


def _ring(n: int, radius: float = 1.0, turn: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Return the corners of a regular polygon, y upwards; the first one at `turn` from the top."""
    angles = (2 * math.pi * (i + turn) / n for i in range(n))
    return tuple((round(radius * math.sin(a), 3), round(radius * math.cos(a), 3)) for a in angles)


def _star(n: int, inner: float) -> tuple[tuple[float, float], ...]:
    outer, notches = _ring(n, 1.15), _ring(n, inner, 0.5)
    return tuple(p for pair in zip(outer, notches, strict=True) for p in pair)


_UP, _DOWN, _DIAMOND, _DISC = _ring(3, 1.2), _ring(6, 1.2)[1::2], _ring(4, 1.2), _ring(24)
MARKS = (
    _DISC, _ring(4, 1.25, 0.5), _UP, _DIAMOND, _DOWN, _star(4, 0.45), _star(5, 0.5), _ring(5, 1.1),
)  # fmt: skip
"""Corners of each series' mark."""
VERDICT_MARKS = {"better": _UP, "worse": _DOWN, "equivalent": _DIAMOND, "undecided": _DISC}


def look(number: int) -> tuple[int, int]:
    """Return colour and mark of a series; past eight, colours return with other marks."""
    return number % N_COLOURS, (number + number // N_COLOURS) % len(MARKS)


def palette() -> dict[str, str]:
    """Return the page's light colours by name, e.g. ``series-0`` and ``band``."""
    css = (resources.files("imatrix_lab.report") / "templates" / "page.css").read_text("utf-8")
    return dict(reversed(re.findall(r"--([\w-]+): (#\w+);", css)))


class Sheet:
    """Styles of all pictures on a page, each once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, style: str) -> str:
        """Return the class of a style as matplotlib writes it."""
        style = re.sub(r"#010[12][0-9a-f]{2}", lambda m: f"var(--{_VARIABLES[m[0]]})", style)
        style = re.sub(r"(?<=px) [^;]*", " var(--sans)", style)
        return self._names.setdefault(style.strip(), f"p{len(self._names)}")

    def css(self) -> str:
        """Return the rules."""
        return "".join(f".{name}{{{style}}}\n" for style, name in self._names.items())


def svg(panel: Chart | Forest | Strips, number: int, sheet: Sheet) -> str:
    """Return a picture with title and description; `number` is unique on a page, for the ids."""
    import matplotlib as mpl

    style = {
        "svg.fonttype": "none", "svg.hashsalt": f"imatrix_lab {number}", "font.size": FONT,
        "text.parse_math": False, "text.color": _ROLES["ink"], "axes.edgecolor": _ROLES["muted"],
        "axes.labelcolor": _ROLES["muted"], "xtick.color": _ROLES["muted"],
        "ytick.color": _ROLES["muted"], "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": _ROLES["line"], "grid.linewidth": 0.8,
        "axes.axisbelow": True, "axes.linewidth": 0.8, "figure.facecolor": "none",
        "axes.facecolor": "none", "savefig.facecolor": "none", "xtick.major.size": 3,
        "ytick.major.size": 3, "ytick.minor.size": 0, "xtick.minor.size": 0,
    }  # fmt: skip
    out = io.StringIO()
    with mpl.rc_context({**mpl.rcParamsDefault, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts have it
        figure = _drawn(panel)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    width, height = figure.get_size_inches() * 72
    caption, description = (escape(text.visible(t)) for t in (panel.caption, describe(panel)))
    inside = _themed(out.getvalue(), sheet)
    return (
        f'<svg class="plot" role="img" aria-labelledby="t{number} d{number}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}"><title id="t{number}">{caption}</title>'
        f'<desc id="d{number}">{description}</desc>{inside}</svg>'
    )


def _drawn(panel: Chart | Forest | Strips) -> Any:
    if isinstance(panel, Strips):
        return _strips(panel)
    return _forest(panel) if isinstance(panel, Forest) else _chart(panel)


def _themed(raw: str, sheet: Sheet) -> str:
    """Return the content of matplotlib's SVG, with classes for styles."""
    inside = raw[raw.index("<svg") :]
    inside = inside[inside.index(">") + 1 : inside.rindex("</svg>")]
    inside = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, flags=re.DOTALL)

    def themed_tag(match: re.Match[str]) -> str:
        tag = re.sub(r'^<g id="[^"]*"', "<g", match[0]).replace("xlink:href", "href")
        tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a pixel
        return re.sub(r' style="([^"]*)"', lambda m: f' class="{sheet.name(m[1])}"', tag)

    # within tags only: what stands between them is data, and may look like anything
    return re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", themed_tag, inside)).strip()


def _figure(*sizes: float) -> Any:
    """Return axes with fixed room around them, so that neighbours line up."""
    from matplotlib.figure import Figure

    width, height, left, right, bottom, top = sizes
    figure = Figure(figsize=(width / 72, height / 72))
    inside = ((width - left - right) / width, (height - bottom - top) / height)
    return figure.add_axes((left / width, bottom / height, *inside))


def _chart(panel: Chart) -> Any:
    axes = _figure(WIDTH, HEIGHT, 46, 14, 38, 24)
    for series in panel.series:
        colour, mark = look(series.number)
        points = [p for p in series.points if math.isfinite(p.x) and math.isfinite(p.y)]
        style = {"color": _SERIES[colour], "linewidth": 1.4}
        errors = [  # lengths of the intervals below and above; none where they are unknown
            [max(e, 0.0) if math.isfinite(e) else 0.0 for e in lengths]
            for lengths in ([p.y - p.low for p in points], [p.high - p.y for p in points])
        ]
        axes.errorbar(
            [p.x for p in points], [p.y for p in points], yerr=errors, capsize=0,
            marker=MARKS[mark], markersize=_extent(MARKS[mark], 6.5), markeredgewidth=0.8,
            markeredgecolor=_ROLES["paper"], elinewidth=1.2,
            linestyle="-" if series.joined else "none", **style,
        )  # fmt: skip
    if panel.has_diagonal:
        values = [v for s in panel.series for p in s.points for v in (p.x, p.y) if math.isfinite(v)]
        ends = [min(values, default=0.0), max(values, default=1.0)]
        axes.plot(ends, ends, color=_ROLES["muted"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    _ticks(axes.xaxis, is_log=panel.log_x)
    _ticks(axes.yaxis, is_log=panel.log_y)
    if panel.x_range:
        axes.set_xlim(panel.x_range)
    axes.margins(0.08)
    axes.set_xlabel(text.visible(panel.x_label))
    # above the axis, where it can be read without turning the head
    axes.annotate(
        text.visible(panel.y_label), (0, 1), (2, -4), "figure fraction", "offset points",
        va="top", color=_ROLES["muted"],
    )  # fmt: skip
    return axes.figure


def _extent(mark: Sequence[tuple[float, float]], size: float) -> float:
    """Return the size for matplotlib, which scales every mark to the same extent."""
    return size * max(abs(v) for corner in mark for v in corner)


def _ticks(axis: Any, n_most: int = 4, is_log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if is_log:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    else:
        axis.set_major_locator(MaxNLocator(n_most, steps=(1, 2, 2.5, 5, 10)))


def _strips(panel: Strips) -> Any:
    n, left = len(panel.rows), 74.0
    axes = _figure(WIDTH, ROW_HEIGHT * n + 44, left, 8, 36, 8)
    axes.set_xlim(-0.5, panel.n_columns - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    for place, (_, runs) in enumerate(panel.rows):
        for run in runs:
            width = run.last - run.first + 1
            axes.barh(
                place, width, left=run.first - 0.5, height=0.86, color=_SERIES[0],
                alpha=0.08 + 0.5 * run.level, edgecolor=_ROLES["paper"], linewidth=1.2,
            )  # fmt: skip
            room = width * (WIDTH - left - 8) / panel.n_columns
            # all of a type's name if there is room, else its number of bits
            short = next((c for c in run.label if c.isdigit()), "")
            fitting = next((w for w in (run.label, short) if 4.9 * len(w) <= room), "")
            axes.text(
                (run.first + run.last) / 2, place, fitting, ha="center", va="center",
                fontsize=7.5, color=_ROLES["ink"],
            )  # fmt: skip
    axes.set_yticks(range(n), [text.visible(name) for name, _ in panel.rows])
    axes.tick_params(axis="y", length=0, pad=4, labelsize=8.5)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(text.visible(panel.x_label), labelpad=2)
    return axes.figure


def _forest(panel: Forest) -> Any:
    n = len(panel.rows)
    left = min(max((6.2 * len(r.label) for r in panel.rows), default=0) + 18, 0.4 * WIDTH)
    axes = _figure(WIDTH, ROW_HEIGHT * n + 64, left, 58, 52, 8)
    axes.set_xlim(panel.x_range)
    axes.set_ylim(n - 0.4, -0.6)
    axes.axvline(0, color=_ROLES["muted"], linewidth=1)
    for margin in (panel.margin, -panel.margin):
        if math.isfinite(margin):
            axes.axvline(margin, color=_ROLES["ink"], linewidth=1, linestyle=(0, (4, 3)))
    for place, row in enumerate(panel.rows):
        _draw_row(axes, place, row)
    labels = [" ".join(text.visible(r.label).split()) for r in panel.rows]
    most = int(0.4 * WIDTH / 6.2) - 2
    short = [label if len(label) <= most else f"{label[: most - 1]}…" for label in labels]
    axes.set_yticks(range(n), short)
    for tick, row in zip(axes.get_yticklabels(), panel.rows, strict=True):
        tick.set_color(_ROLES["ink"])
        tick.set_fontweight("bold" if row.is_own else "normal")
    axes.tick_params(axis="y", length=0, pad=7)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _ticks(axes.xaxis, 3)
    axes.set_xlabel(text.visible(panel.x_label), labelpad=2)
    ends = ("← better", "worse →") if panel.lower_is_better else ("← worse", "better →")
    for x, side, end in ((0, "left", ends[0]), (1, "right", ends[1])):
        axes.annotate(
            end, (x, 0), (0, -32), "axes fraction", "offset points", ha=side, va="top",
            color=_ROLES["muted"], annotation_clip=False,
        )  # fmt: skip
    return axes.figure


def _draw_row(axes: Any, place: int, row: ForestRow) -> None:
    colour = _ROLES.get(row.verdict, _ROLES["undecided"])
    if math.isfinite(row.noise):
        axes.barh(place, 2 * row.noise, left=-row.noise, height=0.8, color=_ROLES["band"])
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
    low, high = axes.get_xlim()
    if row.estimate < low or row.estimate > high:
        edge, arrow = (low, "<") if row.estimate < low else (high, ">")
        axes.plot([edge], [place], marker=arrow, markersize=6, color=colour, clip_on=False)
    elif math.isfinite(row.estimate):
        is_open = row.verdict not in ("better", "worse", "equivalent")
        mark = VERDICT_MARKS.get(row.verdict, _DISC)
        axes.plot(
            [row.estimate], [place], marker=mark, markersize=_extent(mark, 6.5),
            color=colour, markerfacecolor=_ROLES["paper"] if is_open else colour,
            markeredgecolor=colour if is_open else _ROLES["paper"],
            markeredgewidth=1.6 if is_open else 0.8,
        )  # fmt: skip
    estimate = format.number(row.estimate, row.low, row.high, plus=True)
    style = {"va": "center", "ha": "left", "color": _ROLES["ink"]}
    axes.text(1.02, place, estimate, transform=axes.get_yaxis_transform(), **style)


def describe(panel: Chart | Forest | Strips) -> str:
    """Return in words what a picture shows."""
    if isinstance(panel, Strips):
        strips = (
            f"{name}: {', '.join(f'{r.label} {r.first} to {r.last}' for r in runs)}"
            for name, runs in panel.rows
        )
        return f"By {panel.x_label}. {'; '.join(strips)}."
    if isinstance(panel, Forest):
        rows = (
            f"{r.label}: {format.number(r.estimate, r.low, r.high, plus=True)}"
            f" ({format.interval(r.low, r.high, True)}), {r.verdict}"
            for r in panel.rows
        )
        return f"{panel.x_label}. {'; '.join(rows)}."
    series = []
    for s in filter(lambda s: s.points, panel.series):
        points = (f"{format.number(p.x)}: {format.number(p.y, p.low, p.high)}" for p in s.points)
        series.append(f"{s.name}: {', '.join(points)}")
    return f"{panel.y_label} by {panel.x_label}. {'; '.join(series)}."
