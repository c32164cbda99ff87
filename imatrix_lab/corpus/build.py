"""A corpus: ``calibration.txt``, ``heldout.jsonl`` and a manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.corpus import sources, split
from imatrix_lab.corpus.sources import Pinned
from imatrix_lab.corpus.text import decode
from imatrix_lab.errors import BadText, FetchFailed, MissingTool
from imatrix_lab.languages import Language
from imatrix_lab.progress import Progress
from imatrix_lab.records import CorpusFacts, Document, Model
from imatrix_lab.store import MANIFEST, Artifact, Store, sha256_file
from imatrix_lab.vocabulary import Vocabulary

CORPUS_VERSION = 2
"""Raise it when the same source gives other text. 1: headings split, every eighth held out.
2: documents are called by the whole name of their file."""

CALIBRATION, HELDOUT = "calibration.txt", "heldout.jsonl"


def pin(language: Language, store: Store, progress: Progress) -> Pinned:
    """Return the first source of a language that can be had here, those held out left aside.

    Raises
    ------
    FetchFailed : there is none; says why of each.
    """
    why = []
    for source in language.sources:
        try:
            if not source.heldout:
                return sources.reach(source, store, progress)
        except (FetchFailed, MissingTool, BadText) as error:
            why.append(f"{source.name}: {error.what}")
    raise FetchFailed(f"no source of {language.name} can be had here: " + "; ".join(why))


def inputs(
    language: Language, pinned: Pinned, model: Model, n_tokens: int, parse_special: bool
) -> dict[str, Any]:
    """Return what determines a corpus: source, budget, and the model whose tokens are counted."""
    return {
        "corpus_version": CORPUS_VERSION,
        "language": language.code,
        "source": {
            "name": pinned.source.name,
            "version": pinned.version,
            "sha256": pinned.sha256,
            "settings": pinned.source.settings,
        },
        "n_tokens": n_tokens,
        "parse_special": parse_special,
        "vocabulary_of": model.sha256,
    }


def build(
    language: Language,
    model: Model,
    vocabulary: Vocabulary,
    n_tokens: int,
    store: Store,
    progress: Progress,
) -> CorpusFacts:
    """Return a language's corpus of at most `n_tokens` tokens, built if it is not there.

    Raises
    ------
    BadText : the source holds no usable text.
    FetchFailed : the source cannot be fetched as pinned.
    """
    pinned = pin(language, store, progress)
    source = pinned.source

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        progress.say(f"corpus {language.code}: {source.origin} ({source.licence}; {source.note})")
        found = list(sources.documents(pinned, language, store, progress))
        calibration, heldout = split.split(found)
        if not calibration or not heldout:
            raise BadText(f"{source.name} has too little text in {language.name}")
        text, used = split.within_budget(calibration, n_tokens, vocabulary.count)
        _write_calibration(out, text)
        (out / HELDOUT).write_bytes("".join(map(_line, heldout)).encode())
        return {
            "language": language.code,
            "language_name": language.name,
            "source": source.origin,
            "licence": source.licence,
            "note": source.note,
            "n_tokens": vocabulary.count(text),
            "n_tokens_asked": n_tokens,
            "n_bytes": len(text.encode()),
            "n_documents": len(used),
            "documents": [d.id for d in used],
            "n_heldout": len(heldout),
            "n_heldout_tokens": vocabulary.count(split.joined(heldout)),
        }

    wanted = inputs(language, pinned, model, n_tokens, vocabulary.parse_special)
    return facts(store.get("corpus", f"{language.code}-{n_tokens}", wanted, make, progress))


def _write_calibration(out: Path, text: str) -> None:
    """Write the text and one line end, which llama.cpp's programs take off again."""
    (out / CALIBRATION).write_bytes((text + "\n").encode())


