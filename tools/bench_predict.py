"""Test whether the predicted loss ranks imatrices as the measured divergence does.

    make bench-predict                                    demo model; about half an hour on 2 cores
    python tools/bench_predict.py --text ml=news.jsonl    a language's own text: .jsonl or .txt

An imatrix for each language, and a quant of each type with each imatrix and without. The prediction
reads weights only; the measurement scores every quant on every language's held-out text. Also:
the prediction's own noise (an imatrix in two halves), how well losses of mixtures are predicted
without quantizing, and the speed of the sums compared with gguf-py. Predictions are from E[x²]
alone and from moments.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from common import peak_bytes, quantize
from scipy import stats

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import documents, heldout, packing
from imatrix_lab.corpus.documents import JOINT, decode
from imatrix_lab.imatrix import format, predict, quant_error
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import score, tune
from imatrix_lab.pipeline.predict import NONE, Predictor, PredictRequest, QuantLosses
from imatrix_lab.records import parquet
from imatrix_lab.types import ComputeOptions, Document, Request, ScoreRequest

CPU = ComputeOptions("cpu")
TYPES = ("Q2_K", "Q3_K_S", "Q4_K_M")
LANGUAGES = ("nb", "en", "ml")
CALIBRATIONS = (*LANGUAGES, NONE)
CALIBRATION_TOKENS = 16_384
HELDOUT_DOCUMENTS = 12
HELDOUT_TOKENS = 100  # of each document
RESAMPLES = 2000
MIXED_TYPE = "Q3_K_S"
SPEED_WEIGHTS = 30e6
SQUARES, MOMENTS = "E[x²]", "E[x] and blocks of E[x xᵀ]"

Table = dict[tuple[str, str, str], float]
"""(type, calibration, language) -> a number."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", nargs="*", default=[], metavar="LANG=FILE")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--work", type=Path, help="folder for texts and quants, kept")
    arguments = parser.parse_args()
    own = dict(word.split("=", 1) for word in arguments.text)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.work or Path(folder), arguments.model)
        bench.prepare({code: own.get(code) for code in LANGUAGES})
        by_basis = bench.predicted()
        measured = bench.measured()
        for basis, rows in by_basis.items():
            print(f"\nfrom {basis}")
            print_losses(rows, measured)
            agreement(rows, measured, bench.sizes())
        rows = by_basis[SQUARES]
        bench.halves(rows)
        bench.mixtures(rows)
        bench.speed()


