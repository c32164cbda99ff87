"""The answer in three sentences, by rule from the verdicts and never stronger than these.

A case is a text (or the language of a task) at a type and of a model: the imatrix of the text's own
language against the baseline. Texts come first; tasks decide where there are no texts.
"""

import math
from collections.abc import Iterator, Sequence

from imatrix_lab.core import format
from imatrix_lab.llamacpp import size_types
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES, Comparison, Contrast, Results, TypeInteraction
from imatrix_lab.stats import sentences
from imatrix_lab.stats.comparison import ALPHA
from imatrix_lab.stats.equivalence import VERDICTS
from imatrix_lab.stats.metrics import METRICS
from imatrix_lab.stats.paired import FEW_CLUSTERS
from imatrix_lab.study.recipe import DEMO, PLAIN

_NAMES_MAX = 4
OWN = "an imatrix of the text's own language"


def answer(results: Results) -> tuple[str, ...]:
    """Return three sentences: does the matched language help, next to what, and the limits.

    Before the limits, where there are any: what other types and quantizers of one size do, and for
    which the calibration matters more.
    """
    languages = {c.label for c in results.calibrations if c.kind == "language"}
    own = [c for c in _against_baseline(results) if c.a == c.text and c.a in languages]
    texts, tasks = [c for c in own if not c.task], [c for c in own if c.task]
    cases = texts or tasks
    yardsticks = f"{_noise(cases)}; {_positive(results, cases)}."
    others = [*_of_kinds(results), *_of_interactions(results)]
    return _matched(results, texts, tasks), yardsticks, *others, _limits(results, cases)


def _of_kinds(results: Results) -> Iterator[str]:
    """Yield how the texts' own languages fare with each way to make a file, at plain types' sizes.

    Where no text has a calibration of its own, all calibrations count.
    """
    decides = [c for c in results.contrasts if c.metric == ("score" if c.task else results.metric)]
    plain = [c for c in decides if not _method(results, c.b)]
    own = [c for c in plain if c.calibration == c.text] or plain
    texts = [c for c in own if not c.task] or own
    for method in dict.fromkeys(_method(results, c.a) for c in texts):
        cases = [c for c in texts if _method(results, c.a) == method]
        ends = sorted(cases, key=lambda c: abs(c.estimate))
        sizes = [_size(results, c, _place(results, c)) for c in dict.fromkeys((ends[0], ends[-1]))]
        yield (
            f"At one size and with one calibration, {method} is {_counts(cases)} beside plain"
            f" types: its {cases[0].words} is {' to '.join(sizes)}."
        )


def _method(results: Results, label: str) -> str:
    """Return how files of a type are made beside llama-quantize with an imatrix, in words."""
    quantizer = next((q.quantizer for q in results.quants if q.type == label), PLAIN)
    words = ["types chosen for the language"] if label.startswith(size_types.PREFIX) else []
    return " and ".join([*words, *([] if quantizer == PLAIN else [quantizer])])


def _of_interactions(results: Results) -> Iterator[str]:
    """Yield whether the texts' own calibration matters more for one quantizer than another."""
    quantizers = {q.type: q.quantizer for q in results.quants}
    groups: dict[tuple[str, str], list[TypeInteraction]] = {}
    for x in results.type_interactions:
        sides = quantizers.get(x.type_a, PLAIN), quantizers.get(x.type_b, PLAIN)
        is_sized = x.type_a.startswith(size_types.PREFIX)
        if x.type_b and not (x.text or x.task or is_sized) and x.metric == results.metric:
            groups.setdefault(sides, []).append(x)
    for (a, b), cases in groups.items():
        words: dict[str, list[str]] = {}
        for x in cases:
            size = sentences.difference(x.estimate, x.low, x.high, (x.high - x.low) / 4, x.unit)
            at = "" if x.type_b == b else f" at {x.type_b}"
            words.setdefault(_matters(x), []).append(f"{size}{at}")
        parts = [f"{word} with {b}, {_joined(sizes)}" for word, sizes in words.items()]
        yield (
            f"Calibration on the text's own language instead of {cases[0].reference} helps with"
            f" {a} {_joined(parts)}."
        )


def _matters(x: TypeInteraction) -> str:
    side = "more" if (x.estimate < 0) == METRICS[x.metric].lower_is_better else "less"
    if x.p_holm <= ALPHA:
        return f"{side} than"
    if x.p_value <= ALPHA:
        ps = format.probability(x.p_value), format.probability(x.p_holm)
        return f"perhaps {side} (p = {ps[0]}, adjusted for other comparisons {ps[1]}) than"
    return "no more and no less, as far as these data can tell, than"


