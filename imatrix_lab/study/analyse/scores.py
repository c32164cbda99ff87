"""Scores of every quant on every text and task: each sample alone, and all samples together."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imatrix_lab.compare import design
from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.compare.design import ComparisonPlan, Level
from imatrix_lab.core.progress import Progress
from imatrix_lab.records import parquet
from imatrix_lab.records.runs import Block, blocks
from imatrix_lab.report.results import ALL_SAMPLES, Score
from imatrix_lab.stats import interaction
from imatrix_lab.stats.interaction import Cell, Contrast
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.study.analyse.index import Grid, Record

KLD, LOSS, TOP, ITEM = "kld_nats", "nll_nats", "top1_agreement", "score"


@dataclass(frozen=True)
class Measure:
    """How a mean is printed: an increasing function of it, in a unit."""

    key: str
    words: str
    unit: str
    shown: Callable[[float], float]


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.nan


def _percent(x: float) -> float:
    return 100 * x


DIVERGENCE = Measure(KLD, METRICS[KLD].words, METRICS[KLD].unit, float)
PERPLEXITY = Measure("perplexity", "perplexity", "", _exp)
BITS = Measure("bits_per_byte", "bits per byte of text", "bits", lambda nats: nats / math.log(2))
SAME_TOP = Measure(TOP, METRICS[TOP].words, "%", _percent)
SCORE = Measure(ITEM, METRICS[ITEM].words, "%", _percent)


def scores(grid: Grid, progress: Progress) -> list[Score]:
    """Return every score with an interval of 95 % over documents or item groups.

    The row of all samples is their mean; where there are several, its interval takes the sample as
    a random effect beside the documents, as `interaction.contrast` has it.

    Raises
    ------
    BadRecords : records of one text that must not be compared, or are damaged.
    """
    every = [*grid.tokens, *grid.items]
    rows: list[Score] = []
    with progress.task("scores", float(len(every)), "files") as task:
        done = 0
        for _, members in itertools.groupby(every, key=Record.place):
            records = list(members)
            rows += _of_task(records) if records[0].task else _of_text(records)
            done += len(records)
            task.update(float(done))
    return rows


def _of_task(records: Sequence[Record]) -> Iterator[Score]:
    comparer = _comparer(records, (ITEM,))
    for level in _levels(comparer):
        cells = comparer.cells(level, ITEM, 1.0, [level])
        yield from _rows(records, level, SCORE, cells, cells[0].sizes)


def _of_text(records: Sequence[Record]) -> Iterator[Score]:
    comparer = _comparer(records, (KLD, LOSS, TOP))
    table = parquet.read(records[0].run.path, ["n_bytes", "nll_ref"])
    n_bytes, reference = table.array("n_bytes"), table.array("nll_ref")
    block = comparer.block
    tokens, in_bytes = _cell(block, reference), _cell(block, reference, n_bytes)
    original = replace(records[0], calibration="", type="", sample=ALL_SAMPLES)
    signatures = tuple(dict.fromkeys(r.signature for r in records))
    for measure, cell in ((PERPLEXITY, tokens), (BITS, in_bytes)):
        yield _score(original, measure, [cell], tokens.sizes, signatures)
    for level in _levels(comparer):
        if not records[level.runs[0]].calibration:  # the original against itself: a control
            continue
        sizes = _cell(block, comparer.values(level, LOSS), n_bytes).sizes
        for measure, metric in (
            (DIVERGENCE, KLD),
            (PERPLEXITY, LOSS),
            (SAME_TOP, TOP),
            (BITS, LOSS),
        ):
            cells = comparer.cells(level, metric, 1.0, [level])
            n = cells[0].sizes
            if measure is BITS:
                cells = [replace(c, sizes=sizes) for c in cells]
            yield from _rows(records, level, measure, cells, n)


def _comparer(records: Sequence[Record], metrics: Sequence[str]) -> TextComparer:
    runs = {i: r.run for i, r in enumerate(records)}
    return TextComparer(blocks(runs, metrics)[0], runs, ComparisonPlan())


def _levels(comparer: TextComparer) -> list[Level]:
    return design.levels(comparer.runs, comparer.block.text)


def _rows(
    records: Sequence[Record], level: Level, measure: Measure, cells: list[Cell], sizes: np.ndarray
) -> Iterator[Score]:
    """Yield the row of all samples of a level, and each sample's."""
    members = [records[i] for i in level.runs]
    together = replace(members[0], sample=ALL_SAMPLES)
    yield _score(together, measure, cells, sizes, tuple(m.signature for m in members))
    for member, cell in zip(members, cells, strict=True):
        if member.sample != ALL_SAMPLES:
            one = [replace(cell, weight=1.0)]
            yield _score(member, measure, one, sizes, (member.signature,))


def _score(
    record: Record, measure: Measure, cells: list[Cell], sizes: np.ndarray,
    signatures: tuple[str, ...],
) -> Score:  # fmt: skip
    n = int(sizes.sum())
    found = _mean(cells) if n else None
    ends = (found.estimate, found.low, found.high) if found else (math.nan,) * 3
    estimate, low, high = (measure.shown(x) for x in ends)
    return Score(
        record.model, record.text, record.task, record.calibration, record.sample, record.type,
        measure.key, measure.words, measure.unit, estimate, low, high, n, int((sizes > 0).sum()),
        signatures,
    )  # fmt: skip


def _mean(cells: list[Cell]) -> Contrast:
    """Return a mean of samples as its contrast with a constant 0."""
    zero = replace(cells[0], weight=-1.0, group="", sample="", totals=np.zeros(len(cells[0].sizes)))
    return interaction.contrast([*cells, zero])


def _cell(block: Block, values: np.ndarray, weights: np.ndarray | None = None) -> Cell:
    """Return the sums over documents of what is finite; sizes are numbers of values, or weights."""
    good = np.isfinite(values)
    codes, n = block.codes[good], len(block.names)
    sizes = np.bincount(codes, None if weights is None else weights[good], n)
    return Cell(
        1.0, "", "", np.bincount(codes, values[good], n), sizes.astype(np.float64),
        np.array(block.names),
    )  # fmt: skip
