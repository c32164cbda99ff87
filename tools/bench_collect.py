"""Measure collecting an imatrix beside llama-imatrix on the same windows.

    make bench-collect      the demo model and a body without a head, 24 windows; about 15 minutes
    python tools/bench_collect.py --windows 8 --rounds 1 --only demo
    python tools/bench_collect.py --windows 8 --attention    what flash attention would change

The demo model's head is two thirds of it; the second model is the body of a small Llama with a tiny
vocabulary (random weights, 0.5 B), where there is nothing to leave out. Rounds run all sides in
turn, in changing order. Figures are wall seconds, loading included; the speed-up is llama-imatrix's
time over ours. The last column is the largest relative difference of a column's sum.

With `--attention` llama-imatrix reads the demo model's windows without and with flash attention,
one and four at once, and what it collects is compared with ours.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from common import imatrix_argv
from numpy.typing import NDArray

from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import collect, collector, distance, format
from imatrix_lab.llamacpp import native
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.models.resolve import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, CorpusFacts, Model, Request

WINDOW = 512
CHANNELS, FORWARD, LAYERS, HEADS = 2048, 8192, 8, 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("demo", "body"))
    parser.add_argument("--attention", action="store_true")
    arguments = parser.parse_args()
    session = Session(Store(), Silent())
    request = Request(
        "nb", ("Q4_K_M",), "demo", arguments.windows * WINDOW, Path(), ComputeOptions("cpu")
    )
    tools, demo = tune.prepare(request, session)
    corpus = tune.corpus_of(request, tools, demo, session)
    print(f"{arguments.windows} windows of {WINDOW}, {cores()} threads, {arguments.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if arguments.attention:
            return Bench(root, session, tools, demo, corpus).attention()
        if arguments.only != "body":
            Bench(root, session, tools, demo, corpus).compare("demo", arguments)
        if arguments.only != "demo":
            body = resolve(str(body_model(root / "body.gguf")), session)
            text = root / "ascii.txt"  # a byte is a token
            raw = bytes(b for b in corpus.calibration.read_bytes() if b < 128)
            text.write_bytes(raw[: arguments.windows * WINDOW])
            with Vocabulary(tools, body.path) as vocabulary:
                n_tokens = vocabulary.count(text.read_text(encoding="ascii"))
            facts = vars(corpus) | {
                "calibration": text, "n_tokens": n_tokens, "sha256": sha256_file(text)
            }  # fmt: skip
            Bench(root, session, tools, body, CorpusFacts(**facts)).compare("body", arguments)


class Bench:
    """One model and text."""

    def __init__(
        self, root: Path, session: Session, tools: Toolchain, model: Model, corpus: CorpusFacts
    ):
        self.root, self.session, self.tools = root, session, tools
        self.model, self.corpus = model, corpus
        self.compute = Compute(cores(), WINDOW, WINDOW, WINDOW, 0)
        self.numbers = itertools.count()
        native.compiled(collector.SOURCE, "collect", tools, session)  # before a side is timed

    def theirs(self, attention: str = "off", at_once: int = 1) -> Path:
        """Run llama-imatrix."""
        out = self.root / f"theirs-{attention}-{at_once}.gguf"
        program, n_batch = self.tools.program("llama-imatrix"), at_once * WINDOW
        compute = dataclasses.replace(self.compute, n_batch=n_batch, n_ubatch=n_batch)
        text, n_windows = self.corpus.calibration, self.corpus.n_tokens // WINDOW
        path = self.model.path
        process.run(imatrix_argv(program, path, text, out, compute, n_windows, attention))
        return out

    def attention(self) -> None:
        """Print how far llama-imatrix's sums are from ours, by kernel and windows at once."""
        ours = self.ours()
        for kernel, at_once in itertools.product(("off", "on"), (1, 4)):
            theirs = self.theirs(kernel, at_once)
            columns = relative(theirs, ours)
            files = [(path, format.read(path)) for path in (theirs, ours)]
            moved = distance.compare(files, ("theirs", "ours")).matrix("tv")[0, 1]
            line = f"flash attention {kernel:3}, {at_once} at once: column sums differ by"
            line += f" {np.median(columns):.1e} (median), {columns.max():.1e} (most)"
            print(f"{line}; {moved:.1e} of a tensor's energy moves", flush=True)

    def ours(self, moments: bool = False) -> Path:
        """Collect into an empty store."""
        root = self.root / str(next(self.numbers))
        root.mkdir()
        (root / "kernel").symlink_to(self.session.store.root / "kernel")  # compiled already
        session = Session(Store(root), Silent())
        options = collect.Options(self.compute, moments=moments)
        return collect.collect(self.tools, self.model, self.corpus, options, session).path

    def compare(self, name: str, arguments: argparse.Namespace) -> None:
        """Time all sides in turn and print medians."""
        sides: dict[str, Callable[[], Path]] = {
            "llama-imatrix": self.theirs,
            "collect": self.ours,
            "with moments": lambda: self.ours(moments=True),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        paths = {}
        self.ours()  # compiles the kernel, and the file is read from the disk
        for i in range(arguments.rounds):
            for side in list(sides) if i % 2 == 0 else list(reversed(sides)):
                began = time.monotonic()
                paths[side] = sides[side]()
                seconds[side].append(time.monotonic() - began)
        medians = {side: statistics.median(each) for side, each in seconds.items()}
        n_tokens = self.corpus.n_tokens // WINDOW * WINDOW
        for side, median in medians.items():
            speedup = medians["llama-imatrix"] / median
            off = difference(paths["llama-imatrix"], paths[side])
            line = f"{name:5} {side:14} {median:7.1f} s {n_tokens / median:6.0f} tokens/s"
            print(f"{line}   speed-up {speedup:5.2f}   sums within {off:.1e}", flush=True)


def difference(theirs: Path, ours: Path) -> float:
    """Return the largest relative difference of a column's sum; counts must be equal."""
    return float(relative(theirs, ours).max())


def relative(theirs: Path, ours: Path) -> NDArray[np.float64]:
    """Return the relative difference of every column's sum; counts must be equal."""
    a, b = format.read(theirs).entries, format.read(ours).entries
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name].counts, b[name].counts) for name in a)
    tiny = np.float32(1e-30)
    differences = (np.abs(a[n].sums - b[n].sums) / np.maximum(a[n].sums, tiny) for n in a)
    return np.concatenate([d.ravel() for d in differences]).astype(np.float64)


def body_model(path: Path) -> Path:
    """Write a Llama of random weights, F16, whose vocabulary are the bytes."""
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(CHANNELS)
    writer.add_feed_forward_length(FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 256)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    n, wide = CHANNELS, FORWARD
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", _random(rng, len(tokens), n))
    writer.add_tensor("output_norm.weight", np.ones(n, np.float32))
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{at}.{name}.weight", _random(rng, n, n))
        writer.add_tensor(f"{at}.ffn_gate.weight", _random(rng, wide, n))
        writer.add_tensor(f"{at}.ffn_up.weight", _random(rng, wide, n))
        writer.add_tensor(f"{at}.ffn_down.weight", _random(rng, n, wide))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{at}.{name}.weight", np.ones(n, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    values = rng.standard_normal((rows, columns), np.float32) / columns**0.5
    return np.asarray(values, np.float16)


if __name__ == "__main__":
    main()
