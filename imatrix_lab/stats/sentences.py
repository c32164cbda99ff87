"""A comparison in two sentences: one for a hobbyist, one for a statistician."""

import math

from imatrix_lab.core.format import probability, with_error
from imatrix_lab.stats.comparison import ALPHA, Comparison
from imatrix_lab.stats.interaction import Contrast
from imatrix_lab.stats.metrics import Metric

_ADJUSTED = {"holm": "Holm", "max-t": "max-T", "bh": "Benjamini-Hochberg"}
_METHODS = {
    "cr3": "CR3, t with {df:.0f} df",
    "permutation": "exact sign-flip permutation",
    "stationary bootstrap": "stationary bootstrap of windows",
    "samples": "calibration sample as random effect, t with {df:.1f} df",
}


def _p(p: float) -> str:
    return probability(p, "= ")


class _Scaled:
    """Numbers of a comparison in the unit of its sentences."""

    def __init__(self, c: Comparison):
        self.scale = c.question.metric.scale
        self.error = c.std_error * self.scale

    def __call__(self, value: float) -> str:
        return with_error(value * self.scale, self.error)


def plain(c: Comparison) -> str:
    """Return what the comparison means, for someone who wants to know which file to take."""
    q, say = c.question, _Scaled(c)
    what, unit = q.metric.words, q.metric.unit
    where = f"On {q.text}"
    size = say(abs(c.estimate))
    ends = sorted((abs(c.low), abs(c.high))) if c.low * c.high > 0 else []
    sure = f" (95 % sure: between {say(ends[0])} and {say(ends[1])})" if ends else ""
    verdict = c.verdict()
    if verdict in ("better", "worse"):
        less = "lower" if c.estimate < 0 else "higher"
        text = f"{where}, {q.a} is {verdict} than {q.b}: its {what} is {size} {unit} {less}{sure}."
    elif verdict == "equivalent":
        text = (
            f"{where}, {q.a} and {q.b} are equivalent: their {what} differs by less than the"
            f" {with_error((q.margin or 0) * say.scale, 0)} {unit} that were declared to matter."
        )
    else:
        text = f"{where}, these data cannot tell {q.a} and {q.b} apart in {what}."
        text += _would_decide(c, say)
    return text + _noise(c)


def _would_decide(c: Comparison, say: _Scaled) -> str:
    q = c.question
    if c.samples is not None and c.samples.separable:
        return " More calibration samples of each language would decide it, not more text."
    if c.n_to_decide > c.n:
        return (
            f" About {_round_up(c.n_to_decide):,} {q.values}"
            f" ({_round_up(c.clusters_to_decide):,} {q.clusters}) would decide it."
        )
    if c.n_to_decide:
        return " Alone it would be decided; among so many comparisons it is not."
    if math.isinf(c.detectable):
        return f" With {c.n_clusters} {q.clusters} no difference can be sure."
    text = " Without a margin there is no saying they are equal"
    if math.isnan(c.detectable):
        return text + "."
    return f"{text}; {say(c.detectable)} {q.metric.unit} or more would probably have been seen."


