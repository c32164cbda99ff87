"""Results, looked up the ways a report needs them; only its own names are made here."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imatrix_lab.report.blocks import Cell
from imatrix_lab.report.results import Calibration, Comparison, Quant, Results, Score


@dataclass(frozen=True)
class Measure:
    """What some comparisons or scores have in common: one scale, one model."""

    model: str
    task: str
    metric: str
    words: str
    unit: str


class View:
    """A study's results with their names and lookups."""

    def __init__(self, found: Results):
        self.found = found
        named = [c.label for c in found.calibrations]
        named += [label for c in found.comparisons for label in (c.b, c.a)]
        named += [s.calibration for s in found.scores if s.calibration]
        self.labels = tuple(dict.fromkeys(named))
        self._calibrations = _first((c.model, c.label) for c in found.calibrations)
        self._quants = _first((q.model, q.calibration, q.type) for q in found.quants)
        self.scores = _together(found.scores)
        self.signature_names = {key: f"S{i}" for i, key in enumerate(sorted(found.signatures), 1)}

    def measures(self) -> tuple[Measure, ...]:
        """Return every scale of the comparisons: the deciding metric, other texts', tasks'."""
        seen = dict.fromkeys(
            Measure(c.model, c.task, c.metric, c.words, c.unit) for c in self.found.comparisons
        )
        return tuple(sorted(seen, key=lambda m: (m.task != "", not self.decides(m.task, m.metric))))

    def against_baseline(self, measure: Measure) -> tuple[Comparison, ...]:
        """Return the comparisons of a measure that the verdict matrix shows."""
        return tuple(c for c in self.comparisons(measure) if c.b == self.found.baseline)

    def comparisons(self, measure: Measure) -> tuple[Comparison, ...]:
        """Return all comparisons of a measure."""
        wanted = (measure.model, measure.task, measure.metric)
        return tuple(
            c for c in self.found.comparisons if (c.model, c.task, c.metric) == wanted
        )  # fmt: skip

    def title(self, measure: Measure) -> str:
        """Return a measure in words, with unit, task and model as far as needed."""
        task = f"{measure.task}: " if measure.task else ""
        return f"{self.of_model(measure.model)}{task}{measure.words}, {measure.unit}"

    def of_model(self, model: str) -> str:
        """Return the beginning of a title; empty where there is one model only."""
        return f"{model}: " if len(self.found.models) > 1 else ""

    def text(self, label: str) -> str:
        """Return a text's or language's name with its code."""
        name = self.found.languages.get(label, {}).get("name", "")
        return f"{name} ({label})" if name else label

    def types(self, present: Iterable[str]) -> tuple[str, ...]:
        """Return types in the recipe's order."""
        seen = dict.fromkeys(present)
        known = [t for t in self.found.types if t in seen]
        return (*known, *(t for t in seen if t not in known))

    def decides(self, task: str, metric: str) -> bool:
        """Return whether a measure stands open on the page: tasks, and one metric of texts."""
        return bool(task) or metric == self.found.metric

    def calibration(self, model: str, label: str) -> Calibration | None:
        """Return the first sample of a calibration."""
        place = self._calibrations.get((model, label))
        return None if place is None else self.found.calibrations[place]

    def quant(self, model: str, calibration: str, kind: str) -> Quant | None:
        """Return the first sample's file."""
        place = self._quants.get((model, calibration, kind))
        return None if place is None else self.found.quants[place]

    def is_own(self, model: str, label: str, text: str) -> bool:
        """Return whether a calibration is on the language itself and no other."""
        found = self.calibration(model, label)
        if found is None or found.kind not in ("language", "pooled"):
            return False
        return [*found.shares] == [text]

    def number(self, label: str) -> int:
        """Return which colour and mark a calibration has, the same in every picture."""
        return self.labels.index(label) if label in self.labels else len(self.labels)

    def about(self, model: str, label: str) -> str:
        """Return what stands under a calibration's label."""
        found = self.calibration(model, label)
        if found is None or found.kind == "none":
            return ""
        names = [self.found.languages.get(code, {}).get("name", code) for code in found.shares]
        n_samples = sum(
            (c.model, c.label) == (model, label) for c in self.found.calibrations
        )  # fmt: skip
        words = [", ".join(names)] if names and len(names) < 4 else []
        words += [found.kind] if found.kind != "language" else []
        words += [f"{n_samples} samples"] if n_samples > 1 else []
        return ", ".join(w for w in words if w != label)

    def signed(self, keys: Iterable[str]) -> Cell:
        """Return links to the signatures of a number."""
        names = [self.signature_names[k] for k in keys if k in self.signature_names]
        return Cell(" ".join(names), mark="signed")

    def ordered(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Return calibrations in the study's order."""
        return tuple(sorted(dict.fromkeys(labels), key=self.number))


def _first(keys: Iterator[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, place)
    return found


def _together(scores: Iterable[Score]) -> tuple[Score, ...]:
    """Return a row for each quant: over all samples, else of the first one."""
    best: dict[tuple[str, ...], Score] = {}
    for s in scores:
        key = (s.model, s.task, s.text, s.metric, s.type, s.calibration)
        if key not in best or s.sample < best[key].sample:
            best[key] = s
    return tuple(best.values())