def from_file(
    path: Path,
    model: Model,
    vocabulary: Vocabulary,
    n_tokens: int,
    store: Store,
    progress: Progress,
) -> CorpusFacts:
    """Return a user's own text as a corpus without held-out documents.

    The ``calibration.txt`` of a corpus folder is used whole, and keeps its language, source
    and licence; any other text is called by its file's name and cut to the budget.

    Raises
    ------
    BadText : empty, or not UTF-8; names the byte.
    """
    origin = _origin(path)
    wanted = {
        "corpus_version": CORPUS_VERSION,
        "origin": origin,
        "file_sha256": sha256_file(path),
        "n_tokens": n_tokens,
        "parse_special": vocabulary.parse_special,
        "vocabulary_of": model.sha256,
    }

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        text = decode(path.read_bytes(), str(path)).strip()
        if not text:
            raise BadText("this text is empty", where=path)
        parts = text.split(split.JOINT)
        documents = [
            Document(f"{path.stem}/{i:04d}", part, path.name, origin["licence"])
            for i, part in enumerate(parts)
        ]
        used = documents
        if not _is_ours(path):
            text, used = split.within_budget(documents, n_tokens, vocabulary.count)
        _write_calibration(out, text)
        (out / HELDOUT).write_bytes(b"")
        return {
            **origin,
            "n_tokens": vocabulary.count(text),
            "n_tokens_asked": n_tokens,
            "n_bytes": len(text.encode()),
            "n_documents": len(used),
            "n_heldout": 0,
            "n_heldout_tokens": 0,
        }

    return facts(store.get("corpus", f"{origin['language']}-{n_tokens}", wanted, make, progress))


def _is_ours(path: Path) -> bool:
    return path.name == CALIBRATION and path.with_name(MANIFEST).exists()


def _origin(path: Path) -> dict[str, str]:
    """Return language, its name, source and licence: from the manifest beside it, if it is ours."""
    word = slug(path.stem)
    unknown = {"language": word, "language_name": word, "source": path.name, "licence": "unknown"}
    if not _is_ours(path):
        return unknown
    try:
        found = json.loads(path.with_name(MANIFEST).read_text(encoding="utf-8"))["facts"]
        return {key: slug(found[key]) if key == "language" else str(found[key]) for key in unknown}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadText(
            f"this corpus folder's manifest cannot be read: {error}", where=path.parent
        ) from error


def slug(word: str) -> str:
    """Return a word that is safe in file names and metadata: letters, digits and hyphens."""
    return re.sub(r"[^\w]+", "-", word, flags=re.ASCII).strip("-")[:40] or "text"


def facts(artifact: Artifact) -> CorpusFacts:
    """Return what a corpus's manifest says."""
    found = artifact.facts
    names = CorpusFacts.__dataclass_fields__.keys() & found.keys()
    return CorpusFacts(
        calibration=artifact.path / CALIBRATION,
        heldout=artifact.path / HELDOUT,
        sha256=artifact.sha256(CALIBRATION),
        heldout_sha256=artifact.sha256(HELDOUT),
        **{name: found[name] for name in names},
    )


def _line(document: Document) -> str:
    entry = {
        "id": document.id,
        "text": document.text,
        "source": document.source,
        "licence": document.licence,
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def heldout_text(corpus: CorpusFacts) -> str:
    """Return the held-out documents as one text.

    Raises
    ------
    BadText : see `read_documents`.
    """
    return split.JOINT.join(d.text for d in read_documents(corpus.heldout))


def read_documents(path: Path) -> list[Document]:
    """Return the documents of a file like heldout.jsonl, one JSON object a line.

    Only ``text`` must be there; a document without an ``id`` is called by its line.

    Raises
    ------
    BadText : a line that is not a document, an id that occurs twice, or not UTF-8.
    """
    found: dict[str, Document] = {}
    for i, line in enumerate(decode(path.read_bytes(), str(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry["text"]
            if not isinstance(text, str):
                raise TypeError("its text is not a string")
            text.encode()  # JSON can spell half a character
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BadText(f"line {i} is no document: {error}", where=path) from error
        name = str(entry.get("id") or f"{path.stem}/{i:06d}")
        if name in found:
            raise BadText(f"line {i}: the id {name!r} occurs twice", where=path)
        source, licence = (str(entry.get(key, "unknown")) for key in ("source", "licence"))
        found[name] = Document(name, text, source, licence)
    return list(found.values())
