"""Types chosen by measured sensitivity beside the standard mixes of the same size.

    make bench-allocate                       the demo model, nb, en and ml; over an hour on 2 cores
    python tools/bench_allocate.py --model smollm2-f16.gguf --languages en --sizes Q4_K_M

First the costs: one imatrix, one llama-quantize run, and beside them the sensitivity, the errors
and a choice. (Begin with an empty store, IMATRIX_LAB_CACHE: what it has takes no time.)

Then for each size the mix of that name and the types chosen for it, all quantized with the imatrix
of the first language, scored on held-out text of each:

  measured   by the first language's coefficients; "embedding fixed": with the mix's embedding type
  no worse   the same, with no language predicted to be worse than the mix
  for XX     by another language's coefficients
  one        with one coefficient for all tensors
  published  with the factors of llama.cpp's pull request 15550 (target-bpw) as coefficients

The last two are scored on the first language only. Differences are choice minus mix, paired by
document, with 95 % intervals.
"""

import argparse
import dataclasses
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import quantize
from scipy import stats

from imatrix_lab.cli.terminal import Terminal
from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.llamacpp import programs
from imatrix_lab.llamacpp.toolchain import cores
from imatrix_lab.models.gguf import read_header
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import score, tune
from imatrix_lab.quantize import errors, probes, sensitivity
from imatrix_lab.quantize.allocate import (
    Candidate,
    Candidates,
    Choice,
    Goal,
    allocate,
    predicted,
    role_of,
)
from imatrix_lab.quantize.errors import Language, Options
from imatrix_lab.quantize.sensitivity import Sensitivity
from imatrix_lab.quantize.sizes import padded
from imatrix_lab.records import parquet
from imatrix_lab.stats.clustered import Interval
from imatrix_lab.stats.paired import Sums, mean_difference
from imatrix_lab.types import ComputeOptions, CorpusFacts, ImatrixFacts, Request, ScoreRequest

CPU = ComputeOptions("cpu")
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS")
PUBLISHED = {"ffn_down": 6.0, "output": 3.0, "token_embd": 2.5, "attn_v": 1.25}
EMBEDDING = "token_embd.weight"
MIX = "the mix"
TOKENS_FIRST, TOKENS_OTHERS = 128, 64
"""Of each held-out document, from its start: in the first language, in the others."""

Coefficient = Callable[[str, str], float]


