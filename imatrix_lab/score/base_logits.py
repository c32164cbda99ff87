"""The reference's distributions on disk, for models that do not fit in memory together.

Of each scored token the K largest log-probabilities are kept, and of a sample of tokens the
whole row of logits. With R the tokens outside the K, the KL divergence splits in two:

    KL(p || q) = sum over K of p ln(p/q)  +  sum over R of p ln(p/q)

and the second part is at least p(R) ln(p(R)/q(R)), by the log-sum inequality (Cover and Thomas,
Elements of Information Theory, theorem 2.7.1). Taking that for it gives a lower bound, whose
gap, p(R) KL(p given R || q given R), is measured on the sample.

K is the smallest power of two that leaves at most `rest_share` of the reference's probability
outside, on average over the first batch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import need_room, write_whole
from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.models.chance import Chance
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.job import Job, decoding, nll, row_type
from imatrix_lab.types import Model

K_MIN, K_MAX = 64, 8192
SAMPLE_BYTES, SAMPLE_SEED = 64 << 20, 0


def base_type(k: int) -> np.dtype[Any]:
    """Return the type of one scored token's row."""
    return np.dtype(
        [("nll_ref", "f4"), ("top1_ref", "i4"), ("ids", "i4", (k,)), ("logp", "f4", (k,))]
    )


