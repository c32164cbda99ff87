"""Scores of every quant on every text and task: each sample alone, and all samples together."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imatrix_lab.compare import design
from imatrix_lab.compare.comparer import TextComparer
from imatrix_lab.core.progress import Progress
from imatrix_lab.records import parquet
from imatrix_lab.records.runs import Block, blocks
from imatrix_lab.report.results import ALL_SAMPLES, Score
from imatrix_lab.stats import interaction
from imatrix_lab.stats.interaction import Cell
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.study.analyse.index import Index, RecordFile

Records = Sequence[RecordFile]
KLD, LOSS, TOP, ITEM = "kld_nats", "nll_nats", "top1_agreement", "score"


@dataclass(frozen=True)
class Measure:
    """How a mean is printed: an increasing function of it, in a unit."""

    key: str
    words: str
    unit: str
    shown: Callable[[float], float]


DIVERGENCE = Measure(KLD, METRICS[KLD].words, METRICS[KLD].unit, float)
PERPLEXITY = Measure(
    "perplexity", "perplexity", "", lambda nats: math.exp(nats) if nats < 700 else math.nan
)
BITS = Measure("bits_per_byte", "bits per byte of text", "bits", lambda nats: nats / math.log(2))
SAME_TOP = Measure(TOP, METRICS[TOP].words, "%", lambda share: 100 * share)
SCORE = Measure(ITEM, METRICS[ITEM].words, "%", lambda share: 100 * share)


def scores(index: Index, progress: Progress) -> list[Score]:
    """Return every score with an interval of 95 % over documents or item groups.

    The row of all samples is their mean; where there are several, its interval takes the sample as
    a random effect beside the documents, as `interaction.contrast` has it.
    """
    files = [*index.tokens, *index.items]
    rows: list[Score] = []
    with progress.task("scores", float(len(files)), "files") as task:
        done = 0
        for _, members in itertools.groupby(files, key=RecordFile.place):
            records = list(members)
            rows += _of_task(records) if records[0].task else _of_text(records)
            done += len(records)
            task.update(float(done))
    return rows


def _of_task(records: Records) -> Iterator[Score]:
    comparer = _comparer(records, (ITEM,))
    for level in design.levels(comparer.runs, comparer.block.text):
        cells = comparer.cells(level, ITEM, 1.0, [level])
        yield from _rows(records, level, SCORE, cells, cells[0].sizes)


def _of_text(records: Records) -> Iterator[Score]:
    comparer = _comparer(records, (KLD, LOSS, TOP))
    table = parquet.read(records[0].run.path, ["n_bytes", "nll_ref"])
    n_bytes, reference = table.array("n_bytes"), table.array("nll_ref")
    block = comparer.block
    tokens, in_bytes = _cell(block, reference), _cell(block, reference, n_bytes)
    original = replace(records[0], calibration="", type="", sample=ALL_SAMPLES)
    signed = list({r.signature: r for r in records}.values())
    for measure, cell in ((PERPLEXITY, tokens), (BITS, in_bytes)):
        yield _score(original, measure, [cell], tokens.sizes, signed)
    for level in design.levels(comparer.runs, block.text):
        if not records[level.runs[0]].calibration:  # the original against itself: a control
            continue
        sizes = _cell(block, comparer.values(level, LOSS), n_bytes).sizes
        measures = ((DIVERGENCE, KLD), (PERPLEXITY, LOSS), (SAME_TOP, TOP), (BITS, LOSS))
        for measure, metric in measures:
            cells = comparer.cells(level, metric, 1.0, [level])
            n = cells[0].sizes
            if measure is BITS:
                cells = [replace(c, sizes=sizes) for c in cells]
            yield from _rows(records, level, measure, cells, n)


def _comparer(records: Records, metrics: Sequence[str]) -> TextComparer:
    runs = {i: r.run for i, r in enumerate(records)}
    return TextComparer(blocks(runs, metrics)[0], runs, design.ComparisonPlan())


def _rows(
    records: Records, level: design.Level, measure: Measure, cells: list[Cell], sizes: np.ndarray
) -> Iterator[Score]:
    """Yield the row of all samples of a level, and each sample's."""
    members = [records[i] for i in level.runs]
    together = replace(members[0], sample=ALL_SAMPLES)
    yield _score(together, measure, cells, sizes, members)
    for member, cell in zip(members, cells, strict=True):
        if member.sample != ALL_SAMPLES:
            yield _score(member, measure, [replace(cell, weight=1.0)], sizes, [member])


def _score(
    row: RecordFile, measure: Measure, cells: list[Cell], sizes: np.ndarray, of: Records
) -> Score:
    n, n_clusters = int(sizes.sum()), int((sizes > 0).sum())
    values: dict[str, Any] = {"estimate": math.nan, "low": math.nan, "high": math.nan}
    if n:  # the mean of samples, as its contrast with a constant 0
        totals = np.zeros(len(cells[0].sizes))
        zero = replace(cells[0], weight=-1.0, group="", sample="", totals=totals)
        mean = interaction.contrast([*cells, zero])
        values = {key: measure.shown(getattr(mean, key)) for key in values}
    values |= {"metric": measure.key, "words": measure.words, "unit": measure.unit}
    for key in ("model", "text", "task", "calibration", "sample", "type"):
        values[key] = getattr(row, key)
    signatures = tuple(record.signature for record in of)
    return Score(**values, n=n, n_clusters=n_clusters, signatures=signatures)


def _cell(block: Block, values: np.ndarray, weights: np.ndarray | None = None) -> Cell:
    """Return the sums over documents of what is finite; sizes are numbers of values, or weights."""
    good = np.isfinite(values)
    codes, n = block.codes[good], len(block.names)
    sizes = np.bincount(codes, None if weights is None else weights[good], n)
    totals = np.bincount(codes, values[good], n)
    return Cell(1.0, "", "", totals, sizes.astype(np.float64), np.array(block.names))
