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
from imatrix_lab.llamacpp import toolchain
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
        "cpu": tools.signature()["cpu"],
        "compiler": tools.compiler,
        "system": platform.system(),
    }
    artifact = session.store.get("kernel", name, inputs, build, session.progress)
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


def load_model(llama: Any, path: Path, gpu_layers: int | None, writable: bool = False) -> Any:
    """Return a model, or a null pointer; `gpu_layers` None leaves the offload to llama.cpp.

    A `writable` one is read, not mapped, so that its weights may be changed.
    """
    params = llama.llama_model_default_params()
    if gpu_layers is not None:
        params.n_gpu_layers = gpu_layers
    # repacked weights are a copy in memory beside the mapped file, no faster here, with other sums
    params.use_extra_bufts = False
    if writable:
        params.load_mode, params.lazy_mode = llama.LLAMA_LOAD_MODE_NONE, llama.LLAMA_LAZY_MODE_OFF
    return llama.llama_model_load_from_file(os.fsencode(path), params)


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
