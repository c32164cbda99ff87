"""From chosen sources to one calibration text and held-out documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imatrix_lab.corpus import controls, packing
from imatrix_lab.corpus import heldout as split
from imatrix_lab.corpus.clean import overlap
from imatrix_lab.corpus.cleaned import Pool
from imatrix_lab.corpus.mixture import Mixture, Part
from imatrix_lab.corpus.packing import Lane
from imatrix_lab.corpus.selection import Choice
from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import Document, TextOptions

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
class _Half:
    """What one source gives to one part of a mixture: one or the other may be empty."""

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
) -> Corpus:
    """Return the corpus of a mixture; `choices` has a `Choice` for each part that is a language.

    Raises
    ------
    BadText : too little text to calibrate on, or nothing to hold out.
    """
    halves = [
        half
        for part, chosen in zip(mixture.parts, choices, strict=True)
        if chosen
        for half in _halves(part, chosen)
    ]
    heldout = list({d.id: d for half in halves for d in half.heldout}.values())
    if halves and not heldout:
        raise BadText(f"there is too little text in {mixture.name} to hold some of it out")
    seen = overlap.Shingles.of(d.text for d in heldout)
    for path in options.exclude:
        for text in overlap.task_strings(path):
            seen.add(text)
    removed = {"paragraphs": 0, "documents": 0}
    groups: Groups = []
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
        groups.append((part.weight, lanes))
    made = _sampled(groups, _chat_lane(chats, vocabulary), n_tokens, options)
    order = [d for _, d in packing.interleave(made.lanes, made.quotas, vocabulary.count)]
    text, used = packing.within_budget(order, made.n_tokens, vocabulary.count)
    facts = {
        **_provenance(halves, used, heldout, chats),
        "overlap_removed": removed,
        "bootstrap": made.bootstrap,
        "weights": {p.label: round(p.weight, 6) for p in mixture.parts},
        "skipped": {
            p.label: c.skipped for p, c in zip(mixture.parts, choices, strict=True) if c
        },
    }  # fmt: skip
    return Corpus(text, tuple(used), tuple(heldout), facts)


def _halves(part: Part, chosen: Choice) -> list[_Half]:
    """Return a part's sources, each without its cut, and what is held out."""
    found = []
    for pool in chosen.calibration:
        basis, everything = pool.basis_and_all()
        cut = split.cut_of(basis)
        ids = {d.id for d in cut}
        rest = [d for d in everything if d.id not in ids]
        found.append(_Half(part, pool, rest, cut if pool in chosen.cut else []))
    if chosen.heldout is not None:
        basis, _ = chosen.heldout.basis_and_all()
        held = split.held_whole(basis, chosen.heldout.pinned.source.heldout)
        found.append(_Half(part, chosen.heldout, [], held))
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


def _lane(half: _Half, found: list[Document], vocabulary: Vocabulary, options: TextOptions) -> Lane:
    """Return a source's blocks in seeded order, and in the control's form."""
    if half.part.shuffled and half.part.language:
        script = half.part.language.script
        found = [controls.shuffled(d, options.seed, script) for d in found]
    sizes = [vocabulary.count(d.text) for d in found]
    name = f"{half.part.label}/{half.pool.pinned.source.name}"
    return packing.shuffled(Lane(name, tuple(packing.blocks(found, sizes))), options.seed)


def _random_lane(part: Part, vocabulary: Vocabulary, n_tokens: int, options: TextOptions) -> Lane:
    wanted = int(n_tokens * options.n_samples * 1.5)
    found = list(controls.random_tokens(vocabulary, wanted, options.seed))
    sizes = [vocabulary.count(d.text) for d in found]
    return Lane(part.label, tuple(packing.blocks(found, sizes)))


def _chat_lane(chats: Sequence[Document], vocabulary: Vocabulary) -> Lane:
    """Return chats as blocks of one, so that each sample has some."""
    blocks = [packing.Block((d,), (vocabulary.count(d.text),)) for d in chats]
    return Lane("chats", tuple(blocks))


Groups = list[tuple[float, list[Lane]]]
"""Each part's share of the text, and its sources."""


@dataclass(frozen=True)
class _Sample:
    """Lanes, the tokens that each gives, and the tokens of the text at most."""

    lanes: list[Lane]
    quotas: list[int]
    n_tokens: int
    bootstrap: bool


def _sampled(groups: Groups, chats: Lane, n_tokens: int, options: TextOptions) -> _Sample:
    """Return one sample: of its own documents where there are enough, else drawn from all."""
    k, n = options.sample, options.n_samples

    def dealt(hand: int) -> _Sample:
        mine = [(weight, packing.deal(lanes, hand, n)) for weight, lanes in groups]
        (said,) = packing.deal([chats], hand, n)
        return _shared(mine, said, n_tokens, options.chat)

    everything = _shared(groups, chats, n_tokens, options.chat)
    if n == 1:
        return everything
    if all(sum(dealt(hand).quotas) >= n_tokens for hand in range(1, n + 1)):
        return dealt(k)
    drawn = packing.redraw(everything.lanes, everything.quotas, k, options.seed)
    equal = min(n_tokens, int(sum(everything.quotas) / SLACK))
    return _Sample(drawn, everything.quotas, equal, bootstrap=True)


def _shared(groups: Groups, chats: Lane, n_tokens: int, chat: float) -> _Sample:
    """Return all lanes and their quotas.

    A mixture keeps its weights: where one part is short, the others give less too. Chats are an
    addition: where there are few, the parts fill up.
    """
    wanted = n_tokens * SLACK
    said = min(chats.n_tokens, round(chat * wanted)) if chat else 0
    fits = [sum(lane.n_tokens for lane in lanes) / weight for weight, lanes in groups]
    total = min([wanted - said, *fits])
    found: list[Lane] = []
    quotas: list[int] = []
    for weight, lanes in groups:
        found += lanes
        quotas += packing.shares([lane.n_tokens for lane in lanes], round(weight * total))
    if said:
        found.append(chats)
        quotas.append(said)
    return _Sample(found, quotas, n_tokens, bootstrap=False)


def _provenance(
    halves: Sequence[_Half],
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
