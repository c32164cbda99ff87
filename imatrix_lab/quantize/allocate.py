"""Which type each tensor gets: the least predicted divergence that fits a size.

    predicted KLD of a language = sum over tensors of coefficient(group, type, language)
                                  * error(tensor, type, language)

after HIGGS (arXiv 2411.17525), which shows that the loss is linear in relative squared errors. One
type for each tensor and a limit of bytes are a multiple-choice knapsack. Its usual answer, lower
hulls and a price for bytes, is the linear relaxation of an integer program; that program is solved
itself (HiGHS, by scipy), so that limits on several languages are only more rows of it. With 80
layers and 13 types it takes a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array, hstack

from imatrix_lab.core.format import number, size
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp.ggml import TYPES

GAP = 1e-4
"""How much better than the answer the best one may be, as a share of its loss."""
TOLERANCE = 0.003
"""By how much of its size a file may miss the size it was made for."""
_SCALE = 1e4
"""The limit of bytes in the program's units: HiGHS keeps rows to 1e-7."""
_TRIES = 20


@dataclass(frozen=True)
class Candidate:
    """A tensor at a type: bytes in the file, padding included, and nats a token by language."""

    size_bytes: int
    kld_nats: Mapping[str, float]


Candidates = Mapping[str, Mapping[str, Candidate]]
"""By tensor, then by type."""


@dataclass(frozen=True)
class Goal:
    """What a choice must keep, and what it is for.

    Attributes
    ----------
    size_bytes : the most that the whole file may have; `fixed_bytes` of it are not chosen.
    weights : of the languages; the least sum of weight * KLD / scale is looked for.
    scale_nats : what a language's KLD is divided by: languages differ a hundredfold. 1 if missing.
    at_least : the smallest type of a role (``ffn_down``), by bits per weight.
    limits_nats : the most predicted KLD that a language may have.
    """

    size_bytes: int
    fixed_bytes: int
    weights: Mapping[str, float]
    scale_nats: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, str] = field(default_factory=dict)
    limits_nats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A type for each tensor, the size of the whole file, and nats a token by language."""

    types: Mapping[str, str]
    size_bytes: int
    predicted_kld_nats: Mapping[str, float]


def role_of(tensor: str) -> str:
    """Return what a tensor does, in any layer.

    >>> role_of("blk.11.ffn_down.weight"), role_of("token_embd.weight")
    ('ffn_down', 'token_embd')
    """
    name = tensor.removesuffix(".weight")
    return name.split(".", 2)[2] if name.startswith("blk.") and name.count(".") > 1 else name


def bits_of(type_name: str) -> float:
    """Return the bits that a type has for a weight."""
    return 8 * TYPES[type_name].block_bytes / TYPES[type_name].block


def predicted(candidates: Candidates, types: Mapping[str, str]) -> dict[str, float]:
    """Return the predicted KLD of a choice of types, in nats a token, by language."""
    chosen = [candidates[tensor][types[tensor]].kld_nats for tensor in candidates]
    return {language: sum(nats[language] for nats in chosen) for language in chosen[0]}


def sizes(candidates: Candidates, goal: Goal) -> tuple[int, int]:
    """Return the sizes of the smallest and the largest file that keep a goal's bounds on types."""
    table = _Table(candidates, goal)
    extremes = (f.reduceat(table.size_bytes, table.starts) for f in (np.minimum, np.maximum))
    smallest, largest = (goal.fixed_bytes + int(extreme.sum()) for extreme in extremes)
    return smallest, largest


def allocate(candidates: Candidates, goal: Goal) -> Choice:
    """Return the choice of types with the least weighted loss, to within `GAP`.

    Raises UsageError: no choice has this size, or none keeps the limits of the languages; then the
    least that can be had is told.
    """
    require_possible(goal.size_bytes, *sizes(candidates, goal))
    table = _Table(candidates, goal)
    chosen = table.filled(table.solved())
    types = dict(table.names[i] for i in chosen)
    size_bytes = goal.fixed_bytes + int(table.size_bytes[chosen].sum())
    return Choice(types, size_bytes, predicted(candidates, types))


def require_possible(size_bytes: int, smallest: int, largest: int) -> None:
    """Raise UsageError for a size that no choice has, with the range."""
    if smallest <= size_bytes <= largest * (1 + TOLERANCE):
        return
    side = "larger" if size_bytes > largest else "smaller"
    what = f"{size(size_bytes)} is {side} than this model can be with these types"
    low, high = (size(n).replace(" ", "") for n in (smallest, largest))
    raise UsageError(what, fix=f"a size from {low} to {high}; or use other types")


