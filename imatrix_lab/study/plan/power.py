"""What the planned comparisons could find: the smallest effects, before anything is computed."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from imatrix_lab.compare import design
from imatrix_lab.compare import power as planning
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.store import Store
from imatrix_lab.records.runs import NO_IMATRIX, Run, blocks, find, instrument
from imatrix_lab.report import results
from imatrix_lab.score.run import RECORDS
from imatrix_lab.stats import power
from imatrix_lab.stats.comparison import ALPHA, METRICS
from imatrix_lab.stats.paired import Sums
from imatrix_lab.stats.power import Design
from imatrix_lab.study import calibrations, tasks
from imatrix_lab.study.recipe import NONE, Recipe, Task
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.types import Model

SPREAD = {
    "kld_nats": {4: 0.24, 3: 0.95, 2: 1.6},
    "nll_nats": {4: 0.72, 3: 1.6, 2: 2.4},
    "top1_agreement": {4: 0.45, 3: 0.45, 2: 0.45},
}
"""Standard deviation of two calibrations' difference in a token, by nominal bits: medians over en,
nb, ml and none on texts in en, nb and ml (12 documents each), of the demo model's k-quants."""
CORRELATION = 0.01
"""Of two differences in one document; they had medians from 0.0 to 0.014."""
DISCORDANCE = planning.DISCORDANCES[1]
ITEMS = 1000
"""Of a benchmark that does not say how many it has."""


@dataclass(frozen=True)
class TextSize:
    """A text that quants are to be compared on.

    Attributes
    ----------
    tokens : of each document.
    is_known : counted, and not assumed.
    """

    label: str
    tokens: tuple[int, ...]
    is_known: bool


@dataclass(frozen=True)
class Effect:
    """What some comparisons of calibrations at one type can find on a text, or in a task.

    Attributes
    ----------
    power : in the metric's unit; its margin is NaN where none was declared.
    on, type : the text, or task and language; the type of quant.
    n_family : comparisons that are adjusted for together.
    clusters : documents or items that there are.
    clusters_needed : to find a difference of the margin, and to show that there is none; 0
        without a margin.
    """

    power: results.Power
    on: str
    type: str
    n_family: int
    clusters: int
    clusters_needed: int

    def is_blind(self) -> bool:
        """Whether a difference of the margin would not be seen."""
        return self.power.detectable > self.power.margin


Pair = frozenset[str]
Pilots = dict[tuple[str, str], dict[Pair, Design]]
"""By text and type, then by the two calibrations."""


