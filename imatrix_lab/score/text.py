"""A text to score, and how it is cut into windows and batches."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imatrix_lab.core.files import canonical_json
from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.records.parquet import Coded
from imatrix_lab.score.windows import (
    Protocol,
    Window,
    batches,
    document_windows,
    joined,
    stream_windows,
)
from imatrix_lab.types import Document


@dataclass(frozen=True)
class Text:
    """Documents to score; `label` is a short name, often a language's code.

    `document_tokens`: they are the first so many tokens of longer ones; None: whole.
    """

    label: str
    documents: tuple[Document, ...]
    document_tokens: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return what a signature says of it."""
        facts = {"label": self.label, "sha256": self.sha256(), "n_documents": len(self.documents)}
        return facts | ({"document_tokens": self.document_tokens} if self.document_tokens else {})

    def sha256(self) -> str:
        """Return the sha256 of the documents' ids and texts."""
        pairs = [[d.id, d.text] for d in self.documents]
        return hashlib.sha256(canonical_json(pairs).encode()).hexdigest()


@dataclass(frozen=True)
class Batches:
    """A text's windows in batches, and the columns that do not depend on a model's output.

    `columns`: doc_id, window, pos, token, n_bytes of every scored token, in order.
    `n_skipped`: documents too short to have a scored token.
    """

    batches: tuple[tuple[Window, ...], ...]
    columns: dict[str, np.ndarray | Coded]
    n_skipped: int

    def sizes(self) -> list[int]:
        """Return the number of scored tokens of each batch."""
        return [sum(w.n_scored for w in batch) for batch in self.batches]


def plan(text: Text, vocabulary: Vocabulary, protocol: Protocol, sequences_max: int) -> Batches:
    """Return a text's windows in batches; raise `BadText` if there is nothing to score."""
    bos = vocabulary.bos()
    if protocol.name == "llamacpp":
        windows = stream_windows(vocabulary.tokens(flat(text)), bos, protocol)
        ids: Sequence[str] = [f"window-{i:06d}" for i in range(len(windows))]
        sequences_max = 1
    else:
        tokens = [vocabulary.tokens(d.text, add_special=False) for d in text.documents]
        windows = document_windows(tokens, bos, protocol)
        ids = [d.id for d in text.documents]
    if not windows:
        least = f"{protocol.n_ctx} tokens" if protocol.name == "llamacpp" else "two tokens"
        raise BadText(f"the text {text.label} has no {least} in a row: nothing to score")
    return Batches(
        tuple(batches(windows, protocol.n_ctx, sequences_max)),
        _columns(windows, ids, vocabulary),
        len(ids) - len({w.document for w in windows}),
    )


def flat(text: Text) -> str:
    """Return the text as llama-perplexity reads it from a file: without one trailing newline."""
    return "\n\n".join(d.text for d in text.documents).removesuffix("\n")


def _columns(
    windows: Sequence[Window], ids: Sequence[str], vocabulary: Vocabulary
) -> dict[str, np.ndarray | Coded]:
    documents = np.repeat([w.document for w in windows], [w.n_scored for w in windows])
    used, codes = np.unique(documents, return_inverse=True)  # only those with a scored token
    tokens = joined([w.tokens[w.first :] for w in windows])
    distinct, inverse = np.unique(tokens, return_inverse=True)
    n_bytes = np.array([vocabulary.size_bytes(int(t)) for t in distinct], np.uint32)
    return {
        "doc_id": Coded(codes.astype(np.int32), tuple(ids[d] for d in used)),
        "window": joined([np.full(w.n_scored, w.number) for w in windows]),
        "pos": joined([w.offset + np.arange(w.first, len(w.tokens)) for w in windows]),
        "token": tokens,
        "n_bytes": n_bytes[inverse],
    }
