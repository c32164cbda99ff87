"""A report as plain data: what `imatrix-lab compare --json` prints."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from imatrix_lab.compare.crossed import Interaction
from imatrix_lab.compare.judge import Report
from imatrix_lab.stats import words
from imatrix_lab.stats.comparison import METRICS, Comparison


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as JSON values; what is unknown or unbounded is null."""
    found: dict[str, Any] = plain(
        {
            "comparisons": [_comparison(c) for c in report.comparisons],
            "interactions": [_interaction(x) for x in report.interactions],
            "controls": [dataclasses.asdict(c) for c in report.controls],
            "notes": report.notes,
            "signatures": report.signatures,
        }
    )
    return found


def _comparison(c: Comparison) -> dict[str, Any]:
    fields = dataclasses.asdict(c)
    question, detail = fields.pop("question"), fields.pop("paired")
    metric = question.pop("metric")
    interval = detail.pop("interval")
    fields["ci95_low"], fields["ci95_high"] = fields.pop("low"), fields.pop("high")
    ratio = {}
    if metric["key"] == "nll_nats":
        ends = (c.estimate, c.low, c.high)
        names = ("perplexity_ratio", "perplexity_ratio_ci95_low", "perplexity_ratio_ci95_high")
        ratio = {n: math.exp(min(e, 700.0)) for n, e in zip(names, ends, strict=True)}
    return {
        **question,
        "metric": metric["key"],
        "verdict": c.verdict(),
        "plain": words.plain(c),
        "formal": words.formal(c),
        **ratio,
        **fields,
        "p_adjusted": c.p_adjusted(),
        "documents_only": {**detail, **interval},
    }


def _interaction(x: Interaction) -> dict[str, Any]:
    metric = METRICS[x.metric]
    return {
        **dataclasses.asdict(x),
        "plain": words.plain_interaction(x.a, x.b, x.type, metric, x.contrast, x.p_holm),
        "formal": words.formal_interaction(x.a, x.b, x.type, metric, x.contrast, x.p_holm),
    }


def plain(value: Any) -> Any:
    """Return a value without what JSON does not have: NaN, infinity, tuples."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
