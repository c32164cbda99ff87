"""Everything a study made -> what it found: `results.Results`."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.progress import Progress
from imatrix_lab.records import parquet
from imatrix_lab.report import results
from imatrix_lab.report.results import Calibration, Quant, Results
from imatrix_lab.study import recipe as recipes
from imatrix_lab.study.analyse import comparisons, conclusion, provenance, scores, secondary
from imatrix_lab.study.analyse.index import Grid
from imatrix_lab.study.plan import power
from imatrix_lab.study.plan.power import TextSize
from imatrix_lab.study.products import Made, MadeImatrix


def assemble(made: Made, progress: Progress) -> Results:
    """Return what a study found; the same records give the same results, in whatever order.

    Raises
    ------
    BadRecords : a file of records is damaged, of another study, or must not be compared with
        others on its text.
    BadImatrix : an importance matrix that cannot be read.
    """
    grid = Grid(made)
    recipe = made.recipe
    rows = scores.scores(grid, progress)
    found = comparisons.judged(grid, recipe, progress)
    predictions = secondary.predictions(made, grid, rows)
    texts, counts = secondary.flips(grid, found.comparisons)
    result = Results(
        schema=results.SCHEMA,
        name=recipe.name,
        question=recipe.question,
        source=recipe.source,
        answer=(),
        baseline=grid.baseline,
        metric=recipe.comparison.metrics[0],
        languages=provenance.named(made, grid),
        models=provenance.models(made),
        types=recipe.types,
        calibrations=tuple(_calibrations(made, grid)),
        quants=tuple(_quants(made, grid)),
        scores=tuple(rows),
        comparisons=found.comparisons,
        interactions=found.interactions,
        controls=found.controls,
        predictions=tuple(predictions),
        agreements=tuple(secondary.agreements(predictions)),
        similarities=tuple(secondary.similarities(made, grid)),
        flips=tuple(texts),
        flip_counts=tuple(counts),
        power=tuple(e.power for e in power.Planned(recipe, _sizes(grid)).effects()),
        missing=(*sorted(made.missing, key=lambda m: m.step), *found.missing),
        licences=tuple(provenance.licences(made, grid)),
        commands=made.commands,
        notes=(*_notes(made, grid), *found.notes),
        unknown=recipe.unknown,
        reduced=recipe.is_reduced,
        recipe=config.plain(recipes.without_folders(recipe)),
        signatures=grid.signatures,
        times=made.times,
    )
    return dataclasses.replace(result, answer=conclusion.answer(result))


def _sizes(grid: Grid) -> list[TextSize]:
    """Return how long the documents are that were scored, text by text."""
    first = {record.text: record for record in reversed(grid.tokens)}
    found = []
    for label in sorted(first, key=lambda text: grid.rank("text", text)):
        documents = parquet.read(first[label].run.path, ["doc_id"]).words("doc_id").codes.tolist()
        found.append(TextSize(label, tuple(Counter(documents).values()), is_known=True))
    return found


def _calibrations(made: Made, grid: Grid) -> Iterator[Calibration]:
    for i in sorted(made.imatrices, key=lambda i: _order(i, grid)):
        tokens = i.facts.n_tokens if i.facts else 0
        yield Calibration(
            i.model, i.label, i.name, i.kind, i.sample, i.shares, tokens,
            i.facts.sha256 if i.facts else "", i.corpus.sha256 if i.corpus else "",
            i.corpus.source if i.corpus else "", i.corpus.licence if i.corpus else "",
            i.merged_from,
        )  # fmt: skip


def _order(made: MadeImatrix, grid: Grid) -> tuple[Any, ...]:
    return grid.rank("model", made.model), grid.rank("calibration", made.label), made.sample


def _quants(made: Made, grid: Grid) -> Iterator[Quant]:
    for q in sorted(made.quants, key=lambda q: (
        grid.rank("model", q.model), grid.rank("type", q.type),
        grid.rank("calibration", q.calibration), q.sample,
    )):  # fmt: skip
        yield Quant(**vars(q))


def _notes(made: Made, grid: Grid) -> Iterator[str]:
    """Yield what a reader must know besides the numbers."""
    if made.recipe.calibration.samples < 2:
        yield (
            "One calibration text a language: what a language does cannot be told from what its one"
            " text does."
        )
    else:
        yield (
            "Rows over all samples, and comparisons, take the calibration text as a random draw"
            " from its language; a language with a single sample is judged by that text alone."
        )
    bounds = {r.run.signature["protocol"].get("divergence", "exact") for r in grid.tokens}
    for bound in sorted(bounds - {"exact"}):
        yield f"The divergence is a {bound}: what lies outside was not compared."
    if grid.items:
        yield (
            f"Of the answers that differ between two runs, the first {secondary.FLIPS_MAX} are kept"
            " with their text, those of the first samples; the counts are of all their items."
        )
