"""Scores of quants on a text, from the store or made: what the pipeline calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imatrix_lab import __version__, tables
from imatrix_lab.progress import Progress
from imatrix_lab.records import Model
from imatrix_lab.score import live, teacher
from imatrix_lab.score.job import METRICS_VERSION, Job, row_type
from imatrix_lab.score.partial import Partial
from imatrix_lab.store import Artifact, Store

if TYPE_CHECKING:
    import numpy as np

RECORDS = "records.parquet"


def together(job: Job, quants: Sequence[Model], store: Store, progress: Progress) -> list[Artifact]:
    """Return the scores of quants, exact; those missing are made in one pass.

    Reference and quants are in memory together, and nothing of the reference is stored.
    """
    wanted = [_wanted(job, quant, None) for quant in quants]

    def build(held: Mapping[int, tuple[Path, Path]]) -> Mapping[int, Mapping[str, Any]]:
        missing = [quants[i] for i in held]
        partials = [Partial(scratch, job.plan.sizes()) for _, scratch in held.values()]
        live.run(job, missing, partials, progress)
        return {
            i: _finish(job, quants[i], out, partial.all(), None)
            for (i, (out, _)), partial in zip(held.items(), partials, strict=True)
        }

    return store.get_together("score", wanted, build, progress)


def cached(
    job: Job, quants: Sequence[Model], rest_share: float, store: Store, progress: Progress
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
            kept = teacher.get(job, rest_share, store, progress)
            partial = Partial(scratch, job.plan.sizes())
            teacher.run(job, quant, kept, partial, progress)
            return _finish(job, quant, out, partial.all(), kept)

        scores.append(store.get("score", label, inputs, build, progress))
    return scores


def _wanted(job: Job, quant: Model, rest_share: float | None) -> tuple[str, dict[str, Any]]:
    inputs = {**job.inputs(), "quant_sha256": quant.sha256, "rest_share": rest_share}
    kind = "-bound" if rest_share else ""
    return f"{job.text.label}-{quant.label}{kind}", inputs


def _finish(
    job: Job, quant: Model, out: Path, rows: np.ndarray, kept: Artifact | None
) -> Mapping[str, Any]:
    """Write a quant's records; return their facts."""
    import numpy as np

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
        signature["gap"] = teacher.gap(rows)
    tables.write(out / RECORDS, columns, signature)
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
