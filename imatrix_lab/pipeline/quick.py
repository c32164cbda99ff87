"""What the small answer compares: the files made for it, their scores, and its cost."""

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.compare import compare
from imatrix_lab.compare.design import Plan
from imatrix_lab.core import config
from imatrix_lab.core.files import need_room
from imatrix_lab.core.progress import Progress, Task
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import build as corpora
from imatrix_lab.corpus import documents, packing
from imatrix_lab.errors import BadImatrix, BadText, FetchFailed, ImatrixLabError, MissingTool
from imatrix_lab.imatrix import collect
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import deliver, score, tune
from imatrix_lab.pipeline.quick_answer import Answer, Rival, as_json
from imatrix_lab.pipeline.tune import Result
from imatrix_lab.quantize import run
from imatrix_lab.records import runs
from imatrix_lab.score.job import METRICS_VERSION
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, Request, ScoreRequest

MINUTES_MAX = 10.0
"""What would take longer is made only when asked for."""


class Watch:
    """A `Progress` that passes all on, and knows how fast tokens went through the model.

    Attributes
    ----------
    tokens_per_s : of the last long step; NaN before one.
    """

    def __init__(self, inner: Progress):
        self._inner, self.tokens_per_s = inner, math.nan

    def say(self, message: str) -> None:
        """Pass it on."""
        self._inner.say(message)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        """Pass it on; time it, if it is about tokens."""
        began = time.monotonic()
        with self._inner.task(name, total, unit) as task:
            timed = _Timed(task)
            yield timed
        if unit == "tokens" and timed.done > timed.base:
            self.tokens_per_s = (timed.done - timed.base) / max(time.monotonic() - began, 1e-3)


class _Timed:
    """A task that knows how much was done here, and not by an earlier run."""

    def __init__(self, inner: Task):
        self._inner = inner
        self.base = self.done = 0.0
        self._fresh = True

    def update(self, done: float, note: str = "") -> None:
        self._inner.update(done, note)
        if self._fresh and note:
            self.base = done
        self.done, self._fresh = done, False


def answer(request: Request, made: Result, store: Store, watch: Watch) -> Answer | None:
    """Return what tuning bought the first type that was asked for; into manifest and card too.

    None where it was not wanted, would take long, or, unless asked for, cannot be had: the files
    are there all the same.

    Raises
    ------
    ImatrixLabError : it was asked for, and cannot be had.
    """
    if request.quick is False:
        return None
    try:
        found = _answer(request, made, store, watch)
    except ImatrixLabError as error:
        if request.quick:
            raise
        watch.say(f"note: no quick answer: {error}")
        return None
    if found:
        deliver.add(request.out, made.files[0].name, {"quick": as_json(found)})
    return found


def _answer(request: Request, made: Result, store: Store, watch: Watch) -> Answer | None:
    tools = toolchain.get(request.compute.backend, Session(store, watch))
    model, corpus = made.model, made.corpus
    assert corpus is not None  # of what `tune` made
    other = english(request, tools, model, corpus, Session(store, watch))
    case = Case(request, made, tools, other)
    wanted = inputs(request, tools, model, corpus, made.quants[0].sha256, other)
    if not store.find("quick", wanted):
        case.demand_possible()
        minutes = case.seconds(watch.tokens_per_s) / 60
        if minutes > MINUTES_MAX and not request.quick:
            watch.say(
                f"note: what tuning bought would take about {minutes:.0f} min to find out; QUICK=1"
                " (imatrix-lab tune --quick) does it all the same"
            )
            return None
        watch.say(
            f"what tuning bought: other files of type {case.type} are made and scored beside this"
            f" one; about {math.ceil(minutes)} min"
        )
    label = f"{model.label}-{corpus.language}-{case.type}"
    facts = store.get(
        "quick", label, wanted, lambda _, scratch: case.make(scratch, Session(store, watch)), watch
    ).facts
    return config.build(Answer, facts, label)


QUICK_VERSION = 1
"""Raise it when the same files give another answer. 1: first answers."""

