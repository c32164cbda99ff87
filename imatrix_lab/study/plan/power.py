"""Power of a study's comparisons, before anything is computed: the smallest detectable effects."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from imatrix_lab.compare import design
from imatrix_lab.compare.power import DISCORDANCES, task_design
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp import size_types
from imatrix_lab.records.runs import NO_IMATRIX, Run, blocks, find, instrument
from imatrix_lab.report import results
from imatrix_lab.score.run import RECORDS
from imatrix_lab.stats import power
from imatrix_lab.stats.comparison import ALPHA
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.stats.paired import Sums
from imatrix_lab.stats.power import Design
from imatrix_lab.study import calibrations, tasks
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.recipe import NONE, Recipe, Task
from imatrix_lab.tasks.definition import get as get_definition
from imatrix_lab.types import Model

SPREAD = {
    "kld_nats": {4: 0.24, 3: 0.95, 2: 1.6},
    "nll_nats": {4: 0.72, 3: 1.6, 2: 2.4},
    "top1_agreement": {4: 0.45, 3: 0.45, 2: 0.45},
}
"""Standard deviation of two calibrations' difference in a token, by nominal bits: medians over en,
nb, ml and none on texts in en, nb and ml (12 documents each), of the demo model's k-quants."""
CORRELATION = 0.01  # of two differences in one document; they had medians from 0.0 to 0.014
DISCORDANCE = DISCORDANCES[1]
ITEMS = 1000  # of a benchmark that does not say how many it has


@dataclass(frozen=True)
class TextSize:
    """A text that quants will be compared on: tokens of each document, counted or assumed."""

    label: str
    tokens: tuple[int, ...]
    is_known: bool


@dataclass(frozen=True)
class Effect:
    """What some comparisons of calibrations at one type can detect on a text, or in a task.

    Power is in the metric's unit, its margin NaN where none was declared. `n_family` comparisons
    are adjusted for together. `clusters_needed` (documents or items) suffice to find a difference
    of the margin, and to show that there is none; 0 without a margin.
    """

    power: results.Power
    on: str
    type: str
    n_family: int
    clusters: int
    clusters_needed: int

    def is_blind(self) -> bool:
        """Whether a difference of the margin would go undetected."""
        return self.power.detectable > self.power.margin


Pair = frozenset[str]
Pilots = dict[tuple[str, str], dict[Pair, Design]]  # by text and type, then by the two calibrations


