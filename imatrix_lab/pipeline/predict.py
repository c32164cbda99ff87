"""Quants of one model, what they would lose in each language, and the mixture that loses least.

Joins the stages: quants are made by `quantize` for the purpose and removed, or given; what is
kept of each is its column sums (`imatrix.loss`), from which every table is arithmetic.
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
from imatrix_lab.core.progress import Progress
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
_MIXED_BY = merge.BY[0]  # what the command takes unless told
_OWN_QUANTS = "--quant NAME=FILE takes a quant of this --model, made with the imatrix of that name"


@dataclass(frozen=True)
class PredictRequest:
    """What is to be predicted.

    Attributes
    ----------
    imatrices : name and file of each; `NONE` with no file for a quant without one.
    types : quants to make for each of them.
    quants : name of the calibration, and a quant that is there; made ones are left out for it.
    select : `worst`, or languages and how much each counts, to look for a mixture; None not to.
    """

    model: str
    imatrices: tuple[tuple[str, Path | None], ...]
    types: tuple[str, ...]
    quants: tuple[tuple[str, Path], ...]
    compute: ComputeOptions
    select: str | Mapping[str, float] | None = None


@dataclass(frozen=True)
class Row:
    """One quant: what it was calibrated on, its type, and what it loses."""

    calibration: str
    type: str
    losses: Losses


@dataclass(frozen=True)
class Selection:
    """The best mixture of one type, by arithmetic and after quantizing with it.

    Attributes
    ----------
    weights : of each language, by normalized energy.
    predicted, recomputed : relative loss in each language: under the approximation of
        `predict.mixture_losses`, and of the quant made with the mixture.
    objective, pure_objective : what was to be small, of the mixture's quant and of each
        language's own.
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
    """Rows, mixtures if asked for, and the weights that no row says anything about."""

    rows: tuple[Row, ...]
    selections: tuple[Selection, ...]
    outside: tuple[str, ...]
    outside_share: float


def predict_losses(request: PredictRequest, session: Session) -> Prediction:
    """Return what each quant would lose in each language that has an imatrix.

    Raises
    ------
    UsageError : no language, two of one name, or a quant of none of them.
    BadImatrix, BadModel : a file that does not belong to the model.
    """
    predictor = Predictor(request, session)
    rows = [predictor.given(name, path) for name, path in request.quants]
    there = {(r.calibration, r.type) for r in rows}
    missing = predictor.possible(
        [
            (name, kind)
            for kind in request.types
            for name, _ in request.imatrices
            if (name, kind) not in there
        ]
    )
    rows += [predictor.made(name, predictor.facts[name], kind) for name, kind in missing]
    selections = tuple(predictor.select(kind, rows) for kind in request.types if request.select)
    return Prediction(tuple(rows), selections, *predictor.outside(rows[0].losses))


def _check(request: PredictRequest) -> None:
    """Raise on names that cannot be meant, before anything is made."""
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
    kernel: quant_error.Kernel,
    model: Model,
    quant: Model,
    threads: int,
    session: Session,
) -> Artifact:
    """Return the column sums of a quant of a model, from the store or made."""
    wanted = {
        "version": quant_error.LOSS_VERSION,
        "model_sha256": model.sha256,
        "quant_sha256": quant.sha256,
    }

    def make(out: Path, scratch: Path) -> dict[str, Any]:
        return _write(out, kernel, model, quant, threads, session.progress)

    return session.store.get("loss", quant.label, wanted, make, session.progress)


