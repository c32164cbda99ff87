"""Comparisons in words: a sentence for a hobbyist, one for a statistician, and their parts."""

import math

from imatrix_lab.core.format import probability, with_error
from imatrix_lab.stats import paired
from imatrix_lab.stats.comparison import ALPHA, Comparison
from imatrix_lab.stats.interaction import Contrast
from imatrix_lab.stats.metrics import Metric

_ADJUSTED = {"holm": "Holm", "max-t": "max-T", "bh": "Benjamini-Hochberg"}
_METHODS = {
    "permutation": "sign-flip permutation",
    paired.BLOCKS: "sign-flip permutation of blocks of windows",
    "samples": "calibration sample as random effect, t with {df:.1f} df",
}


# -- the parts


def _p(p: float) -> str:
    return probability(p, "= ")


def direction(value: float) -> str:
    """Return lower or higher."""
    return "lower" if value < 0 else "higher"


def ci(low: float, high: float, std_error: float, unit: str) -> str:
    """Return the interval of a difference; sizes alone where all of it lies on one side of 0.

    >>> ci(-0.0924, -0.0801, 0.003, "nats")
    '95 % CI 0.0801 to 0.0924'
    >>> ci(-0.007, 0.005, 0.003, "nats")
    '95 % CI 0.0070 nats lower to 0.0050 nats higher'
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "too little data for a 95 % CI"
    first, second = (with_error(abs(x), std_error) for x in (low, high))
    if low * high > 0:
        return f"95 % CI {first} to {second}" if low > 0 else f"95 % CI {second} to {first}"
    return f"95 % CI {first} {unit} {direction(low)} to {second} {unit} {direction(high)}"


def difference(
    estimate: float, low: float, high: float, std_error: float, unit: str, *details: str
) -> str:
    """Return a difference with its interval.

    >>> difference(-0.0863, -0.0924, -0.0801, 0.003, "nats", "43 % of the loss")
    '0.0863 nats lower (95 % CI 0.0801 to 0.0924; 43 % of the loss)'
    """
    size = f"{with_error(abs(estimate), std_error)} {unit} {direction(estimate)}"
    return f"{size} ({'; '.join((ci(low, high, std_error, unit), *details))})"


def no_clear_difference(words: str, low: float, high: float, std_error: float, unit: str) -> str:
    """Return what is known where the verdict is undecided.

    The interval is of this comparison alone; it may exclude 0 where the adjusted p does not.
    """
    if low == high == 0:
        return f"no difference in {words}"
    side = f" {unit} {direction(low)}, before adjustment" if low * high > 0 else ""
    return f"no clear difference in {words} ({ci(low, high, std_error, unit)}{side})"


def within_margin(words: str, margin: float, unit: str) -> str:
    """Return what equivalent means."""
    return f"their {words} differs by less than the declared margin of {margin:.6g} {unit}"


def verdict(word: str, a: str, b: str) -> str:
    """Return the verdict on A and B."""
    if word in ("better", "worse"):
        return f"{a} is {word} than {b}"
    return f"{a} and {b} {'are equivalent' if word == 'equivalent' else 'cannot be told apart'}"


def noise(multiple: str) -> str:
    """Return a difference as a multiple of the noise."""
    return f"{multiple} times that between two calibration texts of one language"


# -- a comparison


class _Scaled:
    """Numbers of a comparison in the unit of its sentences."""

    def __init__(self, c: Comparison):
        self.scale, self.unit = c.question.metric.scale, c.question.metric.unit
        self.error = c.std_error * self.scale
        self.estimate, self.low, self.high = (x * self.scale for x in (c.estimate, c.low, c.high))
        self.margin = (c.question.margin or 0.0) * self.scale

    def __call__(self, value: float) -> str:
        return with_error(value * self.scale, self.error)


def plain(c: Comparison) -> str:
    """Return what the comparison means, for someone who wants to know which file to take."""
    q, scaled, word = c.question, _Scaled(c), c.verdict()
    words, unit = q.metric.words, q.metric.unit
    ends = scaled.low, scaled.high, scaled.error, unit
    if word in ("better", "worse"):
        detail = f"its {words} is {difference(scaled.estimate, *ends)}"
    elif word == "equivalent":
        detail = within_margin(words, scaled.margin, unit)
    else:
        detail = no_clear_difference(words, *ends)
    sentences = [f"On {q.text}, {verdict(word, q.a, q.b)}: {detail}."]
    if word == "undecided":
        sentences.append(_would_decide(c, scaled))
    if not math.isnan(c.noise_multiple):
        sentences.append(f"The difference is {noise(f'{c.noise_multiple:.1f}')}.")
    return " ".join(sentences)


def _would_decide(c: Comparison, scaled: _Scaled) -> str:
    q = c.question
    if c.samples is not None and c.samples.separable:
        return "More calibration samples of each language would decide it, not more text."
    if c.n_to_decide > c.n:
        return (
            f"About {_round_up(c.n_to_decide):,} {q.values}"
            f" ({_round_up(c.clusters_to_decide):,} {q.clusters}) would decide it."
        )
    if c.n_to_decide:
        return "It would be decided on its own; among so many comparisons it is not."
    if math.isinf(c.detectable):
        return f"{c.n_clusters} {q.clusters} are too few to show any difference."
    text = "Without a margin they cannot be called equivalent"
    if math.isnan(c.detectable):
        return f"{text}."
    detectable = f"{scaled(c.detectable)} {q.metric.unit}"
    return f"{text}; a difference of {detectable} or more would probably have been detected."


def _round_up(n: int) -> int:
    """Return n with two significant digits, never less."""
    unit: int = 10 ** max(len(str(n)) - 2, 0)
    return -(-n // unit) * unit


def formal(c: Comparison) -> str:
    """Return what was estimated and tested, for someone who wants to check it."""
    q, scaled = c.question, _Scaled(c)
    unit = q.metric.unit
    interval = f"95 % CI {scaled(c.low)} to {scaled(c.high)}"
    if not math.isfinite(c.high - c.low):
        interval = "no 95 % CI"
    exact = "exact " if c.method == "permutation" and c.paired.exact else ""
    parts = [
        f"Mean paired difference of {q.metric.words}, {q.a} minus {q.b} on {q.text}:"
        f" {scaled(c.estimate)} {unit}, {interval}"
        f" ({exact}{_METHODS[c.method].format(df=c.df)}; n = {c.n:,} {q.values} in"
        f" {c.n_clusters:,} {q.clusters}, design effect {with_error(c.paired.design_effect, 0.1)}"
        + (f"; {c.n_excluded:,} not finite, excluded" if c.n_excluded else "")
        + ")",
        f"null: no difference, p {_p(c.p_value)}{_family(c)}, threshold {ALPHA}",
    ]
    if c.items is not None:
        test, ends = c.items.mcnemar, (c.items.newcombe_low, c.items.newcombe_high)
        parts.append(
            f"McNemar by {q.clusters.removesuffix('s')}: {test.wins_a:,} to {test.wins_b:,} net"
            f" wins, exact p {_p(test.p_exact)}; Newcombe 95 % CI"
            f" {' to '.join(map(scaled, ends))} {unit}"
        )
    if q.margin is None:
        parts.append("no margin was stated, so equivalence was not tested")
    else:
        p = c.p_equivalence_adjusted
        alone = math.isnan(p) or c.n_family < 2
        adjusted = "" if alone else f", adjusted {_p(p)}"
        parts.append(
            f"TOST with margin ±{scaled.margin:.6g} {unit}:"
            f" p {_p(c.p_equivalence)}{adjusted}, threshold {ALPHA / 2} a side"
        )
    detectable = "nothing" if math.isinf(c.detectable) else f"{scaled(c.detectable)} {unit}"
    parts.append(f"detectable with 80 % power: {detectable}")
    return "; ".join(parts) + ". " + _limits(c)


def _family(c: Comparison) -> str:
    if c.adjust not in _ADJUSTED or c.n_family < 2:
        return ""
    return f" ({_ADJUSTED[c.adjust]} over {c.n_family}: p {_p(c.p_adjusted())})"


def _limits(c: Comparison) -> str:
    """Return what the comparison does not show."""
    clusters = c.question.clusters
    limits = ["It holds for this model, these texts and this build of llama.cpp only."]
    if c.method == paired.BLOCKS:
        limits.append("The text is one document: how documents differ was not measured.")
    elif c.method == "permutation" and c.n_clusters < paired.FEW_CLUSTERS:
        least = 2.0 ** (1 - c.n_clusters)
        limits.append(
            f"With only {c.n_clusters} {clusters}, the permutation's p cannot fall below"
            f" {least:.2g}."
        )
    if c.paired.largest_share > 0.25 and c.n_clusters > 1:
        share = f"{100 * c.paired.largest_share:.0f} %"
        limits.append(f"One of the {clusters} holds {share} of the {c.question.values}.")
    if c.samples is not None and not c.samples.separable and c.samples.n_samples:
        limits.append(
            "One calibration text a language: the effect of the language cannot be separated"
            " from that of its one text."
        )
    return " ".join(limits)


# -- an interaction


def plain_interaction(
    a: str, b: str, quant_type: str, metric: Metric, contrast: Contrast, p_adjusted: float
) -> str:
    """Return what a difference of differences means; see `formal_interaction`."""
    p = contrast.p_value if math.isnan(p_adjusted) else p_adjusted
    if not p <= ALPHA or contrast.estimate == 0:
        head = (
            f"These data do not show that calibration in {a} or {b} helps its own language more"
            f" than the other"
        )
    else:
        helps = (contrast.estimate < 0) == metric.lower_is_better
        more = "more" if helps else "less"
        head = f"Calibration in {a} or {b} helps its own language {more} than the other"
    size = with_error(abs(contrast.estimate) * metric.scale, contrast.std_error * metric.scale)
    text = f"{head} ({quant_type}; {metric.words}, {size} {metric.unit} in all)."
    if not contrast.separable:
        text += " With one calibration text a language it may be that text, not the language."
    return text


def plain_type_interaction(
    place: str,
    types: tuple[str, str],
    calibrations: tuple[str, str],
    metric: Metric,
    contrast: Contrast,
    p_adjusted: float,
) -> str:
    """Return what the calibration changes of type A, or more than of type B; see the formal one."""
    (a, b), (calib, reference) = types, calibrations
    p = contrast.p_value if math.isnan(p_adjusted) else p_adjusted
    size = with_error(abs(contrast.estimate) * metric.scale, contrast.std_error * metric.scale)
    low, high = (with_error(v * metric.scale, contrast.std_error * metric.scale)
                 for v in (contrast.low, contrast.high))  # fmt: skip
    gains = (contrast.estimate < 0) == metric.lower_is_better
    if not p <= ALPHA or contrast.estimate == 0:
        more = f" more with {a} than with {b}" if b else f" with {a}"
        head = f"{place}, these data do not show that calibration on {calib} instead of"
        head += f" {reference} changes anything{more}"
        text = f"{head} ({metric.words}, {low} to {high} {metric.unit})."
    else:
        word = ("better" if gains else "worse") if not b else "more" if gains else "less"
        what = f"makes {a} {word}" if not b else f"helps {a} {word} than {b}"
        head = f"{place}, calibration on {calib} instead of {reference} {what}"
        text = f"{head} ({metric.words}, by {size} {metric.unit}, 95 % CI {low} to {high})."
    if not contrast.separable:
        text += " With one calibration text a language it may be that text, not the language."
    return text


def formal_type_interaction(
    types: tuple[str, str],
    calibrations: tuple[str, str],
    text: str,
    metric: Metric,
    contrast: Contrast,
    p_adjusted: float,
) -> str:
    """Return the contrast (calibration - reference at A) - (the same at B), and its error terms."""

    def scaled(value: float) -> str:
        return with_error(value * metric.scale, contrast.std_error * metric.scale)

    (a, b), (calib, reference) = types, calibrations
    difference = f"({calib} - {reference} of {a})"
    difference += f" - ({calib} - {reference} of {b})" if b else ""
    error = f"documents {scaled(contrast.se_documents)}"
    if contrast.separable:
        samples = ", ".join(f"{n} of {g}" for g, n in contrast.n_samples.items())
        error += f", calibration samples {scaled(contrast.se_samples)} ({samples})"
    adjusted = "" if math.isnan(p_adjusted) else f", Holm-adjusted {_p(p_adjusted)}"
    return (
        f"{'Interaction calibration x type' if b else 'Change with the calibration'} on {text},"
        f" {metric.words}: {difference} = {scaled(contrast.estimate)} {metric.unit}, 95 % CI"
        f" {scaled(contrast.low)} to {scaled(contrast.high)} (t with {contrast.df:.1f} df;"
        f" standard error {scaled(contrast.std_error)}: {error}); null: 0,"
        f" p {_p(contrast.p_value)}{adjusted}, threshold {ALPHA}."
    )


def formal_interaction(
    a: str, b: str, quant_type: str, metric: Metric, contrast: Contrast, p_adjusted: float
) -> str:
    """Return the contrast (A - B on A's text) - (A - B on B's text), and its error terms."""

    def scaled(value: float) -> str:
        return with_error(value * metric.scale, contrast.std_error * metric.scale)

    error = f"documents {scaled(contrast.se_documents)}"
    samples = ", ".join(f"{n} of {g}" for g, n in contrast.n_samples.items())
    if contrast.separable:
        error += f", calibration samples {scaled(contrast.se_samples)} ({samples})"
    adjusted = "" if math.isnan(p_adjusted) else f", Holm-adjusted {_p(p_adjusted)}"
    text = (
        f"Interaction calibration x language, {quant_type}, {metric.words}: ({a} - {b} on {a}) -"
        f" ({a} - {b} on {b}) = {scaled(contrast.estimate)} {metric.unit}, 95 % CI"
        f" {scaled(contrast.low)} to {scaled(contrast.high)} (t with {contrast.df:.1f} df;"
        f" standard error {scaled(contrast.std_error)}: {error}); null: 0,"
        f" p {_p(contrast.p_value)}{adjusted}, threshold {ALPHA}."
    )
    if not contrast.separable:
        text += " The effect of a language is not separable from that of its one text."
    return text
