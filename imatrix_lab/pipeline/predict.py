"""What quants of one model lose in each language, and the mixture that loses least.

Quants are made by `quantize` and removed again, or given. Only sums of each are kept, from which
every table is arithmetic: by column (`imatrix.quant_error`), or where all languages have moments,
the expected output errors in each (`imatrix.output_error`).
"""

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import need_room, sha256_file
from imatrix_lab.core.format import size
from imatrix_lab.core.names import slug
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, merge, moments, output_error, predict, quant_error
from imatrix_lab.imatrix.output_error import Basis, Language
from imatrix_lab.imatrix.predict import Losses
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.compute import compute_for
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run
from imatrix_lab.score import compatible
from imatrix_lab.types import ComputeOptions, ImatrixFacts, Model

NONE = "none"
_FIX_QUANT = "--quant NAME=FILE takes a quant of this --model, made with the imatrix of that name"


@dataclass(frozen=True)
class PredictRequest:
    """Quants of each type to make with each imatrix (`NONE` has no file); `quants` exist already.

    ``select`` is `worst`, or a weight for each language, to search for a mixture.
    """

    model: str
    imatrices: tuple[tuple[str, Path | None], ...]
    types: tuple[str, ...]
    quants: tuple[tuple[str, Path], ...]
    compute: ComputeOptions
    select: str | Mapping[str, float] | None = None


@dataclass(frozen=True)
class QuantLosses:
    """What the quant of one calibration and type loses."""

    calibration: str
    type: str
    losses: Losses


@dataclass(frozen=True)
class BestMixture:
    """The best mixture for one type, by normalized energy; predicted and then quantized with.

    The relative loss in each language is ``predicted`` by `predict.mixture_losses`, and
    ``recomputed`` from the mixture's quant. The objective is that quant's, and each language's
    own. ``command`` makes the mixture's imatrix; empty if it is of one language.
    """

    type: str
    n_candidates: int
    weights: dict[str, float]
    predicted: dict[str, float]
    recomputed: dict[str, float]
    objective: float
    pure_objective: dict[str, float]
    command: str


@dataclass(frozen=True)
class Predictions:
    """A row for each quant, the mixtures searched for, and the tensors that no row covers.

    ``basis`` counts the tensors by what they are predicted from.
    """

    rows: tuple[QuantLosses, ...]
    selections: tuple[BestMixture, ...]
    outside: tuple[str, ...]
    outside_share: float
    basis: Basis


def predict_losses(request: PredictRequest, session: Session) -> Predictions:
    """Return what each quant loses in each language that has an imatrix."""
    predictor = Predictor(request, session)
    rows = [predictor.given(name, path) for name, path in request.quants]
    given = {(r.calibration, r.type) for r in rows}
    pairs = [(name, quant_type) for quant_type in request.types for name, _ in request.imatrices]
    for name, quant_type in predictor.possible([pair for pair in pairs if pair not in given]):
        rows.append(predictor.make(name, predictor.facts[name], quant_type))
    selections = tuple(predictor.select(t, rows) for t in request.types if request.select)
    losses = rows[0].losses
    basis = predictor.basis(losses.tensors)
    return Predictions(tuple(rows), selections, *predictor.outside(losses), basis)


def _check(request: PredictRequest) -> None:
    """Raise on names that do not match, before llama.cpp is built."""
    names = [name for name, _ in request.imatrices]
    languages = {name for name, path in request.imatrices if path}
    fix = f"one of: {', '.join(names)}"
    if not languages:
        raise UsageError("no language to predict for", fix="--imatrix nb.imatrix.gguf none")
    if twice := [n for n in names if names.count(n) > 1]:
        raise UsageError(f"two imatrices are called {twice[0]}", fix="--imatrix NAME=FILE")
    for name, _ in request.quants:
        if name not in names:
            raise UsageError(f"--quant {name}=…: no imatrix is called {name}", fix=fix)
    if isinstance(request.select, Mapping) and (unknown := set(request.select) - languages):
        raise UsageError(f"--select: no imatrix is called {sorted(unknown)[0]}", fix=fix)


