"""The compiled part of scoring: softmax, KL divergence and top K over rows of logits.

`kernel.cpp` is compiled once with this machine's C++ compiler, which llama.cpp needs as well.
Alternatives tried: numpy takes over half as long as llama_decode itself at a vocabulary of 262k,
mostly in passes over memory; numba brings LLVM along and compiles in every process; a ggml graph
writes out each intermediate row.
"""

import ctypes
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imatrix_lab.core.session import Session
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.toolchain import Toolchain

SOURCE = Path(__file__).with_name("kernel.cpp")


@dataclass(frozen=True)
class Rows:
    """Results for a block of n rows of logits.

    maximum : float32 (n,), the largest logit.
    log_sum : float64 (n,), log of the sum of exp over the vocabulary.
    top : int32 (n,), the token of the largest logit; the lowest id on a tie; -1 if all are NaN.
    kld : float64 (n,), KL(reference || these rows) in nats; None for the reference.
    """

    maximum: np.ndarray
    log_sum: np.ndarray
    top: np.ndarray
    kld: np.ndarray | None = None


class Kernel:
    """The compiled functions, run over rows on several threads.

    Each row is the work of one thread, so results do not depend on their number.
    """

    def __init__(self, library: ctypes.CDLL, threads: int):
        self.library, self._threads = library, threads
        self._pool = ThreadPoolExecutor(threads)

    def rows(self, logits: np.ndarray) -> Rows:
        """Return maximum, log-sum-exp and top token of float32 (n, vocabulary) logits."""
        n, n_vocab = logits.shape
        out = Rows(np.empty(n, np.float32), np.empty(n), np.empty(n, np.int32))

        def run(a: int, b: int) -> None:
            self.library.score_rows(
                _at(logits, a), b - a, n_vocab,
                _at(out.maximum, a), _at(out.log_sum, a), _at(out.top, a),
            )  # fmt: skip

        self._spread(n, run)
        return out

    def compare(self, reference: np.ndarray, ref_rows: Rows, logits: np.ndarray) -> Rows:
        """Return the same for a quant, with KL(reference || quant) of each row in nats.

        sum_v p_ref(v) (z_ref(v) - z(v)) - (lse_ref - lse), over the full vocabulary; terms in
        float32, sums in float64. Equal rows give exactly 0; rounding can give -1e-8.
        """
        assert reference.shape == logits.shape
        n, n_vocab = logits.shape
        kld = np.empty(n)
        out = Rows(np.empty(n, np.float32), np.empty(n), np.empty(n, np.int32), kld)

        def run(a: int, b: int) -> None:
            self.library.compare_rows(
                _at(reference, a), _at(ref_rows.maximum, a), _at(ref_rows.log_sum, a),
                _at(logits, a), b - a, n_vocab,
                _at(out.maximum, a), _at(out.log_sum, a), _at(out.top, a), _at(kld, a),
            )  # fmt: skip

        self._spread(n, run)
        return out

    def top(self, logits: np.ndarray, k: int) -> np.ndarray:
        """Return each row's top k tokens, int32 (n, k), in order of ids; the lowest id on a tie."""
        n, n_vocab = logits.shape
        if not 0 < k <= n_vocab:
            raise ValueError(f"k = {k} of {n_vocab} tokens")
        out = np.empty((n, k), np.int32)

        def run(a: int, b: int) -> None:
            self.library.top_rows(_at(logits, a), b - a, n_vocab, k, _at(out, a))

        self._spread(n, run)
        return out

    def _spread(self, n: int, run: Callable[[int, int], None]) -> None:
        """Run over ``range(n)`` in equal pieces, one for each thread."""
        cuts = [n * i // self._threads for i in range(self._threads + 1)]
        futures = [self._pool.submit(run, a, b) for a, b in itertools.pairwise(cuts) if a < b]
        try:
            for future in futures:
                future.result()
        finally:
            native.finish(futures)


def _at(array: np.ndarray, row: int) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data + row * array.strides[0])


def get(tools: Toolchain, threads: int, session: Session) -> Kernel:
    """Return the kernel, compiled (in seconds) if it is missing."""
    return Kernel(native.compiled(SOURCE, "score", tools, session), threads)
