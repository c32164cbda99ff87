"""Calibration and held-out text, disjoint by document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imatrix_lab.records import Document

HELDOUT_EVERY = 8
JOINT = "\n\n"


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return (calibration, held-out): every eighth document is held out.

    The source goes through its subjects in order, so that both parts see all of them.
    A text that occurs twice stays on the calibration side only.
    """
    calibration = [d for i, d in enumerate(documents) if i % HELDOUT_EVERY != HELDOUT_EVERY - 1]
    seen = {d.text for d in calibration}
    heldout = [
        d
        for i, d in enumerate(documents)
        if i % HELDOUT_EVERY == HELDOUT_EVERY - 1 and d.text not in seen
    ]
    return calibration, heldout


def joined(documents: Sequence[Document]) -> str:
    """Return the documents as one text, blank lines between."""
    return JOINT.join(d.text for d in documents)


def within_budget(
    documents: Sequence[Document], n_tokens: int, count: Callable[[str], int]
) -> tuple[str, list[Document]]:
    """Return (text, documents used) for a token budget.

    The text is the documents in order, joined by blank lines, cut in the last one so that it
    has exactly `n_tokens` tokens where the tokenizer allows it, never more; all of it where
    there is less.

    Parameters
    ----------
    count : tokens of a text in the target model's vocabulary, BOS included.
    """
    estimate = 0
    for i, document in enumerate(documents, 1):
        estimate += count(document.text + JOINT)
        # documents count a little more alone than joined, so only near the budget look closely
        if estimate >= n_tokens and count(text := joined(documents[:i])) >= n_tokens:
            before = len(joined(documents[: i - 1]))
            start = before if count(text[:before]) <= n_tokens else 0
            return _cut(text, start, n_tokens, count), list(documents[:i])
    return joined(documents), list(documents)


def _cut(text: str, low: int, n_tokens: int, count: Callable[[str], int]) -> str:
    """Return the longest prefix of at most `n_tokens` tokens; the first `low` characters fit."""
    high = len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[:middle]) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]
