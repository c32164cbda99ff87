"""Items for tests of choice and generation, and setups to run them with."""

import dataclasses
import random
from typing import Any

from imatrix_lab.score.job import Setup
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.types import ChoiceItem
from tests.score import made

PREFIX = "".join(f"{made.prose(60, i)}.\n{made.prose(12, 50 + i)}\n\n" for i in range(3))


def setup(kernel: Kernel, n_ctx: int = 512, parallel: int = 16, **rest: Any) -> Setup:
    """Return a setup with one thread, and decodes that are small for what the tests ask."""
    chosen = made.settings(n_ctx, **{"n_batch": 128, "n_rows": 64, **rest})
    return Setup(kernel, chosen, parallel)


def choices(n: int, prefix: str = PREFIX, seed: int = 0) -> list[ChoiceItem]:
    """Return items of two to five options, from one letter to thirty."""
    rng = random.Random(seed)
    return [
        ChoiceItem(
            f"item/{i}",
            prefix,
            f"{made.prose(rng.randint(4, 80), 7 * i + seed)}:",
            tuple(
                " " + made.prose(rng.randint(1, 30), 1000 * i + j + seed).strip()
                for j in range(rng.randint(2, 5))
            ),
        )
        for i in range(n)
    ]


def alone(item: ChoiceItem) -> ChoiceItem:
    """Return an item whose prefix belongs to its own text."""
    return dataclasses.replace(item, prefix="", context=item.prefix + item.context)
