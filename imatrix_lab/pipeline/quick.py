"""The quick answer: the tuned file scored beside one without and one with an English imatrix.

A file whose types were chosen for a size is scored beside the standard type nearest in size, with
the same imatrix; in English too.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.compare.compare import compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core import config
from imatrix_lab.core.files import need_room
from imatrix_lab.core.names import slug
from imatrix_lab.core.progress import Meter, Progress, Relay
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import documents, languages, packing
from imatrix_lab.errors import BadImatrix, BadText, FetchFailed, ImatrixLabError, MissingTool
from imatrix_lab.imatrix import collect
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain, cores
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import deliver, score, tune
from imatrix_lab.pipeline.allocate import Chosen
from imatrix_lab.pipeline.quick_answer import Answer, Predicted, Rival, as_json
from imatrix_lab.pipeline.tune import Result
from imatrix_lab.quantize import run
from imatrix_lab.records import runs
from imatrix_lab.score.job import METRICS_VERSION
from imatrix_lab.stats.comparison import Comparison
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request, ScoreRequest

QUICK_VERSION = 1
"""Raise it when the same files give another answer. 1: first answers."""
MINUTES_MAX = 10.0
"""Without --quick, no answer that takes longer."""
ENGLISH = "en"
ENGLISH_TOKENS = 8_192
"""Of the English imatrix: with it and the rest, under three minutes on the demo model."""
DOCUMENTS, TOKENS = 12, 2_304
"""At most so many documents, and tokens in all: of each the same number, from its start."""
WEIGHT_TOKENS_PER_S = 2e10
"""Of a core, on CPU: weights x tokens a second (measured: the demo model, 146 tokens/s on 2)."""
_OTHER = {"better": "worse", "worse": "better"}


class Watch(Relay):
    """Progress that measures how fast tokens are processed.

    `tokens_per_s`: of the last step counted in tokens; NaN before one.
    """

    def __init__(self, inner: Progress):
        super().__init__(inner)
        self.tokens_per_s = math.nan

    def finished(self, meter: Meter) -> None:
        """Keep the speed of a step counted in tokens."""
        if meter.unit == "tokens" and meter.done > meter.base:
            self.tokens_per_s = (meter.done - meter.base) / max(meter.elapsed_s(), 1e-3)


def answer(request: Request, result: Result, store: Store, watch: Watch) -> Answer | None:
    """Compare the first quant type with its rivals; the answer goes into manifest and card too.

    Returns: None if it was declined or would take long, or if it fails without having been asked
        for.

    Raises ImatrixLabError: it was asked for and fails.
    """
    if request.quick is False:
        return None
    try:
        answer = _answer(request, result, Session(store, watch), watch.tokens_per_s)
    except ImatrixLabError as error:
        if request.quick:
            raise
        watch.say(f"note: no quick answer: {error}")
        return None
    if answer:
        deliver.add(request.out, result.files[0].name, {"quick": as_json(answer)})
    return answer


def _answer(
    request: Request, result: Result, session: Session, tokens_per_s: float
) -> Answer | None:
    case = case_of(request, result, session)
    inputs = case.inputs()
    if not session.store.find("quick", inputs):
        case.require_comparable()
        minutes = case.seconds(tokens_per_s) / 60
        if minutes > MINUTES_MAX and not request.quick:
            session.progress.say(
                f"note: no quick answer, it would take about {minutes:.0f} min; QUICK=1"
                " (imatrix-lab tune --quick) makes it anyway"
            )
            return None
        session.progress.say(
            f"quick answer: {case.others()}, scored beside this file; about"
            f" {math.ceil(minutes)} min"
        )
    label = f"{result.model.label}-{case.corpus.language}-{slug(case.quant.type)}"
    artifact = session.store.get(
        "quick", label, inputs, lambda _, scratch: case.make(scratch, session), session.progress
    )
    return config.build(Answer, artifact.facts, label)


def case_of(request: Request, result: Result, session: Session) -> "Case":
    """Return the case of a run's first file; English text is built if need be."""
    model, corpus, imatrix = result.model, result.corpus, result.imatrix
    assert corpus and imatrix  # `tune` has both
    tools = get_toolchain(request.compute.backend, session)
    english = None
    if corpus.language != ENGLISH:
        n_tokens = min(request.n_tokens, ENGLISH_TOKENS)
        english_request = dataclasses.replace(request, text=ENGLISH, n_tokens=n_tokens)
        try:
            english = tune.corpus_of(english_request, tools, model, session)
        except (FetchFailed, MissingTool, BadText) as error:
            session.progress.say(f"note: quick answer without English: {error.what}")
    # the others have neither
    request = dataclasses.replace(request, moments=False, awq=False, feedback=False)
    quant = result.quants[0]
    if chosen := result.chosen.get(quant.type):
        return SizeCase(request, model, corpus, imatrix, quant, tools, english, chosen)
    return Case(request, model, corpus, imatrix, quant, tools, english)


