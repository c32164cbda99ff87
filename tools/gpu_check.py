"""Check everything on a machine with a GPU, beside its processor: five minutes once both are built.

    python tools/gpu_check.py --backend cuda               the demo model
    python tools/gpu_check.py --backend vulkan --small     a model of random weights: any device

Each line is a check: what was measured, what is allowed, and ok or FAILED; the exit status is that
of all. docs/backends.md has what it must print. Building takes 5 to 10 minutes for the processor
and, for CUDA, as long again for each architecture; it is done first and not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import format, moments
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import ON_GPU, Toolchain
from imatrix_lab.llamacpp.trial import Shape, try_build, write_model
from imatrix_lab.models.gguf import read_header

SMALL = Shape(channels=256, forward=512, layers=4, heads=4, window=512)
LARGE = Shape(channels=1024, forward=4096, layers=12, heads=8, window=512)
"""403 MB of weights, of which half are to fit."""
FIRST, COLUMNS, SHARE = 1e-6, 1e-2, 0.1
"""What is allowed, relative to the largest of a matrix: of sums that no product of the GPU came
before, and of all, which half precision bounds; and noise relative to the effect of quantization.
"""
TASK = """
name = "check"
title = "Which word follows?"
scorer = "choice"
licence = "CC0-1.0"
citation = "none"
[source]
files = ["{language}.jsonl"]
[languages]
en = "en"
[fields]
id = "{id}"
question = "{question}"
options = ["{a}", "{b}"]
gold = "{gold}"
gold_is = "from 0"
[prompt]
ask = "{question}"
variant = "token"
"""
Check = tuple[str, bool]
"""What was measured, in words, and whether that is allowed."""


class Checks:
    """The checks, in the order in which they need each other."""

    def __init__(self, backend: str, model: str, folder: Path):
        self.backend, self.model, self.folder = backend, model, folder
        self.text = folder / "text.txt"

    def all(self) -> Iterator[tuple[str, Check]]:
        """Yield each check's name and what it found."""
        tools = {b: get_toolchain(b, Session(Store(), Silent())) for b in ("cpu", self.backend)}
        for name in ("devices", "trial"):
            yield name, getattr(self, name)(tools[self.backend])
        self._write_texts()
        for name in ("imatrix", "moments", "quantize", "agree", "task"):
            yield name, getattr(self, name)()
        yield "planning", self.planning(tools[self.backend])

    def devices(self, tools: Toolchain) -> Check:
        """Say what llama.cpp finds."""
        found = [f"{d.name} {d.description}, {d.free_mib} MiB free" for d in tools.devices()]
        return "; ".join(found), True

    def trial(self, tools: Toolchain) -> Check:
        """Run every program on a model of every weight type."""
        folder = self.folder / "trial"
        folder.mkdir()
        try_build(tools, folder, Silent())
        return "programs and bindings run on every weight type", True

    def imatrix(self) -> Check:
        """Compare columns of an importance matrix."""
        for backend in ("cpu", self.backend):
            self._imatrix(self.model, f"{backend}.gguf", "--moments", "--backend", backend)
        return _columns(*(self._sums(b) for b in ("cpu", self.backend)))

    def moments(self) -> Check:
        """Compare products of columns."""
        files = [moments.read(self.folder / f"{b}.gguf") for b in ("cpu", self.backend)]
        assert files[0] and files[1]
        both = ({m: f.blocks(m) for m in f.inputs} for f in files if f)
        return _columns(*both)

    def quantize(self) -> Check:
        """Make a quant with each backend's build; the quantizer runs on the processor."""
        for backend in ("cpu", self.backend):
            words = ["quantize", "--model", self.model, "--imatrix", "cpu.gguf", "--type", "Q4_K_M"]
            self._run(
                *words, "--heldout", "text.txt", "--backend", backend, "--out", f"q-{backend}"
            )
        is_same = _weights(self._quant("cpu")) == _weights(self._quant(self.backend))
        return "Q4_K_M has the same weights" if is_same else "Q4_K_M has other weights", is_same

    def agree(self) -> Check:
        """Score one file on both, and compare the noise with the effect of quantization."""
        words = ["score", "run", "--reference", self.model, "--quant", str(self._quant("cpu"))]
        words += ["--text", "own=documents.jsonl", "--ctx", "256"]
        for backend in ("cpu", self.backend):
            self._run(*words, "--out", f"scores-{backend}", "--backend", backend)
        agreed = self._run("score", "agree", "scores-cpu", f"scores-{self.backend}", "--json")
        rows = {row["what"]: row for row in json.loads(agreed)["rows"]}
        kld = [rows[f"quantization, {run}"]["kld_mean"]["estimate"] for run in "AB"]
        same = rows["noise, quant"]["same_top"]["estimate"]
        what = f"KLD {kld[0]:.5f} and {kld[1]:.5f} nats, {same:.1%} of top tokens the same"
        return what, abs(kld[0] - kld[1]) <= SHARE * kld[0]

    def task(self) -> Check:
        """Answer the same items."""
        quant, scores = str(self._quant("cpu")), []
        for backend in ("cpu", self.backend):
            words = ["task", "run", "check.toml", "--data", "en.jsonl", "--langs", "en"]
            words += [
                "--variant",
                "token",
                "--quant",
                quant,
                "--backend",
                backend,
                "--out",
                f"tasks-{backend}",
            ]
            self._run(*words)
            shown = json.loads(self._run("task", "show", f"tasks-{backend}", "--json"))
            scores.append(shown[0]["score"]["estimate"])
        return f"accuracy {scores[0]:.3f} and {scores[1]:.3f}", abs(scores[0] - scores[1]) <= SHARE

    def planning(self, tools: Toolchain) -> Check:
        """Let half of a model fit, and compare what is collected so with what all of it gives."""
        write_model(self.folder / "large.gguf", LARGE)
        budget_mib = (self.folder / "large.gguf").stat().st_size // 2**21 + 300
        target = str(max(d.free_mib for d in tools.devices()) - budget_mib)
        part = ["--backend", self.backend, "--fit-target", target]
        plan = json.loads(self._imatrix("large.gguf", "-", *part, "--dry-run", "--json"))
        self._imatrix("large.gguf", "part.gguf", *part)
        self._imatrix("large.gguf", "whole.gguf", "--backend", self.backend)
        what, is_alike = _columns(self._sums("whole"), self._sums("part"))
        layers, copied = plan["gpu_layers"], plan["copied_bytes_per_decode"]
        is_part = bool(layers) and 0 < layers < plan["n_layers"] and copied > 0
        return f"{layers} of {plan['n_layers']} layers on the GPU; {what}", is_alike and is_part

    def _imatrix(self, model: str, out: str, *more: str) -> str:
        words = ["imatrix", "build", "--model", model, "--corpus", "text.txt", "--tokens", "2048"]
        return self._run(*words, "--ctx", "256", *(["--out", out] if out != "-" else []), *more)

    def _quant(self, backend: str) -> Path:
        return next((self.folder / f"q-{backend}").glob("*-Q4_K_M.gguf"))

    def _sums(self, name: str) -> dict[str, NDArray[Any]]:
        entries = format.read(self.folder / f"{name}.gguf").entries
        return {matrix: entry.means() for matrix, entry in entries.items()}

    def _run(self, *words: str) -> str:
        """Run a command, and return what it prints."""
        program = [sys.executable, "-c", "from imatrix_lab.cli.main import main; main()"]
        done = subprocess.run(
            [*program, *words], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"imatrix-lab {' '.join(words)}\n{done.stderr}")
        return done.stdout

    def _write_texts(self) -> None:
        docs = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
        texts = [path.read_text(encoding="utf-8") for path in docs]
        self.text.write_text("\n\n".join(texts), encoding="utf-8")
        rows = [json.dumps({"text": text[:400]}) for text in texts[:8]]
        (self.folder / "documents.jsonl").write_text("\n".join(rows))
        words = [word for word in texts[0].split() if word.isalpha()][:240]
        items = [
            {
                "id": i,
                "question": " ".join(words[i : i + 8]),
                "a": words[i + 8],
                "b": words[-i - 1],
                "gold": 0,
            }
            for i in range(0, 200, 5)
        ]
        (self.folder / "en.jsonl").write_text("\n".join(map(json.dumps, items)))
        (self.folder / "check.toml").write_text(TASK)


def _columns(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> Check:
    """Compare columns, relative to the largest of their matrix."""
    assert a.keys() == b.keys()
    apart = {m: float(np.abs(a[m] - b[m]).max() / np.abs(a[m]).max()) for m in a}
    first, worst = min(apart.values()), max(apart.values())
    what = f"columns differ by {first:.1e} before the first product, {worst:.1e} after it"
    return what, first <= FIRST and worst <= COLUMNS


def _weights(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [data[t.offset : t.offset + t.size_bytes] for t in read_header(path).tensors]


def main() -> None:
    """Print the checks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", choices=sorted(ON_GPU), required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--small", action="store_true", help="a small model of random weights")
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), arguments.model
        if arguments.small:
            model = "small.gguf"
            write_model(folder / model, SMALL)
        began = time.monotonic()
        for check, (what, is_ok) in Checks(arguments.backend, model, folder).all():
            now = time.monotonic()
            print(
                f"{check:9} {'ok    ' if is_ok else 'FAILED'} {now - began:4.0f} s  {what}",
                flush=True,
            )
            began = now
            failed += [] if is_ok else [check]
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
