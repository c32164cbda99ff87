"""Scoring in parts, where there are more machines than texts: each takes some of the quants.

A part does what the step does, with its own quants, and the store keeps their scores. The step
itself comes after its parts and finds all of it there; what a part could not do, it does. So its
key and its result are those of one machine, whatever the number of parts.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from imatrix_lab.study import graph
from imatrix_lab.study.graph import Records, Step, Steps

SCORE, PART = "score", "part"  # kinds of steps


def split(every: Steps, records: Records, n_machines: int) -> list[Step]:
    """Return steps, those that score and are not done with parts before them."""
    scoring = [s for s in graph.to_run(every, graph.finished(every, records)) if s.kind == SCORE]
    todo, n_texts = {s.id for s in scoring}, len({s.inputs["texts"] for s in scoring})
    result = []
    for step in every:
        if step.id not in todo or n_machines <= n_texts:
            result.append(step)
            continue
        parts = list(_parts(step, -(-n_machines // n_texts)))
        after = (*step.after, *(part.id for part in parts))
        result += [*parts, replace(step, after=after, cost=1.0)]
    return result


def has_parts(step: Step) -> bool:
    """Whether a step finds done what it is to do."""
    return step.kind == SCORE and any(f".{PART}-" in name for name in step.after)


def waits_for(step: Step) -> tuple[str, ...]:
    """Return the steps that a step waits for: only its parts, which have read what it stands on."""
    return step.after if has_parts(step) else (*step.depends_on(), *step.after)


def _parts(step: Step, n: int) -> Iterator[Step]:
    """Yield a step as `n` of a part of its quants each.

    Where the original's distributions are kept on disk, a part of one quant makes them first.
    """
    assert isinstance(step.run, partial)
    *before, quants, base_logits = step.run.args
    groups = [quants[i::n] for i in range(n)]
    if base_logits == "cached":
        groups = [quants[:1], *(quants[1:][i::n] for i in range(n))]
    first = f"{step.id}.{PART}-1"
    for i, group in enumerate(filter(None, groups), 1):
        yield replace(
            step,
            id=f"{step.id}.{PART}-{i}",
            kind=PART,
            what=f"{step.what}, part {i}",
            run=partial(step.run.func, *before, group, base_logits),
            uses=tuple(quant.step for quant in group),
            after=(first,) if base_logits == "cached" and i > 1 else (),
            is_target=True,
            cost=step.cost * (1 + len(group)) / (1 + len(quants)),
        )
