"""What the steps of a study do: each one call into the package, its result as JSON values."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.files import place, sha256_file
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import collect, format, merge, quant_error
from imatrix_lab.imatrix.predict import losses
from imatrix_lab.llamacpp import compute, size_types
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import allocate, tune
from imatrix_lab.pipeline.predict import columns
from imatrix_lab.pipeline.score import score_models
from imatrix_lab.quantize import probes, run, sensitivity
from imatrix_lab.report.results import Quant
from imatrix_lab.study.calibrations import POOLED_BY, Calibration
from imatrix_lab.study.context import Shared
from imatrix_lab.study.graph import FILES, Turn
from imatrix_lab.study.kinds import QUANTIZERS, Kind
from imatrix_lab.study.recipe import Task
from imatrix_lab.tasks import backends, definition
from imatrix_lab.tasks.run import pairs, prepare
from imatrix_lab.tasks.run import run as run_task
from imatrix_lab.types import (
    CorpusFacts,
    ImatrixFacts,
    Model,
    Part,
    ScoreRequest,
    TaskRequest,
    TextOptions,
)

CORPUS, IMATRIX, QUANT, PATH, TYPES = "corpus", "imatrix", "quant", "path", "types"  # in results
LOSSES, KLDS, PROBES = "losses", "klds_nats", "probes"
Result = dict[str, Any]


@dataclass(frozen=True)
class PlannedQuant:
    """A quant to be made, and the steps that make its imatrix (empty without) and itself.

    `texts`: the steps that make the imatrices of what its types are chosen for, with weights.
    """

    calibration: Calibration
    kind: Kind
    imatrix_step: str
    step: str
    texts: Mapping[str, tuple[str, float]] = field(default_factory=dict)


Quants = Sequence[PlannedQuant]
Samples = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ScoredText:
    """A text to score on: a step's held-out documents, or a file."""

    label: str
    step: str = ""
    path: Path | None = None


def corpus_in(result: Mapping[str, Any]) -> CorpusFacts | None:
    """Return the text in a step's result, if there is one."""
    raw = result.get(CORPUS)
    return config.build(CorpusFacts, raw, CORPUS) if raw else None


def imatrix_in(result: Mapping[str, Any]) -> ImatrixFacts:
    """Return the importance matrix in a step's result."""
    return config.build(ImatrixFacts, result[IMATRIX], IMATRIX)


def quant_in(result: Mapping[str, Any]) -> Quant:
    """Return the quant in a step's result."""
    return config.build(Quant, result[QUANT], QUANT)


def corpus(
    shared: Shared, model: Model, text: str, n_tokens: int, options: TextOptions, turn: Turn
) -> Result:
    """Build a text."""
    request = shared.request(model, turn.threads)
    request = dataclasses.replace(request, text=text, n_tokens=n_tokens, corpus=options)
    facts = tune.corpus_of(request, shared.tools, model, shared.session(turn.progress))
    return {CORPUS: config.plain(facts), FILES: [str(facts.calibration), str(facts.heldout)]}


def imatrix(
    shared: Shared,
    model: Model,
    planned: Calibration,
    step: str,
    turn: Turn,
    part: Part | None = None,
) -> Result:
    """Run a model on the text of a step, or on some shards of it."""
    text, session = corpus_in(turn.results[step]), shared.session(turn.progress)
    assert text is not None
    request = shared.request(model, turn.threads)
    if part:
        options = tune.imatrix_options(request, model, text)
        collect.collect_shards(shared.tools, model, text, options, part, session)
        return {}
    facts = tune.imatrix_of(request, shared.tools, model, text, session)
    path = imatrix_path(shared, model, planned)
    place(facts.path, path)
    return _imatrix(dataclasses.replace(facts, path=path)) | {CORPUS: config.plain(text)}


def merged(
    shared: Shared, model: Model, planned: Calibration, steps: Mapping[str, str], turn: Turn
) -> Result:
    """Merge importance matrices; `steps` names that of each part."""
    parts = []
    for part, weight in planned.parts:
        facts = imatrix_in(turn.results[steps[part.id]])
        parts.append(merge.MergeInput(facts.path, format.read(facts.path), weight, facts.sha256))
    mixed = merge.merge(parts, planned.by)
    metadata = format.unnamed(mixed.metadata) | format.named(planned.label)
    path = imatrix_path(shared, model, planned)
    path.parent.mkdir(exist_ok=True)
    format.write(path, dataclasses.replace(mixed, metadata=metadata))
    return _imatrix(tune.existing_imatrix(path, model, turn.progress))


def imatrix_path(shared: Shared, model: Model, planned: Calibration) -> Path:
    """Return where an importance matrix lies in the study's folder."""
    return shared.folder.of("imatrix", f"{model.label}-{planned.id}.imatrix.gguf")