def _against_baseline(results: Results) -> list[Comparison]:
    with_baseline = (c for c in results.comparisons if c.b == results.baseline)
    return [c for c in with_baseline if c.metric == ("score" if c.task else results.metric)]


def _matched(results: Results, texts: Sequence[Comparison], tasks: Sequence[Comparison]) -> str:
    cases = texts or tasks
    if not cases:
        others, baseline = _against_baseline(results), _imatrix(results, results.baseline)
        if not others:
            return f"Nothing could be compared with {baseline}, so there is no answer."
        nothing = f"No comparison of {OWN} was asked for, or could be made"
        return f"{nothing}; against {baseline}, the others are {_counts(others)}."
    verdicts = {c.verdict for c in cases}
    sentence = _alike(results, cases) if len(verdicts) == 1 else _mixed(results, cases)
    if texts and tasks:
        sentence += f"; in answers to tasks it is {_counts(tasks)}"
    return f"{sentence}."


def _alike(results: Results, cases: Sequence[Comparison]) -> str:
    c, b = cases[0], _imatrix(results, results.baseline)
    if len(cases) == 1:
        a, where = _imatrix(results, c.a), f"on {_place(results, c)}"
    else:
        number = "both" if len(cases) == 2 else f"all {len(cases)}"
        number = f"any of {len(cases)}" if c.verdict == "undecided" else number
        a, where = OWN, f"in {number} cases ({_places(results, cases)})"
    if c.verdict in ("better", "worse"):
        detail = f"its {c.words} is {_sizes(results, cases)}"
    elif c.verdict == "equivalent":
        detail = sentences.within_margin(c.words, c.margin, c.unit)
    else:
        low, high = min(x.low for x in cases), max(x.high for x in cases)
        detail = sentences.no_clear_difference(c.words, low, high, (high - low) / 4, c.unit)
    return f"{_upper(sentences.verdict(c.verdict, a, b))} {where}: {detail}"


def _mixed(results: Results, cases: Sequence[Comparison]) -> str:
    groups = {v: group for v in VERDICTS if (group := [c for c in cases if c.verdict == v])}
    counts = [f"{v} in {len(group)} ({_places(results, group)})" for v, group in groups.items()]
    sizes = [
        f"where {v}, its {group[0].words} is {_sizes(results, group)}"
        for v, group in groups.items()
        if v in ("better", "worse")
    ]
    against = _imatrix(results, results.baseline)
    sentence = f"against {against}, {OWN} is, of {len(cases)} cases, {_joined(counts)}"
    sentence = f"It depends: {sentence}" if len(sizes) > 1 else _upper(sentence)
    return "; ".join([sentence, *sizes])


def _counts(cases: Sequence[Comparison]) -> str:
    counts = {v: sum(c.verdict == v for c in cases) for v in VERDICTS}
    words = _joined([f"{v} in {n}" for v, n in counts.items() if n])
    return f"{words} of {len(cases)} {'cases' if len(cases) > 1 else 'case'}"


def _sizes(results: Results, cases: Sequence[Comparison]) -> str:
    if len(cases) == 1:
        return _size(results, cases[0])
    smallest, *_, largest = sorted(cases, key=lambda c: abs(c.estimate))
    return " to ".join(_size(results, c, _place(results, c)) for c in (smallest, largest))


def _size(results: Results, c: Comparison, place: str = "") -> str:
    """Return the difference with its interval, and as a share of the loss without an imatrix."""
    details, of = [place] if place else [], "the loss without an imatrix"
    whole = _divergence(results, c, NO_IMATRIX, c.type)
    if isinstance(c, Contrast):
        whole, of = _divergence(results, c, c.calibration, c.b), f"that of {c.b}"
    if whole > 0:
        details.append(f"{100 * abs(c.estimate) / whole:.2g} % of {of}")
    error = (c.high - c.low) / 4
    return sentences.difference(c.estimate, c.low, c.high, error, c.unit, *details)


def _divergence(results: Results, c: Comparison, calibration: str, quant_type: str) -> float:
    """Return the divergence of another quant on the same text; NaN for other metrics."""
    place = (calibration, ALL_SAMPLES, "kld_nats", c.model, c.task, c.text, quant_type)
    for s in results.scores if c.metric == "kld_nats" else ():
        if (s.calibration, s.sample, s.metric, s.model, s.task, s.text, s.type) == place:
            return s.estimate
    return math.nan


