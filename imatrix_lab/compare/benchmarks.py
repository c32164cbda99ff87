"""Sizes of benchmarks, for planning. Loads nothing: the command line reads it for its help."""

# MixEval 2024-06-01 without GPQA, counted: how many groups of how many items. A group is a
# context, or a prompt without one.
_FREE_FORM = {1: 950, 2: 202, 3: 61, 4: 24, 5: 20, 6: 4, 7: 6, 8: 3, 9: 4, 10: 1, 11: 2, 12: 2,
              13: 1, 16: 2, 19: 1, 21: 1}  # fmt: skip
_MULTIPLE_CHOICE = {1: 1485, 2: 162, 3: 39, 4: 9, 5: 2, 6: 1, 8: 1, 10: 1}
KNOWN = {
    "mixeval": (_FREE_FORM, _MULTIPLE_CHOICE),
    "mixeval-free-form": (_FREE_FORM,),
    "mixeval-multiple-choice": (_MULTIPLE_CHOICE,),
}
"""Benchmarks, as counts of groups by their size."""
VOTES = "votes"
"""The task of people: `imatrix-lab preference`."""


def group_sizes(task: str) -> list[int]:
    """Return how many items each group of a known benchmark has."""
    return [size for part in KNOWN[task] for size, n in part.items() for _ in range(n)]
