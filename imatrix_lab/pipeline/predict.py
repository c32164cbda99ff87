"""What quants of one model lose in each language, and the mixture that loses least.

Quants are given, or made here and removed; the store keeps the column sums of each
(`imatrix.quant_error`), from which every table is arithmetic.
"""

import dataclasses
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imatrix_lab.core.files import need_room, sha256_file
from imatrix_lab.core.format import size
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import build as corpora
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, merge, predict, quant_error
from imatrix_lab.imatrix.predict import Losses
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.compute import compute_for
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import convert, resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run
from imatrix_lab.score import compatible
from imatrix_lab.types import ComputeOptions, ImatrixFacts, Model

NONE = "none"
_OWN_QUANTS = "--quant NAME=FILE takes a quant of this --model, made with the imatrix of that name"


@dataclass(frozen=True)
class PredictRequest:
    """What to predict.

    Attributes
    ----------
    imatrices : name and file of each; `NONE` without a file for a quant without one.
    types : quants to make for each imatrix.
    quants : name of the imatrix and file of an existing quant, which is not made again.
    select : look for the best mixture: by its `worst` language, or by weights of languages.
    """

    model: str
    imatrices: tuple[tuple[str, Path | None], ...]
    types: tuple[str, ...]
    quants: tuple[tuple[str, Path], ...]
    compute: ComputeOptions
    select: str | Mapping[str, float] | None = None


@dataclass(frozen=True)
class Row:
    """The losses of one quant."""

    calibration: str
    type: str
    losses: Losses