class Planned:
    """The comparisons of a recipe on one model, before anything is computed.

    Earlier scores of the model in the store show how much calibrations differ; without them, the
    spreads above are assumed.
    """

    def __init__(
        self, recipe: Recipe, sizes: Sequence[TextSize], model: Model | None = None,
        store: Store | None = None,
    ):  # fmt: skip
        self.recipe, self.sizes = recipe, sizes
        self.metric = recipe.comparison.metrics[0]
        self.types = [kind.label for kind in kinds(recipe)]
        labels = dict.fromkeys(c.label for c in calibrations.calibrations(recipe))
        self.pairs = [frozenset(pair) for pair in itertools.combinations(labels, 2)]
        if word := recipe.comparison.baseline:
            baseline = NO_IMATRIX if word == NONE else calibrations.mixtures(recipe)[word].label
            self.pairs = [pair for pair in self.pairs if baseline in pair]
        self.pilots = self._pilots(model, store) if model and store else {}
        self.languages = [(t, tasks.languages_of(t, recipe)) for t in recipe.tasks]

    def effects(self) -> Iterator[Effect]:
        """Yield effects by type: on each text by the first metric, then in each task."""
        for quant_type in self.types:
            for size in self.sizes:
                yield from self._on_text(quant_type, size)
            for task, languages in self.languages:
                for code in languages:
                    yield self._in_task(quant_type, task, code, len(languages))

    def _on_text(self, quant_type: str, size: TextSize) -> Iterator[Effect]:
        known = self.pilots.get((size.label, quant_type), {})
        scored = [pair for pair in self.pairs if pair in known]
        for pair in scored:
            assumed = "earlier scores of the two"
            yield self._of_text(" and ".join(sorted(pair)), quant_type, size, known[pair], assumed)
        if n_rest := len(self.pairs) - len(scored):
            names = f"{n_rest} other pairs" if scored else "any two"
            bits = nominal_bits(quant_type)
            widest = Design(SPREAD[self.metric][bits], CORRELATION)
            assumed = f"the spread of the demo model at {bits} bits"
            if known:
                widest = max(known.values(), key=lambda d: d.sd)
                assumed = "earlier scores of others"
            yield self._of_text(names, quant_type, size, widest, assumed)

    def _of_text(
        self, names: str, quant_type: str, size: TextSize, pair_design: Design, assumed: str
    ) -> Effect:
        tokens = size.tokens or (1,)
        mean = sum(tokens) / len(tokens)
        spread = (sum((n - mean) ** 2 for n in tokens) / len(tokens)) ** 0.5
        if not size.is_known:
            assumed += f"; {len(tokens)} documents of {mean:.0f} tokens assumed"
        n_clusters, n_family = len(size.tokens), self._n_family(len(self.sizes))
        what = f"{names}, {quant_type} on {size.label}"
        text_design = replace(pair_design, cluster_size=mean, size_cv=spread / mean)
        power_, needed = self._power(what, assumed, self.metric, text_design, n_clusters, n_family)
        return Effect(power_, size.label, quant_type, n_family, n_clusters, needed)

    def _in_task(self, quant_type: str, task: Task, code: str, n_languages: int) -> Effect:
        definition = get_definition(task.name)
        n = definition.unique or definition.items or ITEMS
        n = min(n, task.limit or n)
        item_design = task_design(definition.name, DISCORDANCE)
        assumed = f"{100 * DISCORDANCE:g} % of answers differ"
        if not (definition.items or task.limit):
            assumed += f"; {ITEMS} items assumed"
        n_clusters = max(round(n / item_design.cluster_size), 1)
        n_family = self._n_family(n_languages)
        on = f"{definition.name} {code}"
        what = f"any two, {quant_type} in {on}"
        power_, needed = self._power(what, assumed, "score", item_design, n_clusters, n_family)
        return Effect(power_, on, quant_type, n_family, n_clusters, needed)

    def _power(
        self, what: str, assumed: str, metric: str, pair_design: Design, n_clusters: int,
        n_family: int,
    ) -> tuple[results.Power, int]:  # fmt: skip
        unit, scale = METRICS[metric].unit, METRICS[metric].scale
        margin = self.recipe.comparison.margins.get(metric, math.nan)
        analysis = power.analyse(pair_design, n_clusters, margin / scale, ALPHA / n_family)
        needed = max(analysis.clusters_superiority, analysis.clusters_equivalence)
        return results.Power(what, unit, analysis.detectable * scale, margin, assumed), needed

    def _n_family(self, n_languages: int) -> int:
        factors = design.parse_family(self.recipe.comparison.family)
        n = len(self.pairs) * (n_languages if "lang" in factors else 1)
        return max(n * (len(self.types) if "type" in factors else 1), 1)

    def _pilots(self, model: Model, store: Store) -> Pilots:
        """Return each pair's design from earlier scores of the model; of several, the largest."""
        labels = [size.label for size in self.sizes]
        groups: dict[str, list[Run]] = {}
        for path in sorted(store.root.glob(f"score/*/{RECORDS}")):
            (run,) = find(path)
            is_ours = run.signature.get("reference", {}).get("sha256") == model.sha256
            if is_ours and run.text in labels and run.type in self.types:
                key = canonical_json([run.text, run.type, instrument(run.signature)])
                groups.setdefault(key, []).append(run)
        pilots: Pilots = {}
        for runs in sorted(groups.values(), key=lambda g: g[0].signature["text"]["n_documents"]):
            by_pair = pilots.setdefault((runs[0].text, runs[0].type), {})
            by_pair.update(_designs(runs, self.metric))
        return pilots


def nominal_bits(quant_type: str) -> int:
    """Return the bits in a type's name, from 2 to 4: spreads are known for these. Else 4."""
    base = quant_type.partition("+")[0]  # the quantizer
    base = size_types.standard(base) if size_types.is_size(base) else base
    digits = re.search(r"\d+", base)
    return min(4, max(2, int(digits[0]))) if digits else 4


def _designs(runs: Sequence[Run], metric: str) -> dict[Pair, Design]:
    """Return the design of each pair of calibrations among runs; of samples, the last one."""
    by_calib = {run.calib: run for run in runs}
    if len(by_calib) < 2:
        return {}
    (block,) = blocks(dict(enumerate(by_calib.values())), (metric,))
    values = {calib: block.values[i][metric] for i, calib in enumerate(by_calib)}
    designs = {}
    for a, b in itertools.combinations(sorted(by_calib), 2):
        sums = Sums.of_finite(values[a] - values[b], block.codes, len(block.names))
        if (sums.sizes > 0).sum() > 1 and sums.variance() > 0:
            designs[frozenset((a, b))] = power.from_pilot(sums)
    return designs
