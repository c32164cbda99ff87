"""What the steps of a study do: each one call into the package, its result as JSON values."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.files import place, sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import format, merge, predict, quant_error
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.llamacpp import compute
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import predict as forecast
from imatrix_lab.pipeline import score as evaluate
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run
from imatrix_lab.study.calibrations import POOLED_BY, Calibration, Single
from imatrix_lab.study.context import Shared
from imatrix_lab.study.graph import FILES, Turn
from imatrix_lab.study.products import MadeQuant
from imatrix_lab.study.recipe import Task
from imatrix_lab.tasks import backends
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.tasks import run as asking
from imatrix_lab.types import (
    CorpusFacts,
    ImatrixFacts,
    Model,
    QuantFacts,
    Request,
    ScoreRequest,
    TaskRequest,
    TextOptions,
)

CORPUS, IMATRIX, QUANT, PATH, LOSSES = "corpus", "imatrix", "quant", "path", "losses"
"""Keys of results."""
_LANGUAGE = "imatrix_lab.language"
Result = dict[str, Any]


@dataclass(frozen=True)
class Quant:
    """A quant that is to be made, and the steps that make its imatrix (empty without) and it."""

    calibration: Calibration
    type: str
    imatrix_step: str
    step: str


@dataclass(frozen=True)
class Text:
    """A text to score on: a step's held-out documents, or a file."""

    label: str
    step: str = ""
    path: Path | None = None


def corpus_in(result: Mapping[str, Any]) -> CorpusFacts | None:
    """Return the text that is in a result, if there is one."""
    raw = result.get(CORPUS)
    return config.build(CorpusFacts, raw, CORPUS) if raw else None


def imatrix_in(result: Mapping[str, Any]) -> ImatrixFacts:
    """Return the importance matrix that is in a result."""
    return config.build(ImatrixFacts, result[IMATRIX], IMATRIX)


def quant_in(result: Mapping[str, Any]) -> MadeQuant:
    """Return the quant that is in a result."""
    return config.build(MadeQuant, result[QUANT], QUANT)


def corpus(shared: Shared, model: Model, word: str, n_tokens: int, options: TextOptions,
           turn: Turn) -> Result:  # fmt: skip
    """Build a text."""
    request = dataclasses.replace(
        _request(shared, model, turn), text=word, n_tokens=n_tokens, corpus=options
    )
    found = tune.corpus_of(request, shared.tools, model, Session(shared.store, turn.progress))
    return {CORPUS: config.plain(found), FILES: [str(found.calibration), str(found.heldout)]}


def _request(shared: Shared, model: Model, turn: Turn) -> Request:
    """Return what all requests of the pipeline have in common."""
    return Request(
        "", (), model.origin, shared.recipe.calibration.tokens, shared.folder.path,
        shared.compute(turn.threads),
    )  # fmt: skip


def imatrix(shared: Shared, model: Model, single: Single, step: str, turn: Turn) -> Result:
    """Run a model on the text of a step."""
    text = corpus_in(turn.found[step])
    assert text is not None
    request = _request(shared, model, turn)
    found = tune.imatrix_of(
        request, shared.tools, model, text, Session(shared.store, turn.progress)
    )
    target = imatrix_path(shared, model, single.id)
    place(found.path, target)
    return _imatrix(dataclasses.replace(found, path=target), text)


def merged(
    shared: Shared, model: Model, wanted: Calibration, steps: Mapping[str, str], turn: Turn
) -> Result:
    """Merge importance matrices; `steps` names that of each single."""
    parts = []
    for single, weight in wanted.parts:
        found = imatrix_in(turn.found[steps[single.id]])
        parts.append(merge.Part(found.path, format.read(found.path), weight, found.sha256))
    mixed = merge.merge(parts, wanted.by)
    named = {**mixed.metadata, _LANGUAGE: wanted.label}
    mixed = dataclasses.replace(mixed, language=wanted.label, metadata=named)
    target = imatrix_path(shared, model, wanted.id)
    target.parent.mkdir(exist_ok=True)
    format.write(target, mixed)
    return _imatrix(tune.existing_imatrix(target, model, turn.progress), None)


def imatrix_path(shared: Shared, model: Model, name: str) -> Path:
    """Return where an importance matrix lies in the study's folder."""
    return shared.folder.of("imatrix", f"{model.label}-{name}.imatrix.gguf")


def _imatrix(found: ImatrixFacts, text: CorpusFacts | None) -> Result:
    plain = {IMATRIX: config.plain(found), FILES: [str(found.path)]}
    return plain | ({CORPUS: config.plain(text)} if text else {})


def quant(shared: Shared, model: Model, wanted: Quant, turn: Turn) -> Result:
    """Quantize; what the store has already is taken, what is made for a while is kept apart."""
    base = turn.found.get(wanted.imatrix_step, {})
    found = imatrix_in(base) if base else None
    metadata = tune.metadata_of(shared.tools, corpus_in(base), found)
    options = run.Options(compute.compute_for(model.facts, shared.compute(turn.threads)))
    inputs = run.inputs(model, found, wanted.type, None, metadata, options, shared.tools)
    any_check = {key: value for key, value in inputs.items() if key != "heldout_sha256"}
    there = shared.store.like("quant", any_check)
    if there:
        made = run.facts(there)
    else:
        store = shared.store if shared.keeps_quants else shared.work
        made = run.quantize(
            shared.tools,
            model,
            found,
            wanted.type,
            None,
            metadata,
            options,
            Session(store, turn.progress),
        )
    name = quant_label(model, wanted)
    path = made.path
    if shared.keeps_quants:
        path = shared.folder.of("quants", f"{name}.gguf")
        place(made.path, path)
    facts = _made(model, wanted, made, name)
    return {
        QUANT: config.plain(facts), PATH: str(path), FILES: [str(path)], "inputs": inputs,
    }  # fmt: skip


