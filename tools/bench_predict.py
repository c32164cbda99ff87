"""Whether the predicted loss ranks imatrices as the measured divergence does, in one run.

    make bench-predict                                    demo model; half an hour on 2 cores
    python tools/bench_predict.py --text ml=news.jsonl    a language's own text: .jsonl or .txt

For each language an imatrix, for each imatrix and none a quant of each type. The prediction
reads weights alone; the measurement scores every quant on every language's held-out text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from imatrix_lab import evaluate, languages, llamacpp, models, pipeline, proc, toolchain
from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.corpus import build as corpora
from imatrix_lab.corpus import split
from imatrix_lab.corpus.sources import decode
from imatrix_lab.records import Document, Model, Request, ScoreRequest
from imatrix_lab.store import Store
from imatrix_lab.toolchain import Toolchain, cores
from imatrix_lab.vocabulary import Vocabulary

TYPES = ("Q2_K", "Q3_K_S", "Q4_K_M")
LANGUAGES = ("nb", "en", "ml")
NONE = "none"
CALIBRATION_TOKENS = 16_384
HELDOUT_DOCUMENTS = 12
HELDOUT_TOKENS = 200  # of each document


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", nargs="*", default=[], metavar="LANG=FILE")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--work", type=Path, help="folder for texts and quants, kept")
    asked = parser.parse_args()
    own = dict(word.split("=", 1) for word in asked.text)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(asked.work or Path(folder), asked.model)
        bench.prepare({code: own.get(code) for code in LANGUAGES})
        bench.measure()


class Bench:
    """Texts, imatrices and quants of one run."""

    def __init__(self, root: Path, model: str):
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.store, self.terminal = root, Store(), Terminal()
        self.tools: Toolchain = toolchain.get(self.store, "cpu", self.terminal)
        self.model: Model = models.resolve(model, self.store, self.terminal)
        self.imatrices: dict[str, Path] = {}
        self.heldout: dict[str, Path] = {}

    def request(self, text: Path, n_tokens: int) -> Request:
        """Return what the pipeline is asked for."""
        return Request(str(text), (), str(self.model.path), n_tokens, self.root, "cpu")

    def prepare(self, own: dict[str, str | None]) -> None:
        """Make each language's texts and imatrix."""
        for code, file in own.items():
            calibration, heldout = self._documents(code, file)
            with Vocabulary(self.tools, self.model.path) as vocabulary:
                text, used = split.within_budget(calibration, CALIBRATION_TOKENS, vocabulary.count)
                cut = [split.within_budget([d], HELDOUT_TOKENS, vocabulary.count)[0]
                       for d in heldout[:HELDOUT_DOCUMENTS]]  # fmt: skip
            print(f"{code}: {len(used)} documents for calibration, {len(cut)} held out", flush=True)
            (self.root / f"{code}.txt").write_bytes(text.encode())
            self.heldout[code] = self.root / f"{code}.jsonl"
            self.heldout[code].write_bytes(
                "".join(json.dumps({"id": f"{i:03d}", "text": t}) + "\n" for i, t in enumerate(cut))
                .encode()
            )  # fmt: skip
            self.imatrices[code] = pipeline.imatrix(
                self.request(self.root / f"{code}.txt", CALIBRATION_TOKENS),
                self.root / f"{code}.imatrix.gguf", self.store, self.terminal,
            )  # fmt: skip

    def _documents(self, code: str, file: str | None) -> tuple[list[Document], list[Document]]:
        if file is None:
            corpus = corpora.build(
                languages.get(code), self.model, Vocabulary(self.tools, self.model.path),
                1 << 20, self.store, self.terminal,
            )  # fmt: skip
            whole = decode(corpus.calibration.read_bytes(), code).strip()
            parts = [Document(str(i), t, code, "") for i, t in enumerate(whole.split(split.JOINT))]
            return parts, corpora.read_documents(corpus.heldout)
        path = Path(file)
        if path.suffix == ".jsonl":
            return split.split(corpora.read_documents(path))
        whole = decode(path.read_bytes(), file)
        return split.split(
            [Document(str(i), t, file, "") for i, t in enumerate(whole.split(split.JOINT))]
        )

    def quant(self, calibration: str, kind: str) -> Path:
        """Return a quant, made by llama-quantize if it is not there."""
        path = self.root / f"{calibration}-{kind}.gguf"
        if not path.exists():
            argv = llamacpp.quantize_argv(
                self.tools.program("llama-quantize"), self.model.path, path.with_suffix(".part"),
                kind, cores(),
                imatrix=str(self.imatrices[calibration]) if calibration != NONE else None,
            )  # fmt: skip
            proc.run(argv)
            path.with_suffix(".part").replace(path)
        return path

    def measure(self) -> None:
        """Score every quant on every text."""
        for kind in TYPES:
            quants = tuple(str(self.quant(c, kind)) for c in (*LANGUAGES, NONE))
            asked = ScoreRequest(
                str(self.model.path), quants, tuple(self.heldout.items()),
                self.root / "scores", "cpu", teacher="live",
            )  # fmt: skip
            evaluate.score(asked, self.store, self.terminal)


if __name__ == "__main__":
    main()
