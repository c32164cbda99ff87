"""Whether an importance matrix may reach the quantizer, and what it would do there.

The effects are those of llama-quantize at the pinned commit (``load_imatrix`` of quantize.cpp,
``llama_model_quantize_impl`` of llama-quant.cpp, the loops of ggml-quants.c); those of bad values
are tried on a small model by the tests. It rounds counts, divides sums by those above 0, takes 1
for the rest, and looks at nothing but whether the result is finite.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.findings import ERROR, NOTE, WARNING, Finding, Findings, some
from imatrix_lab.imatrix.format import MODEL, REPAIRED, Entry, Imatrix, rounded

FEW_TOKENS = 8192
"""Sixteen windows of 512; practice in the field is 60k to 130k tokens."""
RARE_TOKENS = 32
"""A mean of n squares of a normal variable is off by sqrt(2/n) of itself: here a quarter."""
COUNT_MAX = 2.0**63
"""From here on llama.cpp's whole numbers overflow, to less than nothing."""
BLOCK = 32
"""Columns that share a scale in most types."""
MISSING_SHARE_MAX = 0.05
"""Of a model's tensors: so few may be quantized as without an imatrix."""
SHORT_WINDOW = 128
"""In shorter windows the first token, whose activations are unlike all others, weighs much."""


FILLED = "unhit experts take the mean over the others"
"""What `repair` says of a tensor, with one token's worth in each."""


def check(
    imatrix: Imatrix, wanted: ModelTensors | None = None, n_tokens: int | None = None
) -> Findings:
    """Return what is wrong with an imatrix, by itself and for a model.

    Parameters
    ----------
    n_tokens : tokens every dense tensor must have seen; None if unknown.
    """
    found = [
        *_values(imatrix, wanted),
        *_experts(imatrix, wanted),
        *_counts(imatrix, wanted, n_tokens),
    ]
    found += [*_belonging(imatrix, wanted), *_zero_columns(imatrix, wanted), *_origin(imatrix)]
    if wanted:
        found += _other_model(imatrix, wanted)
    n_without_tokens = sum(
        int(no_tokens(e, n_matrices(n, wanted)).sum()) for n, e in imatrix.entries.items()
    )
    order = (ERROR, WARNING, NOTE)
    return Findings(tuple(sorted(found, key=lambda f: order.index(f.severity))), n_without_tokens)


def n_matrices(name: str, wanted: ModelTensors | None) -> int:
    """Return how many matrices a tensor has in the model; 1 if unknown."""
    return wanted.shape(name)[0] if wanted and name in wanted.tensors else 1


def fits(name: str, entry: Entry, wanted: ModelTensors) -> bool:
    """Return whether llama-quantize accepts an entry for a tensor: by its number of values."""
    matrices, columns = wanted.shape(name)
    return entry.sums.size == matrices * columns and entry.counts.size in (1, matrices)


def no_tokens(entry: Entry, matrices: int) -> NDArray[np.bool_]:
    """Return which matrices no token reached; all False where none was reached ("no-tokens")."""
    found = rounded(entry.split(matrices).counts) == 0
    return np.zeros_like(found) if found.all() else found


def _values(imatrix: Imatrix, wanted: ModelTensors | None) -> Iterator[Finding]:
    """Find what no activation can be."""
    infinite, negative, uncounted, zero, empty = [], [], [], [], []
    for name, whole in sorted(imatrix.entries.items()):
        entry = whole.split(n_matrices(name, wanted))
        if not np.isfinite(entry.sums).all():
            infinite.append(name)
        elif (entry.sums < 0).any():
            negative.append(name)
        elif not ((entry.counts >= 0) & (entry.counts < COUNT_MAX)).all():
            uncounted.append(name)
        elif not rounded(entry.counts).any():
            empty.append(name)
        elif (~entry.sums.any(axis=1) & (rounded(entry.counts) > 0)).any():
            zero.append(name)
    anew = "compute it anew"
    if infinite:
        yield Finding(
            ERROR, "not-finite", f"NaN or infinite values in {some(infinite)}",
            "llama-quantize stops, other programs write NaN weights",
            f"{anew}; if it comes back, on another backend", tuple(infinite),
        )  # fmt: skip
    if negative:
        yield Finding(
            ERROR, "negative", f"negative values in {some(negative)}",
            "error is rewarded: low-bit types crash or come out as noise", anew, tuple(negative),
        )  # fmt: skip
    if uncounted:
        yield Finding(
            ERROR, "bad-counts", f"negative, NaN or impossibly large counts in {some(uncounted)}",
            "quantized as if there were no imatrix", anew, tuple(uncounted),
        )  # fmt: skip
    if empty:
        yield Finding(
            ERROR, "no-tokens", f"no token reached {some(empty)}",
            "quantized as if there were no imatrix", f"{anew} from other text", tuple(empty),
        )  # fmt: skip
    if zero:
        yield Finding(
            ERROR, "zero", f"zero throughout in {some(zero)}",
            "every weight becomes zero in most types", anew, tuple(zero),
        )  # fmt: skip


