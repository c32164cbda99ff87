"""What token records say: each quant on each text, and the noise between two backends."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import canonical_json
from imatrix_lab.errors import BadRecords
from imatrix_lab.records import parquet, runs
from imatrix_lab.records.parquet import Table
from imatrix_lab.records.runs import Run
from imatrix_lab.stats import clustered, quantiles
from imatrix_lab.stats.clustered import Interval

SEED = 0
_MAY_DIFFER = ("toolchain.", "compute.")
"""Fields of two signatures that may differ in `agree`."""


@dataclass(frozen=True)
class Summary:
    """One quant on one text, with 95 % intervals clustered by document.

    Perplexity is exp of the mean NLL; `ln_ppl_ratio` the mean NLL of the quant less the
    reference's, and KLD KL(reference || quant) of a token, both in nats. `same_top`: share of
    tokens whose most probable token is the reference's. `rms_delta_p`: root mean square of p -
    p_ref, the probability of the true token. `bits_per_byte` of the text is comparable across
    vocabularies. `n_nonfinite` tokens without a finite score are in none of the figures.
    """

    text: str
    quant: str
    type: str
    calibration: str
    bits_per_weight: float
    n_tokens: int
    n_documents: int
    n_nonfinite: int
    ppl_reference: Interval
    ppl: Interval
    ln_ppl_ratio: Interval
    kld_mean: Interval
    kld_median: Interval
    kld_q99: Interval
    kld_q999: Interval
    same_top: Interval
    rms_delta_p: Interval
    bits_per_byte: Interval
    divergence: str
    signature: dict[str, Any]

    def instrument(self) -> str:
        """Return a key that summaries share whose numbers may stand in one table."""
        return canonical_json([self.text, self.n_tokens, runs.instrument(self.signature)])


class _Tokens:
    """The finite tokens of one file of records, and averages clustered by document."""

    def __init__(self, table: Table, finite: np.ndarray | None = None):
        self.finite = _finite(table) if finite is None else finite
        self._table = table
        documents = table.words("doc_id")
        self.clusters, self._n = documents.codes[self.finite], len(documents.names)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._table.array(name)[self.finite], np.float64)

    def mean(self, values: np.ndarray, weights: np.ndarray | None = None) -> Interval:
        """Return sum(values) / sum(weights), or their mean."""
        sums, sizes = (np.bincount(self.clusters, w, self._n) for w in (values, weights))
        return clustered.mean(sums, sizes)

    def quantile(self, values: np.ndarray, q: float) -> Interval:
        """Return a quantile, by a bootstrap of documents with a fixed seed."""
        return quantiles.quantile(values, self.clusters, q, np.random.default_rng(SEED))

    def rms(self, values: np.ndarray) -> Interval:
        return _mapped(self.mean(values**2), lambda x: math.sqrt(max(x, 0.0)))


def _finite(table: Table) -> np.ndarray:
    names = ("nll_ref", "nll", "kld", "p_ref", "p")
    columns = [np.isfinite(table.array(name)) for name in names]
    return np.asarray(np.logical_and.reduce(columns))


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """Return an interval of an increasing function; the standard error by the delta method."""
    low, estimate, high = (
        function(x) if math.isfinite(x) else x
        for x in (interval.low, interval.estimate, interval.high)
    )
    step = max(abs(interval.estimate), 1e-12) * 1e-6
    slope = (function(interval.estimate + step) - estimate) / step
    return dataclasses.replace(
        interval, estimate=estimate, low=low, high=high, std_error=slope * interval.std_error
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def summaries(paths: Sequence[Path]) -> list[Summary]:
    """Return a summary of each file of token records, in order of text and type."""
    rows = [_summary(run) for path in paths for run in _token_runs(path)]
    return sorted(rows, key=lambda s: (s.text, s.type, s.calibration, s.quant))


def _token_runs(path: Path) -> list[Run]:
    token_runs = [run for run in runs.find(path) if run.kind == "token"]
    if not token_runs:
        raise BadRecords("no token records here", where=path, fix=runs.SCORE)
    return token_runs


def _summary(run: Run) -> Summary:
    table = parquet.read(run.path)
    tokens = _Tokens(table)
    if not tokens.finite.any():
        raise BadRecords("no token here has a finite score", where=run.path)
    n_bytes = tokens["n_bytes"]
    if not (0 < n_bytes.sum() < math.inf and (n_bytes >= 0).all()):
        raise BadRecords("its tokens have no bytes", where=run.path, fix=runs.SCORE)
    nll_ref, nll, kld = tokens["nll_ref"], tokens["nll"], tokens["kld"]
    quant = run.signature["quant"]
    return Summary(
        text=run.text,
        quant=quant.get("name", run.path.stem),
        type=run.type,
        calibration=run.calib,
        bits_per_weight=quant.get("bits_per_weight", math.nan),
        n_tokens=len(kld),
        n_documents=len(np.unique(tokens.clusters)),
        n_nonfinite=int((~tokens.finite).sum()),
        ppl_reference=_mapped(tokens.mean(nll_ref), _exp),
        ppl=_mapped(tokens.mean(nll), _exp),
        ln_ppl_ratio=tokens.mean(nll - nll_ref),
        kld_mean=tokens.mean(kld),
        kld_median=tokens.quantile(kld, 0.5),
        kld_q99=tokens.quantile(kld, 0.99),
        kld_q999=tokens.quantile(kld, 0.999),
        same_top=tokens.mean(tokens["top1"] == tokens["top1_ref"]),
        rms_delta_p=tokens.rms(tokens["p"] - tokens["p_ref"]),
        bits_per_byte=tokens.mean(nll / math.log(2), n_bytes),
        divergence=(run.signature.get("protocol") or {}).get("divergence", "exact"),
        signature=run.signature,
    )


@dataclass(frozen=True)
class Agreement:
    """How far apart two sets of scores of the same tokens are, with 95 % intervals.

    `what`: noise of the reference or quant between runs A and B, or the effect of quantization in
    one of them. `ln_ppl_ratio`: difference of mean NLL, nats. `kld_mean`: nats; None between runs,
    which do not have both distributions.
    """

    text: str
    quant: str
    what: str
    ln_ppl_ratio: Interval
    rms_delta_p: Interval
    same_top: Interval
    kld_mean: Interval | None


def agree(a: Path, b: Path) -> tuple[list[Agreement], list[str]]:
    """Return the noise between two backends, builds or settings next to the quantization effect.

    The rows are for each quant and text in both runs; the fields are those in which the signatures
    differ. Raises BadRecords: nothing in common, or they differ in more than the machine.
    """
    runs_a, runs_b = (
        {(r.text, r.signature["quant"]["sha256"]): r for r in _token_runs(path)} for path in (a, b)
    )
    rows: list[Agreement] = []
    fields: set[str] = set()
    for key in runs_a.keys() & runs_b.keys():
        differing = runs.differing(runs_a[key], runs_b[key])
        if wrong := [f for f in differing if not f.startswith(_MAY_DIFFER)]:
            raise BadRecords(
                f"these differ in more than the machine: {wrong[0]}",
                where=runs_b[key].path,
                fix="score the same quants, text and protocol on both",
            )
        fields |= set(differing)
        rows += _agreement(runs_a[key], runs_b[key])
    if not rows:
        has_a, has_b = (
            ", ".join(
                f"{r.signature['quant'].get('name') or r.name()} on {r.text}" for r in several
            )
            for several in (runs_a.values(), runs_b.values())
        )
        what = f"no quant and text in common: {a} has {has_a}; {b} has {has_b}"
        raise BadRecords(what, where=b, fix="score the same quants and text on both machines")
    return sorted(rows, key=lambda r: (r.text, r.quant)), sorted(fields)


def _agreement(a: Run, b: Run) -> list[Agreement]:
    table_a, table_b = parquet.read(a.path), parquet.read(b.path)
    if not runs.same_tokens(table_a, table_b):
        raise BadRecords("these runs did not score the same tokens", where=b.path)
    finite = _finite(table_a) & _finite(table_b)
    x, y = _Tokens(table_a, finite), _Tokens(table_b, finite)

    def row(what: str, from_: tuple[_Tokens, str], to: tuple[_Tokens, str]) -> Agreement:
        (s, suffix), (t, suffix_to) = from_, to
        return Agreement(
            a.text,
            a.signature["quant"]["name"],
            what,
            x.mean(t[f"nll{suffix_to}"] - s[f"nll{suffix}"]),
            x.rms(t[f"p{suffix_to}"] - s[f"p{suffix}"]),
            x.mean(np.equal(s[f"top1{suffix}"], t[f"top1{suffix_to}"])),
            x.mean(s["kld"]) if s is t else None,
        )

    return [
        row("noise, reference", (x, "_ref"), (y, "_ref")),
        row("noise, quant", (x, ""), (y, "")),
        row("quantization, A", (x, "_ref"), (x, "")),
        row("quantization, B", (y, "_ref"), (y, "")),
    ]
