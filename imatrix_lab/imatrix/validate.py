"""Whether an importance matrix may reach the quantizer, and what it would do there.

The effects are those of llama-quantize at the pinned commit (``load_imatrix`` of quantize.cpp,
``llama_model_quantize_impl`` of llama-quant.cpp, the loops of ggml-quants.c); those of bad values
are tested on a small model. It rounds counts, divides sums by those above 0, takes 1 for the
rest, and checks only that the result is finite.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.format import some
from imatrix_lab.imatrix import siblings
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.findings import ERROR, NOTE, SEVERITIES, WARNING, Finding, Findings
from imatrix_lab.imatrix.format import LEGACY_WINDOW, MODEL, REPAIRED, Entry, Imatrix, rounded

FEW_TOKENS = 8192  # sixteen windows of 512; 60k to 130k tokens are usual
RARE_TOKENS = 32
"""A mean of n squares of a normal variable is off by sqrt(2/n) of itself: here a quarter."""
COUNT_MAX = 2.0**63  # from here on llama.cpp's integers overflow and become negative
BLOCK = 32  # columns that share a scale in most types
MISSING_SHARE_MAX = 0.05  # share of a model's tensors that may be missing
SHORT_WINDOW = 128
"""In shorter windows the first token, whose activations are unlike all others, weighs much."""
FILLED = "unhit experts take the mean over the others"
"""What `repair` records of a tensor; such an expert has a count of 1."""

_UNUSED = "quantized as without an imatrix"
_AGAIN = "compute it again, on another backend if it recurs"
_SAME_MODEL = "use an imatrix of this model"

_KINDS = {
    "not-finite": (ERROR, "llama-quantize stops, other programs write NaN weights", _AGAIN),
    "negative": (ERROR, "error is rewarded: low-bit types crash or become noise", _AGAIN),
    "bad-counts": (ERROR, _UNUSED, _AGAIN),
    "no-tokens": (ERROR, _UNUSED, "compute it again from other text"),
    "zero": (ERROR, "every weight becomes zero in most types", _AGAIN),
    "unhit-experts": (WARNING, "quantized unweighted", "more text; or --repair: others' mean"),
    "rare-experts": (WARNING, "their weights are off by a quarter or more, by chance", "more text"),
    "counts": (WARNING, "little: each tensor has its own count", "let a running llama-imatrix end"),
    "lost-counts": (WARNING, "quantized unweighted", "--repair sets them to 1, keeps the means"),
    "fractions": (NOTE, "none: llama.cpp rounds them, one common factor", "--repair rounds them"),
    "siblings": (
        ERROR,
        f"{_UNUSED}; llama-quantize stops at 2 bits and below",
        "--repair takes them from tensors that read the same input",
    ),
    "missing": (ERROR, f"{_UNUSED}; llama-quantize stops at 2 bits and below", _SAME_MODEL),
    "shape": (ERROR, "llama-quantize stops", _SAME_MODEL),
    "foreign": (WARNING, "ignored by llama-quantize", "use its own model; --repair drops them"),
    "zero-blocks": (WARNING, "their weights become zero in some types", "use text of more kinds"),
    "zero-columns": (NOTE, "their weights are ignored, which matters if other text needs them", ""),
    "dead-columns": (NOTE, "none", ""),
    "metadata": (ERROR, "llama-quantize refuses the file", "--repair adds them"),
    "few-tokens": (WARNING, "noisy weights; 60,000 to 130,000 tokens are usual", "more text"),
    "legacy": (NOTE, f"none; its windows are assumed to have {LEGACY_WINDOW} tokens", ""),
    "window": (WARNING, "first tokens have unusual activations", "use windows of 512: --ctx 512"),
    "chunks": (NOTE, "none; the quant's metadata repeat the number", ""),
    "other-model": (NOTE, "none if it is the same model at another precision", ""),
}
"""Kind -> severity, effect on a quant, and remedy."""
_MENDABLE = ("siblings", "unhit-experts", "lost-counts", "fractions", "foreign", "metadata")


def _finding(kind: str, what: str, tensors: Iterable[str] = (), severity: str = "") -> Finding:
    usual, effect, remedy = _KINDS[kind]
    mendable = kind in _MENDABLE
    return Finding(severity or usual, kind, what, effect, remedy, tuple(tensors), mendable)


def check(
    imatrix: Imatrix, model: ModelTensors | None = None, n_tokens: int | None = None
) -> Findings:
    """Return what is wrong with an imatrix; every dense tensor must have seen `n_tokens`."""
    findings = [
        *_values(imatrix, model),
        *_experts(imatrix, model),
        *_counts(imatrix, model, n_tokens),
        *(_tensors(imatrix, model) if model else ()),
        *_zero_columns(imatrix, model),
        *_metadata(imatrix, model.model_sha256 if model else ""),
    ]
    ordered = sorted(findings, key=lambda f: SEVERITIES.index(f.severity))
    empty = [no_tokens(e, n_matrices(n, model)).sum() for n, e in imatrix.entries.items()]
    return Findings(tuple(ordered), int(sum(empty)))


def n_matrices(name: str, model: ModelTensors | None) -> int:
    """Return how many matrices a tensor has in the model; 1 if unknown."""
    return model.shape(name)[0] if model and name in model.tensors else 1


def no_tokens(entry: Entry, matrices: int) -> NDArray[np.bool_]:
    """Return which matrices no token reached; all False if none was (finding "no-tokens")."""
    empty = rounded(entry.split(matrices).counts) == 0
    return np.zeros_like(empty) if empty.all() else empty


_IMPOSSIBLE = {
    "not-finite": "NaN or infinite values in",
    "negative": "negative values in",
    "bad-counts": "negative, NaN or impossibly large counts in",
    "no-tokens": "no token reached",
    "zero": "zero throughout in",
}


def _values(imatrix: Imatrix, model: ModelTensors | None) -> Iterator[Finding]:
    tensors = defaultdict(list)
    for name, entry in sorted(imatrix.entries.items()):
        tensors[_impossible(entry.split(n_matrices(name, model)))].append(name)
    for kind, what in _IMPOSSIBLE.items():
        if names := tensors[kind]:
            yield _finding(kind, f"{what} {some(names)}", names)


def _impossible(entry: Entry) -> str:
    if not np.isfinite(entry.sums).all():
        return "not-finite"
    if (entry.sums < 0).any():
        return "negative"
    if not ((entry.counts >= 0) & (entry.counts < COUNT_MAX)).all():
        return "bad-counts"
    if not (hit := rounded(entry.counts) > 0).any():
        return "no-tokens"
    return "zero" if (~entry.sums.any(axis=1) & hit).any() else ""


def _experts(imatrix: Imatrix, model: ModelTensors | None) -> Iterator[Finding]:
    empty, rare = {}, {}
    for name, entry in sorted(imatrix.entries.items()):
        if (experts := np.flatnonzero(no_tokens(entry, n_matrices(name, model)))).size:
            empty[name] = some([str(e) for e in experts], 8)
        seldom = (rounded(entry.counts) > 0) & (entry.counts < RARE_TOKENS)
        if f"{name}: {FILLED}" in imatrix.metadata.get(REPAIRED, ""):
            seldom &= entry.counts != 1
        if entry.counts.size > 1 and seldom.any():
            rare[name] = seldom.sum()
    if empty:
        listed = some([f"{name} (experts {experts})" for name, experts in empty.items()])
        yield _finding("unhit-experts", f"no token reached {listed}", empty)
    if rare:
        listed = some([f"{name} ({n} experts)" for name, n in rare.items()])
        yield _finding("rare-experts", f"fewer than {RARE_TOKENS} tokens reached {listed}", rare)


def _counts(
    imatrix: Imatrix, model: ModelTensors | None, n_tokens: int | None
) -> Iterator[Finding]:
    """Find dense tensors that have not seen every token: once, or as often in looped models.

    Experts have counts of their own, or, in a ``.dat``, one that means little.
    """
    expected = n_tokens or imatrix.n_tokens()
    other, fractional, lost = [], [], []
    for name, entry in sorted(imatrix.entries.items()):
        counts = entry.counts
        if not np.isfinite(counts).all() or (counts <= 0).all():
            continue  # reported by _values
        if ((rounded(counts) == 0) & (counts > 0)).any():
            lost.append(name)
        elif (counts != rounded(counts)).any():
            fractional.append(name)
        dense = counts.size == 1 and n_matrices(name, model) == 1 and "_exps" not in name
        required = name in model.expected if model else True
        if expected and required and dense and rounded(counts[0]) % expected:
            other.append(name)
    if other:
        n_seen = imatrix.entries[other[0]].counts[0]
        what = f"counts disagree: {other[0]} saw {n_seen:.0f} tokens, not {expected}"
        more = f"; so in {len(other) - 1} more" if len(other) > 1 else ""
        yield _finding("counts", what + more, other, ERROR if n_tokens else WARNING)
    if lost:
        yield _finding("lost-counts", f"counts below one half in {some(lost)}", lost)
    if fractional:
        yield _finding("fractions", f"fractional counts in {some(fractional)}", fractional)


def _tensors(imatrix: Imatrix, model: ModelTensors) -> Iterator[Finding]:
    entries = imatrix.entries
    missing, donors = sorted(model.expected - entries.keys()), siblings.lacking(entries, model)
    if missing and len(donors) == len(missing):
        what = f"{len(missing)} of {len(model.expected)} tensors are missing: {some(missing)}"
        yield _finding("siblings", what, missing)
    elif missing:
        few = len(missing) < MISSING_SHARE_MAX * len(model.expected)
        what = f"{len(missing)} of {len(model.expected)} tensors are missing: {some(missing)}"
        yield _finding("missing", what, missing, WARNING if few else ERROR)
    common = sorted(entries.keys() & model.tensors.keys())
    if wrong := [n for n in common if not model.fits(n, entries[n])]:
        sums, counts = entries[wrong[0]].sums.size, entries[wrong[0]].counts.size
        matrices, columns = model.shape(wrong[0])
        what = f"{some(wrong)}: {sums} values and {counts} counts for {matrices} matrices"
        yield _finding("shape", f"{what} of {columns} columns", wrong)
    if foreign := sorted(entries.keys() - model.tensors.keys()):
        what = f"{len(foreign)} tensors are not in the model: {some(foreign)}"
        yield _finding("foreign", what, foreign)


def _zero_columns(imatrix: Imatrix, model: ModelTensors | None) -> Iterator[Finding]:
    """Find columns of zero energy: channels that a norm switches off, or dead ones."""
    alive, n_dead, blocks = {}, 0, []
    for name, entry in sorted(imatrix.entries.items()):
        zero = (entry.sums == 0) & entry.sums.any(axis=1, keepdims=True)
        if not zero.any():
            continue
        used = None
        if model and name in model.tensors and model.fits(name, entry):
            used = model.with_weights(name, zero.reshape(model.shape(name)))
        used = zero if used is None else used
        n_dead += bool(used.sum() < zero.sum())
        if used.any():
            alive[name] = int(used.sum())
        whole = used[:, : used.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
        if model and whole.all(axis=1).any():
            blocks.append(name)
    if blocks:
        what = f"{BLOCK} neighbouring columns of zero energy in {some(blocks)}"
        yield _finding("zero-blocks", what, blocks)
    if alive:
        listed = some([f"{name} ({n})" for name, n in alive.items()])
        unknown = "" if model else "; whether their weights are zero too, --model tells"
        yield _finding("zero-columns", f"columns of zero energy in {listed}{unknown}", alive)
    if n_dead:
        what = f"columns of zero energy whose weights are zero too, in {n_dead} tensors"
        yield _finding("dead-columns", what)


def _metadata(imatrix: Imatrix, model_sha256: str) -> Iterator[Finding]:
    n_tokens, window = imatrix.n_tokens(), imatrix.chunk_size
    if not imatrix.complete:
        keys = "imatrix.datasets, chunk_count and chunk_size"
        yield _finding("metadata", f"one of the keys {keys} is missing")
    if 0 < n_tokens < FEW_TOKENS:
        guess = f", assuming windows of {window}" if imatrix.legacy else ""
        yield _finding("few-tokens", f"only {n_tokens:,} tokens of text{guess}")
    if imatrix.legacy:
        yield _finding("legacy", "a .dat does not record its number of tokens")
        return
    n_missing = n_tokens - imatrix.chunk_count * window
    if imatrix.by_document:  # on average
        window, n_missing = n_tokens // max(1, imatrix.chunk_count), 0
    if 0 < window < SHORT_WINDOW:
        what = f"windows of {window} tokens: one token in {window} is the first of its window"
        yield _finding("window", what)
    if window and n_tokens and not 0 <= n_missing < window:
        what = f"{imatrix.chunk_count} windows of {window} are not {n_tokens:,} tokens"
        yield _finding("chunks", what)
    own = imatrix.metadata.get(MODEL)
    if own and model_sha256 and own != model_sha256:
        yield _finding("other-model", f"computed with another model file (sha256 {own[:12]}…)")
