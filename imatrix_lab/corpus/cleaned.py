"""The clean documents of one source in one language, in the store."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imatrix_lab.core.format import size
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import clean, documents
from imatrix_lab.corpus.clean.report import CHANGES, Report
from imatrix_lab.corpus.clean.rules import Rules
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources import KINDS
from imatrix_lab.corpus.sources.base import Pinned
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

POOL_VERSION = 3
"""Raise it when the same source gives other documents. 1: first cleaning. 2: extraction fixed.
3: ids have the row's number, on the Hub the configuration too."""

TEXT, DROPPED = "documents.jsonl", "dropped.jsonl"
BYTES_PER_TOKEN = 12
"""More than any language takes in a vocabulary made for it (Malayalam on Gemma 3: 8)."""
BASIS_BYTES = 1 << 19
"""Held-out text comes from the first so many bytes: half of what the smallest budget takes."""
DOCUMENT_CHARS_MAX = 4000
"""Longer documents are cut between paragraphs, so that a block is not one long article."""
PARAGRAPH_CHARS_MAX = 1 << 14
"""Longer paragraphs are cut too: some tokenizers take time that grows with the square."""
RAW_TIMES = 64
"""A source is read to at most so many times the text that is wanted of it."""


@dataclass(frozen=True)
class Pool:
    """Clean documents of a source; `artifact` holds them."""

    pinned: Pinned
    artifact: Artifact

    def documents(self) -> list[Document]:
        """Return them in the source's order."""
        return list(documents.stream(self.artifact.path / TEXT))

    def basis_and_all(self) -> tuple[list[Document], list[Document]]:
        """Return the beginning that every pool of this source has, whatever its limit, and all."""
        everything = self.documents()
        ends = itertools.accumulate(len(d.text.encode()) for d in everything)
        return everything[: sum(end <= BASIS_BYTES for end in ends)], everything

    @property
    def n_bytes(self) -> int:
        """Size of its text."""
        return int(self.artifact.facts["n_bytes"])


def limit_bytes(n_tokens: int) -> int:
    """Return how much clean text to take for a budget: a power of two, so that pools are shared."""
    return max(2 * BASIS_BYTES, 1 << (BYTES_PER_TOKEN * n_tokens - 1).bit_length())


def declared(source: Source) -> dict[str, Any]:
    """Return what a source's file says of it, without the paths of a user's own files."""
    settings = {k: v for k, v in source.settings.items() if (source.kind, k) != ("files", "files")}
    facts = {k: v for k, v in vars(source).items() if k not in {"heldout", "tokens"}}
    return facts | {"settings": settings}


def identity(pinned: Pinned) -> dict[str, Any]:
    """Return which bytes a pinned source stands for, as JSON values."""
    return {**declared(pinned.source), "version": pinned.version, "sha256": pinned.sha256}


def restored(remembered: Mapping[str, Any], language: Language) -> Pinned:
    """Return the source that an `identity` is of; `BadText` if the language has changed it."""
    for source in language.sources:
        pinned = Pinned(source, remembered["version"], remembered["sha256"])
        if identity(pinned) == remembered:
            return pinned
    what = f"{language.name} no longer has the source {remembered['name']} as it was"
    raise BadText(what, fix=f"imatrix-lab corpus build {language.code} --renew")


def inputs(language: Language, pinned: Pinned, limit: int) -> dict[str, Any]:
    """Return what determines a pool."""
    return {
        "pool_version": POOL_VERSION,
        "clean_version": clean.CLEAN_VERSION,
        "language": language.code,
        "rules": asdict(Rules.of(language)),
        "source": identity(pinned),
        "limit_bytes": limit,
    }


def build(language: Language, pinned: Pinned, limit: int, workers: int, session: Session) -> Pool:
    """Return a source's clean documents, about `limit` bytes of them at most."""
    source = pinned.source

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        origin = f"{source.origin} ({source.licence}; {source.note})"
        session.progress.say(f"text {language.code}: {origin}")
        report = Report()
        raw = _enough(KINDS[source.kind].documents(pinned, language, session), limit, session)
        pieces = _pieces(clean.clean(raw, Rules.of(language), report, workers))
        n_bytes = n_documents = 0
        with (
            session.progress.task(f"cleaning {source.name}", limit, "B") as task,
            (out / TEXT).open("w", encoding="utf-8", newline="\n") as file,
        ):
            while n_bytes < limit and (document := next(pieces, None)):
                file.write(documents.line(document))
                n_bytes += len(document.text.encode())
                n_documents += 1
                task.update(n_bytes)
        if not n_documents:
            why = "; ".join(reasons(report.as_dict())) or "it is empty"
            raise BadText(f"{source.name} has no text in {language.name} after cleaning: {why}")
        with (out / DROPPED).open("w", encoding="utf-8", newline="\n") as file:
            for sample in report.samples:
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        return {
            **{k: v for k, v in identity(pinned).items() if k != "settings"},
            "language": language.code,
            "n_documents": n_documents,
            "n_bytes": n_bytes,
            "whole": n_bytes < limit,
            "cleaning": report.as_dict(),
        }

    label = f"{language.code}-{source.name}"
    key = inputs(language, pinned, limit)
    return Pool(pinned, session.store.get("text", label, key, make, session.progress))


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Return what was dropped and why, the commonest first: ``12 language: paragraph in en``."""
    counts = {
        f"{step}: {reason}": sum(n for unit, n in units.items() if unit != CHANGES)
        for step, by_reason in report["steps"].items()
        for reason, units in by_reason.items()
    }
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return [f"{n:,} {reason}" for reason, n in ordered if n]


def _pieces(cleaned: Iterable[Document]) -> Iterator[Document]:
    for document in cleaned:
        if len(document.text) <= DOCUMENT_CHARS_MAX:
            yield document
            continue
        part: list[str] = []
        size, n_parts = 0, 0
        for paragraph in _bounded(document.text.split(JOINT)):
            if part and size + len(paragraph) > DOCUMENT_CHARS_MAX:
                n_parts += 1
                yield _part(document, n_parts, part)
                part, size = [], 0
            part.append(paragraph)
            size += len(paragraph)
        yield _part(document, n_parts + 1, part)


def _enough(raw: Iterable[Document], limit: int, session: Session) -> Iterator[Document]:
    """Yield documents up to `RAW_TIMES` as much as is wanted: the rest will be no better."""
    n_bytes = 0
    for document in raw:
        yield document
        n_bytes += len(document.text.encode())
        if n_bytes > RAW_TIMES * limit:
            read = f"{size(n_bytes)} of {document.source} were read"
            session.progress.say(f"note: {read}, of which too little is left after cleaning")
            return


def _bounded(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        for start in range(0, max(1, len(paragraph)), PARAGRAPH_CHARS_MAX):
            yield paragraph[start : start + PARAGRAPH_CHARS_MAX]


def _part(document: Document, number: int, paragraphs: list[str]) -> Document:
    return replace(document, id=f"{document.id}/part-{number}", text=JOINT.join(paragraphs))