def _noise(cases: Sequence[Comparison]) -> str:
    multiples = sorted(c.noise_multiple for c in cases if math.isfinite(c.noise_multiple))
    if not multiples:
        why = "a difference may come from the calibration texts and not from their languages"
        return f"The difference between two texts of one language was not measured, so {why}"
    ends = dict.fromkeys(f"{x:.2g}" for x in (multiples[0], multiples[-1]))
    what = "The difference is" if len(cases) == 1 else "The differences are"
    return f"{what} {sentences.noise(' to '.join(ends))}"


def _positive(results: Results, cases: Sequence[Comparison]) -> str:
    """Return whether the positive control holds: a quant without an imatrix is worse."""
    is_task = bool(cases and cases[0].task)
    metric = "score" if is_task else results.metric
    rows = [r for r in results.controls if r.name.startswith(f"{NO_IMATRIX} against")]
    rows = [r for r in rows if (bool(r.task), r.metric) == (is_task, metric)]
    if not rows:
        return "nothing was scored without an imatrix, so there is no positive control"
    lower_is_better = METRICS[metric].lower_is_better
    seen = sum(r.low > 0 if lower_is_better else r.high < 0 for r in rows)
    share = f" in {seen} of {len(rows)} cases" if len(rows) > 1 else ""
    if not seen:
        fails = "not even leaving the imatrix out makes a quant significantly worse"
        return f"the positive control fails: {fails}, so smaller effects could not be seen"
    is_own = all(r.name.endswith(f" against {r.text}") for r in rows)
    than = "than with one of the text's own language" if is_own else "than with one"
    text = f"without an imatrix (the positive control) quants are significantly worse {than}{share}"
    return text if seen == len(rows) else f"{text}, so small effects may go unseen"


def _limits(results: Results, cases: Sequence[Comparison]) -> str:
    demo = [label for label, facts in results.models.items() if facts["origin"] == DEMO]
    model = "one model" if len(results.models) == 1 else f"{len(results.models)} models"
    if demo:
        model += f" ({_joined(demo)}, a stand-in that was quantized once before)"
    parts = [f"This holds for {model} and one collection of text per language only"]
    if not any(s.task for s in results.scores):
        parts.append("answers of the quants were not tested")
    parts += _blind(cases)
    if results.missing:
        lost = [step for m in results.missing for step in (m.step, *m.left_out)]
        parts.append(f"missing, because it failed or depends on what failed: {_listed(lost)}")
    return f"{'; '.join(parts)}."


def _blind(cases: Sequence[Comparison]) -> list[str]:
    parts = []
    fewest = min((c.n_clusters for c in cases), default=FEW_CLUSTERS)
    if fewest < FEW_CLUSTERS:
        of = "groups of items in a task" if cases[0].task else "documents in a text"
        parts.append(f"there are as few as {fewest} {of}")
    if cases and all(math.isnan(c.margin) for c in cases):
        parts.append("no margin was declared, so nothing can be called equivalent")
    unseen = [max(abs(c.low), abs(c.high)) for c in cases if c.verdict == "undecided"]
    if unseen and all(map(math.isfinite, unseen)):
        c = cases[0]
        parts.append(f"where undecided, a difference of {max(unseen):.2g} {c.unit} is not excluded")
    elif unseen:
        parts.append("where undecided, there is too little text to exclude any difference")
    return parts


def _imatrix(results: Results, label: str) -> str:
    if label == NO_IMATRIX:
        return label
    if label in results.languages:
        return f"an imatrix of {results.languages[label]['name']} text"
    return f"the imatrix {label}"


def _text(results: Results, c: Comparison) -> str:
    name = results.languages[c.text]["name"] if c.text in results.languages else c.text
    return f"{c.task} in {name}" if c.task else name


def _of_model(results: Results, models: Sequence[str]) -> str:
    return f" of {_listed(models)}" if len(results.models) > 1 else ""


def _place(results: Results, c: Comparison) -> str:
    return f"{_text(results, c)} at {c.type}{_of_model(results, [c.model])}"


def _places(results: Results, cases: Sequence[Comparison]) -> str:
    texts: dict[tuple[str, str], list[str]] = {}
    for c in cases:
        texts.setdefault((_text(results, c), _of_model(results, [c.model])), []).append(c.type)
    (_, model), types = next(iter(texts.items()))
    if all(key[1] == model and own == types for key, own in texts.items()):
        return f"{_listed([text for text, _ in texts])} at {_listed(types)}{model}"
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


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
