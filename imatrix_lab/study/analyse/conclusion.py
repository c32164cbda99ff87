"""The answer in three sentences, by rule from the verdicts: never stronger than they are.

A case is a text (or the language of a task) at a type and of a model: the imatrix of the text's own
language against the baseline. Texts come first; tasks decide where there are no texts.
"""

import math
from collections.abc import Sequence

from imatrix_lab.core.format import with_error
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES, Comparison, Control, Results
from imatrix_lab.stats.equivalence import VERDICTS
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.stats.paired import FEW_CLUSTERS
from imatrix_lab.study.recipe import DEMO

_NAMES_MAX = 4
OWN = "an imatrix of the text's own language"


def answer(found: Results) -> tuple[str, str, str]:
    """Return three sentences: does the matched language help, beside what, and what is not said."""
    texts, tasks = (_cases(found, is_task) for is_task in (False, True))
    cases = texts or tasks
    return _matched(found, texts, tasks), _yardsticks(found, cases), _limits(found, cases)


def _cases(found: Results, is_task: bool) -> list[Comparison]:
    languages = {c.label for c in found.calibrations if c.kind == "language"}
    return [
        c
        for c in _against_baseline(found)
        if bool(c.task) == is_task and c.a == c.text and c.a in languages
    ]


def _against_baseline(found: Results) -> list[Comparison]:
    """Return the comparisons with the baseline in the metrics that decide."""
    return [
        c
        for c in found.comparisons
        if c.b == found.baseline and c.metric == ("score" if c.task else found.metric)
    ]


# -- does it help


def _matched(found: Results, texts: Sequence[Comparison], tasks: Sequence[Comparison]) -> str:
    cases = texts or tasks
    if not cases:
        return _nothing_matched(found)
    if len(cases) == 1:
        said = _one(found, cases[0])
    elif len({c.verdict for c in cases}) == 1:
        said = _alike(found, cases)
    else:
        said = _mixed(found, cases)
    if texts and tasks:
        said += f"; in answers to tasks it is {_counts(tasks)}"
    return f"{said}."


def _nothing_matched(found: Results) -> str:
    others = _against_baseline(found)
    baseline = _imatrix(found, found.baseline)
    if not others:
        return f"Nothing could be compared with {baseline}, so there is no answer."
    return (
        "Whether an imatrix of the text's own language helps was not asked, or could not be"
        f" compared; against {baseline}, the others are {_counts(others)}."
    )


def _one(found: Results, c: Comparison) -> str:
    a, b = _imatrix(found, c.a), _imatrix(found, c.b)
    where = f"on {_place(found, c)}"
    if c.verdict in ("better", "worse"):
        return f"{_upper(a)} is {c.verdict} than {b} {where}: its {c.words} is {_size(found, c)}"
    if c.verdict == "equivalent":
        return f"{_upper(a)} and {b} are equivalent {where}: {_within(c)}"
    return f"Whether {a} is better than {b} {where} cannot be told: {_reach([c])}"


def _alike(found: Results, cases: Sequence[Comparison]) -> str:
    first, b = cases[0], _imatrix(found, found.baseline)
    places = f"({_places(found, cases)})"
    where = f"{'both' if len(cases) == 2 else f'all {len(cases)}'} cases {places}"
    if first.verdict in ("better", "worse"):
        sizes = _sizes(found, cases)
        return f"{_upper(OWN)} is {first.verdict} than {b} in {where}: its {first.words} is {sizes}"
    if first.verdict == "equivalent":
        return f"{_upper(OWN)} and {b} are equivalent in {where}: {_within(first)}"
    untold = f"cannot be told in any of {len(cases)} cases {places}"
    return f"Whether {OWN} is better than {b} {untold}: {_reach(cases)}"


def _mixed(found: Results, cases: Sequence[Comparison]) -> str:
    kinds = {v: those for v in VERDICTS if (those := [c for c in cases if c.verdict == v])}
    counts = [f"{v} in {len(those)} ({_places(found, those)})" for v, those in kinds.items()]
    moved = [
        f"where {v}, its {those[0].words} is {_sizes(found, those)}"
        for v, those in kinds.items()
        if v in ("better", "worse")
    ]
    against = _imatrix(found, found.baseline)
    said = f"against {against}, {OWN} is, of {len(cases)} cases, {_joined(counts)}"
    said = f"It depends: {said}" if len(moved) > 1 else _upper(said)
    return "; ".join([said, *moved])


