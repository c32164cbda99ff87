"""Cutting text into windows, batches and decodes.

`document`: every document by itself. A window is BOS (where the model adds it), up to `overlap`
tokens of context that an earlier window has scored, and new tokens; each new token is scored
once. Documents are the clusters of every later test.

`llamacpp`: as llama-perplexity does it. One flat stream, windows of `n_ctx`, BOS written over the
first token of each, the second half scored. Windows are the clusters.

Windows are packed into batches of at most `n_ctx` tokens, as separate sequences, and a batch is
decoded in steps with a bounded number of logit rows: a row of a large vocabulary takes a
megabyte, twice. The steps depend on text and protocol alone, so a resumed run has the same ones.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SEQUENCES_MAX, STEP_MIN = 64, 16
ROWS_MIN = 2 * STEP_MIN  # with fewer rows in a decode, some steps would be shorter than STEP_MIN


@dataclass(frozen=True)
class Protocol:
    """How text is cut into windows of `n_ctx` tokens; `name` is `document` or `llamacpp`.

    `overlap`: tokens of context at the start of a document's later windows; 0 for `llamacpp`.
    """

    name: str = "document"
    n_ctx: int = 1024
    overlap: int = 256


@dataclass(frozen=True)
class Window:
    """One window of one document.

    document : index of the document; of the window for `llamacpp`.
    tokens : int32 (n,), BOS included.
    first : index of the first token that is scored, at least 1.
    offset : where the window begins: ``tokens[i]`` has position ``offset + i`` in the document,
        whose BOS, where there is one, has position 0.
    """

    document: int
    number: int
    tokens: np.ndarray
    first: int
    offset: int

    @property
    def n_scored(self) -> int:
        """The number of tokens scored."""
        return max(0, len(self.tokens) - self.first)


@dataclass(frozen=True)
class Decode:
    """The input of one llama_decode: int32 (n,) but for `outputs`.

    `spans`: how many sequences a token belongs to, from `sequences` on.
    `outputs`: bool (n,), which tokens' logits are returned.
    """

    tokens: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    spans: np.ndarray
    outputs: np.ndarray


@dataclass(frozen=True)
class Step(Decode):
    """A decode of text, with the true next token of each output row: int32 (rows,)."""

    targets: np.ndarray


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays one after another, as int32."""
    return np.concatenate(parts).astype(np.int32)


def document_windows(
    documents: Sequence[Sequence[int]], bos: int | None, protocol: Protocol
) -> list[Window]:
    """Return the windows of documents, whose tokens are given without BOS.

    A document of one token has a window only if there is a BOS to predict it from.
    """
    lead = [] if bos is None else [bos]
    windows = []
    for index, document in enumerate(documents):
        start, number = 0, 0
        while start < len(document):
            context = min(start, protocol.overlap)
            end = min(len(document), start - context + protocol.n_ctx - len(lead))
            tokens = np.array([*lead, *document[start - context : end]], np.int32)
            first = max(1, len(lead) + context)
            if first < len(tokens):
                windows.append(Window(index, number, tokens, first, start - context))
            start, number = end, number + 1
    return windows


def stream_windows(tokens: Sequence[int], bos: int | None, protocol: Protocol) -> list[Window]:
    """Return llama-perplexity's windows of a stream, which has the BOS that the tokenizer adds.

    Source: ``perplexity()`` and ``kl_divergence()`` in llama.cpp's tools/perplexity: logits of
    positions n_ctx/2 to n_ctx - 2 are scored against the tokens that follow; the rest is dropped.
    """
    n_ctx, windows = protocol.n_ctx, []
    for index in range(len(tokens) // n_ctx):
        piece = np.array(tokens[index * n_ctx : (index + 1) * n_ctx], np.int32)
        if bos is not None:
            piece[0] = bos
        windows.append(Window(index, 0, piece, n_ctx // 2 + 1, index * n_ctx))
    return windows


def batches(windows: Sequence[Window], n_ctx: int, sequences_max: int) -> list[tuple[Window, ...]]:
    """Return windows in order, with as many in a batch as tokens and sequences allow."""
    packed: list[list[Window]] = []
    size = 0
    for window in windows:
        if not packed or size + len(window.tokens) > n_ctx or len(packed[-1]) == sequences_max:
            packed.append([])
            size = 0
        packed[-1].append(window)
        size += len(window.tokens)
    return [tuple(batch) for batch in packed]


def steps(batch: Sequence[Window], n_batch: int, n_rows: int) -> Iterator[Step]:
    """Yield the decodes of a batch: at most `n_batch` tokens and `n_rows` rows of logits each.

    A window's last token is only a target and is not decoded. A last step shorter than `STEP_MIN`
    takes tokens from the one before: llama.cpp multiplies few tokens in another way, and its
    other rounding would change a quant's scores.
    """
    tokens = joined([w.tokens[:-1] for w in batch])
    positions = joined([np.arange(len(w.tokens) - 1) for w in batch])
    sequences = joined([np.full(len(w.tokens) - 1, i) for i, w in enumerate(batch)])
    outputs = np.concatenate([np.arange(1, len(w.tokens)) >= w.first for w in batch])
    targets = joined([w.tokens[1:] for w in batch])
    rows_before = np.concatenate([[0], np.cumsum(outputs)])
    cuts = [0]
    while cuts[-1] < len(tokens):
        start = cuts[-1]
        end = int(np.searchsorted(rows_before, rows_before[start] + n_rows, side="right")) - 1
        cuts.append(min(max(end, start + 1), start + n_batch, len(tokens)))
    if len(cuts) > 2 and min(n_batch, n_rows) >= ROWS_MIN:
        cuts[-2] = max(min(cuts[-2], cuts[-1] - STEP_MIN), cuts[-3] + 1)
    for start, end in itertools.pairwise(cuts):
        cut = slice(start, end)
        spans, output = np.ones(end - start, np.int32), outputs[cut]
        decode = tokens[cut], positions[cut], sequences[cut], spans, output
        yield Step(*decode, targets[cut][output])
