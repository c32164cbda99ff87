"""The clean documents of one source in one language, in the store."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import clean, documents, sources
from imatrix_lab.corpus.languages import Language, Source
from imatrix_lab.corpus.sources import Pinned
from imatrix_lab.errors import BadText
from imatrix_lab.types import Document

POOL_VERSION = 3
"""Raise it when the same source gives other documents. 1: first cleaning. 2: extraction mended.
3: ids have the row's number, on the Hub the configuration too."""

TEXT, DROPPED = "documents.jsonl", "dropped.jsonl"
BYTES_PER_TOKEN = 12
"""More than any language takes in a vocabulary made for it (Malayalam on Gemma 3: 8)."""
BASIS_BYTES = 1 << 19
"""Held-out text comes from the first so many bytes: half of what the smallest budget takes."""
DOCUMENT_CHARS_MAX = 4000
"""Longer documents are cut between paragraphs, so that a block is not one long article."""


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
        found = self.documents()
        ends = itertools.accumulate(len(d.text.encode()) for d in found)
        n_basis = sum(end <= BASIS_BYTES for end in ends)
        return found[:n_basis], found

    @property
    def n_bytes(self) -> int:
        """Size of its text."""
        return int(self.artifact.facts["n_bytes"])

    @property
    def report(self) -> dict[str, Any]:
        """What cleaning did; see `clean.Report`."""
        return dict(self.artifact.facts["cleaning"])

    @property
    def whole(self) -> bool:
        """Whether this is all the source has, rather than a beginning."""
        return bool(self.artifact.facts["whole"])


def limit_bytes(n_tokens: int) -> int:
    """Return how much clean text to take for a budget: a power of two, so that pools are shared."""
    return max(2 * BASIS_BYTES, 1 << (BYTES_PER_TOKEN * n_tokens - 1).bit_length())


def declared(source: Source) -> dict[str, Any]:
    """Return what a source's file says that is kept with its text; a user's own paths are not."""
    settings = dict(source.settings)
    if source.kind == "files":
        del settings["files"]
    return {
        "name": source.name,
        "kind": source.kind,
        "licence": source.licence,
        "licence_class": source.licence_class,
        "origin": source.origin,
        "note": source.note,
        "settings": settings,
    }


def identity(pinned: Pinned) -> dict[str, Any]:
    """Return which bytes are meant, JSON-able."""
    return {**declared(pinned.source), "version": pinned.version, "sha256": pinned.sha256}


def restored(found: Mapping[str, Any], language: Language) -> Pinned:
    """Return the source that an `identity` is of.

    Raises
    ------
    BadText : the language has no such source any more, or its file says something else now.
    """
    for source in language.sources:
        pinned = Pinned(source, found["version"], found["sha256"])
        if identity(pinned) == found:
            return pinned
    raise BadText(
        f"{language.name} does not have the source {found['name']} as it was any more",
        fix=f"imatrix-lab corpus build {language.code} --renew",
    )


def inputs(language: Language, pinned: Pinned, limit: int) -> dict[str, Any]:
    """Return what determines a pool."""
    return {
        "pool_version": POOL_VERSION,
        "clean_version": clean.CLEAN_VERSION,
        "language": language.code,
        "rules": asdict(clean.Rules.of(language)),
        "source": identity(pinned),
        "limit_bytes": limit,
    }


def build(
    language: Language,
    pinned: Pinned,
    limit: int,
    workers: int,
    session: Session,
) -> Pool:
    """Return a source's clean documents, about `limit` bytes of them at most.

    Raises
    ------
    BadText : nothing is left after cleaning, or the source's text is damaged.
    FetchFailed : the source cannot be fetched as pinned.
    """
    source = pinned.source

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        session.progress.say(
            f"text {language.code}: {source.origin} ({source.licence}; {source.note})"
        )
        report = clean.Report()
        raw = sources.documents(pinned, language, session)
        cleaned = clean.clean(raw, clean.Rules.of(language), report, workers)
        n_bytes = n_documents = 0
        whole = True
        with (
            session.progress.task(f"cleaning {source.name}", limit, "B") as task,
            (out / TEXT).open("w", encoding="utf-8", newline="\n") as file,
        ):
            for document in pieces(cleaned):
                file.write(documents.line(document))
                n_bytes += len(document.text.encode())
                n_documents += 1
                task.update(n_bytes)
                if n_bytes >= limit:
                    whole = False
                    break
        if not n_documents:
            raise BadText(
                f"{source.name} has no text in {language.name} that passes the cleaning: "
                + ("; ".join(reasons(report.as_dict())) or "it is empty")
            )
        with (out / DROPPED).open("w", encoding="utf-8", newline="\n") as file:
            for sample in report.samples:
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")
        return {
            **{k: v for k, v in identity(pinned).items() if k != "settings"},
            "language": language.code,
            "n_documents": n_documents,
            "n_bytes": n_bytes,
            "whole": whole,
            "cleaning": report.as_dict(),
        }

    wanted = inputs(language, pinned, limit)
    name = f"{language.code}-{source.name}"
    return Pool(pinned, session.store.get("text", name, wanted, make, session.progress))


def reasons(report: Mapping[str, Any]) -> list[str]:
    """Return what was dropped and why, the commonest first: ``12 language: paragraph in en``."""
    counts = {
        f"{step}: {reason}": sum(n for unit, n in units.items() if unit != "changes")
        for step, found in report["steps"].items()
        for reason, units in found.items()
    }
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return [f"{n:,} {reason}" for reason, n in ordered if n]


def pieces(found: Iterable[Document]) -> Iterator[Document]:
    """Yield documents of at most about `DOCUMENT_CHARS_MAX`, cut between paragraphs."""
    for document in found:
        if len(document.text) <= DOCUMENT_CHARS_MAX:
            yield document
            continue
        part: list[str] = []
        size, n_parts = 0, 0
        paragraphs = document.text.split("\n\n")
        for i, paragraph in enumerate(paragraphs):
            part.append(paragraph)
            size += len(paragraph)
            last = i + 1 == len(paragraphs)
            if last or size + len(paragraphs[i + 1]) > DOCUMENT_CHARS_MAX:
                n_parts += 1
                name = f"{document.id}/part-{n_parts}"
                yield Document(name, "\n\n".join(part), document.source, document.licence)
                part, size = [], 0
