"""Measure collecting an imatrix of a model larger than memory, beside llama-imatrix.

    make bench-memory       as root, on Linux; 23 GB of disk, an hour
    python tools/bench_memory.py --layers 2 --tokens 2048

The model is a slice of a 70B: a Llama of its widths and vocabulary, F16, of random weights, with so
many layers. Both sides run in a memory control group whose limit is a quarter of the file, and
begin without a page of the file in memory; llama-imatrix runs at its defaults, on fewer windows, as
its reading a token is constant. Read bytes are the process's own, from getrusage (as
/proc/PID/io has them); memory is anonymous memory, sampled; the loading is measured alone, as each
program reads the file once to load it. Then comes the arithmetic for 80 layers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from common import imatrix_argv

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix.passes import WINDOWS_MAX
from imatrix_lab.llamacpp import build
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.models.resolve import resolve

WINDOW = 512
CHANNELS, FORWARD, HEADS, KV_HEADS, HEAD = 8192, 28672, 64, 8, 128
VOCABULARY = 128_256
KV_CHANNELS = KV_HEADS * HEAD
MATRICES = {
    "attn_q": (CHANNELS, CHANNELS), "attn_k": (KV_CHANNELS, CHANNELS),
    "attn_v": (KV_CHANNELS, CHANNELS), "attn_output": (CHANNELS, CHANNELS),
    "ffn_gate": (FORWARD, CHANNELS), "ffn_up": (FORWARD, CHANNELS), "ffn_down": (CHANNELS, FORWARD),
}  # fmt: skip
LAYER_WEIGHTS = sum(rows * columns for rows, columns in MATRICES.values())
SHARE = 0.25
GROUPS = Path("/sys/fs/cgroup")
LOAD = """
import os, sys, llama_cpp
params = llama_cpp.llama_model_default_params()
params.use_extra_bufts = False
sys.exit(not llama_cpp.llama_model_load_from_file(os.fsencode(sys.argv[1]), params))
"""


@dataclass
class Measured:
    """One run."""

    seconds: float
    read_bytes: int
    peak_bytes: int

    def row(self, name: str, model_bytes: int, n_tokens: int) -> str:
        """Return a line of the table; a run without tokens only loads the model."""
        read, peak = self.read_bytes / 1e9, self.peak_bytes / 1e9
        line = f"{name:14} read {read:7.1f} GB ({self.read_bytes / model_bytes:5.2f} x the file)"
        line += f" in {self.seconds:6.0f} s   peak memory {peak:5.2f} GB"
        if n_tokens:
            line += f"   {self.read_bytes / n_tokens / 1e6:6.2f} MB a token"
            line += f"   {n_tokens / self.seconds:6.2f} tokens/s"
        return line


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--windows", type=int, default=2, help="of llama-imatrix")
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    session = Session(Store(), Silent())
    tools = build.get_toolchain("cpu", session)
    with tempfile.TemporaryDirectory() as folder:
        Bench(Path(folder), session, tools, arguments).run()


class Bench:
    """A model, a text, and what reads them."""

    def __init__(
        self, root: Path, session: Session, tools: Toolchain, arguments: argparse.Namespace
    ):
        self.root, self.tools, self.arguments = root, tools, arguments
        self.model = write_model(root / "slice-f16.gguf", arguments.layers)
        self.text = write_text(root / "text.txt", arguments.tokens)
        (root / "store").mkdir()
        store = Store(root / "store")
        for name in ("kernel", "toolchain"):
            (session.store.root / name).mkdir(parents=True, exist_ok=True)
            (store.root / name).symlink_to(session.store.root / name)
        self.resolved = resolve(str(self.model), Session(store, Silent()))  # its hash is kept
        self.model_bytes = self.model.stat().st_size
        self.limit_bytes = int(SHARE * self.model_bytes)

    def run(self) -> None:
        """Measure all and print."""
        n_tokens, n_theirs = self.arguments.tokens, self.arguments.windows * WINDOW
        print(
            f"{self.arguments.layers} layers, {self.model_bytes / 1e9:.1f} GB; memory limit"
            f" {self.limit_bytes / 1e9:.2f} GB; {self.arguments.threads} threads",
            flush=True,
        )
        load = self.measure([sys.executable, "-c", LOAD, str(self.model)])
        print(load.row("loading", self.model_bytes, 0), flush=True)
        argv = [sys.executable, "-P", "-c", "from imatrix_lab.cli.main import main; main()"]
        argv += ["imatrix", "build", "--model", str(self.model), "--corpus", str(self.text)]
        argv += ["--tokens", str(n_tokens), "--memory", str(self.limit_bytes)]
        argv += ["--threads", str(self.arguments.threads), "--out", str(self.root / "ours.gguf")]
        ours = self.measure(argv)
        print(ours.row("imatrix build", self.model_bytes, n_tokens), flush=True)
        program, out = self.tools.program("llama-imatrix"), self.root / "theirs.gguf"
        plain = Compute(self.arguments.threads)
        argv = imatrix_argv(program, self.model, self.text, out, plain, self.arguments.windows)
        theirs = self.measure(argv)
        print(theirs.row("llama-imatrix", self.model_bytes, n_theirs), flush=True)
        print(whole_model(self.arguments.layers * LAYER_WEIGHTS * n_tokens / ours.seconds))

    def measure(self, argv: list[str]) -> Measured:
        """Run a command in the control group."""
        forget(self.model)
        environment = os.environ | {
            "IMATRIX_LAB_CACHE": str(self.root / "store"),
            "LLAMA_CPP_LIB_PATH": str(self.tools.library_dir),
        }
        began, peak = time.monotonic(), 0
        with memory_group(self.limit_bytes) as group:
            enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
            with (self.root / "log").open("wb") as log:
                child = subprocess.Popen([*enter, *argv], env=environment, stdout=log, stderr=log)
            pid = 0
            while not pid:
                peak = max(peak, anonymous_bytes(child.pid))
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                time.sleep(0.1)
        if status:
            raise SystemExit((self.root / "log").read_text(errors="replace")[-2000:])
        return Measured(time.monotonic() - began, 512 * usage.ru_inblock, peak)


def whole_model(products_per_s: float, n_tokens: int = 65_536) -> str:
    """Return what 80 layers take, if a layer takes what it takes here; 64 windows a decode."""
    weights = 80 * LAYER_WEIGHTS
    model_bytes = 2 * (weights + 2 * VOCABULARY * CHANNELS)
    rows = [f"80 layers, {model_bytes / 1e9:.0f} GB, {n_tokens:,} tokens, by arithmetic:"]
    rows.append(f"  computing {weights * n_tokens / products_per_s / 3600:.0f} h")
    for name, n_windows in (("imatrix build", WINDOWS_MAX), ("llama-imatrix", 1)):
        read_bytes = model_bytes * (1 + -(-n_tokens // (WINDOW * n_windows)))
        hours = read_bytes / 0.5e9 / 3600
        rows.append(f"  {name} reads {read_bytes / 1e9:,.0f} GB, {hours:.1f} h at 0.5 GB/s")
    return "\n".join(rows)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Make a control group, of version 1 or 2, below this process's own."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        limit = "memory.limit_in_bytes" if controllers == "memory" else "memory.max"
        group = GROUPS / controllers / path.lstrip("/") / f"bench-memory-{os.getpid()}"
        if controllers not in ("memory", "") or not group.parent.is_dir():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(limit_bytes))
            yield group
            return
        except FileNotFoundError:  # the controller is elsewhere
            continue
        finally:
            time.sleep(0.5)
            group.rmdir()
    raise SystemExit("this needs root, and a memory controller (cgroup v1 or v2)")


def anonymous_bytes(pid: int) -> int:
    """Return a process's memory but for files that are mapped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(lines[0].split()[1]) if lines else 0


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_text(path: Path, n_tokens: int) -> Path:
    """Write random tokens of the vocabulary, so that embeddings are read as of real text."""
    rng = np.random.default_rng(1)
    path.write_text("".join(f"t{i}" for i in rng.integers(10, VOCABULARY - 300, n_tokens)))
    return path


