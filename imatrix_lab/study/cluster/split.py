"""Steps in parts, where there are too few of a kind for the machines.

A part does what the step does, for some of the text's shards that an imatrix is collected on, the
groups of tensors that are probed, the quants that are scored, or the items that are answered. It
keeps that where the step looks first: in the store, or beside the records. The step comes after its
parts, finds all of it there, and does what a part could not. So its key and its result are those of
one machine, whatever the parts.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from imatrix_lab.imatrix.collector import SHARD
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.study import graph
from imatrix_lab.study.graph import Records, Step, Steps

IMATRIX, SENSITIVITY, SCORE, TASK = "imatrix", "sensitivity", "score", "task"  # kinds of steps
N_EACH = {IMATRIX: 1, SENSITIVITY: 1, SCORE: 1, TASK: 2}
"""How many steps of a kind a machine is to have at least: with more, all end at the same time.

But each part of a score, or of a sensitivity, runs the original again.
"""


def split(every: Steps, records: Records, n_machines: int) -> list[Step]:
    """Return steps, with parts before those that are more than a machine's share of their kind."""
    todo = graph.to_run(every, graph.finished(every, records))
    n_batches = max(1, len({step.after for step in todo if step.kind == "quant"}))
    ids, costs = {step.id for step in todo}, defaultdict[str, float](float)
    for step in todo:
        costs[step.kind] += step.cost / (n_batches if step.kind in (SCORE, TASK) else 1)
    result = []
    for step in every:
        parts = list[Step]()
        if step.id in ids and step.kind in N_EACH and n_machines > 1:
            share = costs[step.kind] / n_machines / N_EACH[step.kind]
            parts += _parts(step, math.ceil(step.cost / share - 1e-9))
        if len(parts) < 2:
            result.append(step)
            continue
        after = (*step.after, *(part.id for part in parts))
        result += [*parts, replace(step, after=after, cost=1.0)]
    return result


def parts_of(step: Step) -> list[str]:
    """Return the steps that do before it what a step is to do."""
    return [name for name in step.after if name.startswith(_name(step, ""))]


def waits_for(step: Step) -> tuple[str, ...]:
    """Return the steps that a step waits for: only its parts, which have read what it stands on."""
    return step.after if parts_of(step) else (*step.depends_on(), *step.after)


def _parts(step: Step, n: int) -> Iterator[Step]:
    """Yield a step as `n` parts, or about so many; none if it is to stay whole."""
    make = _of_quants if step.kind == SCORE else _of_all
    for i, part in enumerate(make(step, n) if n > 1 else (), 1):
        what = f"{step.what}, part {i}"
        yield replace(part, id=_name(step, i), what=what, is_target=True, part_of=step.id)


def _name(step: Step, number: int | str) -> str:
    return f"{step.id}.part-{number}"


def _of_quants(step: Step, n: int) -> Iterator[Step]:
    """Yield the parts of a score, of some quants each.

    Where the original's distributions are kept on disk, a part of one quant makes them first.
    """
    assert isinstance(step.run, partial)
    *before, quants, base_logits = step.run.args
    groups = [quants[i::n] for i in range(n)]
    if base_logits == "cached":
        groups = [quants[:1], *(quants[1:][i::n] for i in range(n))]
    for i, group in enumerate(filter(None, groups)):
        yield replace(
            step,
            run=partial(step.run.func, *before, group, base_logits),
            uses=tuple(quant.step for quant in group),
            after=(_name(step, 1),) if base_logits == "cached" and i else (),
            cost=step.cost * (1 + len(group)) / (1 + len(quants)),
        )


def _of_all(step: Step, n: int) -> Iterator[Step]:
    """Yield the parts of another step, of every n-th shard, group or item each."""
    assert isinstance(step.run, partial)
    if step.kind == IMATRIX:  # second moments are not split: their sums are too large
        n_shards = int(step.cost) // (SHARD * WINDOW)
        n = 0 if step.run.args[0].needs_moments else min(n, n_shards)
    for i in range(n):
        run = partial(step.run.func, *step.run.args, part=(i, n))
        yield replace(step, run=run, inputs={**step.inputs, "part": [i, n]}, cost=step.cost / n)
