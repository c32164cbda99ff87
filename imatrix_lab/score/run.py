"""Scores of quants on a text: from the store, or made in one of two ways.

`live`: reference and some quants are in memory together, and nothing of the reference is stored.
`cached`: one model is in memory at a time, and the reference's logits are on disk.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab import __version__
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.models.chance import Chance
from imatrix_lab.records import parquet
from imatrix_lab.score import base_logits
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.job import (
    METRICS_VERSION,
    Job,
    decoding,
    identity,
    nll,
    origin,
    packed,
    row_type,
)
from imatrix_lab.types import Model

RECORDS = "records.parquet"
QUANTS_MAX = 8
"""In memory together; for each so many the reference decodes the text once more."""


def live(job: Job, quants: Sequence[Model], session: Session) -> list[Artifact]:
    """Return the scores of quants, exact; missing ones are made `QUANTS_MAX` in a pass."""

    def build(folders: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Mapping[str, Any]]:
        rows = [Checkpoint(scratch, job.plan.sizes()) for _, scratch in folders.values()]
        decode_together(job, [quants[i] for i in folders], rows, session.progress)
        return {
            i: _write_records(job, quants[i], out, checkpoint.all(), None)
            for (i, (out, _)), checkpoint in zip(folders.items(), rows, strict=True)
        }

    keys = [_key(job, quant, None) for quant in quants]
    return session.store.get_together("score", keys, build, session.progress, QUANTS_MAX)


def cached(
    job: Job, quants: Sequence[Model], rest_share: float, session: Session
) -> list[Artifact]:
    """Return the scores of quants, with a lower bound of the divergence."""
    scores = []
    for quant in quants:
        label, inputs = _key(job, quant, rest_share)

        def build(out: Path, scratch: Path, quant: Model = quant) -> Mapping[str, Any]:
            base = base_logits.get(job, rest_share, session)
            rows = Checkpoint(scratch, job.plan.sizes())
            base_logits.score(job, quant, base, rows, session.progress)
            return _write_records(job, quant, out, rows.all(), base)

        scores.append(session.store.get("score", label, inputs, build, session.progress))
    return scores


def decode_together(
    job: Job, quants: Sequence[Model], checkpoints: Sequence[Checkpoint], progress: Progress
) -> None:
    """Score every batch that a quant still lacks; the reference decodes it once for all.

    The quants' order changes with each decode, so that a slow spell of the machine does not always
    fall on the same one.
    """
    n_batches = len(job.plan.sizes())
    missing = [[i for i, c in enumerate(checkpoints) if not c.has(b)] for b in range(n_batches)]
    if not any(missing):
        return
    models, complete = [job.reference, *quants], [not lacking for lacking in missing]
    with decoding(job, models, f"score {job.text.label}", complete, progress) as (loaded, advance):
        reference, *engines = loaded
        turn, chance = 0, Chance(job.reference)
        for batch, lacking in enumerate(missing):
            if not lacking:
                continue
            rows: dict[int, list[np.ndarray]] = {i: [] for i in lacking}
            for engine in (reference, *(engines[i] for i in lacking)):
                engine.begin()
            for step in job.steps(batch):
                ref_logits = reference.decode(step)
                ref_rows = job.kernel.rows(ref_logits)
                chance.add(nll(step.targets, ref_logits, ref_rows))
                turn += 1
                for i in np.roll(lacking, -(turn % len(lacking))):
                    logits = engines[i].decode(step)
                    compared = job.kernel.compare(ref_logits, ref_rows, logits)
                    rows[i].append(packed(step.targets, ref_logits, ref_rows, logits, compared))
                advance(len(step.targets))
            for i, parts in rows.items():
                checkpoints[i].add(batch, np.concatenate(parts))


def _key(job: Job, quant: Model, rest_share: float | None) -> tuple[str, dict[str, Any]]:
    """Return a label and all that determines a quant's scores; no rest share: exact."""
    inputs = {**job.inputs(), "quant_sha256": quant.sha256, "rest_share": rest_share}
    return f"{job.text.label}-{quant.label}{'-bound' if rest_share else ''}", inputs


def _write_records(
    job: Job, quant: Model, out: Path, rows: np.ndarray, base: Artifact | None
) -> Mapping[str, Any]:
    """Write a quant's records; return their facts."""
    assert rows.dtype == row_type()
    names = ("nll_ref", "nll", "kld", "top1_ref", "top1")
    columns: dict[str, Any] = {**job.plan.columns, **{n: rows[n] for n in names}}
    columns["p_ref"], columns["p"] = np.exp(-rows["nll_ref"]), np.exp(-rows["nll"])
    text = job.text
    divergence = f"lower bound, top {base.facts['k']}" if base else "exact"
    signature = {
        "kind": "token",
        "metrics_version": METRICS_VERSION,
        "package_version": __version__,
        "toolchain": job.tools.signature(),
        "reference": identity(job.reference),
        "quant": {**identity(quant), **origin(quant)},
        "text": text.facts(),
        "protocol": {**vars(job.protocol), "divergence": divergence},
        "compute": job.settings.signature(),
    }
    if base:
        signature["gap"] = base_logits.gap(rows)
    parquet.write(out / RECORDS, columns, signature)
    finite = np.isfinite(rows["nll"]) & np.isfinite(rows["nll_ref"]) & np.isfinite(rows["kld"])
    return {
        "n_scored": len(rows),
        "n_nonfinite": int((~finite).sum()),
        "n_skipped": job.plan.n_skipped,
        "divergence": divergence,
        "gap": signature.get("gap"),
    }
