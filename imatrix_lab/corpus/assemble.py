"""From chosen sources to one calibration text and held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imatrix_lab.corpus import controls, layout, split
from imatrix_lab.corpus.choice import Choice
from imatrix_lab.corpus.clean import overlap
from imatrix_lab.corpus.layout import Lane
from imatrix_lab.corpus.mixture import Mixture, Part
from imatrix_lab.corpus.pool import Pool
from imatrix_lab.errors import BadText
from imatrix_lab.progress import Progress
from imatrix_lab.records import Document, TextOptions
from imatrix_lab.vocabulary import Vocabulary

SLACK = 1.01
"""Sources give a little more than their share: joined, documents have fewer tokens than alone."""


@dataclass(frozen=True)
class Corpus:
    """A text, the documents it is made of, those held out, and what the manifest says."""

    text: str
    used: tuple[Document, ...]
    heldout: tuple[Document, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Halves:
    """One source, split; `removed` counts what overlapped with text that is held out."""

    part: Part
    pool: Pool
    calibration: list[Document]
    heldout: list[Document]


def assemble(
    mixture: Mixture,
    choices: Sequence[Choice | None],
    chats: Sequence[Document],
    vocabulary: Vocabulary,
    n_tokens: int,
    options: TextOptions,
    progress: Progress,
) -> Corpus:
    """Return the corpus of a mixture; `choices` has a `Choice` for each part that is a language.

    Raises
    ------
    BadText : too little text to calibrate on, or to hold out.
    """
    halves = [
        half
        for part, chosen in zip(mixture.parts, choices, strict=True)
        if chosen
        for half in _split(part, chosen, split.HELDOUT_TOKENS / len(mixture.parts), vocabulary)
    ]
    heldout = [d for half in halves for d in half.heldout]
    seen = overlap.Shingles.of(d.text for d in heldout)
    for path in options.exclude:
        for text in overlap.task_strings(path):
            seen.add(text)
    removed = {"paragraphs": 0, "documents": 0}
    groups: list[tuple[float, list[Lane]]] = []
    for part in mixture.parts:
        lanes = [
            _lane(half, _cleared(half.calibration, seen, removed), vocabulary, options)
            for half in halves
            if half.part is part and half.calibration
        ]
        if part.language is None:
            lanes = [_random_lane(part, vocabulary, n_tokens, options)]
        if not any(lane.n_tokens for lane in lanes):
            raise BadText(f"there is too little text in {part.name} to calibrate on")
        groups.append((part.weight * (1 - options.chat), lanes))
    if chats:
        sizes = [vocabulary.count(d.text) for d in chats]
        groups.append((options.chat, [Lane("chats", tuple(layout.blocks(chats, sizes)))]))
    groups, bootstrap = _sampled(groups, len(mixture.parts), n_tokens, options)
    lanes, quotas = _quotas(groups, len(mixture.parts), n_tokens)
    order = [document for _, document in layout.interleave(lanes, quotas, vocabulary.count)]
    text, used = layout.within_budget(order, n_tokens, vocabulary.count)
    facts = {
        **_provenance(halves, used, heldout, chats),
        "overlap_removed": removed,
        "bootstrap": bootstrap,
        "weights": {p.label: round(p.weight, 6) for p in mixture.parts},
    }
    return Corpus(text, tuple(used), tuple(heldout), facts)


def _split(part: Part, chosen: Choice, n_heldout: float, vocabulary: Vocabulary) -> list[_Halves]:
    """Return a part's sources, split: one of them held out whole, or each cut."""
    found = []
    for pool in chosen.calibration:
        basis, everything = pool.basis_and_all()
        held: list[Document] = []
        if chosen.heldout is None:
            sizes = [vocabulary.count(d.text) for d in basis]
            wanted = min(n_heldout / len(chosen.calibration), sum(sizes) * split.HELDOUT_SHARE)
            basis, held = split.cut(basis, sizes, wanted)
        ids = {d.id for d in held}
        found.append(_Halves(part, pool, [d for d in everything if d.id not in ids], held))
    if chosen.heldout is not None:
        basis, _ = chosen.heldout.basis_and_all()
        sizes = [vocabulary.count(d.text) for d in basis]
        held = basis if sum(sizes) <= n_heldout else split.cut(basis, sizes, n_heldout)[1]
        found.append(_Halves(part, chosen.heldout, [], held))
    return found


