"""Reference and quants side by side: one pass over the text, and no logits are stored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from imatrix_lab.progress import Progress
from imatrix_lab.records import Model
from imatrix_lab.score.engine import Engine, Interruptible, begun, rates
from imatrix_lab.score.job import Job, packed
from imatrix_lab.score.partial import Partial

if TYPE_CHECKING:
    import numpy as np


def run(job: Job, quants: Sequence[Model], partials: Sequence[Partial], progress: Progress) -> None:
    """Score every batch that a quant still lacks; the reference decodes it once for all.

    In each decode the quants take turns in another order, so that a slow spell of the machine
    does not fall on one of them.
    """
    import numpy as np

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