def _imatrix(facts: ImatrixFacts) -> Result:
    return {IMATRIX: config.plain(facts), FILES: [str(facts.path)]}


def _case(shared: Shared, model: Model, planned: PlannedQuant, turn: Turn) -> allocate.Case:
    """Return what types are chosen with; its files have no metadata yet."""
    texts = {}
    for label, (step, _) in planned.texts.items():
        text = corpus_in(turn.results[step])
        assert text is not None
        texts[label] = text, imatrix_in(turn.results[step])
    return allocate.Case(
        shared.request(model, turn.threads),
        shared.tools,
        model,
        _matrix(planned, turn),
        texts,
        {label: weight for label, (_, weight) in planned.texts.items()},
        {},
        shared.session(turn.progress),
    )


def _matrix(planned: PlannedQuant, turn: Turn) -> ImatrixFacts | None:
    return imatrix_in(turn.results[planned.imatrix_step]) if planned.imatrix_step else None


def errors(shared: Shared, model: Model, planned: PlannedQuant, turn: Turn) -> Result:
    """Measure the errors of all types with an imatrix; the store keeps them."""
    return {"n_tensors": len(_case(shared, model, planned, turn).every_type)}


def measure(
    shared: Shared,
    model: Model,
    planned: Calibration,
    step: str,
    turn: Turn,
    part: Part | None = None,
) -> Result:
    """Measure what the text of an imatrix's step suffers from, or a part of the groups."""
    text, matrix = corpus_in(turn.results[step]), imatrix_in(turn.results[step])
    assert text is not None
    options, session = shared.compute(turn.threads), shared.session(turn.progress)
    what = shared.tools, model, (text, matrix), options
    if part:
        file = str(probes.some_probes(*what, part, session))
        return {PROBES: file, FILES: [file]}
    probed = [Path(result[PROBES]) for result in turn.results.values() if PROBES in result]
    measured = probes.sensitivity_of(*what, session, probed)
    path = shared.folder.of("sensitivity", f"{model.label}-{planned.id}{sensitivity.SUFFIX}")
    sensitivity.write(path, measured)
    return {FILES: [str(path)]}


def quant(shared: Shared, model: Model, planned: PlannedQuant, turn: Turn) -> Result:
    """Quantize, or take what the store has; a quant that is not kept is made in a store apart."""
    kind, matrix = planned.kind, _matrix(planned, turn)
    base = turn.results.get(planned.imatrix_step, {})
    metadata = tune.metadata_of(shared.tools, model, corpus_in(base), matrix)
    options = run.Options(compute.compute_for(model.facts, shared.compute(turn.threads)))
    spec = run.QuantSpec(model, matrix, kind.type, options, metadata)
    spec = QUANTIZERS[kind.quantizer].applied(spec)
    if kind.is_size:
        case = _case(shared, model, planned, turn)
        case = dataclasses.replace(case, metadata=spec.metadata)
        spec = tune.of_size(spec, case.choose(kind.type))
    inputs = run.inputs(spec, shared.tools)
    unchecked = {key: value for key, value in inputs.items() if key != "heldout_sha256"}
    session = Session(shared.store if shared.keeps_quants else shared.work, turn.progress)
    stored = shared.store.like("quant", unchecked)
    facts = run.facts(stored) if stored else run.quantize(shared.tools, spec, session)
    named = size_types.in_name(spec.quant_type, spec.base())
    parts = (model.label, planned.calibration.id, kind.suffix if kind.type else "", named)
    label, path, beside = "-".join(filter(None, parts)), facts.path, list[Path]()
    if shared.keeps_quants:
        path = shared.folder.of("quants", f"{label}.gguf")
        place(facts.path, path)
        if kind.is_size:
            place(run.types_path(facts.path), run.types_path(path))
            beside.append(run.types_path(path))
    quant = Quant(
        model=model.label,
        calibration=planned.calibration.label,
        sample=planned.calibration.sample,
        type=kind.label,
        quantizer=kind.quantizer,
        label=label,
        n_fallback=len(facts.fallback),
        **{name: getattr(facts, name) for name in ("sha256", "size_bytes", "bits_per_weight")},
    )
    types = {t.name: t.type_name for t in read_header(path).tensors if resolve.quantizable(t)}
    result = {QUANT: config.plain(quant), PATH: str(path), "inputs": inputs}
    return result | {FILES: [str(file) for file in (path, *beside)], TYPES: types}


def model_in(result: Mapping[str, Any]) -> Model:
    """Return the quant in a step's result as a model to run."""
    quant, path = quant_in(result), Path(result[PATH])
    return Model(quant.label, path, (path,), quant.sha256, resolve.facts((path,)), path.name)


