"""Compare the cost of scoring with llama-perplexity: same tokens, threads and models.

    make bench-score                            demo model, 4 quants, 16 windows; half an hour
    python tools/bench_score.py --windows 4 --no-growth

llama-perplexity needs a pass that writes the base model's logits and one for each quant; it runs
with one window a decode (-b 512), its fastest here. Seconds are wall time of whole processes,
loading included; `decode` is our time inside llama_decode. Run it on an idle machine: one side runs
after the other.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import peak_bytes, quantize

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.sources import KINDS
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain, cores, default_backend
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import score
from imatrix_lab.records import parquet
from imatrix_lab.score import job, run
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.windows import Decode
from imatrix_lab.types import ComputeOptions, Document, Model, ScoreRequest

TYPES = ("Q4_K_M", "Q4_K_S", "Q3_K_S", "Q2_K")
LANGUAGES = ("nb", "en", "de")
SHARED = ("toolchain", "model", "kernel", "sha256.json")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument(
        "--no-growth", action="store_true", help="skip the growth of cost with quants and windows"
    )
    parser.add_argument("--rows", type=int, help="rows of logits at a time [default: by memory]")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(json.loads(arguments.child))
    store, quiet = Store(), Silent()
    tools = get_toolchain(default_backend(), Session(store, quiet))
    model = resolve.resolve("demo", Session(store, quiet))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tools, model, arguments.rows)
        bench.against_perplexity(arguments.windows)
        if not arguments.no_growth:
            bench.growth()


class Bench:
    """Models and text of one run of the benchmark."""

    def __init__(self, root: Path, tools: Toolchain, model: Model, n_rows: int | None):
        self.root, self.tools, self.model, self.n_rows = root, tools, model, n_rows
        self.quants = [self._quantized(name, f"{name}.gguf") for name in TYPES]
        self.documents = self._documents()
        self.threads = cores()

    def _quantized(self, quant_type: str, name: str) -> Path:
        return quantize(self.tools, self.model.path, quant_type, self.root / name)

    def _documents(self) -> list[Document]:
        documents = []
        for code in LANGUAGES:
            language = languages.get(code)
            (source,) = (s for s in language.sources if s.name == "dataset-build")
            kind, session = KINDS[source.kind], Session(Store(), Silent())
            pinned = kind.reach(source, session)
            documents += list(kind.documents(pinned, language, session))
        return documents

    def texts(self, n_tokens: int) -> tuple[Path, Path]:
        """Return one text of about `n_tokens` tokens: flat, and a document a line."""
        used, size = [], 0
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            for document in self.documents:
                used.append(document)
                size += vocabulary.count(document.text)
                if size >= n_tokens:
                    break
            else:
                sys.exit(f"not enough text for {n_tokens} tokens")
        flat, lines = self.root / f"{n_tokens}.txt", self.root / f"{n_tokens}.jsonl"
        flat.write_bytes("\n\n".join(d.text for d in used).encode())
        lines.write_text(
            "".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in used), "utf-8"
        )
        return flat, lines

    def ours(self, protocol: str, text: Path, quants: list[Path]) -> dict[str, float]:
        """Score in a process and a store of its own; return its seconds, bytes and tokens."""
        cache = Path(tempfile.mkdtemp(dir=self.root))
        for name in SHARED:
            if (Store().root / name).exists():
                (cache / name).symlink_to(Store().root / name)
        request = {
            "reference": str(self.model.path),
            "quants": [str(q) for q in quants],
            "text": str(text),
            "protocol": protocol,
            "out": str(cache / "out"),
            "n_rows": self.n_rows,
        }
        began = time.monotonic()
        done = process.run(
            [sys.executable, __file__, "--child", json.dumps(request)],
            env={**os.environ, "IMATRIX_LAB_CACHE": str(cache)},
        )
        wall_s = time.monotonic() - began
        measures: dict[str, float] = json.loads(done.tail.strip().splitlines()[-1])
        return {**measures, "wall_s": wall_s}

    def perplexity(self, text: Path, n_windows: int) -> tuple[float, int]:
        """Run the base pass and one pass for each quant; return seconds and the file's bytes."""
        logits = self.root / "logits.bin"
        began = time.monotonic()
        for i, path in enumerate([self.model.path, *self.quants]):
            compute = programs.Compute(self.threads, gpu_layers=0)
            program = self.tools.program("llama-perplexity")
            argv = programs.perplexity_argv(program, path, text, compute, n_windows=n_windows)
            argv += ["--kl-divergence-base", str(logits)] + ["--kl-divergence"] * bool(i)
            process.run(argv)
        size_bytes = logits.stat().st_size
        wall_s = time.monotonic() - began
        logits.unlink()
        return wall_s, size_bytes

    def against_perplexity(self, n_windows: int) -> None:
        """Compare on the same tokens, in the protocol of llama-perplexity and in ours."""
        flat, lines = self.texts(n_windows * 512 + 600)
        flat = self._cut(flat, n_windows)
        sizes = [p.stat().st_size for p in (self.model.path, *self.quants)]
        print(
            f"demo model F16 and {', '.join(TYPES)}; {n_windows} windows of 512;"
            f" {self.threads} threads"
        )
        theirs_s, logits_bytes = self.perplexity(flat, n_windows)
        ours = self.ours("llamacpp", flat, self.quants)
        report("llamacpp", ours)
        ratio = ours["wall_s"] / theirs_s
        print(f"  llama-perplexity {theirs_s:.1f} s: ratio {ratio:.2f} (at most 0.95)")
        print(f"  decode alone: ratio {ours['decode_s'] / theirs_s:.2f}")
        print(
            f"  written {ours['written_bytes']:,.0f} bytes, its logits {logits_bytes:,}:"
            f" 1/{logits_bytes / ours['written_bytes']:.0f} (at most 1/1000)"
        )
        document = self.ours("document", lines, self.quants)
        report("document", document)
        their_rate = n_windows * 255 / theirs_s
        our_rate = document["n_scored"] / document["wall_s"]
        print(
            f"  {our_rate:.1f} scored tokens/s, llama-perplexity {their_rate:.1f}:"
            f" ratio {our_rate / their_rate:.2f} (at least 1.3)"
        )
        bound = 1.2 * sum(sizes) + 1e9
        for name, side in (("llamacpp", ours), ("document", document)):
            print(
                f"  peak memory, {name}: {side['peak_bytes'] / 1e9:.2f} GB"
                f" (models {sum(sizes) / 1e9:.2f} GB; at most {bound / 1e9:.2f} GB)"
            )

    def _cut(self, flat: Path, n_windows: int) -> Path:
        """Return the text cut to exactly so many windows, so that both sides read the same."""
        text = flat.read_bytes().decode()
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            low, high = 0, len(text)
            while low < high:
                middle = (low + high) // 2
                enough = vocabulary.count(text[:middle]) >= n_windows * 512
                low, high = (low, middle) if enough else (middle + 1, high)
        path = flat.with_name(f"{n_windows}-windows.txt")
        path.write_bytes(text[:low].encode())
        return path

    def growth(self) -> None:
        """Print how cost grows with quants and with windows."""
        flat = self._cut(self.texts(4 * 512 + 600)[0], 4)
        copies = [self._quantized(k, f"{k}-2.gguf") for k in ("Q5_K_M", "Q5_K_S", "Q6_K", "Q3_K_M")]
        print("quants, 4 windows, llamacpp:")
        for n in (1, 2, 4, 8):
            report(f"  {n} quants", self.ours("llamacpp", flat, [*self.quants, *copies][:n]))
        print("windows, 1 quant, llamacpp:")
        for n in (4, 16, 64):
            flat = self._cut(self.texts(n * 512 + 600)[0], n)
            report(f"  {n} windows", self.ours("llamacpp", flat, self.quants[:1]))


