"""A corpus: ``calibration.txt``, ``heldout.jsonl`` and a manifest."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import from_json, sha256_file
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.names import readable, slug
from imatrix_lab.core.paths import data_dir
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import assemble, chat, documents, packing, selection, tables
from imatrix_lab.corpus.documents import JOINT
from imatrix_lab.corpus.languages import Language
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.corpus.selection import Selection
from imatrix_lab.corpus.user_text import UserText
from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import UNKNOWN_LICENCE, CorpusFacts, Document, Model, TextOptions

CORPUS_VERSION = 3
"""Raise it when the same sources give other text, or more is known of it.

1: headings split, every eighth held out. 2: cleaned; held out by source or in contiguous runs.
3: the same text, and where its documents end.
"""

LARGE_BYTES = 1 << 28
"""Reading a larger file is worth a word."""
CALIBRATION, HELDOUT = "calibration.txt", "heldout.jsonl"
POOR_TOKENS_PER_BYTE = 0.5
"""A vocabulary that takes more tokens hardly covers the language: it spells it in bytes."""


def build(
    mixture: Mixture,
    model: Model,
    vocabulary: Vocabulary,
    n_tokens: int,
    options: TextOptions,
    session: Session,
) -> CorpusFacts:
    """Return a corpus of at most `n_tokens` tokens, from the store or built now."""

    def select(language: Language) -> Selection:
        count = vocabulary.count
        return selection.select(language, options, n_tokens, model.sha256, count, session)

    selections = [select(p.language) if p.language else None for p in mixture.parts]
    inputs = _budget(model, vocabulary, n_tokens) | _inputs(mixture, selections, options)

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        chats = _chats(mixture, model, scratch) if options.chat else []
        corpus = assemble.assemble(mixture, selections, chats, vocabulary, n_tokens, options)
        _write(out, corpus.text, corpus.heldout)
        manifest = {
            "language": mixture.label,
            "language_name": mixture.name,
            "n_tokens": vocabulary.count(corpus.text),
            "n_tokens_asked": n_tokens,
            "n_bytes": len(corpus.text.encode()),
            "parse_special": vocabulary.parse_special,
            "sample": f"{options.sample}/{options.n_samples}" if options.n_samples > 1 else "",
            "documents": [d.id for d in corpus.used],
            "document_ends": packing.ends(corpus.text, corpus.used),
            "n_documents": len(corpus.used),
            "n_heldout": len(corpus.heldout),
            "n_heldout_tokens": vocabulary.count(packing.joined(corpus.heldout)),
            **corpus.facts,
        }
        _warn(manifest, session.progress)
        return manifest

    label = f"{mixture.label}-{n_tokens}"
    if options.n_samples > 1:
        label += f"-s{options.sample}of{options.n_samples}"
    return facts(session.store.get("corpus", label, inputs, make, session.progress))


def _inputs(
    mixture: Mixture, selections: Sequence[Selection | None], options: TextOptions
) -> dict[str, Any]:
    parts = [
        {
            "label": part.label,
            "weight": part.weight,
            "calibration": [p.artifact.fingerprint for p in chosen.calibration] if chosen else [],
            "heldout": chosen.heldout.artifact.fingerprint if chosen and chosen.heldout else "",
        }
        for part, chosen in zip(mixture.parts, selections, strict=True)
    ]
    return {
        "mixture": mixture.label,
        "parts": parts,
        "seed": options.seed,
        "sample": [options.sample, options.n_samples],
        "chat": options.chat,
        "chats": [chat.VERSION, *map(sha256_file, _chat_files(mixture))] if options.chat else [],
        "exclude": [sha256_file(p) for p in options.exclude],
    }


def _budget(model: Model, vocabulary: Vocabulary, n_tokens: int) -> dict[str, Any]:
    return {
        "corpus_version": CORPUS_VERSION,
        "n_tokens": n_tokens,
        "parse_special": vocabulary.parse_special,
        "vocabulary_of": model.sha256,
        **({"ends": "left out"} if model.facts.adds_end else {}),
    }


def _chat_files(mixture: Mixture) -> list[Path]:
    written = data_dir("corpora") / "written"
    paths = [written / p.language.code / "chats.jsonl" for p in mixture.parts if p.language]
    return [p for p in dict.fromkeys(paths) if p.is_file()]


def _chats(mixture: Mixture, model: Model, scratch: Path) -> list[Document]:
    chats = [entry for path in _chat_files(mixture) for entry in chat.read(path)]
    if not chats:
        raise BadText(f"there are no chats in {mixture.name}", fix="leave out --chat")
    return chat.documents(model, chats, "written chats", "CC0-1.0", scratch)


def _warn(manifest: Mapping[str, Any], progress: Progress) -> None:
    per_byte = manifest["n_tokens"] / max(1, manifest["n_bytes"])
    if per_byte > POOR_TOKENS_PER_BYTE:
        progress.say(
            f"note: this model takes {per_byte:.2f} tokens a byte for {manifest['language_name']}:"
            " its vocabulary hardly covers the language, and no quantization can change that"
        )
    if manifest["bootstrap"]:
        n_samples = manifest["sample"].split("/")[1]
        progress.say(
            f"note: there is too little text for {n_samples} disjoint samples;"
            " each is drawn with replacement (bootstrap), so samples share documents"
        )


def _write(out: Path, text: str, heldout: Iterable[Document]) -> None:
    """Write both files; llama.cpp's programs remove the line end after the text again."""
    (out / CALIBRATION).write_bytes((text + "\n").encode())
    (out / HELDOUT).write_bytes("".join(map(documents.line, heldout)).encode())


