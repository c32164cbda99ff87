"""Everything a study made -> `results.Results`."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import partial

from imatrix_lab.core import config
from imatrix_lab.core.progress import Progress
from imatrix_lab.records import parquet
from imatrix_lab.report import results
from imatrix_lab.study.analyse import comparisons, conclusion, provenance, scores, secondary
from imatrix_lab.study.analyse.index import Index, Products
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.plan import power
from imatrix_lab.study.recipe import without_folders


def assemble(products: Products, progress: Progress) -> results.Results:
    """Return a study's results; the same records give the same results, in whatever order."""
    index = Index(products)
    recipe = products.recipe
    rows = scores.scores(index, progress)
    compared = comparisons.compare_all(index, recipe, progress)
    predictions = secondary.predictions(products, index, rows)
    flips, flip_counts = secondary.flips(index, compared.comparisons)
    calibration_order = partial(index.order, model="model", calibration="label")
    quant_order = partial(index.order, model="model", type="type", calibration="calibration")
    result = results.Results(
        schema=results.SCHEMA,
        **{key: getattr(recipe, key) for key in ("name", "question", "source", "unknown")},
        types=tuple(kind.label for kind in kinds(recipe)),
        answer=(),
        baseline=index.baseline,
        metric=recipe.comparison.metrics[0],
        languages=provenance.named(products, index),
        models=provenance.models(products),
        calibrations=tuple(sorted(products.calibrations, key=calibration_order)),
        quants=tuple(sorted(products.quants, key=quant_order)),
        scores=tuple(rows),
        **{key: getattr(compared, key) for key in ("comparisons", "interactions", "controls")},
        **{key: getattr(compared, key) for key in ("contrasts", "type_interactions")},
        refused=tuple(dict.fromkeys(compared.refused)),
        tensor_types=tuple(sorted(products.tensor_types, key=quant_order)),
        predictions=tuple(predictions),
        agreements=tuple(secondary.agreements(predictions)),
        activations=tuple(secondary.activations(products, index)),
        similarities=tuple(secondary.similarities(products, index)),
        flips=tuple(flips),
        flip_counts=tuple(flip_counts),
        power=tuple(e.power for e in power.Planned(recipe, _sizes(index)).effects()),
        missing=(*sorted(products.missing, key=lambda m: m.step), *compared.missing),
        licences=tuple(provenance.licences(products, index)),
        commands=products.commands,
        notes=(*_notes(products, index), *compared.notes, *products.notes),
        preferences=products.preferences,
        reduced=recipe.is_reduced,
        recipe=config.plain(without_folders(recipe)),
        signatures=index.signatures,
        times=products.times,
        size_gaps=tuple(dict.fromkeys(compared.size_gaps)),
    )
    return dataclasses.replace(result, answer=conclusion.answer(result))


def _sizes(index: Index) -> list[power.TextSize]:
    first = {record.text: record for record in reversed(index.tokens)}
    sizes = []
    for label in sorted(first, key=lambda text: index.rank("text", text)):
        documents = parquet.read(first[label].run.path, ["doc_id"]).words("doc_id").codes.tolist()
        sizes.append(power.TextSize(label, tuple(Counter(documents).values()), is_known=True))
    return sizes


def _notes(products: Products, index: Index) -> Iterator[str]:
    if products.recipe.calibration.samples < 2:
        confounded = "what a language does cannot be told from what its one text does"
        yield f"One calibration text a language: {confounded}."
    else:
        yield (
            "Rows over all samples, and comparisons, take the calibration text as a random draw"
            " from its language; a language with a single sample is judged by that text alone."
        )
    bounds = {r.run.signature["protocol"].get("divergence", "exact") for r in index.tokens}
    for bound in sorted(bounds - {"exact"}):
        yield f"The divergence is a {bound}: what lies outside was not compared."
    if index.items:
        yield (
            f"Of the answers that differ between two runs, the first {secondary.FLIPS_MAX} are kept"
            " with their text, those of the first samples; the counts are of all their items."
        )