class Planned:
    """The comparisons of a recipe on one model, before anything is computed.

    Parameters
    ----------
    model, store : whose earlier scores say how calibrations differ; None for what is assumed.
    """

    def __init__(
        self, recipe: Recipe, sizes: Sequence[TextSize], model: Model | None = None,
        store: Store | None = None,
    ):  # fmt: skip
        self.recipe, self.sizes = recipe, sizes
        self.metric = recipe.comparison.metrics[0]
        found = {c.label: c for c in calibrations.calibrations(recipe)}
        self.pairs = [frozenset(pair) for pair in itertools.combinations(found, 2)]
        if recipe.comparison.baseline:
            word = recipe.comparison.baseline
            baseline = NO_IMATRIX if word == NONE else calibrations.mixtures(recipe)[word].label
            self.pairs = [pair for pair in self.pairs if baseline in pair]
        self.pilots = self._pilots(model, store) if model and store else {}
        self.languages = [(t, tasks.languages_of(t, recipe)) for t in recipe.tasks]

    def effects(self) -> Iterator[Effect]:
        """Yield what can be found, by type, on each text by the first metric, and in each task."""
        for kind in self.recipe.types:
            for size in self.sizes:
                yield from self._on_text(kind, size)
            for task, languages in self.languages:
                for code in languages:
                    yield self._in_task(kind, task, code, len(languages))

    def _on_text(self, kind: str, size: TextSize) -> Iterator[Effect]:
        """Yield an effect for each pair that was scored before, and one for all the others."""
        bits = nominal_bits(kind)
        known = self.pilots.get((size.label, kind), {})
        designs = [(" and ".join(sorted(p)), known[p]) for p in self.pairs if p in known]
        said = "earlier scores of the two"
        for names, one in designs:
            yield self._of_text(names, kind, size, one, said)
        if rest := [pair for pair in self.pairs if pair not in known]:
            names = f"{len(rest)} other pairs" if designs else "any two"
            one = Design(SPREAD[self.metric][bits], CORRELATION)
            said = f"the spread of the demo model at {bits} bits"
            if known:
                one, said = max(known.values(), key=lambda d: d.sd), "earlier scores of others"
            yield self._of_text(names, kind, size, one, said)

    def _of_text(
        self, names: str, kind: str, size: TextSize, one: Design, said: str
    ) -> Effect:  # fmt: skip
        tokens = size.tokens or (1,)
        mean = sum(tokens) / len(tokens)
        spread = (sum((n - mean) ** 2 for n in tokens) / len(tokens)) ** 0.5
        one = replace(one, cluster_size=mean, size_cv=spread / mean)
        if not size.is_known:
            said += f"; {len(tokens)} documents of {mean:.0f} tokens assumed"
        what = f"{names}, {kind} on {size.label}"
        power_ = self._power(what, self.metric, one, len(size.tokens), len(self.sizes), said)
        return Effect(power_[0], size.label, kind, power_[1], len(size.tokens), power_[2])

    def _in_task(self, kind: str, task: Task, code: str, n_languages: int) -> Effect:
        found = definitions.get(task.name)
        n = found.unique or found.items or ITEMS
        n = min(n, task.limit) if task.limit else n
        sizes = planning.group_sizes(found.name) if found.name in planning.KNOWN else None
        one = power.binary_design(DISCORDANCE, 1.0 if sizes is not None else 0.0, sizes)
        said = f"{100 * DISCORDANCE:g} % of answers differ"
        said += "" if found.items or task.limit else f"; {ITEMS} items assumed"
        clusters = max(round(n / one.cluster_size), 1)
        what = f"any two, {kind} in {found.name} {code}"
        power_ = self._power(what, "score", one, clusters, n_languages, said)
        return Effect(power_[0], f"{found.name} {code}", kind, power_[1], clusters, power_[2])

    def _power(
        self, what: str, metric: str, one: Design, n_clusters: int, n_languages: int, said: str
    ) -> tuple[results.Power, int, int]:
        """Return what can be found, the size of the family, and the clusters needed."""
        about, family = METRICS[metric], self._n_family(n_languages)
        margin, alpha = self.recipe.comparison.margins.get(metric, math.nan), ALPHA / family
        detectable, needed = math.inf, 0
        if n_clusters > 1:
            detectable = power.detectable(one, n_clusters, alpha=alpha)
        if not math.isnan(margin):
            stored = margin / about.scale
            needed = max(
                power.clusters_for_superiority(one, stored, alpha=alpha),
                power.clusters_for_equivalence(one, stored, alpha=alpha),
            )
        found = results.Power(what, about.unit, detectable * about.scale, margin, said)
        return found, family, needed

    def _n_family(self, n_languages: int) -> int:
        factors = design.parse_family(self.recipe.comparison.family)
        n = len(self.pairs) * (n_languages if "lang" in factors else 1)
        return max(n * (len(self.recipe.types) if "type" in factors else 1), 1)

    def _pilots(self, model: Model, store: Store) -> Pilots:
        """Return what earlier scores of the model say of each pair; of several, the most text."""
        labels = [size.label for size in self.sizes]
        groups: dict[str, list[Run]] = {}
        for path in sorted(store.root.glob(f"score/*/{RECORDS}")):
            (run,) = find(path)
            known = run.signature.get("reference", {}).get("sha256") == model.sha256
            if known and run.text in labels and run.type in self.recipe.types:
                key = canonical_json([run.text, run.type, instrument(run.signature)])
                groups.setdefault(key, []).append(run)
        found: Pilots = {}
        for runs in sorted(groups.values(), key=lambda g: g[0].signature["text"]["n_documents"]):
            place = found.setdefault((runs[0].text, runs[0].type), {})
            place.update(_designs(runs, self.metric))
        return found


def nominal_bits(kind: str) -> int:
    """Return the bits in a type's name, from 2 to 4: what is known of spreads."""
    digits = re.search(r"\d+", kind)
    return min(4, max(2, int(digits[0]))) if digits else 4


def _designs(runs: Sequence[Run], metric: str) -> dict[Pair, Design]:
    """Return the design of each pair of calibrations among runs; of samples, the last one."""
    ours = {run.calib: run for run in runs}
    if len(ours) < 2:
        return {}
    (block,) = blocks(dict(enumerate(ours.values())), (metric,))
    values = {calib: block.values[i][metric] for i, calib in enumerate(ours)}
    found = {}
    for a, b in itertools.combinations(sorted(ours), 2):
        moved = values[a] - values[b]
        good = np.isfinite(moved)
        sums = Sums.of(moved[good], block.codes[good], len(block.names))
        if len(block.names) > 1 and sums.variance() > 0:
            found[frozenset((a, b))] = power.from_pilot(sums)
    return found