ENGLISH = "en"
ENGLISH_TOKENS = 8_192
"""Of the English imatrix: with it and the rest, under three minutes on the demo model."""
DOCUMENTS, TOKENS = 12, 2_304
"""At most so many documents, and tokens in all: of each the same number, from its start."""
WEIGHT_TOKENS_PER_S = 2e10
"""Of a core, on CPU: weights x tokens a second (measured: the demo model, 146 tokens/s on 2)."""
_OTHER = {"better": "worse", "worse": "better"}


def english(
    request: Request,
    tools: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    session: Session,
) -> CorpusFacts | None:
    """Return text for an English imatrix; None if the tuned file's is English, or there is none."""
    if corpus.language == ENGLISH:
        return None
    n_tokens = min(request.n_tokens, ENGLISH_TOKENS)
    asked = dataclasses.replace(request, text=ENGLISH, n_tokens=n_tokens)
    try:
        return tune.corpus_of(asked, tools, model, session)
    except (FetchFailed, MissingTool, BadText) as error:
        session.progress.say(f"note: the quick answer goes without English: {error.what}")
        return None


def inputs(
    request: Request,
    tools: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    quant_sha256: str,
    english_text: CorpusFacts | None,
) -> dict[str, Any]:
    """Return what determines the answer for a quant."""
    other = None
    if english_text:
        options = tune.imatrix_options(request, model, english_text)
        other = collect.inputs(model, english_text, options, tools)
    return {
        "quick_version": QUICK_VERSION,
        "metrics_version": METRICS_VERSION,
        "quant_sha256": quant_sha256,
        "model_sha256": model.sha256,
        "heldout_sha256": corpus.heldout_sha256,
        "limits": [DOCUMENTS, TOKENS],
        "english": other,
        "toolchain": tools.signature(),
    }


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes
    ----------
    english : text of the English imatrix; None goes without.
    """

    request: Request
    made: Result
    tools: Toolchain
    english: CorpusFacts | None

    @property
    def type(self) -> str:
        """Quant type of the first file made."""
        return self.made.quants[0].type

    @property
    def corpus(self) -> CorpusFacts:
        """What it was tuned on."""
        assert self.made.corpus is not None  # of what `tune` made
        return self.made.corpus

    @property
    def imatrix(self) -> ImatrixFacts:
        """Its imatrix."""
        assert self.made.imatrix is not None
        return self.made.imatrix

    @property
    def options(self) -> run.Options:
        """How it was quantized."""
        return tune.quant_options(self.request, self.made.model)

    def demand_possible(self) -> None:
        """Refuse what no effort would answer.

        Raises
        ------
        BadText : one document held out, or no other imatrix to compare with.
        """
        if self.corpus.n_heldout < 2:
            raise BadText(
                "the held-out text is one document, and intervals are over documents",
                where=self.corpus.heldout,
            )
        if not self.english and self._wants_imatrix():
            raise BadText(f"nothing to compare with: {self.type} needs an imatrix")

    def seconds(self, tokens_per_s: float) -> float:
        """Return about how long it would take; at a usual rate where none was measured."""
        if not tokens_per_s > 0:
            tokens_per_s = WEIGHT_TOKENS_PER_S * cores() / self.made.model.facts.n_parameters
        n_models = 3 + (self.english is not None)
        n_tokens = n_models * TOKENS + (self.english.n_tokens if self.english else 0)
        return n_tokens / tokens_per_s + (n_models - 2) * (self.made.quants[0].seconds or 0.0)

    def make(self, scratch: Path, session: Session) -> Mapping[str, Any]:
        """Make the other files, score all, compare; `scratch` is resumed from."""
        heldout = scratch / "heldout.jsonl"
        document_tokens = self._documents(heldout)
        others = self._others(scratch, session)
        paths = [self.made.quants[0].path, *(path for path, _ in others.values())]
        out = scratch / "scores"
        shutil.rmtree(out, ignore_errors=True)
        asked = ScoreRequest(
            str(self.made.model.path), tuple(map(str, paths)),
            ((corpora.slug(self.corpus.language), heldout),), out,
            dataclasses.replace(self.request.compute, n_ctx=None, n_batch=None),
        )  # fmt: skip
        score.score(asked, session)
        plan = Plan(family=("calib",), baseline=self.imatrix.language)
        report = compare.compare([out], plan, ("kld_nats",), session.progress)
        signatures = {s["quant"]["calibration"]: s for s in report.signatures.values()}
        first, mine = report.comparisons[0], signatures[self.imatrix.language]
        kind = f" {mine['quant']['type']}"
        by_name = {c.question.a.removesuffix(kind): c for c in report.comparisons}
        found = Answer(
            type=self.type,
            language=self.imatrix.language,
            language_name=self.corpus.language_name,
            imatrix_tokens=self.imatrix.n_tokens,
            n_documents=first.n_clusters,
            document_tokens=document_tokens,
            n_tokens=first.n,
            kld_nats=first.mean_b,
            rivals=tuple(
                _rival(imatrix, signatures[language], by_name[language or runs.NO_IMATRIX])
                for language, (_, imatrix) in others.items()
            ),
            signature={k: v for k, v in mine.items() if k not in ("kind", "quant")},
        )
        return dict(config.plain(found))

    def _documents(self, path: Path) -> int:
        """Write the documents to be scored, and return how many tokens each may have."""
        every = documents.read(self.corpus.heldout)
        n = min(DOCUMENTS, len(every))
        n_tokens = TOKENS // n
        with Vocabulary(self.tools, self.made.model.path) as vocabulary:
            spread = [every[i * len(every) // n] for i in range(n)]
            cut = [
                dataclasses.replace(
                    d, text=packing.within_budget([d], n_tokens, vocabulary.count)[0]
                )
                for d in spread
            ]
        path.write_bytes("".join(map(documents.line, cut)).encode())
        return n_tokens

    def _others(
        self, scratch: Path, session: Session
    ) -> dict[str, tuple[Path, ImatrixFacts | None]]:
        """Return the other files and their imatrices, by the language of these."""
        imatrices: dict[str, ImatrixFacts | None] = {} if self._wants_imatrix() else {"": None}
        if self.english:
            try:
                imatrices[ENGLISH] = tune.imatrix_of(
                    self.request, self.tools, self.made.model, self.english, session
                )
            except BadImatrix as error:
                session.progress.say(f"note: the quick answer goes without English: {error.what}")
        return {
            language: (self._quantized(scratch, imatrix, session.progress), imatrix)
            for language, imatrix in imatrices.items()
        }

    def _wants_imatrix(self) -> bool:
        """Whether llama-quantize does not make this type without an imatrix."""
        return run.dry_run(
            self.tools,
            self.made.model,
            self.type,
            self.options,
        )[1]

    def _quantized(self, scratch: Path, imatrix: ImatrixFacts | None, progress: Progress) -> Path:
        """Return the same type with another imatrix; scoring it is its check."""
        target = scratch / f"{imatrix.language if imatrix else 'none'}.gguf"
        if not target.exists():
            need_room(target, self.made.quants[0].size_bytes, f"{self.type} for the quick answer")
            part = scratch / "part.gguf"
            corpus = self.english if imatrix else None
            run.run(
                self.tools, self.made.model, imatrix, self.type, part,
                tune.metadata_of(self.tools, corpus, imatrix), self.options,
                scratch / "llama-quantize.log", progress,
            )  # fmt: skip
            part.replace(target)
        return target


def _rival(imatrix: ImatrixFacts | None, signature: Mapping[str, Any], c: Comparison) -> Rival:
    verdict = c.verdict()
    return Rival(
        language=imatrix.language if imatrix else "",
        imatrix_tokens=imatrix.n_tokens if imatrix else 0,
        imatrix_sha256=imatrix.sha256 if imatrix else "",
        sha256=signature["quant"]["sha256"],
        kld_nats=c.mean_a,
        difference_nats=-c.estimate,
        std_error=c.std_error,
        ci95_low=-c.high,
        ci95_high=-c.low,
        p_holm=c.p_holm,
        method=c.method,
        verdict=_OTHER.get(verdict, verdict),
    )
