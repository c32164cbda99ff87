"""Calibration and held-out text: disjoint by document, and no shared run of words."""

from collections.abc import Iterable, Iterator, Sequence

from imatrix_lab.corpus.clean.overlap import Shingles
from imatrix_lab.types import Document

HELDOUT_BYTES = 1 << 16
"""About what is held out of a source: some 15,000 tokens in a Latin script."""
HELDOUT_BYTES_MIN = 1 << 15
"""A source with less is not one to hold out."""
HELDOUT_SHARE = 1 / 8
"""Of a source that must serve for both, at most this much is held out."""
CUTS = 4
"""In so many contiguous runs, so that several subjects of a source are seen."""


def cut_of(basis: Sequence[Document]) -> list[Document]:
    """Return what is held out of a source that must serve for both.

    It is a function of the source alone, so that no corpus calibrates on it.
    """
    sizes = [len(d.text.encode()) for d in basis]
    return cut(basis, sizes, min(HELDOUT_BYTES, sum(sizes) * HELDOUT_SHARE))[1]


def held_whole(basis: Sequence[Document], everything: bool) -> list[Document]:
    """Return what is held out of a source that is not calibrated on: `everything`, or a part."""
    sizes = [len(d.text.encode()) for d in basis]
    if everything or sum(sizes) <= HELDOUT_BYTES:
        return list(basis)
    return cut(basis, sizes, HELDOUT_BYTES)[1]


def cut(
    documents: Sequence[Document], sizes: Sequence[int], wanted: float
) -> tuple[list[Document], list[Document]]:
    """Return (rest, held out): contiguous runs of about the size `wanted` in all.

    The source is divided in `CUTS` stretches, and the end of each is held out: neighbours are
    often parts of one text, so a few runs leak less than many single documents would.

    Parameters
    ----------
    sizes : of each document, in the unit of `wanted`.
    """
    heldout: set[int] = set()
    n_cuts = min(CUTS, len(documents) // 2)
    for i in range(n_cuts):
        start, end = (len(documents) * j // n_cuts for j in (i, i + 1))
        taken = 0
        # the first document of a stretch stays on the other side, however small the stretch
        for at in range(end - 1, start, -1):
            if taken and taken + sizes[at] / 2 > wanted / n_cuts:
                break
            heldout.add(at)
            taken += sizes[at]
    rest = [d for i, d in enumerate(documents) if i not in heldout]
    return rest, [documents[i] for i in sorted(heldout)]


def without_overlap(
    documents: Iterable[Document], seen: Shingles
) -> Iterator[tuple[Document | None, int]]:
    """Yield (document, paragraphs dropped) without what shares a run of words with `seen`.

    Paragraphs that overlap go; a document that overlaps still, across them, or of which
    nothing is left, is None.
    """
    for document in documents:
        if not seen.hits(document.text):
            yield document, 0
            continue
        paragraphs = document.text.split("\n\n")
        kept = [p for p in paragraphs if not seen.hits(p)]
        text = "\n\n".join(kept)
        left = Document(document.id, text, document.source, document.licence)
        whole = bool(kept) and not seen.hits(text)
        yield (left if whole else None), len(paragraphs) - len(kept)