def score(
    shared: Shared, model: Model, text: ScoredText, quants: Quants, base_logits: str, turn: Turn
) -> Result:
    """Score the quants that were made, and not scored yet, on a text."""
    evaluation = shared.recipe.evaluation
    corpus = corpus_in(turn.results[text.step]) if text.step else None
    path = corpus.heldout if corpus else text.path
    new = [q.step for q in quants if q.step in turn.results and q.step not in turn.parts]
    request = ScoreRequest(
        reference=model.origin,
        quants=(),
        texts=((text.label, path),),
        out=shared.folder.of("scores"),
        protocol=evaluation.protocol,
        compute=shared.compute(turn.threads, evaluation.ctx or None),
        limit=evaluation.documents or None,
        document_tokens=evaluation.document_tokens or None,
        base_logits=base_logits,
    )
    models = [model_in(turn.results[step]) for step in new]
    files = score_models(request, shared.tools, model, models, shared.session(turn.progress))
    return {FILES: [*turn.before.get(FILES, ()), *map(str, files)]}


def predict_losses(
    shared: Shared,
    model: Model,
    planned: PlannedQuant,
    samples: Samples,
    sensitivities: Mapping[str, str],
    turn: Turn,
) -> Result:
    """Predict what a quant loses in each language; `samples` names the imatrix steps of each.

    `sensitivities`: the step of each language's first sample. Where that is measured, the
    divergence is predicted too.
    """
    session = shared.session(turn.progress)
    kernel = quant_error.kernel(shared.tools, session)
    quant = model_in(turn.results[planned.step])
    sums = columns(kernel, model, quant, turn.threads, session)
    imatrices = {}
    for code, steps in samples.items():
        if paths := [imatrix_in(turn.results[s]).path for s in steps if s in turn.results]:
            parts = [merge.MergeInput(p, format.read(p), 1.0, sha256_file(p)) for p in paths]
            imatrices[code] = parts[0].imatrix if len(parts) == 1 else merge.merge(parts, POOLED_BY)
    predicted = losses(quant_error.read(sums.path / quant_error.FILE), imatrices)
    values = dict(zip(predicted.languages, predicted.overall().tolist(), strict=True))
    known = {
        code: (steps[0], 0.0)
        for code, steps in samples.items()
        if {steps[0], sensitivities.get(code)} <= turn.results.keys()
    }
    klds = _predicted_klds(shared, model, dataclasses.replace(planned, texts=known), turn)
    return {
        LOSSES: {**turn.before.get(LOSSES, {}), **values},
        KLDS: {**turn.before.get(KLDS, {}), **klds},
    }


def _predicted_klds(
    shared: Shared, model: Model, planned: PlannedQuant, turn: Turn
) -> dict[str, float]:
    """Return a quant's divergence in the languages of its texts as their sensitivities have it."""
    if not planned.texts:
        return {}
    case, kind = _case(shared, model, planned, turn), planned.kind
    asked = kind.type if kind.is_size else size_types.PREFIX + kind.type
    case = dataclasses.replace(case, request=dataclasses.replace(case.request, types=(asked,)))
    return case.predicted(turn.results[planned.step][TYPES])


def items(
    shared: Shared, model: Model, task: Task, languages: tuple[str, ...], turn: Turn
) -> Result:
    """Fetch and check a task's items, so that a problem with them is reported once."""
    request = _task_request(shared, task, languages, turn)
    chosen = pairs([definition.get(task.name)], request, turn.progress)
    ready = (prepare(*pair, request, shared.session(turn.progress)) for pair in chosen)
    return {"n_items": {prepared.locale.code: len(prepared.items) for prepared in ready}}


def answers(
    shared: Shared,
    model: Model,
    task: Task,
    languages: tuple[str, ...],
    step: str,
    turn: Turn,
    part: Part | None = None,
) -> Result:
    """Run a task, or answer a part of it, on a quant, or without a step on the original."""
    request, session = _task_request(shared, task, languages, turn), shared.session(turn.progress)
    tested = model_in(turn.results[step]) if step else model
    backend = partial(backends.open_local, request, shared.tools, tested, session)
    files = run_task(request, [backend], turn.progress, shared.store, part)
    return {FILES: [str(file) for file in files]}


def _task_request(
    shared: Shared, task: Task, languages: tuple[str, ...], turn: Turn
) -> TaskRequest:
    return TaskRequest(
        tasks=(task.name,),
        languages=languages,
        quants=(),
        out=shared.folder.of("items"),
        compute=shared.compute(turn.threads),
        data=Path(task.data) if task.data else None,
        limit=task.limit or None,
        variant=task.variant or None,
        keep_text=True,
    )


def cleanup(shared: Shared, model: Model, quants: Quants, turn: Turn) -> Result:
    """Delete quants that were made for the study alone."""
    for quant in quants:
        if quant.step in turn.results:
            shared.work.drop("quant", turn.results[quant.step]["inputs"], turn.progress)
    return {}