def _cleared(
    found: Sequence[Document], seen: overlap.Shingles, removed: dict[str, int]
) -> list[Document]:
    kept = []
    for document, n_paragraphs in split.without_overlap(found, seen):
        removed["paragraphs"] += n_paragraphs
        removed["documents"] += document is None
        if document is not None:
            kept.append(document)
    return kept


def _lane(
    half: _Halves, found: list[Document], vocabulary: Vocabulary, options: TextOptions
) -> Lane:
    """Return a source's blocks in seeded order, and in the control's form."""
    if half.part.shuffled and half.part.language:
        script = half.part.language.script
        found = [controls.shuffled(d, options.seed, script) for d in found]
    sizes = [vocabulary.count(d.text) for d in found]
    name = f"{half.part.label}/{half.pool.pinned.source.name}"
    return layout.shuffled(Lane(name, tuple(layout.blocks(found, sizes))), options.seed)


def _random_lane(part: Part, vocabulary: Vocabulary, n_tokens: int, options: TextOptions) -> Lane:
    wanted = int(n_tokens * options.n_samples * 1.5)
    found = list(controls.random_tokens(vocabulary, wanted, options.seed))
    sizes = [vocabulary.count(d.text) for d in found]
    return Lane(part.label, tuple(layout.blocks(found, sizes)))


Groups = list[tuple[float, list[Lane]]]


def _sampled(
    groups: Groups, n_parts: int, n_tokens: int, options: TextOptions
) -> tuple[Groups, bool]:
    """Return the lanes of one sample, and whether they had to be drawn with replacement."""
    if options.n_samples == 1:
        return groups, False
    hands = [
        [(weight, layout.deal(lanes, k, options.n_samples)) for weight, lanes in groups]
        for k in range(1, options.n_samples + 1)
    ]
    if all(_held(weight, lanes, n_tokens) for hand in hands for weight, lanes in hand[:n_parts]):
        return hands[options.sample - 1], False
    redrawn = [
        (weight, layout.redraw(lanes, options.sample, options.seed)) for weight, lanes in groups
    ]
    return redrawn, True


def _held(weight: float, lanes: Sequence[Lane], n_tokens: int) -> bool:
    return sum(lane.n_tokens for lane in lanes) >= weight * n_tokens * SLACK


def _quotas(groups: Groups, n_parts: int, n_tokens: int) -> tuple[list[Lane], list[int]]:
    """Return all lanes and the tokens each gives.

    A mixture keeps its weights: where one part is short, the others give less too. Chats are
    an addition, and give what there is of them.
    """
    fits = [sum(lane.n_tokens for lane in lanes) / weight for weight, lanes in groups[:n_parts]]
    total = min([n_tokens * SLACK, *fits])
    found: list[Lane] = []
    quotas: list[int] = []
    for weight, lanes in groups:
        found += lanes
        quotas += layout.shares([lane.n_tokens for lane in lanes], round(weight * total))
    return found, quotas


def _provenance(
    halves: Sequence[_Halves],
    used: Sequence[Document],
    heldout: Sequence[Document],
    chats: Sequence[Document],
) -> dict[str, Any]:
    """Return licence, origin and counts of every source of a corpus."""
    ids = {d.id.removeprefix("shuffled/") for d in used}
    held = {d.id for d in heldout}
    sources = []
    for half in halves:
        n_used = sum(d.id in ids for d in half.calibration)
        n_held = sum(d.id in held for d in half.heldout)
        facts = half.pool.artifact.facts
        role = "calibration" if n_used else "heldout"
        sources.append({**facts, "role": role, "n_used": n_used, "n_heldout": n_held})
    calibrated = [s for s in sources if s["n_used"]] or sources
    others = {"CC0-1.0"} if chats or not sources else set()
    licences = {str(s["licence"]) for s in calibrated} | others
    if len(licences) > 1:  # OR binds less than AND
        licences = {f"({name})" if " OR " in name else name for name in licences}
    origins = dict.fromkeys(str(s["origin"]) for s in calibrated)
    return {
        "sources": sources,
        "licence": " AND ".join(sorted(licences)),
        "source": "; ".join(origins) or "random tokens",
    }
