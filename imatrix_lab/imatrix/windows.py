"""The windows of tokens that a model reads for an importance matrix.

`stream`: as llama-imatrix does (tools/imatrix/imatrix.cpp), the text is one stream of tokens, cut
every n_ctx; the first token of each window becomes BOS where the model adds one; the rest is lost.

`document`: each document is a stream of its own whose rest is a window too, so that no window
straddles two texts. Windows of fewer than 16 tokens are left out: llama-imatrix takes no such
products. The longest come first, so that those of one decode are of like length.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.corpus.build import document_texts
from imatrix_lab.errors import BadText
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import CorpusFacts, Model

STREAM, DOCUMENT = KINDS = ("stream", "document")
TOKENS_MIN = 16

Windows = Sequence[NDArray[np.int32]]
"""The tokens of each."""


def count(corpus: CorpusFacts, n_ctx: int) -> int:
    """Return how many windows a stream has; raises BadText if the text does not fill one."""
    if corpus.n_tokens < n_ctx:
        what = f"an importance matrix needs a window of {n_ctx} tokens; this text has"
        fix = "more text (--tokens), or a smaller context (--ctx)"
        raise BadText(f"{what} {corpus.n_tokens} tokens", where=corpus.calibration, fix=fix)
    return corpus.n_tokens // n_ctx


def stream(
    tools: Toolchain, model: Model, corpus: CorpusFacts, n_ctx: int, parse_special: bool
) -> Windows:
    """Return the windows of a text as llama-imatrix cuts it; raises BadText."""
    # as llama.cpp's programs read a file: its bytes, but for one newline at the end
    text, n = corpus.calibration.read_bytes().removesuffix(b"\n").decode(), count(corpus, n_ctx)
    with Vocabulary(tools, model.path, parse_special) as vocabulary:
        tokens, bos = vocabulary.tokens(text), vocabulary.bos()
    if len(tokens) < n * n_ctx:
        what = f"this text has {len(tokens)} tokens, and {corpus.n_tokens} were counted before"
        raise BadText(what, where=corpus.calibration, fix="build the corpus again")
    return _cut(tokens, n_ctx, bos)[:n]


def by_document(
    tools: Toolchain, model: Model, corpus: CorpusFacts, n_ctx: int, parse_special: bool,
    say: Callable[[str], None],
) -> Windows:  # fmt: skip
    """Return the windows of each document, longest first; `say` hears of documents that are cut.

    Raises BadText: the documents are not known, or all too short.
    """
    with Vocabulary(tools, model.path, parse_special) as vocabulary:
        documents, bos = [*map(vocabulary.tokens, document_texts(corpus))], vocabulary.bos()
    windows = [window for tokens in documents for window in _cut(tokens, n_ctx, bos)]
    kept = [window for window in windows if len(window) >= TOKENS_MIN]
    if not kept:
        what = f"an importance matrix needs documents of {TOKENS_MIN} tokens or more"
        raise BadText(what, where=corpus.calibration, fix="longer documents, or --windows stream")
    if n_cut := sum(len(tokens) > n_ctx for tokens in documents):
        say(
            f"note: {n_cut:,} of {len(documents):,} documents are longer than a window of {n_ctx}"
            " tokens, and cut there; with --ctx they stay whole"
        )
    if lost := sum(map(len, windows)) - sum(map(len, kept)):
        share = f"{lost:,} tokens in {len(windows) - len(kept):,} windows"
        say(f"note: left out: {share} of fewer than {TOKENS_MIN}")
    return sorted(kept, key=len, reverse=True)


def _cut(tokens: Sequence[int], n_ctx: int, bos: int | None) -> list[NDArray[np.int32]]:
    """Return a text's windows, the last of which may be shorter."""
    windows = [np.array(tokens[at : at + n_ctx], np.int32) for at in range(0, len(tokens), n_ctx)]
    if bos is not None:
        for window in windows:
            window[0] = bos
    return windows


def padded(windows: Windows) -> NDArray[np.int32]:
    """Return windows as rows of one length; the rest repeats the last token, and is not counted."""
    longest = max(map(len, windows))
    return np.stack([np.pad(w, (0, longest - len(w)), mode="edge") for w in windows])
