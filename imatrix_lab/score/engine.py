"""One model in process: tokens in, rows of logits out."""

import ctypes
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from imatrix_lab.errors import BadModel, ImatrixLabError
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Placed
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models.tokenizer import forget_log, reason, silence
from imatrix_lab.score.kernel import Kernel
from imatrix_lab.score.windows import Decode
from imatrix_lab.types import Model

_SMALLER = "close other programs, score fewer quants at once, or use --base-logits cached"


@dataclass(frozen=True)
class Settings(Placed):
    """How a model is run.

    n_ctx : tokens in a batch.
    n_batch : tokens in a decode.
    n_rows : rows of logits in a decode; each takes 8 bytes x vocabulary.
    sequences_max : windows that may share a batch; 1 for recurrent models.
    gpu_layers, tensor_split, override_tensor : see `programs.Placement`.
    """

    threads: int
    n_ctx: int
    n_batch: int
    n_rows: int
    sequences_max: int
    gpu_layers: int | None = None
    tensor_split: str = ""
    override_tensor: str = ""

    def signature(self) -> dict[str, int | str | None]:
        """Return what can change the last bits of a logit: all but the threads."""
        sizes = ("n_ctx", "n_batch", "n_rows", "sequences_max")
        return {name: getattr(self, name) for name in sizes} | self.placement.signature()


class Engine(AbstractContextManager["Engine"]):
    """A model loaded for scoring.

    `streams`: give each sequence its own memory of `n_ctx` tokens: none is shared, and attention
        reads no other sequence's.
    `seconds`, `n_tokens`: time spent in llama_decode, and tokens decoded in it.
    `writable`: weights are read into memory of their own instead of mapped.
    """

    writable = False

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
        forget_log()
        weights = model.path, settings.placement, self.writable
        self._model = run(native.load_model, self._llama, *weights)
        if not self._model:
            what = f"llama.cpp cannot load this model: {reason()}"
            fix = f"check the file; if memory is short: {_SMALLER}"
            raise BadModel(what, where=model.path, fix=fix)
        try:
            self._open(kernel, streams)
        except BaseException:
            self.close()
            raise

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
            what = "there is not enough memory for this model's context"
            raise ImatrixLabError(what, where=self._record.path, fix=_SMALLER)
        self._batch = llama.llama_batch_init(settings.n_batch, 0, settings.sequences_max)
        self._n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        if self._batch:
            self._llama.llama_batch_free(self._batch)
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def begin(self) -> None:
        """Forget all sequences before a new batch."""
        # data too: attention multiplies what is masked by 0, which leaves a NaN
        self._llama.llama_memory_clear(self._memory(), True)

    def share(self, source: int, target: int) -> None:
        """Begin a sequence with all of another, without copying its memory."""
        self._llama.llama_memory_seq_cp(self._memory(), source, target, -1, -1)

    def forget(self, sequence: int, position: int = 0) -> bool:
        """Forget a sequence from a position on; False if this model can only forget all of it."""
        return bool(self._llama.llama_memory_seq_rm(self._memory(), sequence, position, -1))

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._context)

    def decode(self, step: Decode) -> np.ndarray:
        """Return the logits of a step's output rows, float32 (rows, vocabulary).

        They are llama.cpp's own memory, valid until the next decode.
        """
        batch, n = self._batch, len(step.tokens)
        batch.n_tokens = n
        for i in range(n):
            for j in range(step.spans[i]):
                batch.seq_id[i][j] = int(step.sequences[i]) + j
        np.ctypeslib.as_array(batch.token, (n,))[:] = step.tokens
        np.ctypeslib.as_array(batch.pos, (n,))[:] = step.positions
        np.ctypeslib.as_array(batch.n_seq_id, (n,))[:] = step.spans
        np.ctypeslib.as_array(batch.logits, (n,))[:] = step.outputs
        began = time.monotonic()
        code = self._run(native.decode, self._llama, self._context, self._batch)
        self.seconds += time.monotonic() - began
        self.n_tokens += n
        if code == 2:  # aborted
            raise KeyboardInterrupt
        if code:
            what, fix = f"llama_decode failed (code {code})", f"if memory is short: {_SMALLER}"
            raise ImatrixLabError(what, where=self._record.path, fix=fix)
        if not (rows := int(step.outputs.sum())):
            return np.empty((0, self._n_vocab), np.float32)
        logits = self._llama.llama_get_logits(self._context)
        if not logits:
            raise BadModel("this model gives no logits", where=self._record.path)
        return np.ctypeslib.as_array(logits, (rows, self._n_vocab))


def rates(engines: Sequence[Engine]) -> str:
    """Return each model's tokens/s in llama_decode; of many, the slowest's and the fastest's."""
    each = [(e.label, e.n_tokens / e.seconds) for e in engines if e.seconds]
    if len(each) > 4:
        speeds = [speed for _, speed in each]
        return f"{len(each)} models, each {min(speeds):.0f} to {max(speeds):.0f}"
    return ", ".join(f"{label} {speed:.0f}" for label, speed in each)