def _round_up(n: int) -> int:
    """Return n with two significant digits, never less."""
    unit: int = 10 ** max(len(str(n)) - 2, 0)
    return -(-n // unit) * unit


def _noise(c: Comparison) -> str:
    if math.isnan(c.noise_multiple):
        return ""
    return f" That is {c.noise_multiple:.1f} times what two texts of one language differ by."


def formal(c: Comparison) -> str:
    """Return what was estimated and tested, for someone who wants to check it."""
    q, say = c.question, _Scaled(c)
    unit = q.metric.unit
    parts = [
        f"Mean paired difference of {q.metric.words}, {q.a} minus {q.b} on {q.text}:"
        f" {say(c.estimate)} {unit}, 95 % CI {say(c.low)} to {say(c.high)}"
        f" ({_METHODS[c.method].format(df=c.df)}; n = {c.n:,} {q.values} in {c.n_clusters:,}"
        f" {q.clusters}, design effect {with_error(c.paired.design_effect, 0.1)}"
        + (f"; {c.n_excluded:,} not finite, excluded" if c.n_excluded else "")
        + ")",
        f"null: no difference, p {_p(c.p_value)}{_family(c)}, threshold {ALPHA}",
    ]
    if q.margin is None:
        parts.append("no margin was stated, so equivalence was not tested")
    else:
        p = c.p_equivalence_adjusted
        alone = math.isnan(p) or c.n_family < 2
        adjusted = "" if alone else f", adjusted {_p(p)}"
        parts.append(
            f"TOST with margin ±{with_error(q.margin * say.scale, 0)} {unit}:"
            f" p {_p(c.p_equivalence)}{adjusted}, threshold {ALPHA / 2} a side"
        )
    found = "nothing" if math.isinf(c.detectable) else f"{say(c.detectable)} {unit}"
    parts.append(f"detectable with 80 % power: {found}")
    return "; ".join(parts) + ". " + _limits(c)


def _family(c: Comparison) -> str:
    if c.adjust not in _ADJUSTED or c.n_family < 2:
        return ""
    return f" ({_ADJUSTED[c.adjust]} over {c.n_family}: {_p(c.p_adjusted())})"


def _limits(c: Comparison) -> str:
    """Return what the comparison does not say."""
    q = c.question
    found = ["It speaks of this model, these texts and this build of llama.cpp, and no others."]
    if c.method == "stationary bootstrap":
        found.append("The text is one document: how documents differ was not measured.")
    elif c.n_clusters < 12:
        few = f"Only {c.n_clusters} {q.clusters}: p is the exact permutation's"
        least = 2.0 ** (1 - c.n_clusters)
        found.append(f"{few}, which cannot fall below {least:.2g}.")
    if c.paired.largest_share > 0.25 and c.n_clusters > 1:
        share = f"{100 * c.paired.largest_share:.0f} %"
        found.append(f"One of the {q.clusters} holds {share} of the {q.values}.")
    if c.samples is not None and not c.samples.separable and c.samples.n_samples:
        found.append(
            "One calibration text a language: the effect of the language cannot be separated"
            " from that of its one text."
        )
    return " ".join(found)


def plain_interaction(
    a: str, b: str, kind: str, metric: Metric, found: Contrast, p_adjusted: float
) -> str:
    """Return what a difference of differences means; see `formal_interaction`."""
    p = found.p_value if math.isnan(p_adjusted) else p_adjusted
    helps = (found.estimate < 0) == metric.lower_is_better
    if not p <= ALPHA or found.estimate == 0:
        head = (
            f"These data do not show that calibration in {a} or {b} helps its own language more"
            f" than the other"
        )
    else:
        head = f"Calibration in {a} or {b} helps its own language {'more' if helps else 'less'}"
        head += " than the other"
    size = with_error(abs(found.estimate) * metric.scale, found.std_error * metric.scale)
    text = f"{head} ({kind}; {metric.words}, {size} {metric.unit} in all)."
    if not found.separable:
        text += " With one calibration text a language it may be that text, not the language."
    return text


def formal_interaction(
    a: str, b: str, kind: str, metric: Metric, found: Contrast, p_adjusted: float
) -> str:
    """Return the contrast (A - B on A's text) - (A - B on B's text), and its error terms."""

    def say(value: float) -> str:
        return with_error(value * metric.scale, found.std_error * metric.scale)

    error = f"documents {say(found.se_documents)}"
    samples = ", ".join(f"{n} of {g}" for g, n in found.n_samples.items())
    if found.separable:
        error += f", calibration samples {say(found.se_samples)} ({samples})"
    adjusted = "" if math.isnan(p_adjusted) else f", Holm-adjusted {_p(p_adjusted)}"
    text = (
        f"Interaction calibration x language, {kind}, {metric.words}: ({a} - {b} on {a}) -"
        f" ({a} - {b} on {b}) = {say(found.estimate)} {metric.unit}, 95 % CI {say(found.low)} to"
        f" {say(found.high)} (t with {found.df:.1f} df; standard error {say(found.std_error)}:"
        f" {error}); null: 0, p {_p(found.p_value)}{adjusted}, threshold {ALPHA}."
    )
    if not found.separable:
        text += " The effect of a language is not separable from that of its one text."
    return text