def sample(n_scored: int, n_vocab: int) -> np.ndarray:
    """Return which scored tokens keep their whole rows: sorted indices, without repeats."""
    n = min(n_scored, max(1, SAMPLE_BYTES // (4 * n_vocab)))
    return np.sort(np.random.default_rng(SAMPLE_SEED).choice(n_scored, n, replace=False))


def size_bytes(n_scored: int, n_vocab: int, k: int) -> int:
    """Return the size on disk."""
    return n_scored * base_type(k).itemsize + len(sample(n_scored, n_vocab)) * 4 * n_vocab


def get(job: Job, rest_share: float, session: Session) -> Artifact:
    """Return the reference's distributions on a text, made in one pass if they are missing.

    `rest_share`: mean probability that may be left outside the K.
    """
    sizes = job.plan.sizes()

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        rows = Checkpoint(scratch, sizes)
        full = Checkpoint(scratch, [len(s) for s in sample_by_batch(job)], "full")
        k = _decode_reference(job, rest_share, (rows, full), scratch / "k.json", session.progress)
        rows.hand_over(out)
        full.hand_over(out)
        return {"k": k, "rest_share": _mean_rest(rows, len(sizes)), "n_scored": sum(sizes)}

    inputs = {**job.inputs(), "rest_share": rest_share, "sample_bytes": SAMPLE_BYTES}
    label = f"{job.text.label}-{job.reference.label}"
    base = session.store.get("teacher", label, inputs, build, session.progress)
    if base.facts["rest_share"] > rest_share:
        session.progress.say(
            f"note: the top {base.facts['k']} tokens leave {base.facts['rest_share']:.2%} of the"
            f" probability outside, more than the {rest_share:.2%} allowed"
        )
    return base


def _decode_reference(
    job: Job,
    rest_share: float,
    checkpoints: tuple[Checkpoint, Checkpoint],
    k_file: Path,
    progress: Progress,
) -> int:
    """Decode the missing batches of the reference; return K."""
    rows, full = checkpoints
    sizes, n_vocab = job.plan.sizes(), job.reference.facts.n_vocab
    k = int(k_file.read_text()) if k_file.exists() else None
    complete = [k is not None and rows.has(b) and full.has(b) for b in range(len(sizes))]
    if k is not None and all(complete):
        return k
    name = f"base logits {job.text.label}"
    most = size_bytes(sum(sizes), n_vocab, min(K_MAX, n_vocab))
    progress.say(f"{name}: at most {size(most)} on disk; K is chosen on the first batch")
    samples, chance = sample_by_batch(job), Chance(job.reference)
    with decoding(job, [job.reference], name, complete, progress) as ((engine,), advance):
        for batch, n_tokens in enumerate(sizes):
            if complete[batch]:
                continue
            decoded, logits = _decode(job, engine, batch, k or min(K_MAX, n_vocab), samples[batch])
            chance.add(decoded["nll_ref"])
            if k is None:
                k = _smallest_k(decoded["logp"], rest_share)
                total = size_bytes(sum(sizes), n_vocab, k)
                progress.say(f"{name}: the top {k} of {n_vocab:,} tokens, {size(total)} on disk")
                need_room(k_file, total, "the reference's distributions")
                decoded = _cut(decoded, k)
            full.add(batch, logits)
            rows.add(batch, decoded)
            if not k_file.exists():  # last: after a kill before it, K is chosen again by this batch
                write_whole(k_file, str(k))
            advance(n_tokens)
    assert k is not None
    return k


def _decode(
    job: Job, engine: Engine, batch: int, k: int, sampled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch's rows with its top k, and the logits of the sampled rows."""
    parts, full, before = [], [], 0
    engine.begin()
    for step in job.steps(batch):
        logits = engine.decode(step)
        rows = job.kernel.rows(logits)
        n = len(step.targets)
        part = np.empty(n, base_type(k))
        part["nll_ref"], part["top1_ref"] = nll(step.targets, logits, rows), rows.top
        part["ids"] = job.kernel.top(logits, k) if n else 0
        part["logp"] = _at(logits, part["ids"]) - rows.log_sum[:, None]
        parts.append(part)
        inside = sampled[(sampled >= before) & (sampled < before + n)] - before
        full.append(logits[inside])
        before += n
    return np.concatenate(parts), np.concatenate(full)


def _at(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logits, ids.astype(np.int64), axis=1)


def _smallest_k(logp: np.ndarray, rest_share: float) -> int:
    """Return the smallest power of two that leaves at most `rest_share` outside, on average."""
    finite = logp[np.isfinite(logp).all(1)].astype(np.float64)
    k, n_kept = K_MIN, int(logp.shape[1])
    if len(finite):
        rest = 1 - np.sort(np.exp(finite), axis=1)[:, ::-1].cumsum(axis=1).mean(axis=0)
        while k < n_kept and rest[k - 1] > rest_share:
            k *= 2
    return min(k, n_kept)


def _cut(rows: np.ndarray, k: int) -> np.ndarray:
    """Return the same rows with only their top k, in order of their ids."""
    largest = np.argsort(-rows["logp"], axis=1, kind="stable")[:, :k]
    by_id = np.argsort(np.take_along_axis(rows["ids"], largest, axis=1), axis=1)
    order = np.take_along_axis(largest, by_id, axis=1)
    cut = np.empty(len(rows), base_type(k))
    cut["nll_ref"], cut["top1_ref"] = rows["nll_ref"], rows["top1_ref"]
    for name in ("ids", "logp"):
        cut[name] = np.take_along_axis(rows[name], order, axis=1)
    return cut


def sample_by_batch(job: Job) -> list[np.ndarray]:
    """Return the sampled rows of each batch, as indices in the batch."""
    starts = np.cumsum([0, *job.plan.sizes()])
    sampled = sample(int(starts[-1]), job.reference.facts.n_vocab)
    parts = np.split(sampled, np.searchsorted(sampled, starts[1:-1]))
    return [part - start for part, start in zip(parts, starts[:-1], strict=True)]


def _mean_rest(rows: Checkpoint, n_batches: int) -> float:
    """Return the mean of the finite probabilities outside the K; 1 if none is finite."""
    parts = [np.exp(rows.rows(b)["logp"].astype(np.float64)).sum(1) for b in range(n_batches)]
    inside = np.concatenate(parts)
    inside = inside[np.isfinite(inside)]
    return float(1 - inside.mean()) if len(inside) else 1.0


def score(job: Job, quant: Model, base: Artifact, rows: Checkpoint, progress: Progress) -> None:
    """Score the batches that a quant still lacks against the reference's distributions."""
    sizes, samples = job.plan.sizes(), sample_by_batch(job)
    complete = [rows.has(b) for b in range(len(sizes))]
    if all(complete):
        return
    base_rows = Checkpoint(base.path, sizes)
    full = Checkpoint(base.path, [len(s) for s in samples], "full")
    name = f"score {job.text.label} {quant.label}"
    with decoding(job, [quant], name, complete, progress) as ((engine,), advance):
        for batch, n_tokens in enumerate(sizes):
            if not complete[batch]:
                kept = base_rows.rows(batch), full.rows(batch), samples[batch]
                rows.add(batch, _score_batch(job, engine, batch, *kept))
                advance(n_tokens)


def _score_batch(
    job: Job, engine: Engine, batch: int, stored: np.ndarray, full: np.ndarray, sampled: np.ndarray
) -> np.ndarray:
    """Return a batch's rows of `row_type`; `kld_full` is NaN outside the sample."""
    result = np.empty(len(stored), row_type())
    result["nll_ref"], result["top1_ref"] = stored["nll_ref"], stored["top1_ref"]
    result["kld_full"] = np.nan
    before = 0
    engine.begin()
    for step in job.steps(batch):
        logits = engine.decode(step)
        n = len(step.targets)
        part, base = result[before : before + n], stored[before : before + n]
        rows = job.kernel.rows(logits)
        part["nll"], part["top1"] = nll(step.targets, logits, rows), rows.top
        logq = _at(logits, base["ids"]) - rows.log_sum[:, None]
        part["kld"] = lower_bound(base["logp"], logq)
        inside = np.flatnonzero((sampled >= before) & (sampled < before + n))
        if len(inside):
            places, ref_logits = sampled[inside] - before, np.ascontiguousarray(full[inside])
            ref_rows = job.kernel.rows(ref_logits)
            own = np.ascontiguousarray(logits[places])
            part["kld_full"][places] = job.kernel.compare(ref_logits, ref_rows, own).kld
        before += n
    return result


def lower_bound(logp: np.ndarray, logq: np.ndarray) -> np.ndarray:
    """Return the lower bound of KL(p || q) in nats, float64 (n,); see the module's docstring.

    `logp`, `logq`: (n, k) log-probabilities of the same tokens, the most probable of p.
    """
    p, q = np.exp(logp.astype(np.float64)), np.exp(logq.astype(np.float64))
    # sums are known to about 1e-7: rather too large a rest of q than too small a one
    rest_p = np.maximum(1 - p.sum(1), 1e-7)
    rest_q = np.maximum(1 - q.sum(1), 0) + 5e-7
    top = (p * (logp.astype(np.float64) - logq)).sum(1)
    bound: np.ndarray = top + rest_p * (np.log(rest_p) - np.log(rest_q))
    return bound


def gap(rows: np.ndarray) -> dict[str, float]:
    """Return what the bound misses on the sample, in nats and as a share of the divergence."""
    inside = np.isfinite(rows["kld_full"]) & np.isfinite(rows["kld"])
    full = rows["kld_full"][inside].astype(np.float64)
    missed = full - rows["kld"][inside]
    return {
        "n_sampled": int(inside.sum()),
        "gap_nats": float(missed.mean()) if len(missed) else 0.0,
        "gap_share": float(missed.sum() / full.sum()) if full.sum() > 0 else 0.0,
    }