def from_folder(folder: Path) -> CorpusFacts:
    """Return a corpus that was built before, from its folder, its files checked."""
    try:
        manifest = from_json((folder / MANIFEST).read_text(encoding="utf-8"))
        corpus = facts(Artifact(folder, manifest))
        for name in (CALIBRATION, HELDOUT):
            if manifest["files"][name]["sha256"] != sha256_file(folder / name):
                raise BadText(f"{name} is not the one in the manifest", where=folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadText(f"this corpus folder cannot be read: {error}", where=folder) from error
    return corpus


def from_file(
    text: UserText, model: Model, vocabulary: Vocabulary, n_tokens: int, session: Session
) -> CorpusFacts:
    """Return a user's own text, cut to the budget, as a corpus without held-out documents."""
    path = text.path
    label, name = slug(path.stem), readable(path.name)
    inputs = _budget(model, vocabulary, n_tokens)
    inputs |= {"file": name, "file_sha256": _sha256(path, session)}
    if not text.is_exact:
        inputs |= {"read_as": [text.format, text.column]}

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        parts = (
            Document(f"{readable(path.stem)}/{i:04d}", part, name, UNKNOWN_LICENCE)
            for i, part in enumerate(text.paragraphs())
        )
        with session.progress.task(f"text {name}", n_tokens, "tokens") as task:
            calibration, used = packing.within_budget(
                parts, n_tokens, vocabulary.count, task.update
            )
        text.say(session.progress.say)
        _write(out, calibration, ())
        ends = packing.ends(calibration, used)
        return {
            "document_ends": ends if text.has_rows else ends[-1:],  # else one, of paragraphs
            "language": label,
            "language_name": label,
            "source": name,
            "licence": UNKNOWN_LICENCE,
            "n_tokens": vocabulary.count(calibration),
            "n_tokens_asked": n_tokens,
            "n_bytes": len(calibration.encode()),
            "n_documents": len(used),
            "n_heldout": 0,
            "n_heldout_tokens": 0,
        }

    built = session.store.get("corpus", f"{label}-{n_tokens}", inputs, make, session.progress)
    corpus = replace(facts(built), language=label, language_name=label)  # not an older version's
    return replace(corpus, text_sha256=_text_sha256(text, session))


def heldout_of_file(
    text: UserText, vocabulary: Vocabulary, n_tokens: int, session: Session
) -> tuple[str, str, int]:
    """Return the sha256 that stands for a user's text, its start, and the start's tokens.

    The start has more than `n_tokens` if the text has them.
    """
    sha256 = _text_sha256(text, session)
    start, n = "", 0
    pieces = text.paragraphs() if text.has_rows else tables.plain_text(text.path)
    for piece in pieces:
        joint = JOINT if start and text.has_rows else ""
        start, n = packing.start_with(f"{start}{joint}{piece}", n_tokens, vocabulary.count)
        if n > n_tokens:
            break
    text.say(session.progress.say)
    return sha256, start, vocabulary.count(start)


def _text_sha256(text: UserText, session: Session) -> str:
    """Return what stands for a text: the sha256 of its file, and how that is read."""
    sha256 = _sha256(text.path, session)
    if text.is_exact:
        return sha256
    return hashlib.sha256(f"{sha256} {text.format} {text.column}".encode()).hexdigest()


def _sha256(path: Path, session: Session) -> str:
    if path.stat().st_size < LARGE_BYTES:
        return sha256_file(path)
    title = f"hashing {readable(path.name)}"
    with session.progress.task(title, path.stat().st_size, "B") as task:
        return sha256_file(path, task.update)


def facts(artifact: Artifact) -> CorpusFacts:
    """Return the facts in a corpus's manifest."""
    values = artifact.facts
    names = CorpusFacts.__dataclass_fields__.keys() & values.keys() - {"document_ends"}
    return CorpusFacts(
        document_ends=tuple(values.get("document_ends", ())),
        calibration=artifact.path / CALIBRATION,
        heldout=artifact.path / HELDOUT,
        sha256=artifact.sha256(CALIBRATION),
        heldout_sha256=artifact.sha256(HELDOUT),
        **{name: values[name] for name in names},
    )


def document_texts(corpus: CorpusFacts) -> Iterator[str]:
    """Yield the documents of the calibration text; raises BadText if they are not known."""
    if not corpus.document_ends:
        what = "where the documents of this corpus end is not known: it is of an earlier version"
        raise BadText(what, where=corpus.calibration, fix="build the corpus again")
    raw, begin = corpus.calibration.read_bytes(), 0
    for end in corpus.document_ends:
        yield raw[begin:end].decode()
        begin = end + len(JOINT)


def heldout_text(corpus: CorpusFacts) -> str:
    """Return the held-out documents as one text."""
    return packing.joined(documents.read(corpus.heldout))