def quant_label(model: Model, wanted: Quant) -> str:
    """Return the name of a quant in files of records."""
    return f"{model.label}-{wanted.calibration.id}-{wanted.type}"


def _made(model: Model, wanted: Quant, made: QuantFacts, name: str) -> MadeQuant:
    return MadeQuant(
        model=model.label,
        calibration=wanted.calibration.label,
        sample=wanted.calibration.sample,
        type=wanted.type,
        label=name,
        sha256=made.sha256,
        size_bytes=made.size_bytes,
        bits_per_weight=made.bits_per_weight,
        n_fallback=len(made.fallback),
    )


def _model(result: Mapping[str, Any]) -> Model:
    """Return the quant in a result as a model."""
    made, path = quant_in(result), Path(result[PATH])
    return Model(made.label, path, (path,), made.sha256, resolve.facts((path,)), path.name)


def score(
    shared: Shared, model: Model, text: Text, quants: Sequence[Quant], teacher: str, turn: Turn
) -> Result:
    """Score the quants that are there, and not scored yet, in one pass over a text."""
    asked, said = shared.recipe.evaluation, shared.recipe
    path = text.path
    if text.step:
        corpus = corpus_in(turn.found[text.step])
        path = corpus.heldout if corpus else None
    new = [q.step for q in quants if q.step in turn.found and q.step not in turn.parts]
    request = ScoreRequest(
        reference=model.origin, quants=(), texts=((text.label, path),),
        out=shared.folder.of("scores"), protocol=asked.protocol,
        compute=shared.compute(turn.threads, asked.ctx or None),
        limit=said.evaluation.documents or None, base_logits=teacher,
    )  # fmt: skip
    found = [_model(turn.found[step]) for step in new]
    files = evaluate.score_models(
        request, shared.tools, model, found, Session(shared.store, turn.progress)
    )
    return {FILES: [*turn.before.get(FILES, ()), *map(str, files)]}


def losses(
    shared: Shared, model: Model, wanted: Quant, steps: Mapping[str, Sequence[str]], turn: Turn
) -> Result:
    """Predict what a quant loses in each language; `steps` names the samples of each."""
    kernel = quant_error.kernel(shared.tools, Session(shared.store, turn.progress))
    made = _model(turn.found[wanted.step])
    columns = forecast.columns(
        kernel, model, made, turn.threads, Session(shared.store, turn.progress)
    )
    languages = {}
    for code, samples in steps.items():
        paths = [imatrix_in(turn.found[s]).path for s in samples if s in turn.found]
        if paths:
            languages[code] = _together(paths)
    found = predict.losses(quant_error.read(columns.path / quant_error.FILE), languages)
    values = found.overall().tolist()
    return {
        LOSSES: {**turn.before.get(LOSSES, {}), **dict(zip(found.languages, values, strict=True))}
    }


def _together(paths: Sequence[Path]) -> Imatrix:
    """Return the samples of a language as one."""
    parts = [merge.Part(p, format.read(p), 1.0, sha256_file(p)) for p in paths]
    return merge.merge(parts, POOLED_BY) if len(parts) > 1 else parts[0].imatrix


def items(shared: Shared, task: Task, languages: tuple[str, ...], turn: Turn) -> Result:
    """Fetch a task's items, so that what is wrong with them is told once."""
    request = _task_request(shared, task, languages, turn)
    pairs = asking.pairs([definitions.get(task.name)], request, turn.progress)
    ready = [asking.prepare(*pair, request, turn.progress) for pair in pairs]
    return {"n_items": {one.speech.code: len(one.items) for one in ready}}


def answers(
    shared: Shared, model: Model, task: Task, languages: tuple[str, ...], step: str, turn: Turn
) -> Result:
    """Ask a quant, or without a step the original, the items of a task."""
    request = _task_request(shared, task, languages, turn)
    asked = _model(turn.found[step]) if step else model
    opener = partial(
        backends.open_local, request, shared.tools, asked, Session(shared.store, turn.progress)
    )
    files = asking.run(request, [opener], turn.progress)
    return {FILES: [str(file) for file in files]}


def _task_request(
    shared: Shared, task: Task, languages: tuple[str, ...], turn: Turn
) -> TaskRequest:
    return TaskRequest(
        tasks=(task.name,), languages=languages, quants=(), out=shared.folder.of("items"),
        compute=shared.compute(turn.threads), data=Path(task.data) if task.data else None,
        limit=task.limit or None, variant=task.variant or None, keep_text=True,
    )  # fmt: skip


def tidy(shared: Shared, quants: Sequence[Quant], turn: Turn) -> Result:
    """Remove quants that were made for the study alone."""
    for one in quants:
        if one.step in turn.found:
            shared.work.drop("quant", turn.found[one.step]["inputs"], turn.progress)
    return {}