def main() -> None:
    """Print costs and tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--languages", nargs="+", default=["nb", "en", "ml"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 16_384, 16_384])
    parser.add_argument("--sizes", nargs="+", default=["Q4_K_M", "Q3_K_S"])
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for texts and quants, kept"
    )
    arguments = parser.parse_args()
    bench = Bench(arguments.work, arguments.model, arguments.documents)
    bench.prepare(dict(zip(arguments.languages, arguments.tokens, strict=False)))
    for size in arguments.sizes:
        bench.compare(size)
    bench.agreement()


@dataclass(frozen=True)
class Score:
    """Sums of KLD and of scored tokens by document."""

    totals: np.ndarray
    sizes: np.ndarray

    def mean(self) -> float:
        """Return nats a token."""
        return float(self.totals.sum() / self.sizes.sum())

    def difference(self, other: "Score") -> Interval:
        """Return by how much it is more than another, in nats a token, with a 95 % interval."""
        totals = self.totals - other.totals
        return mean_difference(Sums(totals, self.sizes, np.zeros_like(totals))).interval

    def minus(self, other: "Score") -> str:
        """Return the difference in words."""
        interval = self.difference(other)
        share = interval.estimate / other.mean()
        return f"{share:+.0%} ({interval.low:+.4f} to {interval.high:+.4f})"


class Bench:
    """Texts, imatrices, coefficients and quants of one run."""

    def __init__(self, work: Path, model: str, n_documents: int):
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.n_documents = work, n_documents
        self.session = Session(Store(), Terminal())
        self.tools, self.model = tune.prepare(self.request("en", 64, model), self.session)
        self.corpora: dict[str, CorpusFacts] = {}
        self.imatrices: dict[str, ImatrixFacts] = {}
        self.sensitivities: dict[str, Sensitivity] = {}
        self.options: Options = {}
        self.pairs: dict[str, list[tuple[float, float]]] = {}

    def request(self, text: str, n_tokens: int, model: str = "") -> Request:
        """Return a request for a text of so many tokens."""
        return Request(text, (), model or str(self.model.path), n_tokens, self.work, CPU)

    def prepare(self, n_tokens: Mapping[str, int]) -> None:
        """Measure coefficients and errors of all languages; print what each step took."""
        self.first, *_ = n_tokens
        for code, n in n_tokens.items():
            request = self.request(code, n)
            corpus = tune.corpus_of(request, self.tools, self.model, self.session)
            with timed(f"imatrix {code}, {n} tokens"):
                imatrix = tune.imatrix_of(request, self.tools, self.model, corpus, self.session)
            self.corpora[code], self.imatrices[code] = corpus, imatrix
        with timed("one llama-quantize run, Q4_K_M"):
            self._mix("Q4_K_M")
        known = {code: self._language(code) for code in n_tokens}
        with timed(f"errors of {len(TYPES)} types, {len(known)} languages"):
            self.options = errors.options(
                self.tools, self.model, self.imatrices[self.first], TYPES, known, self.session,
                cores(),
            )  # fmt: skip
        for code in n_tokens:
            with timed(f"sensitivity {code}"):
                self.sensitivities[code] = self._sensitivity(code)
        with timed("one choice"):
            allocate(self._candidates(self.measured(self.first)), self._goal("Q4_K_M"))

    def _sensitivity(self, code: str) -> Sensitivity:
        path = self.work / f"{code}{sensitivity.SUFFIX}"
        if not path.exists():
            text = self.corpora[code], self.imatrices[code]
            measured = probes.sensitivity_of(self.tools, self.model, text, CPU, self.session)
            sensitivity.write(path, measured)
        return sensitivity.read(path)

    def _language(self, code: str) -> Language:
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            return probes.language_of(self.corpora[code], self.imatrices[code], vocabulary)

    def measured(self, code: str) -> Coefficient:
        """Return a language's measured coefficients."""
        measured = self.sensitivities[code]
        return lambda tensor, kind: measured.of(tensor, kind).kld_nats_per_error

    def _candidates(self, first: Coefficient, fixed: Mapping[str, str] | None = None) -> Candidates:
        """Return every tensor's candidates: nats by measured coefficients, `first` for "chosen"."""
        languages = {code: self.measured(code) for code in self.corpora}
        return {
            tensor: {
                kind: Candidate(
                    padded(option.size_bytes),
                    {c: by(tensor, kind) * option.errors[c] for c, by in languages.items()}
                    | {"chosen": first(tensor, kind) * option.errors[self.first]},
                )
                for kind, option in kinds.items()
                if kind in ((fixed or {}).get(tensor, kind),) and kind not in ("F16", "F32", "BF16")
            }
            for tensor, kinds in self.options.items()
        }

    def _goal(self, size: str) -> Goal:
        mix = self._mix(size)
        chosen = [t for t in read_header(mix).tensors if t.name in self.options]
        size_bytes = mix.stat().st_size
        fixed = size_bytes - sum(padded(t.size_bytes) for t in chosen)
        return Goal(size_bytes, fixed, {"chosen": 1.0})

    def _mix(self, size: str) -> Path:
        path = self.work / f"{size}.gguf"
        if not path.exists():
            imatrix = self.imatrices[self.first].path
            quantize(self.tools, self.model.path, size, path, imatrix)
        return path

    def choices(self, size: str) -> dict[str, Choice]:
        """Return the choices of a size by name."""
        goal = self._goal(size)
        mix = {t.name: t.type_name for t in read_header(self._mix(size)).tensors}
        free = self._candidates(self.measured(self.first))
        ways: dict[str, Coefficient] = {"measured": self.measured(self.first)}
        ways |= {"one": lambda *_: 1.0, "published": published}
        chosen = {}
        for name, by in ways.items():
            fixed = self._candidates(by, {EMBEDDING: mix[EMBEDDING]})
            chosen[name] = allocate(self._candidates(by), goal)
            chosen[f"{name}, embedding fixed"] = allocate(fixed, goal)
        limits = {c: n for c, n in self._predicted(mix).items() if c != self.first}
        if limits:
            bounded = dataclasses.replace(goal, limits_nats=limits)
            chosen["measured, no worse"] = allocate(free, bounded)
            last = list(self.corpora)[-1]
            chosen[f"for {last}"] = allocate(free, dataclasses.replace(goal, weights={last: 1.0}))
        return chosen

    def _predicted(self, types: Mapping[str, str]) -> dict[str, float]:
        candidates = self._candidates(self.measured(self.first))
        nats = predicted(candidates, {tensor: types[tensor] for tensor in candidates})
        return {code: nats[code] for code in self.corpora}

    def compare(self, size: str) -> None:
        """Print the table of a size."""
        mix = self._mix(size)
        chosen = self.choices(size)
        paths = {MIX: mix} | {name: self._made(size, name, c) for name, c in chosen.items()}
        types = {t.name: t.type_name for t in read_header(mix).tensors}
        nats = {MIX: self._predicted(types)} | {n: c.predicted_kld_nats for n, c in chosen.items()}
        scores = self._scored(size, paths)
        print(f"\n{size}: {mix.stat().st_size:,} bytes, embedding {types[EMBEDDING]}; imatrix"
              f" {self.first}, {self.imatrices[self.first].n_tokens:,} tokens")  # fmt: skip
        for code, name in scores:
            kld, of_mix = scores[code, name], scores[code, MIX]
            self.pairs.setdefault(code, []).append((nats[name][code], kld.mean()))
            embedding = chosen[name].types[EMBEDDING] if name in chosen else types[EMBEDDING]
            more = paths[name].stat().st_size / mix.stat().st_size - 1
            difference = "" if name == MIX else kld.minus(of_mix)
            print(f"{size:8}{code:4}{name:30}{embedding:7}{more:+8.3%}"
                  f"{nats[name][code]:9.4f}{kld.mean():9.4f}  {difference}"
                  f"{f'  n {kld.sizes.sum():.0f}' if name == MIX else ''}", flush=True)  # fmt: skip

    def _made(self, size: str, name: str, choice: Choice) -> Path:
        path = self.work / f"{size}-{name.replace(', ', '-').replace(' ', '_')}.gguf"
        listed = path.with_suffix(".types.txt")
        text = programs.types_file(choice.types)
        if not path.exists() or not listed.exists() or listed.read_text() != text:
            listed.write_text(text)
            options = programs.QuantizeOptions(
                cores(), str(self.imatrices[self.first].path), types=str(listed)
            )
            program = self.tools.program("llama-quantize")
            process.run(programs.quantize_argv(program, self.model.path, path, size, options))
        actual = {t.name: t.type_name for t in read_header(path).tensors}
        assert all(actual[tensor] == kind for tensor, kind in choice.types.items())
        return path

    def _scored(self, size: str, paths: Mapping[str, Path]) -> dict[tuple[str, str], Score]:
        scores: dict[tuple[str, str], Score] = {}
        for code, corpus in self.corpora.items():
            of = {n: p for n, p in paths.items() if code == self.first or is_for_all(n)}
            request = ScoreRequest(
                str(self.model.path), tuple(map(str, of.values())), ((code, corpus.heldout),),
                self.work / f"scores-{size}", CPU, limit=self.n_documents, base_logits="live",
                document_tokens=TOKENS_FIRST if code == self.first else TOKENS_OTHERS,
            )  # fmt: skip
            files = {sha256_of_quant(path): path for path in score.score(request, self.session)}
            scores |= {(code, n): by_document(files[sha256_file(p)]) for n, p in of.items()}
        return scores

    def agreement(self) -> None:
        """Print how well predictions rank what was measured, and the worst miss."""
        print()
        for code, pairs in self.pairs.items():
            told, kld = np.array(pairs).T
            ratio = kld / told
            rank = stats.spearmanr(told, kld).statistic
            print(f"predicted against measured on {code}: Spearman {rank:.3f}, {len(kld)} files;"
                  f" measured / predicted {ratio.min():.2f} to {ratio.max():.2f}")  # fmt: skip


def published(tensor: str, _: str) -> float:
    """Return the factor of pull request 15550."""
    return PUBLISHED.get(role_of(tensor), 1.0)


def by_document(path: Path) -> Score:
    """Return the sums of a file of records."""
    table = parquet.read(path)
    kld, codes = table.array("kld"), table.words("doc_id").codes
    whole = np.isfinite(kld)
    return Score(*(np.bincount(codes[whole], w) for w in (kld[whole], np.ones(whole.sum()))))


def is_for_all(name: str) -> bool:
    """Return whether a choice is scored on all languages."""
    return not name.startswith(("one", "published"))


def sha256_of_quant(records: Path) -> str:
    """Return the sha256 of the quant that a file of records is of."""
    return str(parquet.read(records, []).signature["quant"]["sha256"])


@contextmanager
def timed(step: str) -> Iterator[None]:
    """Print how long a step takes, wall and processor time."""
    began, used = time.monotonic(), cpu_s()
    yield
    print(f"{step}: {time.monotonic() - began:.1f} s, {cpu_s() - used:.1f} s of processor time",
          flush=True)  # fmt: skip


def cpu_s() -> float:
    """Return the processor time of this process and the programs it ran."""
    usages = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


if __name__ == "__main__":
    main()
