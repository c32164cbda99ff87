"""Scores of quants on a text, from the store or made: what the pipeline calls."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab import __version__
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.records import parquet
from imatrix_lab.score import base_logits
from imatrix_lab.score.checkpoint import Partial
from imatrix_lab.score.engine import Engine, Interruptible, begun, rates
from imatrix_lab.score.job import METRICS_VERSION, Job, packed, row_type
from imatrix_lab.types import Model


def run(job: Job, quants: Sequence[Model], partials: Sequence[Partial], progress: Progress) -> None:
    """Score every batch that a quant still lacks; the reference decodes it once for all.

    In each decode the quants take turns in another order, so that a slow spell of the machine
    does not fall on one of them.
    """
    sizes = job.plan.sizes()
    todo = [[i for i, p in enumerate(partials) if not p.has(b)] for b in range(len(sizes))]
    if not any(todo):
        return
    interruptible = Interruptible()
    with ExitStack() as stack:
        task = stack.enter_context(progress.task(f"score {job.text.label}", sum(sizes), "tokens"))
        reference, *engines = [
            stack.enter_context(Engine(job.tools, job.kernel, model, job.settings, interruptible))
            for model in (job.reference, *quants)
        ]
        done = begun(task, [n for n, missing in zip(sizes, todo, strict=True) if not missing])
        turn = 0
        for batch in range(len(sizes)):
            rows: dict[int, list[np.ndarray]] = {i: [] for i in todo[batch]}
            if rows:
                for engine in (reference, *(engines[i] for i in rows)):
                    engine.begin()
                for step in job.steps(batch):
                    ref_logits = reference.decode(step)
                    ref_rows = job.kernel.rows(ref_logits)
                    order = list(rows)
                    turn += 1
                    for i in order[turn % len(order) :] + order[: turn % len(order)]:
                        logits = engines[i].decode(step)
                        found = job.kernel.compare(ref_logits, ref_rows, logits)
                        rows[i].append(packed(step.targets, ref_logits, ref_rows, logits, found))
                    done += len(step.targets)
                    task.update(done, rates([reference, *engines]))
            for i, parts in rows.items():
                partials[i].add(batch, np.concatenate(parts))
        progress.say(f"llama_decode, tokens/s: {rates([reference, *engines])}")


RECORDS = "records.parquet"


def together(job: Job, quants: Sequence[Model], session: Session) -> list[Artifact]:
    """Return the scores of quants, exact; those missing are made in one pass.

    Reference and quants are in memory together, and nothing of the reference is stored.
    """
    wanted = [_wanted(job, quant, None) for quant in quants]

    def build(held: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Mapping[str, Any]]:
        missing = [quants[i] for i in held]
        partials = [Partial(scratch, job.plan.sizes()) for _, scratch in held.values()]
        run(job, missing, partials, session.progress)
        return {
            i: _finish(job, quants[i], out, partial.all(), None)
            for (i, (out, _)), partial in zip(held.items(), partials, strict=True)
        }

    return session.store.get_together("score", wanted, build, session.progress)


def cached(
    job: Job, quants: Sequence[Model], rest_share: float, session: Session
) -> list[Artifact]:
    """Return the scores of quants, a lower bound of the divergence; one model in memory at a time.

    Parameters
    ----------
    rest_share : see `teacher.get`.
    """
    scores = []
    for quant in quants:
        label, inputs = _wanted(job, quant, rest_share)

        def build(out: Path, scratch: Path, quant: Model = quant) -> Mapping[str, Any]:
            kept = base_logits.get(job, rest_share, session)
            partial = Partial(scratch, job.plan.sizes())
            base_logits.run(job, quant, kept, partial, session.progress)
            return _finish(job, quant, out, partial.all(), kept)

        scores.append(session.store.get("score", label, inputs, build, session.progress))
    return scores


def _wanted(job: Job, quant: Model, rest_share: float | None) -> tuple[str, dict[str, Any]]:
    inputs = {**job.inputs(), "quant_sha256": quant.sha256, "rest_share": rest_share}
    kind = "-bound" if rest_share else ""
    return f"{job.text.label}-{quant.label}{kind}", inputs


def _finish(
    job: Job, quant: Model, out: Path, rows: np.ndarray, kept: Artifact | None
) -> Mapping[str, Any]:
    """Write a quant's records; return their facts."""
    assert rows.dtype == row_type()
    names = ("nll_ref", "nll", "kld", "top1_ref", "top1")
    columns: dict[str, Any] = {**job.plan.columns, **{n: rows[n] for n in names}}
    columns["p_ref"], columns["p"] = np.exp(-rows["nll_ref"]), np.exp(-rows["nll"])
    divergence = f"lower bound, top {kept.facts['k']}" if kept else "exact"
    signature = {
        "kind": "token",
        "metrics_version": METRICS_VERSION,
        "package_version": __version__,
        "toolchain": job.tools.signature(),
        "reference": _model(job.reference),
        "quant": {**_model(quant), **_origin(quant)},
        "text": {
            "label": job.text.label,
            "sha256": job.text.sha256(),
            "n_documents": len(job.text.documents),
        },
        "protocol": {**vars(job.protocol), "divergence": divergence},
        "compute": job.settings.signature(),
    }
    if kept:
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


def _model(model: Model) -> dict[str, Any]:
    return {"sha256": model.sha256, "name": model.label, "type": model.facts.file_type}


def _origin(quant: Model) -> dict[str, Any]:
    return {
        "size_bytes": quant.facts.size_bytes,
        "bits_per_weight": round(quant.facts.bits_per_weight, 4),
        "imatrix_sha256": quant.facts.imatrix_sha256,
        "calibration": quant.facts.calibration,
    }