class Bench:
    """Texts, imatrices and quants of one run."""

    def __init__(self, root: Path, model: str):
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.session = Session(Store(), Terminal())
        self.quiet = Session(self.session.store, Silent())
        self.tools = get_toolchain("cpu", self.session)
        self.model = resolve.resolve(model, self.session)
        self.imatrices: dict[str, Path] = {}
        self.heldout: dict[str, Path] = {}

    def request(self, text: str, n_tokens: int) -> Request:
        """Return a request for a text of so many tokens."""
        return Request(text, (), str(self.model.path), n_tokens, self.root, CPU, moments=True)

    def imatrix(self, text: Path, n_tokens: int, name: str) -> Path:
        """Return the imatrix of the first tokens of a text."""
        path = self.root / f"{name}.imatrix.gguf"
        return tune.imatrix(self.request(str(text), n_tokens), path, self.session)

    def prepare(self, own: dict[str, str | None]) -> None:
        """Make each language's texts and imatrix."""
        for code, given in own.items():
            with Vocabulary(self.tools, self.model.path) as vocabulary:
                calibration, scored = self._documents(code, given, vocabulary)
                text, used = packing.within_budget(
                    calibration, CALIBRATION_TOKENS, vocabulary.count
                )
                cut = [
                    packing.within_budget([d], HELDOUT_TOKENS, vocabulary.count)[0]
                    for d in scored[:HELDOUT_DOCUMENTS]
                ]
            print(f"{code}: {len(used)} documents for calibration, {len(cut)} held out", flush=True)
            (self.root / f"{code}.txt").write_bytes(text.encode())
            self.heldout[code] = self.root / f"{code}.jsonl"
            lines = [json.dumps({"id": f"{i:03d}", "text": t}) + "\n" for i, t in enumerate(cut)]
            self.heldout[code].write_bytes("".join(lines).encode())
            self.imatrices[code] = self.imatrix(self.root / f"{code}.txt", CALIBRATION_TOKENS, code)

    def _documents(
        self, code: str, given: str | None, vocabulary: Vocabulary
    ) -> tuple[list[Document], list[Document]]:
        """Return documents to calibrate on, and held-out ones."""
        if given is None:
            request = self.request(code, 2 * CALIBRATION_TOKENS)
            corpus = tune.corpus_of(request, self.tools, self.model, self.session)
            return paragraphs(corpus.calibration), documents.read(corpus.heldout)
        path = Path(given)
        whole = documents.read(path) if path.suffix == ".jsonl" else paragraphs(path)
        sizes = [vocabulary.count(d.text) for d in whole]
        return heldout.cut(whole, sizes, sum(sizes) * heldout.HELDOUT_SHARE)

    def quant(self, calibration: str, quant_type: str, imatrix: Path | None) -> Path:
        """Return a quant, made now unless it exists."""
        path = self.root / f"{calibration}-{quant_type}.gguf"
        if not path.exists():
            part = path.with_suffix(".part")
            quantize(self.tools, self.model.path, quant_type, part, imatrix).replace(path)
        return path

    def _request(self, **rest: Any) -> PredictRequest:
        named = (*self.imatrices.items(), (NONE, None))
        return PredictRequest(str(self.model.path), named, (), (), CPU, **rest)

    def predicted(self) -> dict[str, list[QuantLosses]]:
        """Return what each quant is predicted to lose, from squares and from moments."""
        predictor = Predictor(self._request(), self.session)
        began, rows = time.monotonic(), dict[str, list[QuantLosses]]()
        for basis, expecting in ((MOMENTS, predictor.expecting), (SQUARES, {})):
            predictor.expecting = expecting
            for quant_type, name in itertools.product(TYPES, CALIBRATIONS):
                row = predictor.given(name, self.quant(name, quant_type, self.imatrices.get(name)))
                rows.setdefault(basis, []).append(QuantLosses(name, quant_type, row.losses))
        print(f"quants and predictions: {time.monotonic() - began:.0f} s", flush=True)
        return rows

    def measured(self) -> dict[tuple[str, str, str], np.ndarray]:
        """Score every quant on every text; return each document's sum of KLD and tokens."""
        documents_kld = {}
        for quant_type in TYPES:
            quants = [self.root / f"{c}-{quant_type}.gguf" for c in CALIBRATIONS]
            request = ScoreRequest(
                str(self.model.path), tuple(map(str, quants)), tuple(self.heldout.items()),
                self.root / "scores", CPU, base_logits="live",
            )  # fmt: skip
            files = score.score(request, self.session)
            pairs = itertools.product(self.heldout, CALIBRATIONS)
            for (language, calibration), path in zip(pairs, files, strict=True):
                table = parquet.read(path)
                kld, codes = table.array("kld"), table.words("doc_id").codes
                whole = np.isfinite(kld)
                documents_kld[quant_type, calibration, language] = np.stack(
                    [np.bincount(codes[whole], w) for w in (kld[whole], np.ones(whole.sum()))]
                )
        return documents_kld

    def sizes(self) -> dict[str, int]:
        """Return the number of weights of each tensor."""
        return {n: t.info.n_elements for n, t in quant_error.tensors(self.model).items()}

    def halves(self, rows: list[QuantLosses]) -> None:
        """Print how predictions differ between imatrices of the two halves of a text.

        llama-imatrix reads windows in order, so the second half is the whole less the first.
        """
        code = LANGUAGES[0]
        first = format.read(
            self.imatrix(self.root / f"{code}.txt", CALIBRATION_TOKENS // 2, "half")
        )
        whole = format.read(self.imatrices[code])
        second = {
            n: Entry(e.sums - first.entries[n].sums, e.counts - first.entries[n].counts)
            for n, e in whole.entries.items()
        }
        n_windows = whole.chunk_count - first.chunk_count
        parts = {
            "1st half": first,
            "2nd half": Imatrix(second, whole.datasets, n_windows, whole.chunk_size),
        }
        print(f"\n{code} in halves of {CALIBRATION_TOKENS // 2} tokens, predicted loss x1e-4")
        print(f"{'type':8}{'made with':12}{'on 1st half':>12}{'on 2nd half':>12}{'on all':>9}")
        kernel = quant_error.kernel(self.tools, self.quiet)
        scored = {**parts, "all": whole}
        for quant_type in TYPES:
            for name, imatrix in parts.items():
                path = self.root / f"{name.replace(' ', '-')}.imatrix.gguf"
                format.write(path, imatrix, {})
                quant = resolve.resolve(
                    str(self.quant(path.name.partition(".")[0], quant_type, path)), self.quiet
                )
                quant_error.write(self.root, kernel, self.model, quant, cores(), Silent())
                sums = quant_error.read(self.root / quant_error.FILE)
                losses = predict.losses(sums, scored).overall()
                cells = "".join(
                    f"{1e4 * v:{w}.2f}" for v, w in zip(losses, (12, 12, 9), strict=True)
                )
                print(f"{quant_type:8}{name:12}{cells}", flush=True)
            own = next(r for r in rows if (r.type, r.calibration) == (quant_type, code)).losses
            print(f"{quant_type:8}{'all':12}{'':24}{1e4 * own.overall()[0]:9.2f}")

    def mixtures(self, rows: list[QuantLosses]) -> None:
        """Print the losses of mixtures: predicted in two ways, and of real quants."""
        predictor = Predictor(self._request(select="worst"), self.session)
        of_type = [r for r in rows if r.type == MIXED_TYPE]
        pure = np.array([r.losses.overall() for r in of_type if r.calibration != NONE])
        predictor.expecting = {}
        chosen = predictor.select(MIXED_TYPE, of_type)
        weights = np.array(
            [[1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2], [0.8, 0.1, 0.1], [1 / 3] * 3,
             list(chosen.weights.values())]
        )  # fmt: skip
        print(f"\nmixtures at {MIXED_TYPE}, loss x1e-4 on {', '.join(LANGUAGES)}; the last is the"
              f" best of {chosen.n_candidates} for the worst language")  # fmt: skip
        print(f"{'weights':18}{'interpolated':>26}{'predicted':>26}{'requantized':>26}")
        guesses = (weights @ pure, predict.mixture_losses(pure, weights))
        off: list[list[float]] = [[], []]
        for i, row in enumerate(weights):
            shares = {n: float(w) for n, w in zip(predictor.languages, row, strict=True) if w}
            real = predictor.mixture(shares, MIXED_TYPE)
            for errors, guess in zip(off, guesses, strict=True):
                errors += list(guess[i] / real - 1)
            shown = (*(g[i] for g in guesses), real)
            cells = "".join(f"{' '.join(f'{1e4 * v:.1f}' for v in x):>26}" for x in shown)
            print(f"{' '.join(f'{w:.2f}' for w in row):18}{cells}", flush=True)
        for name, errors in zip(("interpolated", "predicted"), off, strict=True):
            print(f"{name}: off by {np.mean(errors):+.2%} on average, {np.abs(errors).max():.2%}"
                  " at most")  # fmt: skip
        best = min(chosen.pure_objective, key=lambda n: chosen.pure_objective[n])
        print(f"worst language: {1e4 * chosen.objective:.2f} with the mixture,"
              f" {1e4 * chosen.pure_objective[best]:.2f} with {best} alone")  # fmt: skip

    def speed(self) -> None:
        """Print the sums' speed on one thread, and that of gguf-py's dequantize and numpy."""
        kernel = quant_error.kernel(self.tools, self.quiet)
        paths = (self.model.path, self.root / f"{NONE}-Q4_K_M.gguf")
        readers = [{t.name: t for t in gguf.GGUFReader(p).tensors} for p in paths]
        pairs, n_weights, ours = [], 0, quant_error.tensors(self.model)
        for name, part in ours.items():
            if name.startswith("blk.") and n_weights < SPEED_WEIGHTS:
                pairs.append([r[name] for r in readers])
                n_weights += part.info.n_elements
        theirs_s = ours_s = 0.0
        quant = resolve.resolve(str(paths[1]), self.quiet)
        others = quant_error.tensors(quant)
        for w, q in pairs:
            began = time.process_time()
            a, b = (gguf.dequantize(t.data, t.tensor_type) for t in (w, q))
            np.square(a - b).sum(axis=0, dtype=np.float64)
            np.square(a).sum(axis=0, dtype=np.float64)
            theirs_s += time.process_time() - began
            mine = [(ours[w.name], others[w.name])]
            began = time.process_time()
            for block in quant_error.blocks(mine):
                kernel.sums(block)
            ours_s += time.process_time() - began
        print(f"\nsums of {n_weights / 1e6:.0f}M weights, F16 against Q4_K_M, processor time on one"
              f" thread: gguf-py and numpy {theirs_s:.2f} s, ours {ours_s:.2f} s:"
              f" {theirs_s / ours_s:.0f} times (at least 5); {n_weights / ours_s / 1e6:.0f}M"
              f" weights/s; peak memory of this process {peak_bytes() / 1e9:.2f} GB")  # fmt: skip


def paragraphs(path: Path) -> list[Document]:
    """Return the paragraphs of a text as documents."""
    whole = decode(path.read_bytes(), str(path)).strip()
    return [Document(str(i), t, path.name, "") for i, t in enumerate(whole.split(JOINT))]


def print_losses(rows: list[QuantLosses], measured: dict[tuple[str, str, str], np.ndarray]) -> None:
    """Print the two tables side by side."""
    print("\n" + " " * 20 + "predicted loss x1e-4".center(30) + "measured KLD, nats".center(30))
    print(f"{'type':8}{'made with':12}" + "".join(f"{'on ' + n:>10}" for n in LANGUAGES * 2))
    for row in rows:
        left = "".join(f"{1e4 * v:10.2f}" for v in row.losses.overall())
        right = "".join(f"{mean(measured[row.type, row.calibration, n]):10.4f}" for n in LANGUAGES)
        print(f"{row.type:8}{row.calibration:12}{left}{right}")


def mean(documents: np.ndarray) -> float:
    """Return the mean over tokens from each document's sum and tokens."""
    return float(documents[0].sum() / documents[1].sum())


WAYS = ("mean over tensors", "mean by weights", "energy, pooled")


def aggregates(row: QuantLosses, n_weights: dict[str, int]) -> np.ndarray:
    """Return the overall loss in each of `WAYS`, shape (ways, languages)."""
    relative, losses = row.losses.relative(), row.losses
    sizes = np.array([n_weights[t] for t in losses.tensors])
    pooled = losses.lost.sum(0) / losses.energy.sum(0)
    return np.stack([relative.mean(0), sizes @ relative / sizes.sum(), pooled])


def agreement(
    rows: list[QuantLosses], measured: dict[tuple[str, str, str], np.ndarray], sizes: dict[str, int]
) -> None:
    """Print how well predictions rank what was measured, by way of averaging over tensors.

    Pairs are of two calibrations on one language at one type. A pair is clear where the paired
    bootstrap over documents puts 95 % of its resamples on one side.
    """
    summaries: dict[str, list[Any]] = {}
    for i, way in enumerate(WAYS):
        table = {
            (r.type, r.calibration, n): aggregates(r, sizes)[i, j]
            for r in rows
            for j, n in enumerate(LANGUAGES)
        }
        summaries[way] = summary_of(table, measured)
    print("\nrank correlation of predicted loss and measured KLD, and pairs in the same order")
    print(f"{'averaged as':20}{'within, 4':>10}{'within, 3':>10}{'pooled':>8}"
          f"{'pairs':>10}{'clear':>10}{'of imatrices':>14}{'clear':>10}")  # fmt: skip
    for way, cells in summaries.items():
        print(f"{way:20}{cells[0]:10.3f}{cells[1]:10.3f}{cells[2]:8.3f}"
              + f"{cells[3]:>10}{cells[4]:>10}{cells[5]:>14}{cells[6]:>10}")  # fmt: skip


def summary_of(table: Table, measured: dict[tuple[str, str, str], np.ndarray]) -> list[Any]:
    """Return mean Spearman within type and language, with and without none; pooled; pairs."""
    kld = {key: mean(value) for key, value in measured.items()}
    within: list[list[float]] = [[], []]
    for (quant_type, language), (i, chosen) in itertools.product(
        itertools.product(TYPES, LANGUAGES), enumerate((CALIBRATIONS, LANGUAGES))
    ):
        keys = [(quant_type, c, language) for c in chosen]
        within[i].append(spearman([table[k] for k in keys], [kld[k] for k in keys]))
    pooled = spearman([table[k] for k in kld], list(kld.values()))
    counts = []
    for chosen in (CALIBRATIONS, LANGUAGES):
        right = [0, 0]
        total = [0, 0]
        for quant_type, language in itertools.product(TYPES, LANGUAGES):
            for a, b in itertools.combinations(chosen, 2):
                one, other = (quant_type, a, language), (quant_type, b, language)
                same = (table[one] < table[other]) == (kld[one] < kld[other])
                clear = is_clear(measured[one], measured[other])
                for i in range(1 + clear):
                    right[i] += same
                    total[i] += 1
        counts += [f"{r}/{n}" for r, n in zip(right, total, strict=True)]
    return [np.mean(within[0]), np.mean(within[1]), pooled, *counts]


def spearman(a: list[float], b: list[float]) -> float:
    """Return Spearman's rank correlation."""
    return float(stats.spearmanr(a, b).statistic)


def is_clear(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether documents agree on which mean KLD is larger (95 %, paired bootstrap)."""
    rng = np.random.default_rng(0)
    n = one.shape[1]
    drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    difference = drawn @ one[0] / (drawn @ one[1]) - drawn @ other[0] / (drawn @ other[1])
    share = float((difference > 0).mean())
    return not 0.025 <= share <= 0.975


if __name__ == "__main__":
    main()
