"""C++ kernels: a source beside the module that calls it, compiled once for this machine."""

import ctypes
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from imatrix_lab.core import interrupt, process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import require_private
from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import processor, toolchain
from imatrix_lab.llamacpp.programs import Placement
from imatrix_lab.llamacpp.toolchain import Toolchain

T = TypeVar("T")
Item = TypeVar("Item")

_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared",
    "-fno-math-errno", "-fno-trapping-math",  # or the compiler may not vectorize exp
)  # fmt: skip
_NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


def compiled(source: Path, name: str, tools: Toolchain, session: Session) -> ctypes.CDLL:
    """Return a library, compiled (seconds) with llama.cpp's compiler if needed.

    Where llama.cpp works only without instructions that the processor is said to have, this does
    without them too.
    """
    flags = [*_FLAGS, _NATIVE] if tools.build in ("native", "without AMX") else [*_FLAGS]
    library = f"{name}-kernel.so"

    def build(out: Path, scratch: Path) -> Mapping[str, Any]:
        compiler = toolchain.find_compiler()
        argv = [compiler, *flags, "-o", str(out / library), str(source)]
        process.run(argv, log=scratch / "compile.log", timeout_s=300)
        return {"compiler": Path(compiler).name}

    inputs = {
        "source_sha256": sha256_file(source),
        "flags": flags,
        "cpu": processor.fingerprint(),
        "compiler": tools.compiler,
        "system": platform.system(),
    }
    artifact = session.store.own.get("kernel", name, inputs, build, session.progress)
    return ctypes.CDLL(str(require_private(artifact).path / library))


def finish(futures: Sequence[Future[Any]]) -> None:
    """Wait for native calls to end, even after Ctrl-C: their memory is freed afterwards."""
    while True:
        try:
            wait(futures)
            return
        except KeyboardInterrupt:
            continue


def in_order(
    call: Callable[[Item], T], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, T]]:
    """Yield each item with what a native call returns for it, in order.

    At most a few items are ahead, which bounds the memory.
    """
    waiting: deque[tuple[Item, Future[T]]] = deque()

    def first() -> tuple[Item, T]:
        item, future = waiting[0]
        result = future.result()
        waiting.popleft()  # only now: an interrupt before this still waits for the call
        return item, result

    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(call, item)))
                if len(waiting) > 2 * threads:
                    yield first()
            while waiting:
                yield first()
        finally:
            for _, future in waiting:
                future.cancel()
            finish([future for _, future in waiting])


def load_model(llama: Any, path: Path, placement: Placement, writable: bool = False) -> Any:
    """Return a model, or a null pointer.

    A `writable` one is read, not mapped, so that its weights may be changed. Raises UsageError:
    no device has a buffer of a name in `override_tensor`.
    """
    params = llama.llama_model_default_params()
    if placement.gpu_layers is not None:
        params.n_gpu_layers = placement.gpu_layers
    pointed_to: list[Any] = []  # by the parameters, until the model is loaded
    if placement.gpu_layers == 0:  # else large batches would be multiplied on a GPU all the same
        pointed_to.append((ctypes.c_void_p * 1)())
        params.devices = ctypes.addressof(pointed_to[-1])
    if placement.tensor_split:
        shares = [float(x) for x in placement.tensor_split.split(",")]
        params.tensor_split = (ctypes.c_float * llama.llama_max_devices())(*shares)
    if placement.override_tensor:
        pointed_to.append(_overrides(llama, placement.override_tensor))
        params.tensor_buft_overrides = ctypes.addressof(pointed_to[-1])
    # repacked weights are a copy in memory beside the mapped file, no faster here, with other sums
    params.use_extra_bufts = False
    if writable:
        params.load_mode, params.lazy_mode = llama.LLAMA_LOAD_MODE_NONE, llama.LLAMA_LAZY_MODE_OFF
    return llama.llama_model_load_from_file(os.fsencode(path), params)


class _Override(ctypes.Structure):
    """``llama_model_tensor_buft_override`` of llama.h; an empty one ends a list."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def _overrides(llama: Any, override_tensor: str) -> Any:
    """Return an ``-ot`` value as llama.cpp takes it, as common/arg.cpp does."""
    known = _buffer_types(llama)
    pairs = list[_Override]()
    for word in override_tensor.split(","):
        pattern, _, name = word.partition("=")
        if name not in known:
            what = f"--override-tensor {word}: no device has a buffer {name!r}"
            raise UsageError(what, fix=f"give REGEX=BUFFER; buffers are: {', '.join(known)}")
        pairs.append(_Override(pattern.encode(), known[name]))
    return (_Override * (len(pairs) + 1))(*pairs)


def _buffer_types(llama: Any) -> dict[str, int]:
    """Return the devices' buffer types by name."""
    library = llama.llama_cpp._lib  # the bindings leave these out
    for function in ("get", "buffer_type"):
        getattr(library, f"ggml_backend_dev_{function}").restype = ctypes.c_void_p
    library.ggml_backend_buft_name.restype = ctypes.c_char_p
    types = {}
    for i in range(library.ggml_backend_dev_count()):
        device = ctypes.c_void_p(library.ggml_backend_dev_get(ctypes.c_size_t(i)))
        if buffer_type := library.ggml_backend_dev_buffer_type(device):
            name = library.ggml_backend_buft_name(ctypes.c_void_p(buffer_type))
            types[name.decode()] = buffer_type
    return types


def decode(llama: Any, context: Any, batch: Any) -> int:
    """Decode a batch, wait for the end, and return llama_decode's code."""
    code = int(llama.llama_decode(context, batch))
    llama.llama_synchronize(context)
    return code


class Interruptible:
    """Runs native calls in a separate thread, so that Ctrl-C does not wait for them.

    A decode of a large model on a CPU takes minutes, and Python handles signals only between
    its own instructions. llama.cpp reads `flag` between the operations of its graph.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self.flag = ctypes.c_int32(0)
        self.tick: Callable[[], None] | None = None  # called now and then while a call runs

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function and return its result; Ctrl-C ends the call."""
        future = self._pool.submit(function, *args)
        try:
            while self.tick and not wait([future], interrupt.EVERY_S).done:
                self.tick()
            return interrupt.result(future)
        except BaseException:
            self.flag.value = 1
            finish([future])
            raise