def _write(
    out: Path,
    kernel: quant_error.Kernel,
    model: Model,
    quant: Model,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    quant_error.write(out, kernel, model, quant, threads, progress)
    return {"size_bytes": quant.facts.size_bytes}


class Predictor:
    """A model, the languages, and the means to quantize: rows on request."""

    def __init__(self, request: PredictRequest, session: Session):
        _check(request)
        self.store, self.progress, self.wanted = session.store, session.progress, request.select
        self.tools: Toolchain = toolchain.get(request.compute.backend, session)
        converter = convert.converter(self.tools)
        self.model: Model = resolve.resolve(request.model, session, converter)
        self.facts = {
            name: tune.existing_imatrix(path, self.model, session.progress) if path else None
            for name, path in request.imatrices
        }
        self.paths = {name: path for name, path in request.imatrices if path}
        self.languages = {name: format.read(path) for name, path in self.paths.items()}
        self.options = run.Options(compute_for(self.model.facts, request.compute))
        self.kernel = quant_error.kernel(self.tools, session)

    def given(self, name: str, path: Path) -> Row:
        """Return the row of a quant that is there."""
        quant = resolve.resolve(str(path), Session(self.store, self.progress))
        try:
            warnings = compatible.check(self.model, [quant])
        except BadModel as error:
            raise BadModel(error.what, where=error.where, fix=_OWN_QUANTS) from error
        for warning in warnings:
            self.progress.say(f"note: {warning}")
        self._check_calibration(name, quant)
        threads = self.options.compute.threads
        found = columns(self.kernel, self.model, quant, threads, Session(self.store, self.progress))
        return self._row(name, quant.facts.file_type, found)

    def _check_calibration(self, name: str, quant: Model) -> None:
        """Raise unless a quant can have been made with the imatrix of that name."""
        facts, said = self.facts[name], quant.facts
        own = facts.sha256 if facts else ""
        used = said.calibration or said.imatrix_sha256[:12]
        if (said.imatrix_sha256 or own) != own or bool(used) != bool(facts):
            made = f"made with another imatrix ({used})" if used else "made without an imatrix"
            raise BadModel(f"this quant was {made}, not {name}", where=quant.path, fix=_OWN_QUANTS)
        if facts and not said.imatrix_sha256:
            self.progress.say(
                f"note: {quant.label} says that it was made with {used}; that this is {name} was"
                " not verified"
            )

    def made(self, name: str, imatrix: ImatrixFacts | None, kind: str) -> Row:
        """Return the row of a quant made for the purpose, and removed."""

        def make(out: Path, scratch: Path) -> dict[str, Any]:
            path, part = scratch / "quant.gguf", scratch / "part.gguf"
            if stored := self._stored(imatrix, kind):
                path = stored
            elif not path.exists():  # else an earlier run was stopped after it
                need = run.estimate(self.tools, self.model, kind, self.options)
                need_room(self.store.root, need, f"{kind} of {self.model.label}")
                run.run(
                    self.tools, self.model, imatrix, kind, part, {}, self.options,
                    scratch / "llama-quantize.log", self.progress,
                )  # fmt: skip
                part.replace(path)
            quant = Model(label, path, (path,), "", resolve.facts((path,)), label)
            threads = self.options.compute.threads
            return _write(out, self.kernel, self.model, quant, threads, self.progress)

        wanted = {"version": quant_error.LOSS_VERSION, **self._inputs(imatrix, kind)}
        label = f"{self.model.label}-{corpora.slug(name)}-{kind}"
        return self._row(name, kind, self.store.get("loss", label, wanted, make, self.progress))

    def _inputs(self, imatrix: ImatrixFacts | None, kind: str) -> dict[str, Any]:
        return {
            "model_sha256": self.model.sha256,
            "imatrix_sha256": imatrix.sha256 if imatrix else None,
            "type": kind,
            "toolchain": self.tools.signature(),
        }

    def _stored(self, imatrix: ImatrixFacts | None, kind: str) -> Path | None:
        """Return a quant that the store has already."""
        found = self.store.like("quant", self._inputs(imatrix, kind))
        return found.path / str(found.facts["file"]) if found else None

    def _row(self, name: str, kind: str, artifact: Artifact) -> Row:
        return Row(
            name,
            kind,
            predict.losses(quant_error.read(artifact.path / quant_error.FILE), self.languages),
        )

    def possible(self, asked: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the quants (imatrix, type) that llama-quantize can make; say what they take."""
        new = [pair for pair in asked if not self._is_there(*pair)]
        plans = {
            kind: run.dry_run(self.tools, self.model, kind, self.options)
            for kind in dict.fromkeys(kind for _, kind in new)
        }
        refused = [(name, kind) for name, kind in new if not self.facts[name] and plans[kind][1]]
        for name, kind in refused:
            self.progress.say(f"note: {kind} takes an imatrix; it is left out for {name}")
        if made := [kind for name, kind in new if (name, kind) not in refused]:
            need = max(plans[kind][0] for kind in made)
            self.progress.say(
                f"{len(made)} quants are made one at a time and removed:"
                f" up to {need / 2**20:,.0f} MiB in {self.store.root}"
            )
        return [pair for pair in asked if pair not in refused]

    def _is_there(self, name: str, kind: str) -> bool:
        """Return whether a quant need not be made: it or its sums are in the store."""
        inputs = self._inputs(self.facts[name], kind)
        return bool(
            self.store.find("loss", {"version": quant_error.LOSS_VERSION, **inputs})
            or self._stored(self.facts[name], kind)
        )

    def outside(self, found: Losses) -> tuple[tuple[str, ...], float]:
        """Return the matrices that no prediction covers, and their share of all such weights."""
        sizes = {name: p.info.n_elements for name, p in quant_error.parts(self.model).items()}
        left = [name for name in sizes if name not in found.tensors]
        return tuple(left), sum(sizes[n] for n in left) / sum(sizes.values())

    def select(self, kind: str, rows: Sequence[Row]) -> Selection:
        """Search the mixtures of the languages, quantize with the best, and compare."""
        names = list(self.languages)
        importance = self._importance(names)
        own = {r.calibration: r.losses.overall() for r in rows if r.type == kind}
        pure = np.array([own[n] for n in names])
        candidates = predict.grid(len(names))
        expected = predict.mixture_losses(pure, candidates)
        best = int(predict.objective(expected, importance).argmin())
        weights = candidates[best]
        shares = {n: float(w) for n, w in zip(names, weights, strict=True) if w}
        found = self.mixture(shares, kind) if len(shares) > 1 else pure[weights.argmax()]

        def by_name(row: Any) -> dict[str, float]:
            return {n: float(v) for n, v in zip(names, row, strict=True)}

        return Selection(
            type=kind,
            n_candidates=len(candidates),
            weights=by_name(weights),
            predicted=by_name(expected[best]),
            recomputed=by_name(found),
            objective=float(predict.objective(found, importance)),
            pure_objective=by_name(predict.objective(pure, importance)),
            command=self.merge_command(shares) if len(shares) > 1 else "",
        )

    def _importance(self, names: Sequence[str]) -> Any:
        if not isinstance(self.wanted, Mapping):
            return None
        return np.array([self.wanted.get(n, 0.0) for n in names])

    def mixture(self, shares: Mapping[str, float], kind: str) -> Any:
        """Return the losses of a quant made with a mixture of the languages."""
        parts = [
            merge.Part(self.paths[name], self.languages[name], share, sha256_file(self.paths[name]))
            for name, share in shares.items()
        ]
        mixed = merge.merge(parts, _MIXED_BY)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mixture.imatrix.gguf"
            format.write(path, mixed)
            some = next(f for f in self.facts.values() if f)
            facts = dataclasses.replace(
                some, path=path, sha256=sha256_file(path), language=mixed.language
            )
            return self.made(mixed.language, facts, kind).losses.overall()

    def merge_command(self, shares: Mapping[str, float]) -> str:
        """Return the command that writes the same imatrix as `mixture` quantizes with."""
        words = [f"{self.paths[name]}={share!r}" for name, share in shares.items()]
        return shlex.join(["imatrix-lab", "imatrix", "merge", *words, "-o", "mixture.gguf"])