@dataclass(frozen=True)
class Case:
    """A tuned file, and text for an English imatrix to compare with; None goes without."""

    request: Request
    model: Model
    corpus: CorpusFacts
    imatrix: ImatrixFacts
    quant: QuantFacts
    tools: Toolchain
    english: CorpusFacts | None

    def others(self) -> str:
        """Return what is compared with the file, in words."""
        return f"{self.quant.type} without and with an English imatrix"

    def inputs(self) -> dict[str, Any]:
        """Return what determines the answer."""
        english = None
        if self.english:
            options = tune.imatrix_options(self.request, self.model, self.english)
            english = collect.inputs(self.model, self.english, options, self.tools)
        return {
            "quick_version": QUICK_VERSION,
            "metrics_version": METRICS_VERSION,
            "quant_sha256": self.quant.sha256,
            "model_sha256": self.model.sha256,
            "heldout_sha256": self.corpus.heldout_sha256,
            "limits": [DOCUMENTS, TOKENS],
            "english": english,
            "toolchain": self.tools.signature(),
        }

    def require_comparable(self) -> None:
        """Raise `BadText` with one held-out document, or nothing to compare with."""
        if self.corpus.n_heldout < 2:
            raise BadText(
                "only one held-out document, and intervals are over documents",
                where=self.corpus.heldout,
            )
        if not self.english and self._requires_imatrix():
            raise BadText(f"nothing to compare with: {self.quant.type} needs an imatrix")

    def seconds(self, tokens_per_s: float) -> float:
        """Return about how long it takes; at a usual rate where none was measured."""
        if not tokens_per_s > 0:
            tokens_per_s = WEIGHT_TOKENS_PER_S * cores() / self.model.facts.n_parameters
        n_models = 3 + (self.english is not None)
        n_tokens = n_models * TOKENS + (self.english.n_tokens if self.english else 0)
        return n_tokens / tokens_per_s + (n_models - 2) * (self.quant.seconds or 0.0)

    def make(self, scratch: Path, session: Session) -> Mapping[str, Any]:
        """Make the other files, score all, and compare; a stopped run goes on in `scratch`."""
        heldout = scratch / "heldout.jsonl"
        document_tokens = self._write_documents(self.corpus, heldout)
        others = self._others(scratch, session)
        paths = [self.quant.path, *(path for path, _ in others.values())]
        out = self._score(scratch, paths, {self.corpus.language: heldout}, session)
        label = resolve.facts((self.quant.path,)).calibration
        plan = ComparisonPlan(family=("calib",), baseline=label, any_size=True)
        report = compare_runs([out], plan, ("kld_nats",), session.progress)
        for gap in report.size_gaps:
            session.progress.say(f"note: not of one size: {gap.words()}")
        signatures = {s["quant"]["calibration"]: s for s in report.signatures.values()}
        first, own = report.comparisons[0], signatures[label]
        by_name = {
            c.question.a.removesuffix(f" {own['quant']['type']}"): c for c in report.comparisons
        }
        answer = Answer(
            type=self.quant.type,
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
            signature={k: v for k, v in own.items() if k not in ("kind", "quant")},
        )
        return dict(config.plain(answer))

    def _score(
        self, scratch: Path, quants: Sequence[Path], texts: Mapping[str, Path], session: Session
    ) -> Path:
        """Score files on texts by label; return the folder of records."""
        out = scratch / "scores"
        shutil.rmtree(out, ignore_errors=True)
        request = ScoreRequest(
            str(self.model.path),
            tuple(map(str, quants)),
            tuple((slug(label), path) for label, path in texts.items()),
            out,
            dataclasses.replace(self.request.compute, n_ctx=None, n_batch=None),
        )
        score.score(request, session)
        return out

    def _write_documents(self, corpus: CorpusFacts, path: Path) -> int:
        """Write the documents to be scored; return how many tokens each may have."""
        heldout = documents.read(corpus.heldout)
        n = min(DOCUMENTS, len(heldout))
        n_tokens = TOKENS // n
        spread = [heldout[i * len(heldout) // n] for i in range(n)]
        with Vocabulary(self.tools, self.model.path) as vocabulary:
            starts = packing.starts(spread, n_tokens, vocabulary.count)
        path.write_bytes("".join(map(documents.line, starts)).encode())
        return n_tokens

    def _others(
        self, scratch: Path, session: Session
    ) -> dict[str, tuple[Path, ImatrixFacts | None]]:
        """Return the other files and their imatrices, by the language of these."""
        imatrices: dict[str, ImatrixFacts | None] = {} if self._requires_imatrix() else {"": None}
        if self.english:
            try:
                imatrices[ENGLISH] = tune.imatrix_of(
                    self.request, self.tools, self.model, self.english, session
                )
            except BadImatrix as error:
                session.progress.say(f"note: quick answer without English: {error.what}")
        return {
            language: (self._quantized(scratch, imatrix, session.progress), imatrix)
            for language, imatrix in imatrices.items()
        }

    def _type(self) -> str:
        """Return the standard type that the others have."""
        return self.quant.type

    def _requires_imatrix(self) -> bool:
        options = tune.quant_options(self.request, self.model)
        return run.dry_run(self.tools, self.model, self._type(), options)[1]

    def _quantized(self, scratch: Path, imatrix: ImatrixFacts | None, progress: Progress) -> Path:
        """Return the same type with another imatrix; scoring it is its check."""
        target = scratch / f"{imatrix.language if imatrix else 'none'}.gguf"
        if not target.exists():
            need_room(target, self.quant.size_bytes, f"{self.quant.type} for the quick answer")
            part = scratch / "part.gguf"
            english = self.english if imatrix else None
            metadata = tune.metadata_of(self.tools, self.model, english, imatrix)
            options = tune.quant_options(self.request, self.model)
            spec = run.QuantSpec(self.model, imatrix, self._type(), options, metadata)
            run.run_quantize(self.tools, spec, part, scratch / "llama-quantize.log", progress)
            part.replace(target)
        return target


@dataclass(frozen=True)
class SizeCase(Case):
    """A file of chosen types, and the standard type nearest in size, with the same imatrix."""

    chosen: Chosen

    def others(self) -> str:
        """Return what is compared with the file, in words."""
        return f"{self._type()} with the same imatrix"

    def _type(self) -> str:
        return self.chosen.standard

    def inputs(self) -> dict[str, Any]:
        """Return what determines the answer."""
        english = self.english.heldout_sha256 if self.english else None
        known = config.plain([self.chosen.predicted_kld_nats, self.chosen.standard_kld_nats])
        return {**super().inputs(), "english": english, "standard": self._type(), "known": known}

    def require_comparable(self) -> None:
        """Raise `BadText` with one held-out document."""
        if self.corpus.n_heldout < 2:
            what = "only one held-out document, and intervals are over documents"
            raise BadText(what, where=self.corpus.heldout)

    def seconds(self, tokens_per_s: float) -> float:
        """Return about how long it takes; at a usual rate where none was measured."""
        if not tokens_per_s > 0:
            tokens_per_s = WEIGHT_TOKENS_PER_S * cores() / self.model.facts.n_parameters
        n_texts = 1 + (self.english is not None)
        return 3 * n_texts * TOKENS / tokens_per_s + (self.quant.seconds or 0.0)

    def make(self, scratch: Path, session: Session) -> Mapping[str, Any]:
        """Make the standard file, score both, and compare; a stopped run goes on in `scratch`."""
        corpora = {slug(c.language): c for c in (self.corpus, self.english) if c}
        texts = {label: scratch / f"heldout-{i}.jsonl" for i, label in enumerate(corpora)}
        n_tokens = {x: self._write_documents(corpora[x], path) for x, path in texts.items()}
        standard = self._quantized(scratch, self.imatrix, session.progress)
        out = self._score(scratch, [self.quant.path, standard], texts, session)
        report = compare_runs([out], ComparisonPlan(any_size=True), ("kld_nats",), session.progress)
        signed = {
            (s["text"]["label"], s["quant"]["sha256"] == self.quant.sha256): s
            for s in report.signatures.values()
        }
        compared = {c.question.text: c for c in report.comparisons}
        label = slug(self.corpus.language)
        own, first = signed[label, True], compared[label]
        rivals = []
        for text, c in compared.items():
            is_own_first = c.question.a.endswith(self.quant.type)
            rival = _rival(self.imatrix, signed[text, False], _reversed(c) if is_own_first else c)
            named = "" if text == label else corpora[text].language_name
            rivals.append(dataclasses.replace(rival, type=self._type(), text=named))
        answer = Answer(
            type=self.quant.type,
            language=self.imatrix.language,
            language_name=self.corpus.language_name,
            imatrix_tokens=self.imatrix.n_tokens,
            n_documents=first.n_clusters,
            document_tokens=n_tokens[label],
            n_tokens=first.n,
            kld_nats=next(r.kld_nats + r.difference_nats for r in rivals if not r.text),
            rivals=tuple(sorted(rivals, key=lambda r: bool(r.text))),
            signature={k: v for k, v in own.items() if k not in ("kind", "quant")},
            larger=self.chosen.standard_size_bytes / self.quant.size_bytes - 1,
            predicted=tuple(
                Predicted(languages.get(x).name, nats, self.chosen.standard_kld_nats[x])
                for x, nats in self.chosen.predicted_kld_nats.items()
                if slug(x) not in texts and languages.is_name(x)
            ),
        )
        return dict(config.plain(answer))


def _reversed(c: Comparison) -> Comparison:
    """Return a comparison as B with A."""
    return dataclasses.replace(
        c, mean_a=c.mean_b, mean_b=c.mean_a, estimate=-c.estimate, low=-c.high, high=-c.low
    )


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
