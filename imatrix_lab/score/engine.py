"""One model in process: tokens in, rows of logits out."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from imatrix_lab.core import interrupt
from imatrix_lab.core.progress import Task
from imatrix_lab.errors import BadModel, ImatrixLabError
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import last_error, silence
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.score.windows import Decode
from imatrix_lab.types import Model

T = TypeVar("T")
_ABORTED = 2
_SMALLER = "close other programs, score fewer quants at once, or use --base-logits cached"


@dataclass(frozen=True)
class Settings:
    """How a model is run; all but the threads can change the last bits of a logit.

    Attributes
    ----------
    n_ctx : tokens a batch holds.
    n_batch : tokens a decode.
    n_rows : rows of logits a decode; each takes 8 bytes x vocabulary.
    sequences_max : windows that may share a batch; 1 for recurrent models.
    gpu_layers : layers to offload; None leaves it to llama.cpp.
    """

    threads: int
    n_ctx: int
    n_batch: int
    n_rows: int
    sequences_max: int
    gpu_layers: int | None = None

    def signature(self) -> dict[str, int | None]:
        """Return what of it can change a number: all but the threads."""
        return {name: value for name, value in vars(self).items() if name != "threads"}


class Interruptible:
    """Runs native calls in a thread of its own, so that Ctrl-C need not wait for their end.

    A decode of a large model on a CPU takes minutes, and Python handles signals only between
    its own instructions. The flag is read by llama.cpp between the operations of its graph.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.flag = ctypes.c_int32(0)

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the function returns; on Ctrl-C end it first."""
        future = self._pool.submit(function, *args)
        try:
            return interrupt.result(future)
        except BaseException:
            self.flag.value = 1
            native.finish([future])
            raise


class Engine:
    """A model loaded for scoring; use as a context manager.

    Parameters
    ----------
    streams : give each sequence memory of its own, `n_ctx` tokens, instead of a part of one:
        nothing is shared, and attention reads no other sequence's.

    Attributes
    ----------
    label : of the model.
    seconds : time spent in llama_decode.
    n_tokens : tokens decoded in that time.
    """

    def __init__(
        self,
        tools: Toolchain,
        kernel: Kernel,
        model: Model,
        settings: Settings,
        run: Interruptible,
        streams: bool = False,
    ):
        self._llama = tools.bindings()
        silence(self._llama)
        self._record, self._settings, self._run = model, settings, run
        self.label = model.label
        self.seconds, self.n_tokens = 0.0, 0
        self._context: Any = None
        self._batch: Any = None
        self._model = run(self._load)
        if not self._model:
            raise BadModel(
                f"llama.cpp cannot load this model: {last_error() or 'no reason given'}",
                where=model.path,
                fix=f"check the file; if memory is short: {_SMALLER}",
            )  # fmt: skip
        try:
            self._open(kernel, streams)
        except BaseException:
            self.close()
            raise

    def _load(self) -> Any:
        params = self._llama.llama_model_default_params()
        if self._settings.gpu_layers is not None:
            params.n_gpu_layers = self._settings.gpu_layers
        # repacked weights would be a copy in memory beside the mapped file, and no faster here
        params.use_extra_bufts = False
        path = str(self._record.path).encode()
        return self._llama.llama_model_load_from_file(path, params)

    def _open(self, kernel: Kernel, streams: bool) -> None:
        llama, settings = self._llama, self._settings
        if llama.llama_model_has_encoder(self._model):
            raise BadModel("models with an encoder cannot be scored", where=self._record.path)
        params = llama.llama_context_default_params()
        params.n_ctx = settings.n_ctx * (settings.sequences_max if streams else 1)
        params.n_batch = params.n_ubatch = settings.n_batch
        params.n_seq_max = settings.sequences_max
        params.n_outputs_max = max(settings.n_rows, settings.sequences_max)
        params.n_threads = params.n_threads_batch = settings.threads
        params.kv_unified = not streams
        # flash attention sums in another order for each batch size, and activations quantized on
        # the fly turn that into 0.2 nats a token; without it 16 tokens or 500 give the same bits
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        params.abort_callback = ctypes.cast(kernel.library.is_set, type(params.abort_callback))
        params.abort_callback_data = ctypes.cast(ctypes.pointer(self._run.flag), ctypes.c_void_p)
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise ImatrixLabError(
                "there is not enough memory for this model's context",
                where=self._record.path, fix=_SMALLER,
            )  # fmt: skip
        self._batch = llama.llama_batch_init(settings.n_batch, 0, settings.sequences_max)
        self._n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        if self._batch:
            self._llama.llama_batch_free(self._batch)
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def begin(self) -> None:
        """Forget all sequences: a new batch begins."""
        # the data too: attention multiplies what is masked by 0, and a NaN stays one
        self._llama.llama_memory_clear(self._memory(), True)

    def share(self, source: int, target: int) -> None:
        """Let a sequence begin with all of another; its memory is not copied."""
        self._llama.llama_memory_seq_cp(self._memory(), source, target, -1, -1)

    def forget(self, sequence: int, position: int = 0) -> bool:
        """Forget a sequence from a position on; False if the model can only forget all of it."""
        return bool(self._llama.llama_memory_seq_rm(self._memory(), sequence, position, -1))

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._context)

    def decode(self, step: Decode) -> np.ndarray:
        """Decode a step; return the logits of its wanted rows.

        Returns
        -------
        float32 (rows, vocabulary): llama.cpp's own memory, until this engine's next decode.

        Raises
        ------
        ImatrixLabError : llama.cpp reports an error.
        """
        batch, n = self._batch, len(step.tokens)
        batch.n_tokens = n
        for i in range(n):
            for j in range(step.spans[i]):
                batch.seq_id[i][j] = int(step.sequences[i]) + j
        for field, values, kind in (
            (batch.token, step.tokens, np.int32), (batch.pos, step.positions, np.int32),
            (batch.logits, step.wanted, np.int8), (batch.n_seq_id, step.spans, np.int32),
        ):  # fmt: skip
            np.ctypeslib.as_array(field, (n,))[:] = values.astype(kind)
        began = time.monotonic()
        code = self._run(self._decode)
        self.seconds += time.monotonic() - began
        self.n_tokens += n
        if code == _ABORTED:
            raise KeyboardInterrupt
        if code:
            raise ImatrixLabError(
                f"llama_decode failed (code {code})", where=self._record.path,
                fix="if memory is short: " + _SMALLER,
            )  # fmt: skip
        rows = int(step.wanted.sum())
        if not rows:
            return np.empty((0, self._n_vocab), np.float32)
        logits = self._llama.llama_get_logits(self._context)
        if not logits:
            raise BadModel("this model gives no logits", where=self._record.path)
        return np.ctypeslib.as_array(logits, (rows, self._n_vocab))

    def _decode(self) -> int:
        code = int(self._llama.llama_decode(self._context, self._batch))
        self._llama.llama_synchronize(self._context)
        return code


def begun(task: Task, sizes: Sequence[int]) -> int:
    """Return the number of tokens that an earlier run scored, and say so."""
    done = sum(sizes)
    task.update(done, "going on from where the last run stopped" if done else "")
    return done


RATES_MAX = 4  # on a line


def rates(engines: Sequence[Engine]) -> str:
    """Return each model's tokens/s in llama_decode; of many, the slowest's and the fastest's."""
    each = sorted((e.n_tokens / e.seconds, e.label) for e in engines if e.seconds)
    if len(each) > RATES_MAX:
        return f"{len(each)} models, each {each[0][0]:.0f} to {each[-1][0]:.0f}"
    return ", ".join(f"{e.label} {e.n_tokens / e.seconds:.0f}" for e in engines if e.seconds)