def write_model(path: Path, n_layers: int) -> Path:
    """Write a Llama of a 70B's widths, F16, of random weights."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(CHANNELS)
    writer.add_feed_forward_length(FORWARD)
    writer.add_block_count(n_layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    n_special = len(tokens)
    tokens += [f"t{i}".encode() for i in range(VOCABULARY - n_special)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - n_special))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    blocks = [f"blk.{i}" for i in range(n_layers)]
    shapes = dict.fromkeys(("token_embd", "output"), (VOCABULARY, CHANNELS))
    shapes |= {f"{block}.{name}": shape for block in blocks for name, shape in MATRICES.items()}
    norms = ["output_norm", *(f"{b}.{n}" for b in blocks for n in ("attn_norm", "ffn_norm"))]
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    for name, (rows, columns) in shapes.items():
        writer.add_tensor_info(f"{name}.weight", (rows, columns), half, 2 * rows * columns)
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (CHANNELS,), single, 4 * CHANNELS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    some = (rng.standard_normal(1 << 22) * 0.02).astype(np.float16)
    for rows, columns in shapes.values():
        writer.write_tensor_data(np.resize(some, rows * columns).reshape(rows, columns))
    for _ in norms:
        writer.write_tensor_data(np.ones(CHANNELS, np.float32))
    writer.close()
    return path


if __name__ == "__main__":
    main()