def _counts(cases: Sequence[Comparison]) -> str:
    counts = {v: sum(c.verdict == v for c in cases) for v in VERDICTS}
    said = _joined([f"{v} in {n}" for v, n in counts.items() if n])
    return f"{said} of {len(cases)} {'cases' if len(cases) > 1 else 'case'}"


def _within(c: Comparison) -> str:
    return (
        f"their {c.words} differs by less than the {c.margin:.6g} {c.unit} that were declared to"
        " matter"
    )


def _reach(cases: Sequence[Comparison]) -> str:
    """Return between what the differences may lie, of all cases together."""
    c = cases[0]
    low, high = min(x.low for x in cases), max(x.high for x in cases)
    if not math.isfinite(low + high):
        return f"there is too little text for an interval of its {c.words}"
    if low == high == 0:
        return f"no difference in {c.words} was seen"
    ends = (f"{with_error(abs(x), (high - low) / 4)} {c.unit} {_direction(x)}" for x in (low, high))
    return f"its {c.words} may be anything from {' to '.join(ends)} (95 % sure)"


def _sizes(found: Results, cases: Sequence[Comparison]) -> str:
    """Return the smallest and the largest difference; all have one sign."""
    if len(cases) == 1:
        return _size(found, cases[0])
    ordered = sorted(cases, key=lambda c: abs(c.estimate))
    ends = (_size(found, c, _place(found, c)) for c in (ordered[0], ordered[-1]))
    return " to ".join(ends)


def _size(found: Results, c: Comparison, place: str = "") -> str:
    """Return the difference with its interval, and as a share of the loss without an imatrix."""
    error = (c.high - c.low) / 4
    said = [place] if place else []
    if c.low * c.high > 0:
        ends = sorted((abs(c.low), abs(c.high)))
        said.append(f"95 % sure: {' to '.join(with_error(x, error) for x in ends)}")
        whole = _without_imatrix(found, c)
        if whole > 0:
            share = f"{100 * abs(c.estimate) / whole:.2g}"
            said.append(f"{share} % of the loss without an imatrix")
    text = f"{with_error(abs(c.estimate), error)} {c.unit} {_direction(c.estimate)}"
    return f"{text} ({'; '.join(said)})" if said else text


def _without_imatrix(found: Results, c: Comparison) -> float:
    """Return the divergence of the same quant without an imatrix; NaN for other metrics."""
    if c.metric != "kld_nats":
        return math.nan
    return next(
        (
            s.estimate
            for s in found.scores
            if (s.calibration, s.sample, s.metric) == (NO_IMATRIX, ALL_SAMPLES, c.metric)
            and (s.model, s.task, s.text, s.type) == (c.model, c.task, c.text, c.type)
        ),
        math.nan,
    )


# -- beside what


def _yardsticks(found: Results, cases: Sequence[Comparison]) -> str:
    return f"{_noise(cases)}; {_positive(found, cases)}."


def _noise(cases: Sequence[Comparison]) -> str:
    multiples = sorted(c.noise_multiple for c in cases if math.isfinite(c.noise_multiple))
    if not multiples:
        return (
            "What two texts of one language differ by was not measured, so that a difference may be"
            " due to the very texts that were calibrated on, and not to their languages"
        )
    ends = dict.fromkeys(f"{x:.2g}" for x in (multiples[0], multiples[-1]))
    what = "The difference is" if len(cases) == 1 else "The differences are"
    return f"{what} {' to '.join(ends)} times what two calibration texts of one language differ by"


