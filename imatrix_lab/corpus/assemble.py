"""From selected sources to one calibration text and held-out documents."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imatrix_lab.corpus import controls, packing
from imatrix_lab.corpus.clean.overlap import Shingles, task_strings
from imatrix_lab.corpus.cleaned import Pool
from imatrix_lab.corpus.heldout import cut_of, heldout_of, without_overlap
from imatrix_lab.corpus.mixture import Mixture, Part
from imatrix_lab.corpus.packing import Block, Lane
from imatrix_lab.corpus.selection import Selection
from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import Document, TextOptions

SLACK = 1.01
"""Sources give a little more than their share: joined, documents have fewer tokens than alone."""

Groups = list[tuple[float, list[Lane]]]
"""Each part's share of the text, and its sources."""


@dataclass(frozen=True)
class Corpus:
    """A text, the documents used in it, those held out, and its facts for the manifest."""

    text: str
    used: tuple[Document, ...]
    heldout: tuple[Document, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class _PartSource:
    """What one source gives to one part of a mixture; either list may be empty."""

    part: Part
    pool: Pool
    calibration: list[Document]
    heldout: list[Document]


def assemble(
    mixture: Mixture,
    selections: Sequence[Selection | None],
    chats: Sequence[Document],
    vocabulary: Vocabulary,
    n_tokens: int,
    options: TextOptions,
) -> Corpus:
    """Return the corpus of a mixture; a selection for each part, None for random tokens."""
    selected = list(zip(mixture.parts, selections, strict=True))
    sources = [s for part, selection in selected if selection for s in _sources(part, selection)]
    heldout = list({d.id: d for source in sources for d in source.heldout}.values())
    if sources and not heldout:
        raise BadText(f"there is too little text in {mixture.name} to hold some of it out")
    excluded = (text for path in options.exclude for text in task_strings(path))
    seen = Shingles.of(itertools.chain((d.text for d in heldout), excluded))
    removed = Counter(paragraphs=0, documents=0)
    groups: Groups = []
    for part in mixture.parts:
        if part.language is None:
            n_drawn = int(n_tokens * options.n_samples * 1.5)
            drawn = list(controls.random_tokens(vocabulary, n_drawn, options.seed))
            lanes = [Lane(part.label, _blocks(drawn, vocabulary))]
        else:
            lanes = [
                _lane(source, _cleared(source, seen, removed), vocabulary, options)
                for source in sources
                if source.part is part and source.calibration
            ]
        if not any(lane.n_tokens for lane in lanes):
            raise BadText(f"there is too little text in {part.name} to calibrate on")
        groups.append((part.weight, lanes))
    # chats are blocks of one, so that each sample has some
    chat_blocks = tuple(Block((d,), (vocabulary.count(d.text),)) for d in chats)
    sample = _sample(groups, Lane("chats", chat_blocks), n_tokens, options)
    order = [d for _, d in packing.interleave(sample.lanes, sample.quotas, vocabulary.count)]
    text, used = packing.within_budget(order, sample.n_tokens, vocabulary.count)
    facts = {
        **_provenance(sources, used, heldout, chats),
        "overlap_removed": dict(removed),
        "bootstrap": sample.bootstrap,
        "weights": {part.label: round(part.weight, 6) for part in mixture.parts},
        "skipped": {part.label: s.skipped for part, s in selected if s},
    }
    return Corpus(text, tuple(used), tuple(heldout), facts)


def _sources(part: Part, selection: Selection) -> list[_PartSource]:
    sources = []
    for pool in selection.calibration:
        basis, everything = pool.basis_and_all()
        cut = cut_of(basis)
        ids = {d.id for d in cut}
        rest = [d for d in everything if d.id not in ids]
        sources.append(_PartSource(part, pool, rest, cut if pool in selection.cut else []))
    if whole := selection.heldout:
        heldout = heldout_of(whole.basis_and_all()[0], whole.pinned.source.heldout)
        sources.append(_PartSource(part, whole, [], heldout))
    return sources


def _cleared(source: _PartSource, seen: Shingles, removed: Counter[str]) -> list[Document]:
    cleared = list(without_overlap(source.calibration, seen))
    removed["paragraphs"] += sum(n_paragraphs for _, n_paragraphs in cleared)
    removed["documents"] += sum(document is None for document, _ in cleared)
    return [document for document, _ in cleared if document]


def _lane(
    source: _PartSource, documents: list[Document], vocabulary: Vocabulary, options: TextOptions
) -> Lane:
    part = source.part
    if part.shuffled and part.language:
        script = part.language.script
        documents = [controls.shuffled(d, options.seed, script) for d in documents]
    lane = Lane(f"{part.label}/{source.pool.pinned.source.name}", _blocks(documents, vocabulary))
    return packing.shuffled(lane, options.seed)


def _blocks(documents: Sequence[Document], vocabulary: Vocabulary) -> tuple[Block, ...]:
    return tuple(packing.blocks(documents, [vocabulary.count(d.text) for d in documents]))


@dataclass(frozen=True)
class _Sample:
    """Lanes, the tokens that each gives, and the most tokens of the text."""

    lanes: list[Lane]
    quotas: list[int]
    n_tokens: int
    bootstrap: bool


def _sample(groups: Groups, chats: Lane, n_tokens: int, options: TextOptions) -> _Sample:
    """Return one sample: of documents of its own if there are enough, else drawn from all."""
    k, n = options.sample, options.n_samples

    def disjoint(k: int) -> _Sample:
        own_groups = [(weight, packing.deal(lanes, k, n)) for weight, lanes in groups]
        (own_chats,) = packing.deal([chats], k, n)
        return _with_quotas(own_groups, own_chats, n_tokens, options.chat)

    everything = _with_quotas(groups, chats, n_tokens, options.chat)
    if n == 1:
        return everything
    if all(sum(disjoint(other).quotas) >= n_tokens for other in range(1, n + 1)):
        return disjoint(k)
    drawn = packing.redraw(everything.lanes, everything.quotas, k, options.seed)
    equal = min(n_tokens, int(sum(everything.quotas) / SLACK))
    return _Sample(drawn, everything.quotas, equal, bootstrap=True)


def _with_quotas(groups: Groups, chats: Lane, n_tokens: int, chat_share: float) -> _Sample:
    """A mixture keeps its weights: a short part shortens the others; missing chats are made up."""
    budget = n_tokens * SLACK
    n_chat = min(chats.n_tokens, round(chat_share * budget)) if chat_share else 0
    capacities = [sum(lane.n_tokens for lane in lanes) / weight for weight, lanes in groups]
    total = min([budget - n_chat, *capacities])
    all_lanes: list[Lane] = []
    quotas: list[int] = []
    for weight, lanes in groups:
        all_lanes += lanes
        quotas += packing.shares([lane.n_tokens for lane in lanes], round(weight * total))
    if n_chat:
        all_lanes.append(chats)
        quotas.append(n_chat)
    return _Sample(all_lanes, quotas, n_tokens, bootstrap=False)


def _provenance(
    part_sources: Sequence[_PartSource],
    used: Sequence[Document],
    heldout: Sequence[Document],
    chats: Sequence[Document],
) -> dict[str, Any]:
    used_ids = {d.id.removeprefix("shuffled/") for d in used}
    heldout_ids = {d.id for d in heldout}
    sources = []
    for source in part_sources:
        n_used = sum(d.id in used_ids for d in source.calibration)
        n_heldout = sum(d.id in heldout_ids for d in source.heldout)
        role = "calibration" if n_used else "heldout"
        facts = source.pool.artifact.facts
        sources.append({**facts, "role": role, "n_used": n_used, "n_heldout": n_heldout})
    calibrated = [s for s in sources if s["n_used"]] or sources
    own = {"CC0-1.0"} if chats or not sources else set()
    licences = {str(s["licence"]) for s in calibrated} | own
    if len(licences) > 1:  # OR binds less than AND
        licences = {f"({name})" if " OR " in name else name for name in licences}
    origins = dict.fromkeys(str(s["origin"]) for s in calibrated)
    return {
        "sources": sources,
        "licence": " AND ".join(sorted(licences)),
        "source": "; ".join(origins) or "random tokens",
    }