def _experts(imatrix: Imatrix, wanted: ModelTensors | None) -> Iterator[Finding]:
    missed, rare = {}, {}
    for name, entry in sorted(imatrix.entries.items()):
        if (never := np.flatnonzero(no_tokens(entry, n_matrices(name, wanted)))).size:
            missed[name] = never
        seldom = (rounded(entry.counts) > 0) & (entry.counts < RARE_TOKENS)
        if f"{name}: {FILLED}" in imatrix.metadata.get(REPAIRED, ""):
            seldom &= entry.counts != 1
        if entry.counts.size > 1 and seldom.any():
            rare[name] = np.flatnonzero(seldom)
    if missed:
        words = [f"{n} (experts {some([str(e) for e in which], 8)})" for n, which in missed.items()]
        yield Finding(
            WARNING, "unhit-experts", f"no token reached {some(words)}",
            "quantized unweighted, every column alike",
            "more text, of more kinds; or the mean over the other experts (--repair)",
            tuple(missed), mendable=True,
        )  # fmt: skip
    if rare:
        words = [f"{n} ({len(which)} experts)" for n, which in rare.items()]
        yield Finding(
            WARNING, "rare-experts", f"fewer than {RARE_TOKENS} tokens reached {some(words)}",
            "their weighting is a quarter off or more, by chance", "more text", tuple(rare),
        )  # fmt: skip


def _counts(
    imatrix: Imatrix, wanted: ModelTensors | None, n_tokens: int | None
) -> Iterator[Finding]:
    """Find dense tensors that have not seen every token: once, or as often in looped models.

    Experts have counts of their own, or, in a ``.dat``, one that says little.
    """
    whole = n_tokens or imatrix.n_tokens()
    other, broken, lost = [], [], []
    for name, entry in sorted(imatrix.entries.items()):
        counts = entry.counts
        if not np.isfinite(counts).all() or (counts <= 0).all():
            continue  # said already
        if ((rounded(counts) == 0) & (counts > 0)).any():
            lost.append(name)
        elif (counts != rounded(counts)).any():
            broken.append(name)
        several = counts.size > 1 or n_matrices(name, wanted) > 1 or "_exps" in name
        belongs = name in wanted.expected if wanted else True
        if whole and belongs and not several and rounded(counts[0]) % whole:
            other.append(name)
    if other:
        first = imatrix.entries[other[0]].counts[0]
        yield Finding(
            ERROR if n_tokens else WARNING, "counts",
            f"counts disagree: {other[0]} saw {first:.0f} tokens, not {whole}"
            + (f"; so in {len(other) - 1} more" if len(other) > 1 else ""),
            "little: each tensor is divided by its own count",
            "a snapshot taken in the middle of a run? let it end", tuple(other),
        )  # fmt: skip
    if lost:
        yield Finding(
            WARNING, "lost-counts", f"counts below one half in {some(lost)}",
            "taken for no token: quantized unweighted", "--repair makes them 1 and keeps the means",
            tuple(lost), mendable=True,
        )  # fmt: skip
    if broken:
        yield Finding(
            NOTE, "fractions", f"counts that are not whole in {some(broken)}",
            "none: llama.cpp rounds them, and the means get one common factor", "--repair rounds",
            tuple(broken), mendable=True,
        )  # fmt: skip


def _belonging(imatrix: Imatrix, wanted: ModelTensors | None) -> Iterator[Finding]:
    if wanted is None:
        return
    entries = imatrix.entries
    if missing := sorted(wanted.expected - entries.keys()):
        few = len(missing) < MISSING_SHARE_MAX * len(wanted.expected)
        yield Finding(
            WARNING if few else ERROR, "missing",
            f"{len(missing)} of {len(wanted.expected)} tensors are missing: {some(missing)}",
            "quantized as if there were no imatrix; at 2 bits and below llama-quantize stops",
            "an imatrix of this very model, by a newer llama.cpp", tuple(missing),
        )  # fmt: skip
    there = sorted(entries.keys() & wanted.tensors.keys())
    if wrong := [n for n in there if not fits(n, entries[n], wanted)]:
        sums, counts = entries[wrong[0]].sums.size, entries[wrong[0]].counts.size
        matrices, columns = wanted.shape(wrong[0])
        yield Finding(
            ERROR, "shape", f"{some(wrong)}: {sums} values and {counts} counts for {matrices}"
            f" matrices of {columns} columns",
            "llama-quantize stops", "an imatrix of this very model", tuple(wrong),
        )  # fmt: skip
    if foreign := sorted(entries.keys() - wanted.tensors.keys()):
        yield Finding(
            WARNING, "foreign", f"{len(foreign)} are no matrices of the model: {some(foreign)}",
            "llama-quantize passes over them", "is it for this model? --repair drops them",
            tuple(foreign), mendable=True,
        )  # fmt: skip