def columns(
    kernel: quant_error.Kernel, model: Model, quant: Model, threads: int, session: Session
) -> Artifact:
    """Return the column sums of a quant of a model, from the store or computed."""
    shas = {"model_sha256": model.sha256, "quant_sha256": quant.sha256}
    inputs = {"version": quant_error.LOSS_VERSION, **shas}

    def make(out: Path, scratch: Path) -> dict[str, Any]:
        quant_error.write(out, kernel, model, quant, threads, session.progress)
        return {"size_bytes": quant.facts.size_bytes}

    return session.store.get("loss", quant.label, inputs, make, session.progress)


class Predictor:
    """A model, the languages, and the tools to quantize and read quants."""

    def __init__(self, request: PredictRequest, session: Session):
        _check(request)
        self.paths = {name: path for name, path in request.imatrices if path}
        self.languages = {name: format.read(path) for name, path in self.paths.items()}
        for spec in (request.model, *(str(path) for _, path in request.quants)):
            resolve.check_spec(spec, session.store)
        run.check_spec(request.model, request.types)
        self.session, self.selecting = session, request.select
        self.tools: Toolchain = get_toolchain(request.compute.backend, session)
        self.model: Model = resolve.resolve_to_run(request.model, session, self.tools)
        self.facts: dict[str, ImatrixFacts | None] = {name: None for name, _ in request.imatrices}
        for name, path in self.paths.items():
            self.facts[name] = tune.existing_imatrix(path, self.model, session.progress)
        self.options = run.Options(compute_for(self.model.facts, request.compute))
        self.threads = self.options.compute.threads
        self.kernel = quant_error.kernel(self.tools, session)
        self.expecting = self._with_moments()

    def _with_moments(self) -> dict[str, Language]:
        """Return the languages with their moments; none where some language has no moments."""
        files = {name: moments.read(path) for name, path in self.paths.items()}
        both = {n: Language(self.languages[n], m) for n, m in files.items() if m}
        if both and len(both) < len(files):
            less = " and ".join(name for name, file in files.items() if not file)
            note = f"note: {' and '.join(both)} with moments, {less} without: E[x²] is used for all"
            self.session.progress.say(f"{note}; imatrix build --moments collects them")
            return {}
        for language in both.values():
            language.check(t.info for t in quant_error.tensors(self.model).values())
        return both

    def given(self, name: str, path: Path) -> QuantLosses:
        """Return what an existing quant loses."""
        quant = resolve.resolve(str(path), self.session)
        try:
            warnings = compatible.check(self.model, [quant])
        except BadModel as error:
            raise BadModel(error.what, where=error.where, fix=_FIX_QUANT) from error
        for warning in warnings:
            self.session.progress.say(f"note: {warning}")
        self._check_calibration(name, quant)
        if self.expecting:
            of = {"model_sha256": self.model.sha256, "quant_sha256": quant.sha256}
            losses = self._expected(quant.label, of, lambda scratch: quant)
        else:
            sums = columns(self.kernel, self.model, quant, self.threads, self.session)
            losses = self._losses(sums)
        return QuantLosses(name, quant.facts.file_type, losses)

    def _check_calibration(self, name: str, quant: Model) -> None:
        imatrix, facts = self.facts[name], quant.facts
        own = imatrix.sha256 if imatrix else ""
        used = facts.calibration or facts.imatrix_sha256[:12]
        if (facts.imatrix_sha256 or own) != own or bool(used) != bool(imatrix):
            origin = f"with another imatrix ({used})" if used else "without an imatrix"
            what = f"this quant was made {origin}, not {name}"
            raise BadModel(what, where=quant.path, fix=_FIX_QUANT)
        if imatrix and not facts.imatrix_sha256:
            note = f"note: {quant.label} records its calibration only as {used}"
            self.session.progress.say(f"{note}; that it is {name} was not verified")

    def make(self, name: str, imatrix: ImatrixFacts | None, quant_type: str) -> QuantLosses:
        """Return what a quant loses that is made now, and removed again."""
        progress, store = self.session.progress, self.session.store
        label = f"{self.model.label}-{slug(name)}-{quant_type}"

        def quant_in(scratch: Path) -> Model:
            path = self._stored(imatrix, quant_type) or self._quantized(
                imatrix, quant_type, scratch
            )
            return Model(label, path, (path,), "", resolve.facts((path,)), label)

        def make(out: Path, scratch: Path) -> dict[str, Any]:
            quant = quant_in(scratch)
            quant_error.write(out, self.kernel, self.model, quant, self.threads, progress)
            return {"size_bytes": quant.facts.size_bytes}

        if self.expecting:
            losses = self._expected(label, self._inputs(imatrix, quant_type), quant_in)
        else:
            inputs = self._loss_inputs(imatrix, quant_type)
            losses = self._losses(store.get("loss", label, inputs, make, progress))
        return QuantLosses(name, quant_type, losses)

    def _quantized(self, imatrix: ImatrixFacts | None, quant_type: str, scratch: Path) -> Path:
        path, part = scratch / "quant.gguf", scratch / "part.gguf"
        if not path.exists():  # else an earlier run was stopped after it
            n_bytes = run.dry_run(self.tools, self.model, quant_type, self.options)[0]
            need_room(self.session.store.root, n_bytes, f"{quant_type} of {self.model.label}")
            spec = run.QuantSpec(self.model, imatrix, quant_type, self.options)
            log = scratch / "llama-quantize.log"
            run.run_quantize(self.tools, spec, part, log, self.session.progress)
            part.replace(path)
        return path

    def _inputs(self, imatrix: ImatrixFacts | None, quant_type: str) -> dict[str, Any]:
        return {
            "model_sha256": self.model.sha256,
            "imatrix_sha256": imatrix.sha256 if imatrix else None,
            "type": quant_type,
            "toolchain": self.tools.signature(),
        }

    def _loss_inputs(self, imatrix: ImatrixFacts | None, quant_type: str) -> dict[str, Any]:
        return {"version": quant_error.LOSS_VERSION, **self._inputs(imatrix, quant_type)}

    def _stored(self, imatrix: ImatrixFacts | None, quant_type: str) -> Path | None:
        artifact = self.session.store.like("quant", self._inputs(imatrix, quant_type))
        return artifact.path / str(artifact.facts["file"]) if artifact else None

    def _losses(self, artifact: Artifact) -> Losses:
        return predict.losses(quant_error.read(artifact.path / quant_error.FILE), self.languages)

    def _expected(
        self, label: str, of: Mapping[str, Any], quant_in: Callable[[Path], Model]
    ) -> Losses:
        """Return the losses from moments; languages that are not known yet share one pass."""
        files = self._moments_files()
        shas, languages = list(files), list(files.values())

        def build(missing: Mapping[int, tuple[Path, Path]]) -> dict[int, dict[str, Any]]:
            quant = quant_in(next(iter(missing.values()))[1])
            outs = [(out, languages[i]) for i, (out, _) in missing.items()]
            progress = self.session.progress
            output_error.write(outs, self.kernel, self.model, quant, self.threads, progress)
            return {i: {"size_bytes": quant.facts.size_bytes} for i in missing}

        items = [(f"{label}-{sha[:6]}", self._expected_inputs(of, sha)) for sha in shas]
        kept = self.session.store.get_together("output-error", items, build, self.session.progress)
        errors = {
            sha: output_error.read(artifact.path / output_error.FILE)
            for sha, artifact in zip(shas, kept, strict=True)
        }
        return predict.expected_losses({n: errors[self._sha(n)] for n in self.expecting})

    def _moments_files(self) -> dict[str, Language]:
        """Return the languages by their files' sha256: each file once."""
        return {self._sha(name): language for name, language in self.expecting.items()}

    def _sha(self, name: str) -> str:
        facts = self.facts[name]
        return facts.sha256 if facts else ""

    def _expected_inputs(self, of: Mapping[str, Any], sha: str) -> dict[str, Any]:
        return {"version": output_error.VERSION, "moments_sha256": sha, **of}

    def basis(self, tensors: Sequence[str]) -> Basis:
        """Return how many tensors are predicted from what."""
        if not self.expecting:
            return Basis(squares=len(tensors))
        ours = quant_error.tensors(self.model)
        shapes = {name: ours[name].info.shape[0] for name in tensors}
        return output_error.basis(list(self.expecting.values()), shapes)

    def possible(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the (imatrix, type) pairs that llama-quantize can make; report the disk needed."""
        new = [pair for pair in pairs if not self._is_known(*pair)]
        types = dict.fromkeys(quant_type for _, quant_type in new)
        plans = {t: run.dry_run(self.tools, self.model, t, self.options) for t in types}
        refused = [(name, t) for name, t in new if not self.facts[name] and plans[t][1]]
        for name, quant_type in refused:
            self.session.progress.say(f"note: {quant_type} requires an imatrix: skipped for {name}")
        if sizes := [plans[pair[1]][0] for pair in new if pair not in refused]:
            note = f"{len(sizes)} quants are made one at a time and removed: up to"
            self.session.progress.say(f"{note} {size(max(sizes))} in {self.session.store.root}")
        return [pair for pair in pairs if pair not in refused]

    def _is_known(self, name: str, quant_type: str) -> bool:
        imatrix, store = self.facts[name], self.session.store
        if self._stored(imatrix, quant_type):
            return True
        if not self.expecting:
            return bool(store.find("loss", self._loss_inputs(imatrix, quant_type)))
        of = self._inputs(imatrix, quant_type)
        keys = [self._expected_inputs(of, sha) for sha in self._moments_files()]
        return all(store.find("output-error", key) for key in keys)

    def outside(self, losses: Losses) -> tuple[tuple[str, ...], float]:
        """Return the tensors that no prediction covers, and their share of the weights."""
        sizes = {n: t.info.n_elements for n, t in quant_error.tensors(self.model).items()}
        names = tuple(n for n in sizes if n not in losses.tensors)
        return names, sum(sizes[n] for n in names) / sum(sizes.values())

    def select(self, quant_type: str, rows: Sequence[QuantLosses]) -> BestMixture:
        """Search the mixtures of the languages, quantize with the best, and compare."""
        names = list(self.languages)
        importance = None
        if isinstance(self.selecting, Mapping):
            importance = np.array([self.selecting.get(n, 0.0) for n in names])
        own = {r.calibration: r.losses.overall() for r in rows if r.type == quant_type}
        pure = np.array([own[n] for n in names])
        candidates = predict.grid(len(names))
        predicted = predict.mixture_losses(pure, candidates)
        best = int(predict.objective(predicted, importance).argmin())
        weights = candidates[best]

        def by_name(row: Any) -> dict[str, float]:
            return {n: float(v) for n, v in zip(names, row, strict=True)}

        shares = {n: share for n, share in by_name(weights).items() if share}
        mixed = len(shares) > 1
        recomputed = self.mixture(shares, quant_type) if mixed else pure[weights.argmax()]
        return BestMixture(
            type=quant_type,
            n_candidates=len(candidates),
            weights=by_name(weights),
            predicted=by_name(predicted[best]),
            recomputed=by_name(recomputed),
            objective=float(predict.objective(recomputed, importance)),
            pure_objective=by_name(predict.objective(pure, importance)),
            command=self._merge_command(shares) if mixed else "",
        )

    def mixture(self, shares: Mapping[str, float], quant_type: str) -> Any:
        """Return the losses of a quant made with a mixture of the languages."""
        inputs = [
            merge.MergeInput(path, self.languages[name], shares[name], sha256_file(path))
            for name, path in self.paths.items()
            if name in shares
        ]
        mixed = merge.merge(inputs, merge.BY[0])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixture.imatrix.gguf"
            format.write(path, mixed)
            facts = next(f for f in self.facts.values() if f)
            facts = replace(facts, path=path, sha256=sha256_file(path), language=mixed.label)
            return self.make(mixed.label, facts, quant_type).losses.overall()

    def _merge_command(self, shares: Mapping[str, float]) -> str:
        inputs = [f"{self.paths[name]}={share!r}" for name, share in shares.items()]
        return shlex.join(["imatrix-lab", "imatrix", "merge", *inputs, "-o", "mixture.gguf"])