@dataclass(frozen=True)
class Selection:
    """The best mixture of one type, by arithmetic and after quantizing with it.

    Attributes
    ----------
    weights : of each language, by normalized energy.
    predicted, recomputed : relative loss in each language: by the approximation of
        `predict.mixture_losses`, and of the quant made with the mixture.
    objective, pure_objective : what is minimized, for the mixture and for each language alone.
    command : makes the mixture's imatrix; empty if it is of one language.
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
class Prediction:
    """Rows, the best mixtures, and the tensors that no row covers with their share of weights."""

    rows: tuple[Row, ...]
    selections: tuple[Selection, ...]
    outside: tuple[str, ...]
    outside_share: float


def predict_losses(request: PredictRequest, session: Session) -> Prediction:
    """Return what each quant loses in each language that has an imatrix.

    Raises
    ------
    UsageError : no language, two of one name, or a quant of none of them.
    BadImatrix, BadModel : a file that does not belong to the model.
    """
    predictor = Predictor(request, session)
    rows = [predictor.given(name, path) for name, path in request.quants]
    given = {(r.calibration, r.type) for r in rows}
    pairs = [(name, t) for t in request.types for name, _ in request.imatrices]
    for name, quant_type in predictor.possible([pair for pair in pairs if pair not in given]):
        rows.append(predictor.made(name, predictor.facts[name], quant_type))
    selections = tuple(predictor.select(t, rows) for t in request.types if request.select)
    return Prediction(tuple(rows), selections, *predictor.outside(rows[0].losses))


def _check(request: PredictRequest) -> None:
    """Raise on wrong names and missing files, before llama.cpp is built."""
    names = [name for name, _ in request.imatrices]
    languages = {name for name, path in request.imatrices if path}
    known = f"one of: {', '.join(names)}"
    if not languages:
        raise UsageError("no language to predict for", fix="--imatrix nb.imatrix.gguf none")
    if twice := [n for n in names if names.count(n) > 1]:
        raise UsageError(f"two imatrices are called {twice[0]}", fix="--imatrix NAME=FILE")
    for name, _ in request.quants:
        if name not in names:
            raise UsageError(f"--quant {name}=…: there is no imatrix called {name}", fix=known)
    if isinstance(request.select, Mapping) and (unknown := set(request.select) - languages):
        raise UsageError(f"--select: no imatrix is called {sorted(unknown)[0]}", fix=known)


def columns(
    kernel: quant_error.Kernel, model: Model, quant: Model, threads: int, session: Session
) -> Artifact:
    """Return the column sums of a quant of a model, computed if the store lacks them."""
    inputs = {
        "version": quant_error.LOSS_VERSION,
        "model_sha256": model.sha256,
        "quant_sha256": quant.sha256,
    }

    def make(out: Path, scratch: Path) -> dict[str, Any]:
        quant_error.write(out, kernel, model, quant, threads, session.progress)
        return {"size_bytes": quant.facts.size_bytes}

    return session.store.get("loss", quant.label, inputs, make, session.progress)


class Predictor:
    """A model, the imatrices of the languages, and the losses of quants."""

    def __init__(self, request: PredictRequest, session: Session):
        _check(request)
        self.paths = {name: path for name, path in request.imatrices if path}
        self.languages = {name: format.read(path) for name, path in self.paths.items()}
        self.session, self.objective = session, request.select
        self.tools: Toolchain = toolchain.get(request.compute.backend, session)
        converter = convert.converter(self.tools)
        self.model: Model = resolve.resolve(request.model, session, converter)
        self.facts = {
            name: tune.existing_imatrix(path, self.model, session.progress) if path else None
            for name, path in request.imatrices
        }
        self.options = run.Options(compute_for(self.model.facts, request.compute))
        self.kernel = quant_error.kernel(self.tools, session)

    def given(self, name: str, path: Path) -> Row:
        """Return the row of an existing quant."""
        quant = resolve.resolve(str(path), self.session)
        try:
            warnings = compatible.check(self.model, [quant])
        except BadModel as error:
            raise BadModel(error.what, where=error.where, fix=_OWN_QUANTS) from error
        for warning in warnings:
            self.session.progress.say(f"note: {warning}")
        self._check_calibration(name, quant)
        threads = self.options.compute.threads
        sums = columns(self.kernel, self.model, quant, threads, self.session)
        return self._row(name, quant.facts.file_type, sums)

    def _check_calibration(self, name: str, quant: Model) -> None:
        """Raise unless the quant can have been made with the imatrix of that name."""
        facts = self.facts[name]
        sha256 = facts.sha256 if facts else ""
        used = quant.facts.calibration or quant.facts.imatrix_sha256[:12]
        if (quant.facts.imatrix_sha256 or sha256) != sha256 or bool(used) != bool(facts):
            with_which = f"with another imatrix ({used})" if used else "without an imatrix"
            raise BadModel(
                f"this quant was made {with_which}, not {name}", where=quant.path, fix=_OWN_QUANTS
            )
        if facts and not quant.facts.imatrix_sha256:
            self.session.progress.say(
                f"note: {quant.label} names {used} as its imatrix; whether that is {name} was not"
                " verified"
            )

    def made(self, name: str, imatrix: ImatrixFacts | None, quant_type: str) -> Row:
        """Return the row of a quant that is made here, and removed."""
        store, progress = self.session.store, self.session.progress

        def make(out: Path, scratch: Path) -> dict[str, Any]:
            path, part = scratch / "quant.gguf", scratch / "part.gguf"
            if stored := self._stored(imatrix, quant_type):
                path = stored
            elif not path.exists():  # else an earlier run was stopped after it
                need = run.estimate(self.tools, self.model, quant_type, self.options)
                need_room(store.root, need, f"{quant_type} of {self.model.label}")
                log = scratch / "llama-quantize.log"
                run.run(
                    self.tools, self.model, imatrix, quant_type, part, {}, self.options, log,
                    progress,
                )  # fmt: skip
                part.replace(path)
            quant = Model(label, path, (path,), "", resolve.facts((path,)), label)
            threads = self.options.compute.threads
            quant_error.write(out, self.kernel, self.model, quant, threads, progress)
            return {"size_bytes": quant.facts.size_bytes}

        label = f"{self.model.label}-{corpora.slug(name)}-{quant_type}"
        sums = store.get("loss", label, self._loss_inputs(imatrix, quant_type), make, progress)
        return self._row(name, quant_type, sums)

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
        """Return a quant that the store has."""
        artifact = self.session.store.like("quant", self._inputs(imatrix, quant_type))
        return artifact.path / str(artifact.facts["file"]) if artifact else None

    def _row(self, name: str, quant_type: str, artifact: Artifact) -> Row:
        sums = quant_error.read(artifact.path / quant_error.FILE)
        return Row(name, quant_type, predict.losses(sums, self.languages))

    def possible(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the (imatrix, type) pairs that llama-quantize can make; say what they take."""
        new = [(name, t) for name, t in pairs if not self._is_stored(self.facts[name], t)]
        dry_runs = {
            t: run.dry_run(self.tools, self.model, t, self.options)
            for t in dict.fromkeys(t for _, t in new)
        }
        refused = [(name, t) for name, t in new if not self.facts[name] and dry_runs[t][1]]
        for name, quant_type in refused:
            self.session.progress.say(
                f"note: {quant_type} requires an imatrix; it is skipped for {name}"
            )
        if sizes := [dry_runs[t][0] for name, t in new if (name, t) not in refused]:
            self.session.progress.say(
                f"{len(sizes)} quants are made one at a time and removed:"
                f" up to {size(max(sizes))} in {self.session.store.root}"
            )
        return [pair for pair in pairs if pair not in refused]

    def _is_stored(self, imatrix: ImatrixFacts | None, quant_type: str) -> bool:
        """Return whether the store has a quant or its sums."""
        sums = self.session.store.find("loss", self._loss_inputs(imatrix, quant_type))
        return bool(sums or self._stored(imatrix, quant_type))

    def outside(self, losses: Losses) -> tuple[tuple[str, ...], float]:
        """Return the matrices that no prediction covers, and their share of all such weights."""
        sizes = {name: p.info.n_elements for name, p in quant_error.parts(self.model).items()}
        names = tuple(name for name in sizes if name not in losses.tensors)
        return names, sum(sizes[n] for n in names) / sum(sizes.values())

    def select(self, quant_type: str, rows: Sequence[Row]) -> Selection:
        """Search the mixtures of the languages, quantize with the best, and compare."""
        names = list(self.languages)
        importance = None
        if isinstance(self.objective, Mapping):
            importance = np.array([self.objective.get(n, 0.0) for n in names])
        own = {r.calibration: r.losses.overall() for r in rows if r.type == quant_type}
        pure = np.array([own[n] for n in names])
        candidates = predict.grid(len(names))
        predicted = predict.mixture_losses(pure, candidates)
        best = int(predict.objective(predicted, importance).argmin())
        weights = candidates[best]
        shares = {n: float(w) for n, w in zip(names, weights, strict=True) if w}
        mixed = len(shares) > 1
        recomputed = self.mixture(shares, quant_type) if mixed else pure[weights.argmax()]

        def by_name(row: Any) -> dict[str, float]:
            return {n: float(v) for n, v in zip(names, row, strict=True)}

        return Selection(
            type=quant_type,
            n_candidates=len(candidates),
            weights=by_name(weights),
            predicted=by_name(predicted[best]),
            recomputed=by_name(recomputed),
            objective=float(predict.objective(recomputed, importance)),
            pure_objective=by_name(predict.objective(pure, importance)),
            command=self.merge_command(shares) if mixed else "",
        )

    def mixture(self, shares: Mapping[str, float], quant_type: str) -> Any:
        """Return the losses of a quant made with a mixture of the languages."""
        parts = [
            merge.Part(self.paths[name], self.languages[name], share, sha256_file(self.paths[name]))
            for name, share in shares.items()
        ]
        mixed = merge.merge(parts, merge.BY[0])  # the default of `imatrix merge`
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixture.imatrix.gguf"
            format.write(path, mixed)
            some = next(f for f in self.facts.values() if f)
            facts = dataclasses.replace(
                some, path=path, sha256=sha256_file(path), language=mixed.language
            )
            return self.made(mixed.language, facts, quant_type).losses.overall()

    def merge_command(self, shares: Mapping[str, float]) -> str:
        """Return the command that writes the imatrix of `mixture`."""
        words = [f"{self.paths[name]}={share!r}" for name, share in shares.items()]
        return shlex.join(["imatrix-lab", "imatrix", "merge", *words, "-o", "mixture.gguf"])