def _zero_columns(imatrix: Imatrix, wanted: ModelTensors | None) -> Iterator[Finding]:
    """Find columns of zero energy: channels that a norm switches off, or dead ones."""
    alive, dead, blocks = {}, 0, []
    for name, entry in sorted(imatrix.entries.items()):
        zero = (entry.sums == 0) & entry.sums.any(axis=1, keepdims=True)
        if not zero.any():
            continue
        weighty = None
        if wanted and name in wanted.tensors and fits(name, entry, wanted):
            weighty = wanted.with_weights(name, zero.reshape(wanted.shape(name)))
        found = zero if weighty is None else weighty
        dead += bool(found.sum() < zero.sum())
        if found.any():
            alive[name] = int(found.sum())
        whole = found[:, : found.shape[1] // BLOCK * BLOCK].reshape(-1, BLOCK)
        if wanted and whole.all(axis=1).any():
            blocks.append(name)
    if blocks:
        yield Finding(
            WARNING, "zero-blocks",
            f"{BLOCK} neighbouring columns of zero energy in {some(blocks)}",
            "their weights become zero in some types, and what they do in other text is lost",
            "more text, of more kinds", tuple(blocks),
        )  # fmt: skip
    if alive:
        words = some([f"{name} ({n})" for name, n in alive.items()])
        yield Finding(
            NOTE, "zero-columns", f"columns of zero energy in {words}",
            "their weights count nothing and come out several times worse, which matters only if"
            " other text reaches them" + ("" if wanted else " and they are not zero (--model)"),
            "", tuple(alive),
        )  # fmt: skip
    if dead:
        yield Finding(
            NOTE, "dead-columns",
            f"columns of zero energy whose weights are zero too, in {dead} tensors", "none", "",
        )  # fmt: skip


def _origin(imatrix: Imatrix) -> Iterator[Finding]:
    """Find what the metadata say of windows and text."""
    n_tokens, window = imatrix.n_tokens(), imatrix.chunk_size
    if not imatrix.complete:
        yield Finding(
            ERROR, "metadata", "the keys imatrix.datasets, chunk_count and chunk_size are not all"
            " there", "llama-quantize refuses the file", "--repair adds them", mendable=True,
        )  # fmt: skip
    if 0 < n_tokens < FEW_TOKENS:
        yield Finding(
            WARNING, "few-tokens", f"only {n_tokens:,} tokens went in"
            + (f", if its windows had {window}" if imatrix.legacy else ""),
            "its weighting is noisy; practice is 60,000 to 130,000", "more text",
        )  # fmt: skip
    if imatrix.legacy:
        yield Finding(
            NOTE, "legacy", "a .dat does not say how many tokens went in",
            f"none; a window is taken to be {window} tokens, and an expert that saw no token shows"
            " only beside the model", "",
        )  # fmt: skip
        return
    if 0 < window < SHORT_WINDOW:
        yield Finding(
            WARNING, "window", f"windows of {window} tokens",
            f"one token in {window} is the first of its window, unlike all others in its"
            " activations; text as it is used has few", "windows of 512 (--ctx 512)",
        )  # fmt: skip
    if window and n_tokens and not 0 <= n_tokens - imatrix.chunk_count * window < window:
        yield Finding(
            NOTE, "chunks",
            f"{imatrix.chunk_count} windows of {window} are not {n_tokens:,} tokens",
            "none; the quant's metadata repeat the number", "",
        )  # fmt: skip


def _other_model(imatrix: Imatrix, wanted: ModelTensors) -> list[Finding]:
    """Find that it was computed with another file, where that can be told."""
    said = imatrix.metadata.get(MODEL, "")
    if not said or not wanted.model_sha256 or said == wanted.model_sha256:
        return []
    return [
        Finding(
            NOTE,
            "other-model",
            f"it was computed with another model file (sha256 {said[:12]}…)",
            "none if that is the same model in another precision",
            "",
        )
    ]