def report(name: str, side: dict[str, float]) -> None:
    """Print one of our runs."""
    print(
        f"{name}: {side['wall_s']:.1f} s, loading {side['load_s']:.1f} s,"
        f" decode {side['decode_s']:.1f} s; softmax, KLD and"
        f" bookkeeping {side['other_s']:.1f} s, {side['other_s'] / side['decode_s']:.1%} of"
        f" decode (at most 15 %); {side['n_scored']:.0f} tokens scored,"
        f" peak {side['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )


class Timed(Engine):
    """An engine that sums the time all engines spend loading and in llama_decode."""

    load_s = decode_s = 0.0

    def __init__(self, *args: Any):
        began = time.monotonic()
        super().__init__(*args)
        Timed.load_s += time.monotonic() - began

    def decode(self, step: Decode) -> np.ndarray:
        """Decode, and add its time."""
        before = self.seconds
        logits = super().decode(step)
        Timed.decode_s += self.seconds - before
        return logits


def child(request: dict[str, Any]) -> None:
    """Score, and print the measurements of this process as one line of JSON."""
    vars(job)["Engine"] = Timed
    decode, run_s = run.decode_together, [0.0]  # only this is timed, not the imports

    def timed(*args: Any) -> None:
        began = time.monotonic()
        decode(*args)
        run_s[0] += time.monotonic() - began

    vars(run)["decode_together"] = timed
    out = Path(request["out"])
    score_request = ScoreRequest(
        request["reference"], tuple(request["quants"]), (("bench", Path(request["text"])),),
        out, ComputeOptions(default_backend()), protocol=request["protocol"], base_logits="live",
        n_rows=request["n_rows"],
    )  # fmt: skip
    files = score.score(score_request, Session(Store(), Silent()))
    measures = {
        "load_s": Timed.load_s,
        "decode_s": Timed.decode_s,
        "other_s": run_s[0] - Timed.load_s - Timed.decode_s,
        "n_scored": len(parquet.read(files[0])),
        "written_bytes": sum(f.stat().st_size for f in files),
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(measures))


if __name__ == "__main__":
    main()
