"""What feedback and AWQ do to held-out text, by language, tokens of calibration and size.

    python tools/bench_rounding.py mixture --work FOLDER       moments of nb + en + ml; 7 languages
    python tools/bench_rounding.py single --work FOLDER        moments of nb in blocks; nb, en, ml
    python tools/bench_rounding.py body --work FOLDER          the embedding left at Q8_0
    python tools/bench_rounding.py tokens --work FOLDER        4,096 to 65,536 tokens of nb
    python tools/bench_rounding.py sequential --work FOLDER    moments of what is quantized already
    python tools/bench_rounding.py sizes --work FOLDER         with types chosen for nb

Moments are whole; "blocks" are their 256-wide diagonal blocks. Each row is a quant, each column a
held-out text: KLD from the original in nats a token, and in brackets the difference from the first
row of its group with a 95 % interval, paired by document. What the store has is not made again.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import bench_allocate
import numpy as np
from bench_allocate import CPU, EMBEDDING, MIX, Score, by_document, sha256_of_quant
from common import diagonal_blocks
from numpy.typing import NDArray

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import format, merge, moments
from imatrix_lab.imatrix.collector import BLOCK
from imatrix_lab.imatrix.format import Tensor
from imatrix_lab.llamacpp.compute import compute_for
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import score, tune
from imatrix_lab.quantize import awq, feedback, run
from imatrix_lab.types import ImatrixFacts, Model, Request, ScoreRequest

FIRST, MIXED, OTHERS = "nb", ("nb", "en", "ml"), ("fi", "de", "hi", "sw")
TOKENS = (4096, 8192, 16_384, 32_768, 65_536)
N_TOKENS = 16_384
PLAIN, FEEDBACK, AWQ, BOTH = (False, False), (False, True), (True, False), (True, True)
"""Whether channels are scaled, whether errors are fed back."""
Quants = dict[str, Path]


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "what", choices=("mixture", "single", "body", "tokens", "sequential", "sizes")
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for moments, kept")
    parser.add_argument("--types", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--document-tokens", type=int, default=128)
    options = parser.parse_args()
    bench = Bench(options.work, options.documents, options.document_tokens)
    getattr(bench, options.what)(options.types)


class Bench:
    """Moments, quants and scores of the demo model."""

    def __init__(self, work: Path, n_documents: int, document_tokens: int):
        work.mkdir(parents=True, exist_ok=True)
        self._work, self._n_documents, self._document_tokens = work, n_documents, document_tokens
        self._session = Session(Store(), Terminal())
        request = Request("en", (), "demo", 64, work, CPU)
        self._tools, self._model = tune.prepare(request, self._session)

    # -- what is asked

    def mixture(self, types: Sequence[str]) -> None:
        """Moments of three languages, scored on them and on four that went into nothing."""
        whole = self._merged([self._moments(code) for code in MIXED])
        blocks = self._blocks(whole)
        for kind in types:
            quants = {
                **self._fed(whole, blocks, kind),
                "AWQ": self._quant(whole, kind, AWQ),
                "AWQ, feedback, blocks": self._quant(blocks, kind, BOTH),
                "AWQ, feedback": self._quant(whole, kind, BOTH),
            }
            self._print(f"{kind}, moments of {' + '.join(MIXED)}", quants, (*MIXED, *OTHERS))

    def single(self, types: Sequence[str]) -> None:
        """Moments of one language as they are by default, with AWQ and feedback."""
        whole = self._moments(FIRST)
        blocks = self._blocks(whole)
        for kind in types:
            quants = {
                "imatrix": self._quant(whole, kind),
                "AWQ, feedback, blocks": self._quant(blocks, kind, BOTH),
            }
            self._print(f"{kind}, moments of {FIRST}", quants, MIXED)

    def body(self, types: Sequence[str]) -> None:
        """The same with the embedding at Q8_0: what feedback does to what it rounds."""
        first = self._moments(FIRST)
        for whole, name in ((first, FIRST), (self._merged(map(self._moments, MIXED)), "all")):
            blocks = self._blocks(whole)
            for kind in types:
                quants = self._fed(whole, blocks, kind, {EMBEDDING: "Q8_0"})
                self._print(f"{kind} but the embedding, moments of {name}", quants, MIXED)

    def tokens(self, types: Sequence[str]) -> None:
        """Gain against tokens of calibration."""
        for kind in types:
            for n in TOKENS:
                whole = self._moments(FIRST, n)
                quants = self._fed(whole, self._blocks(whole), kind)
                self._print(f"{kind}, {n:,} tokens of {FIRST}", quants, (FIRST,))

    def sequential(self, types: Sequence[str]) -> None:
        """Moments of what the quantized layers before make, not the full model's.

        The inputs of a layer depend on the layers before it alone, so moments that are collected
        on a finished quant are those of its quantized prefix.
        """
        whole = self._moments(FIRST)
        for kind in types:
            fed = self._quant(whole, kind, FEEDBACK)
            prefix = resolve.resolve(str(fed), self._session, self._tools)
            again = self._quant(self._moments(FIRST, model=prefix), kind, FEEDBACK)
            quants = {"feedback": fed, "feedback, sequential": again}
            self._print(f"{kind}, moments of {FIRST}", quants, MIXED)

    def sizes(self, types: Sequence[str]) -> None:
        """Types chosen for the size of a mix, rounding with feedback, and both."""
        whole = self._moments(FIRST)
        chooser = bench_allocate.Bench(self._work, "demo", self._n_documents)
        chooser.prepare({FIRST: N_TOKENS})
        for kind in types:
            choices = chooser.choices(kind)
            quants = {MIX: self._quant(whole, kind), "feedback": self._quant(whole, kind, FEEDBACK)}
            for name in ("measured", "measured, embedding fixed"):
                ways = {name: PLAIN, f"{name}, feedback": FEEDBACK}
                quants |= {w: self._quant(whole, kind, how, choices[name].types)
                           for w, how in ways.items()}  # fmt: skip
            self._print(f"size of {kind}, moments of {FIRST}", quants, MIXED)

    # -- parts

    def _moments(self, code: str, n: int = N_TOKENS, model: Model | None = None) -> ImatrixFacts:
        request = Request(code, (), "demo", n, self._work, CPU, moments=True, full=".")
        corpus = tune.corpus_of(request, self._tools, self._model, self._session)
        return tune.imatrix_of(request, self._tools, model or self._model, corpus, self._session)

    def _merged(self, every: Iterable[ImatrixFacts]) -> ImatrixFacts:
        parts = [merge.MergeInput(f.path, format.read(f.path), 1.0, f.sha256) for f in every]
        path = self._work / "merged.moments.gguf"
        format.write(path, merge.merge(parts, "energy"))
        return tune.existing_imatrix(path, self._model, self._session.progress)

    def _blocks(self, whole: ImatrixFacts) -> ImatrixFacts:
        """Return the same moments without what columns of different blocks have in common."""
        source, path = moments.read(whole.path), self._work / f"{whole.sha256[:16]}-blocks.gguf"
        assert source
        imatrix = format.read(whole.path)
        tensors = [
            _cut(tensor, source) if tensor.name.endswith(moments.BLOCKS) else tensor
            for tensor in imatrix.more
        ]
        format.write(path, dataclasses.replace(imatrix, more=tensors))
        return tune.existing_imatrix(path, self._model, self._session.progress)

    def _fed(
        self,
        whole: ImatrixFacts,
        blocks: ImatrixFacts,
        kind: str,
        fixed: Mapping[str, str] | None = None,
    ) -> Quants:
        """Return a quant without and with feedback, by both kinds of moments."""
        return {
            "imatrix": self._quant(whole, kind, PLAIN, fixed),
            "feedback, blocks": self._quant(blocks, kind, FEEDBACK, fixed),
            "feedback": self._quant(whole, kind, FEEDBACK, fixed),
        }

    def _quant(
        self,
        matrix: ImatrixFacts,
        kind: str,
        rounding: tuple[bool, bool] = PLAIN,
        fixed: Mapping[str, str] | None = None,
    ) -> Path:
        scaled, fed = rounding
        options = run.Options(compute_for(self._model.facts, CPU))
        spec = run.QuantSpec(self._model, matrix, kind, options, awq=scaled, feedback=fed)
        metadata = (awq.metadata() if scaled else {}) | (feedback.metadata() if fed else {})
        spec = dataclasses.replace(spec, metadata=metadata)
        if fixed:
            standard = run.standard_types(self._tools, self._model, kind, options, matrix.path)
            spec = dataclasses.replace(spec, mix=run.Mix(kind, {**standard, **fixed}))
        return run.quantize(self._tools, spec, self._session).path

    def _print(self, title: str, quants: Quants, codes: Sequence[str]) -> None:
        request = ScoreRequest(
            str(self._model.path), tuple(dict.fromkeys(map(str, quants.values()))),
            tuple((code, None) for code in codes), self._work / "scores", CPU,
            limit=self._n_documents, document_tokens=self._document_tokens, base_logits="live",
        )  # fmt: skip
        scores = dict[tuple[str, str], Score]()
        for path in score.score(request, self._session):
            code, *_ = path.name.split(".")
            scores[code, sha256_of_quant(path)] = by_document(path)
        print(f"\n{title}\n\n| | {' | '.join(codes)} |\n|---|{'---:|' * len(codes)}")
        digests = {name: sha256_file(path) for name, path in quants.items()}
        first = next(iter(digests.values()))
        for name, digest in digests.items():
            cells = (_cell(scores[code, digest], scores[code, first]) for code in codes)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        tokens = ", ".join(f"{c} {scores[c, first].sizes.sum():,.0f}" for c in codes)
        sizes = {path.stat().st_size for path in quants.values()}
        print(f"\nscored tokens: {tokens}; bytes: {min(sizes):,} to {max(sizes):,}", flush=True)


def _cell(score: Score, first: Score) -> str:
    """Return nats a token, and how much more than `first` with a 95 % interval."""
    mean = f"{score.mean():.3g}"
    if score is first:
        return mean
    interval = score.difference(first)
    is_less = interval.high < 0
    words = f"{interval.estimate / first.mean():+.0%}; {interval.low:+.3f} … {interval.high:+.3f}"
    words = words.replace("-", "−").replace("%", " %")
    return f"{f'**{mean}**' if is_less else mean} ({words})"


def _cut(tensor: Tensor, source: moments.Moments) -> Tensor:
    """Return the blocks of a whole tensor of moments, those on its diagonal."""
    name = tensor.name.removesuffix(moments.BLOCKS)
    n_matrices, _, width = source.shape(name)
    n_blocks = -(-width // BLOCK)

    def values() -> Iterator[NDArray[np.float32]]:
        for matrix in range(n_matrices):
            (whole,) = source.blocks(name, matrix)
            yield diagonal_blocks(whole, BLOCK)

    return Tensor(tensor.name, (n_matrices * n_blocks, BLOCK, BLOCK), values)


if __name__ == "__main__":
    main()
