"""The reference's distributions, kept compactly: for models that do not fit in memory together.

Of each scored token the K largest log-probabilities are kept, and of a sample of tokens the
whole row of logits. With R the tokens outside the K, the KL divergence splits in two:

    KL(p || q) = sum over K of p ln(p/q)  +  sum over R of p ln(p/q)

and the second part is at least p(R) ln(p(R)/q(R)), by the log-sum inequality (Cover and Thomas,
Elements of Information Theory, theorem 2.7.1). Taking that for it gives a lower bound, whose
gap, p(R) KL(p given R || q given R), is measured on the sample.

K is the smallest power of two that leaves the reference at most the share of probability asked
for outside of it, on average over the first batch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import need_room, write_whole
from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.score.checkpoint import Partial
from imatrix_lab.score.engine import Engine, Interruptible, begun, rates
from imatrix_lab.score.job import Job, nll, row_type
from imatrix_lab.types import Model

K_MIN, K_MAX = 64, 8192
SAMPLE_BYTES = 64 << 20
SAMPLE_SEED = 0
_TOKEN_BYTES = 8  # an id and a log-probability
"""Bytes kept of each of the K tokens."""
_SUM_ERROR = 1e-7


def kind(k: int) -> np.dtype[Any]:
    """Return the type of one scored token's row."""
    return np.dtype(
        [("nll_ref", "f4"), ("top1_ref", "i4"), ("ids", "i4", (k,)), ("logp", "f4", (k,))]
    )