def _positive(found: Results, cases: Sequence[Comparison]) -> str:
    """Return whether the control is seen whose outcome is known: no imatrix is worse."""
    is_task = bool(cases and cases[0].task)
    metric = "score" if is_task else found.metric
    rows = [
        r
        for r in found.controls
        if r.name.startswith(f"{NO_IMATRIX} against")
        and (bool(r.task), r.metric) == (is_task, metric)
    ]
    if not rows:
        return "nothing was scored without an imatrix, so there is no positive control"
    seen = sum(_is_worse(r) for r in rows)
    share = f" in {seen} of {len(rows)} cases" if len(rows) > 1 else ""
    if not seen:
        return (
            "the positive control fails: not even leaving the imatrix out makes a quant worse for"
            " sure, so that smaller effects could not be seen"
        )
    text = f"without an imatrix (the positive control) quants are worse for sure{share}"
    return text if seen == len(rows) else f"{text}, so that small effects may go unseen"


def _is_worse(r: Control) -> bool:
    return r.low > 0 if METRICS[r.metric].lower_is_better else r.high < 0


# -- what it does not say


def _limits(found: Results, cases: Sequence[Comparison]) -> str:
    demo = [label for label, facts in found.models.items() if facts["origin"] == DEMO]
    n = len(found.models)
    model = "one model" if n == 1 else f"{n} models"
    if demo:
        model += f" ({_joined(demo)}, a stand-in that was quantized once before)"
    parts = [f"This speaks of {model} and of one collection of text a language, and of no others"]
    if not any(s.task for s in found.scores):
        parts.append("what the quants answer was not tested")
    parts += _blind(cases)
    if found.missing:
        lost = [step for m in found.missing for step in (m.step, *m.left_out)]
        parts.append(f"missing, because it failed or stands on what failed, is {_listed(lost)}")
    return f"{'; '.join(parts)}."


def _blind(cases: Sequence[Comparison]) -> list[str]:
    """Return what these data could not have found."""
    parts = []
    fewest = min((c.n_clusters for c in cases), default=FEW_CLUSTERS)
    if fewest < FEW_CLUSTERS:
        of = "groups of items in a task" if cases[0].task else "documents in a text"
        parts.append(f"there are as few as {fewest} {of}")
    if cases and all(math.isnan(c.margin) for c in cases):
        parts.append("no margin was declared, so that nothing can be called equivalent")
    unseen = [max(abs(c.low), abs(c.high)) for c in cases if c.verdict == "undecided"]
    if unseen and all(map(math.isfinite, unseen)):
        c = cases[0]
        parts.append(f"where undecided, a difference of {max(unseen):.2g} {c.unit} is not excluded")
    elif unseen:
        parts.append("where undecided, there is too little text to exclude any difference")
    return parts


# -- words


def _imatrix(found: Results, label: str) -> str:
    if label == NO_IMATRIX:
        return label
    if label in found.languages:
        return f"an imatrix of {found.languages[label]['name']} text"
    return f"the imatrix {label}"


def _text(found: Results, c: Comparison) -> str:
    name = found.languages[c.text]["name"] if c.text in found.languages else c.text
    return f"{c.task} in {name}" if c.task else name


def _of_model(found: Results, models: Sequence[str]) -> str:
    return f" of {_listed(models)}" if len(found.models) > 1 else ""


def _place(found: Results, c: Comparison) -> str:
    return f"{_text(found, c)} at {c.type}{_of_model(found, [c.model])}"


def _places(found: Results, cases: Sequence[Comparison]) -> str:
    """Return the cases in words: the types of each text."""
    texts: dict[tuple[str, str], list[str]] = {}
    for c in cases:
        texts.setdefault((_text(found, c), _of_model(found, [c.model])), []).append(c.type)
    if len({tuple(types) for types in texts.values()}) == 1:  # the same of each
        models = dict.fromkeys(model for _, model in texts)
        if len(models) == 1:
            names = _listed([text for text, _ in texts])
            return f"{names} at {_listed(next(iter(texts.values())))}{next(iter(models))}"
    parts = [f"{text} at {_listed(types)}{model}" for (text, model), types in texts.items()]
    return "; ".join(_cut(parts))


def _listed(names: Sequence[str]) -> str:
    return _joined(_cut(names))


def _cut(names: Sequence[str]) -> Sequence[str]:
    more = len(names) - _NAMES_MAX
    return [*names[:_NAMES_MAX], f"{more} more"] if more > 0 else names


def _joined(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _direction(x: float) -> str:
    return "lower" if x < 0 else "higher"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