class _Table:
    """The candidates that keep the bounds, as columns of arrays, tensor after tensor."""

    def __init__(self, candidates: Candidates, goal: Goal):
        kept = {name: _allowed(name, options, goal) for name, options in candidates.items()}
        rows = [candidate for options in kept.values() for candidate in options.values()]
        languages = list(rows[0].kld_nats)
        self.goal = goal
        self.budget = goal.size_bytes - goal.fixed_bytes
        self.names = [(tensor, name) for tensor, options in kept.items() for name in options]
        self.tensor = np.repeat(np.arange(len(kept)), [len(options) for options in kept.values()])
        self.starts = np.searchsorted(self.tensor, np.arange(len(kept)))
        self.size_bytes = np.array([c.size_bytes for c in rows], np.int64)
        self.kld = np.array([[c.kld_nats[language] for c in rows] for language in languages])
        shares = [goal.weights.get(x, 0.0) / goal.scale_nats.get(x, 1.0) for x in languages]
        self.loss = np.array(shares) @ self.kld
        limits = list(goal.limits_nats.items())
        self.limited = np.array([self.kld[languages.index(x)] / nats for x, nats in limits])

    def solved(self) -> NDArray[np.int64]:
        """Return the best candidate of each tensor.

        The solver keeps the size to a tolerance only, and no file may be larger: if one is, it is
        solved again for so much less.
        """
        budget = self.budget
        for _ in range(_TRIES):
            chosen = self._best(self.loss, budget)
            if chosen is None:
                raise self._impossible()
            if (excess := int(self.size_bytes[chosen].sum()) - self.budget) <= 0:
                return chosen
            budget -= excess
        raise AssertionError(f"no choice within {self.budget} bytes after {_TRIES} tries")

    def filled(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the choice with what is left spent: by gain for a byte, and within all limits."""
        while True:
            now = chosen[self.tensor]
            more = self.size_bytes - self.size_bytes[now]
            gain = self.loss[now] - self.loss
            fits = (more > 0) & (more <= self.budget - self.size_bytes[chosen].sum()) & (gain > 0)
            if len(self.limited):
                fits &= (self.limited <= self.limited[:, now]).all(axis=0)
            if not fits.any():
                return chosen
            best = np.where(fits, gain / np.maximum(more, 1), -1.0).argmax()
            chosen = np.where(np.arange(len(chosen)) == self.tensor[best], best, chosen)

    def _best(
        self, loss: NDArray[np.float64], budget: int, with_excess: bool = False
    ) -> NDArray[np.int64] | None:
        """Return the choice of the least loss, or None; `with_excess`: of the least excess.

        The excess is how many times its limit the worst language has.
        """
        n, n_tensors = len(self.tensor), len(self.starts)
        of_tensor = csr_array((np.ones(n), (self.tensor, np.arange(n))), (n_tensors, n))
        rows = [self.size_bytes[None] * (_SCALE / budget), *(row[None] for row in self.limited)]
        most = [_SCALE, *[0.0 if with_excess else 1.0] * len(self.limited)]
        last = np.array([0.0, *[-1.0] * len(self.limited)])
        constraints = [
            LinearConstraint(hstack([of_tensor, csr_array((n_tensors, 1))]), 1, 1),
            LinearConstraint(np.column_stack([np.concatenate(rows), last]), -np.inf, most),
        ]
        objective = np.zeros(n) if with_excess else loss / max(loss.max(), np.finfo(float).tiny)
        solution = milp(
            np.append(objective, float(with_excess)),
            constraints=constraints,
            integrality=np.append(np.ones(n), 0),
            bounds=(0, np.append(np.ones(n), np.inf if with_excess else 0)),
            options={"mip_rel_gap": GAP},
        )
        if solution.x is None:
            return None
        parts = np.split(solution.x[:n], self.starts[1:])
        best: NDArray[np.int64] = self.starts + np.array([part.argmax() for part in parts])
        return best

    def _impossible(self) -> UsageError:
        """Return the error for limits that no choice keeps, with the least that can be had."""
        chosen = self._best(self.loss, self.budget, with_excess=True)
        assert chosen is not None, "some choice has this size"
        limits = self.goal.limits_nats
        least = self.limited[:, chosen].sum(axis=1)
        told = (
            f"{language} {number(nats * share)} nats, not {number(nats)}"
            for (language, nats), share in zip(limits.items(), least, strict=True)
        )
        what = f"no types of {size(self.goal.size_bytes)} keep the limits; the least predicted KLD"
        return UsageError(
            f"{what}: {'; '.join(told)}",
            fix="a larger --size, or fewer languages in --no-worse-than",
        )


def _allowed(tensor: str, options: Mapping[str, Candidate], goal: Goal) -> Mapping[str, Candidate]:
    """Return a tensor's candidates with enough bits; if none has, the largest."""
    least = goal.at_least.get(role_of(tensor))
    if not least:
        return options
    kept = {name: c for name, c in options.items() if bits_of(name) >= bits_of(least)}
    largest = max(options, key=lambda name: options[name].size_bytes)
    return kept or {largest: options[largest]}
