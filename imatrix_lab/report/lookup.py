"""Results, looked up the ways a report needs them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imatrix_lab.report.cells import Cell
from imatrix_lab.report.results import Comparison, Results, Score


@dataclass(frozen=True)
class Measure:
    """What some comparisons have in common: one scale, one model."""

    model: str
    task: str
    metric: str
    words: str
    unit: str


class View:
    """A study's results with their names and lookups."""

    def __init__(self, results: Results):
        self.results = results
        labels = [c.label for c in results.calibrations]
        labels += [label for c in results.comparisons for label in (c.b, c.a)]
        labels += [s.calibration for s in results.scores if s.calibration]
        self.labels = tuple(dict.fromkeys(labels))
        # of several samples the first
        self.calibrations = {(c.model, c.label): c for c in reversed(results.calibrations)}
        self.quants = {(q.model, q.calibration, q.type): q for q in reversed(results.quants)}
        self.scores: dict[tuple[str, ...], Score] = {}  # over all samples, or else of the first
        for s in results.scores:
            key = (s.model, s.task, s.text, s.metric, s.type, s.calibration)
            if key not in self.scores or s.sample < self.scores[key].sample:
                self.scores[key] = s
        self.quantizers = {q.type: q.quantizer for q in results.quants}
        self.signature_names = {k: f"S{i}" for i, k in enumerate(sorted(results.signatures), 1)}

    def measures(self, shown: Sequence[Comparison] | None = None) -> tuple[Measure, ...]:
        """Return every scale of the comparisons: first the deciding metric, tasks last."""
        shown = self.results.comparisons if shown is None else shown
        measures = dict.fromkeys(Measure(c.model, c.task, c.metric, c.words, c.unit) for c in shown)
        decided = sorted(measures, key=lambda m: not self.decides(m.task, m.metric))
        return tuple(sorted(decided, key=lambda m: m.task != ""))

    def against_baseline(self, measure: Measure) -> tuple[Comparison, ...]:
        """Return the comparisons of a measure that the verdict matrix shows."""
        return tuple(c for c in self.comparisons(measure) if c.b == self.results.baseline)

    def comparisons(self, measure: Measure) -> tuple[Comparison, ...]:
        """Return all comparisons of a measure."""
        key = (measure.model, measure.task, measure.metric)
        return tuple(c for c in self.results.comparisons if (c.model, c.task, c.metric) == key)

    def title(self, measure: Measure) -> str:
        """Return a measure in words, with unit, task and model as far as needed."""
        task = f"{measure.task}: " if measure.task else ""
        return f"{self.of_model(measure.model)}{task}{measure.words}, {measure.unit}"

    def of_model(self, model: str) -> str:
        """Return the beginning of a title; empty where there is one model only."""
        return f"{model}: " if len(self.results.models) > 1 else ""

    def text(self, label: str) -> str:
        """Return a text's or language's name with its code."""
        name = self.results.languages.get(label, {}).get("name", "")
        return f"{name} ({label})" if name else label

    def types(self, present: Iterable[str]) -> tuple[str, ...]:
        """Return types in the recipe's order."""
        present = dict.fromkeys(present)
        return tuple(dict.fromkeys([*(t for t in self.results.types if t in present), *present]))

    def method(self, type_: str) -> str:
        """Return how a type is made beside llama.cpp's own mixes; empty for those."""
        words = ["types chosen"] if type_.startswith("size:") else []
        quantizer = self.quantizers.get(type_, "imatrix")
        return " + ".join([*words, *([] if quantizer == "imatrix" else [quantizer])])

    def decides(self, task: str, metric: str) -> bool:
        """Return whether a measure is shown open: a task's, or the deciding metric of texts."""
        return bool(task) or metric == self.results.metric

    def is_own(self, model: str, label: str, text: str) -> bool:
        """Return whether a calibration is on the text's own language and no other."""
        c = self.calibrations.get((model, label))
        return c is not None and c.kind in ("language", "pooled") and list(c.shares) == [text]

    def number(self, label: str) -> int:
        """Return which colour and mark a calibration has, the same in every picture."""
        return self.labels.index(label) if label in self.labels else len(self.labels)

    def about(self, model: str, label: str) -> str:
        """Return what stands under a calibration's label."""
        calibration = self.calibrations.get((model, label))
        if calibration is None or calibration.kind == "none":
            return ""
        languages, samples = self.results.languages, self.results.calibrations
        names = [languages.get(code, {}).get("name", code) for code in calibration.shares]
        n_samples = sum((c.model, c.label) == (model, label) for c in samples)
        words = [", ".join(names)] if 0 < len(names) < 4 else []
        words += [calibration.kind] if calibration.kind != "language" else []
        words += [f"{n_samples} samples"] if n_samples > 1 else []
        return ", ".join(w for w in words if w != label)

    def signed(self, keys: Iterable[str]) -> Cell:
        """Return links to the signatures of a number."""
        names = [self.signature_names[k] for k in keys if k in self.signature_names]
        return Cell(" ".join(names), mark="signed")

    def ordered(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Return calibrations in the study's order."""
        return tuple(sorted(dict.fromkeys(labels), key=self.number))