def sample(n_scored: int, n_vocab: int) -> np.ndarray:
    """Return which scored tokens keep their whole rows: sorted indices, drawn without return."""
    n = min(n_scored, max(1, SAMPLE_BYTES // (4 * n_vocab)))
    rng = np.random.default_rng(SAMPLE_SEED)
    return np.sort(rng.choice(n_scored, n, replace=False))


def size_bytes(n_scored: int, n_vocab: int, k: int) -> int:
    """Return the disk a teacher takes."""
    n_sample = len(sample(n_scored, n_vocab))
    return n_scored * (8 + _TOKEN_BYTES * k) + n_sample * 4 * n_vocab


def get(job: Job, rest_share: float, session: Session) -> Artifact:
    """Return the reference's distributions on a text, made in one pass if they are not there.

    Parameters
    ----------
    rest_share : the share of probability that may be left outside the K, on average.

    Raises
    ------
    DiskFull : before the pass, if its files will not fit.
    """
    sizes = job.plan.sizes()

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        full = Partial(scratch, _sample_sizes(job), "full")
        chosen = scratch / "k.json"
        k = int(json.loads(chosen.read_text())) if chosen.exists() else None
        rows = Partial(scratch, sizes)
        if not all(rows.has(b) and full.has(b) for b in range(len(sizes))):
            k = _pass(job, k, rest_share, (rows, full), chosen, session.progress)
        assert k is not None
        rows.hand_over(out)
        full.hand_over(out)
        return {"k": k, "rest_share": _mean_rest(rows, len(sizes)), "n_scored": sum(sizes)}

    inputs = {**job.inputs(), "rest_share": rest_share, "sample_bytes": SAMPLE_BYTES}
    label = f"{job.text.label}-{job.reference.label}"
    found = session.store.get("teacher", label, inputs, build, session.progress)
    if found.facts["rest_share"] > rest_share:
        session.progress.say(
            f"note: the top {found.facts['k']} leave {found.facts['rest_share']:.2%} of the"
            f" probability outside, more than the {rest_share:.2%} asked for"
        )
    return found


def _pass(
    job: Job, k: int | None, rest_share: float, kept: tuple[Partial, Partial], chosen: Path,
    progress: Progress,
) -> int:  # fmt: skip
    """Decode what is missing; return K."""
    rows, full = kept
    sizes, n_vocab = job.plan.sizes(), job.reference.facts.n_vocab
    most = size_bytes(sum(sizes), n_vocab, min(K_MAX, n_vocab))
    progress.say(f"teacher {job.text.label}: at most {size(most)} on disk; K by the first batch")
    wanted = _sample_by_batch(job)
    with (
        progress.task(f"teacher {job.text.label}", sum(sizes), "tokens") as task,
        Engine(job.tools, job.kernel, job.reference, job.settings, Interruptible()) as engine,
    ):
        there = [rows.has(b) and full.has(b) for b in range(len(sizes))]
        done = begun(task, [n for n, has in zip(sizes, there, strict=True) if has])
        for batch, n_tokens in enumerate(sizes):
            if k is None or not (rows.has(batch) and full.has(batch)):
                found, whole = _decode(job, engine, batch, k or min(K_MAX, n_vocab), wanted[batch])
                if k is None:
                    k = _smallest_k(found["logp"], rest_share)
                    total = size_bytes(sum(sizes), n_vocab, k)
                    progress.say(
                        f"teacher {job.text.label}: the top {k} of {n_vocab:,} tokens,"
                        f" {size(total)} on disk"
                    )
                    need_room(chosen, total, "the reference's distributions")
                    full.add(batch, whole)
                    rows.add(batch, _cut(found, k))
                    write_whole(chosen, str(k))  # last: else the batch is chosen by again
                else:
                    full.add(batch, whole)
                    rows.add(batch, found)
                done += n_tokens
                task.update(done, rates([engine]))
    assert k is not None
    return k


def _decode(
    job: Job, engine: Engine, batch: int, k: int, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a batch's rows with its top k, and the whole logits of the rows wanted."""
    parts, whole, before = [], [], 0
    engine.begin()
    for step in job.steps(batch):
        logits = engine.decode(step)
        found = job.kernel.rows(logits)
        n = len(step.targets)
        part = np.empty(n, kind(k))
        part["nll_ref"] = nll(step.targets, logits, found)
        part["top1_ref"] = found.top
        part["ids"] = job.kernel.top(logits, k) if n else 0
        part["logp"] = _at(logits, part["ids"]) - found.log_sum[:, None]
        parts.append(part)
        inside = wanted[(wanted >= before) & (wanted < before + n)] - before
        whole.append(logits[inside].copy())
        before += n
    return np.concatenate(parts), np.concatenate(whole)


def _at(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.take_along_axis(logits, ids.astype(np.int64), axis=1)


def _smallest_k(logp: np.ndarray, rest_share: float) -> int:
    """Return the smallest power of two that leaves at most `rest_share` outside, on average."""
    finite = logp[np.isfinite(logp).all(1)].astype(np.float64)
    k = K_MIN
    if not len(finite):  # nothing to choose by
        return min(k, int(logp.shape[1]))
    rest = 1 - np.sort(np.exp(finite), axis=1)[:, ::-1].cumsum(axis=1).mean(axis=0)
    while k < logp.shape[1] and rest[min(k, len(rest)) - 1] > rest_share:
        k *= 2
    return min(k, int(logp.shape[1]))


def _cut(rows: np.ndarray, k: int) -> np.ndarray:
    """Return the same rows with their top k."""
    order = np.argsort(-rows["logp"], axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(rows["ids"], order, axis=1)
    by_id = np.argsort(ids, axis=1)
    found = np.empty(len(rows), kind(k))
    for name in ("nll_ref", "top1_ref"):
        found[name] = rows[name]
    found["ids"] = np.take_along_axis(ids, by_id, axis=1)
    logp = np.take_along_axis(rows["logp"], order, axis=1)
    found["logp"] = np.take_along_axis(logp, by_id, axis=1)
    return found


def _sample_by_batch(job: Job) -> list[np.ndarray]:
    """Return the sampled rows of each batch, as indices in the batch."""
    sizes = job.plan.sizes()
    ends = np.cumsum(sizes)
    chosen = sample(int(ends[-1]), job.reference.facts.n_vocab)
    return [
        chosen[(chosen >= end - size) & (chosen < end)] - (end - size)
        for end, size in zip(ends, sizes, strict=True)
    ]


def _sample_sizes(job: Job) -> list[int]:
    return [len(s) for s in _sample_by_batch(job)]


def _mean_rest(rows: Partial, n_batches: int) -> float:
    """Return the mean probability outside the K, where it is finite; 1 if nowhere."""
    parts = [np.exp(rows.rows(b)["logp"].astype(np.float64)).sum(1) for b in range(n_batches)]
    inside = np.concatenate(parts)
    inside = inside[np.isfinite(inside)]
    return float(1 - inside.mean()) if len(inside) else 1.0


def run(job: Job, quant: Model, teacher: Artifact, partial: Partial, progress: Progress) -> None:
    """Score the batches that a quant still lacks against the reference's kept distributions."""
    sizes = job.plan.sizes()
    if all(partial.has(b) for b in range(len(sizes))):
        return
    kept = Partial(teacher.path, sizes)
    full = Partial(teacher.path, _sample_sizes(job), "full")
    wanted = _sample_by_batch(job)
    with (
        progress.task(f"score {job.text.label} {quant.label}", sum(sizes), "tokens") as task,
        Engine(job.tools, job.kernel, quant, job.settings, Interruptible()) as engine,
    ):
        done = begun(task, [n for b, n in enumerate(sizes) if partial.has(b)])
        for batch, n_tokens in enumerate(sizes):
            if not partial.has(batch):
                found = _score(
                    job, engine, batch, kept.rows(batch), full.rows(batch), wanted[batch]
                )
                partial.add(batch, found)
                done += n_tokens
                task.update(done, rates([engine]))
        progress.say(f"llama_decode, tokens/s: {rates([engine])}")


def _score(
    job: Job, engine: Engine, batch: int, kept: np.ndarray, full: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Return a batch's rows of `row_type`; `kld_full` is NaN outside the sample."""
    found = np.empty(len(kept), row_type())
    found["nll_ref"], found["top1_ref"] = kept["nll_ref"], kept["top1_ref"]
    found["kld_full"] = np.nan
    before = 0
    engine.begin()
    for step in job.steps(batch):
        logits = engine.decode(step)
        n = len(step.targets)
        part, teacher = found[before : before + n], kept[before : before + n]
        rows = job.kernel.rows(logits)
        part["nll"], part["top1"] = nll(step.targets, logits, rows), rows.top
        logq = _at(logits, teacher["ids"]) - rows.log_sum[:, None]
        part["kld"] = lower_bound(teacher["logp"], logq)
        inside = np.flatnonzero((wanted >= before) & (wanted < before + n))
        if len(inside):
            ref_logits = np.ascontiguousarray(full[inside])
            own = np.ascontiguousarray(logits[wanted[inside] - before])
            exact = job.kernel.compare(ref_logits, job.kernel.rows(ref_logits), own)
            part["kld_full"][wanted[inside] - before] = exact.kld
        before += n
    return found


def lower_bound(logp: np.ndarray, logq: np.ndarray) -> np.ndarray:
    """Return the lower bound of KL(p || q) in nats from the same k tokens of both.

    Parameters
    ----------
    logp, logq : (n, k) log-probabilities of tokens that p holds largest.

    Returns
    -------
    float64 (n,); see the module's docstring.
    """
    p, q = np.exp(logp.astype(np.float64)), np.exp(logq.astype(np.float64))
    # sums are known to about 1e-7: q's rest is taken too large rather than too small
    rest_p = np.maximum(1 - p.sum(1), _SUM_ERROR)
    rest_q = np.maximum(1 - q.sum(1), 0) + 5 * _SUM_ERROR
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
