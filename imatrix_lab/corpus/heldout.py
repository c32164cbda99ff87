"""Calibration and held-out text share no document and no run of words."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from imatrix_lab.corpus.clean.overlap import Shingles
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.types import Document

HELDOUT_BYTES = 1 << 16
"""How much of a source is held out: some 15,000 tokens in a Latin script."""
HELDOUT_BYTES_MIN = 1 << 15
"""A smaller source is not held out whole."""
HELDOUT_SHARE = 1 / 8
"""At most this share is held out of a source that is also calibrated on."""
CUTS = 4
"""Contiguous runs that are held out, so that several subjects of a source are seen."""


def cut_of(basis: Sequence[Document]) -> list[Document]:
    """Return what every corpus holds out of a source that is also calibrated on."""
    sizes = [len(d.text.encode()) for d in basis]
    return cut(basis, sizes, min(HELDOUT_BYTES, sum(sizes) * HELDOUT_SHARE))[1]


def heldout_of(basis: Sequence[Document], everything: bool) -> list[Document]:
    """Return what is held out of a source that is not calibrated on: `everything`, or a part."""
    sizes = [len(d.text.encode()) for d in basis]
    if everything or sum(sizes) <= HELDOUT_BYTES:
        return list(basis)
    return cut(basis, sizes, HELDOUT_BYTES)[1]


def cut(
    documents: Sequence[Document], sizes: Sequence[int], total: float
) -> tuple[list[Document], list[Document]]:
    """Return (rest, held out): the ends of `CUTS` stretches, of about the size `total` together.

    Neighbours are often parts of one text, so a few runs leak less than many single documents.
    """
    heldout: set[int] = set()
    n_cuts = min(CUTS, len(documents) // 2)
    for i in range(n_cuts):
        start, end = (len(documents) * j // n_cuts for j in (i, i + 1))
        size = 0
        # the first document of a stretch is never held out, however short the stretch is
        for place in range(end - 1, start, -1):
            if size and size + sizes[place] / 2 > total / n_cuts:
                break
            heldout.add(place)
            size += sizes[place]
    rest = [d for i, d in enumerate(documents) if i not in heldout]
    return rest, [documents[i] for i in sorted(heldout)]


def without_overlap(
    documents: Iterable[Document], seen: Shingles
) -> Iterator[tuple[Document | None, int]]:
    """Yield documents without the paragraphs that share a run with `seen`, and how many these are.

    A document is None if nothing is left, or if a run across its paragraphs is still shared.
    """
    for document in documents:
        if not seen.hits(document.text):
            yield document, 0
            continue
        paragraphs = document.text.split(JOINT)
        kept = [p for p in paragraphs if not seen.hits(p)]
        text = JOINT.join(kept)
        is_clear = bool(kept) and not seen.hits(text)
        yield replace(document, text=text) if is_clear else None, len(paragraphs) - len(kept)
