"""What a request would do: the calls of `tune`, with a store that builds nothing."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core import format
from imatrix_lab.core.outputs import Rules
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.errors import FetchFailed, MissingTool
from imatrix_lab.imatrix import collect, windows
from imatrix_lab.llamacpp import size_types, toolchain
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import conditions, hub_spec, resolve
from imatrix_lab.pipeline import allocate, deliver, quick, tune
from imatrix_lab.quantize import run
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request


@dataclass(frozen=True)
class Step:
    """One line of a plan: what, whether the store has it, and what is known of its cost."""

    name: str
    cached: bool
    detail: str


@dataclass
class _Stored:
    """What the store has of a request, up to the imatrix."""

    tools: Toolchain | None
    model: Model | None
    corpus: CorpusFacts | None = None
    imatrix: ImatrixFacts | None = None
    n_windows: int = 0
    names: deliver.Names | None = None


def plan(request: Request, session: Session) -> list[Step]:
    """Return the steps a request would take; builds and downloads nothing.

    What depends on a step that has not run is unknown until then. Raises what `tune` raises before
    its work.
    """
    request = tune.with_moments(request)
    rules = tune.check(request, session)
    text = tune.parse_text(request.text)
    stored = _look(request, rules, session)
    tools, model, corpus = stored.tools, stored.model, stored.corpus
    label = text.label if isinstance(text, Mixture) else text.name
    n_ctx = request.compute.n_ctx or WINDOW
    n_windows = f"{stored.n_windows or f'at most {request.n_tokens // n_ctx}'} windows"
    model_detail = "fetched and prepared once"
    if model and request.model != "demo" and not hub_spec.is_spec(request.model):
        model_detail = format.size(model.facts.size_bytes)
    backend = f"llama.cpp for {request.compute.backend}, minutes to build"
    steps = [
        Step("toolchain", tools is not None, backend),
        Step(f"model {request.model}", model is not None, model_detail),
        Step(f"corpus {label}", corpus is not None, corpus.source if corpus else _sources(text)),
        Step(f"imatrix {label}", stored.imatrix is not None, f"{n_windows} of {n_ctx} tokens"),
    ]
    chosen = _chosen(request, stored, session)
    if stored.names and chosen:
        deliver.check_files(request, dataclasses.replace(stored.names, chosen=chosen), rules)
    if any(map(size_types.is_size, request.types)):
        detail = "probes of each part of the model: about 20 times a pass over 768 tokens"
        steps.append(Step("errors and sensitivities", chosen is not None, detail))
    quants = [_quant(request, t, stored, chosen or {}, session) for t in request.types]
    for quant_type, quant in zip(request.types, quants, strict=True):
        detail = "size known once toolchain and model are there"
        if size_types.is_size(quant_type):
            own = (chosen or {}).get(quant_type)
            detail = format.size(own.size_bytes) if own else "types chosen by sensitivity"
        elif tools and model:
            options = tune.quant_options(request, model)
            detail = format.size(run.dry_run(tools, model, quant_type, options)[0])
        steps.append(Step(f"quantize {quant_type}", quant is not None, detail))
    if request.quick is not False:
        detail = "scored beside one without and one with an English imatrix, if that is quick"
        if size_types.is_size(request.types[0]):
            detail = "scored beside the standard type nearest in size, if that is quick"
        answered = _is_answered(request, stored, quants[0], chosen or {}, session)
        steps.append(Step(f"quick answer {request.types[0]}", answered, detail))
    return steps


def _look(request: Request, rules: Rules, session: Session) -> _Stored:
    tools = toolchain.find(session.store, request.compute.backend)
    stored, read_only = _Stored(tools, None), session.read_only()
    try:
        stored.model = resolve.resolve(request.model, read_only, tools)
        conditions.require_text(stored.model.facts, stored.model.path)
        stored.names = tune.check_model(request, stored.model, rules)
        if tools:
            stored.corpus = tune.corpus_of(request, tools, stored.model, read_only)
            options = tune.imatrix_options(request, stored.model, stored.corpus)
            stored.n_windows = windows.count(stored.corpus, options.compute.n_ctx)
            stored.imatrix = collect.collect(tools, stored.model, stored.corpus, options, read_only)
    except (FetchFailed, MissingTool) as error:
        session.progress.say(f"note: {error.what}")
    except NotBuilt:
        pass
    return stored


def _chosen(
    request: Request, stored: _Stored, session: Session
) -> Mapping[str, allocate.Chosen] | None:
    """Return the types for each size, if all that they take is there."""
    tools, model, corpus, imatrix = stored.tools, stored.model, stored.corpus, stored.imatrix
    if not (tools and model and corpus and imatrix):
        return None
    inputs = deliver.Made(model, corpus, imatrix, tune.heldout_in(corpus))
    weights = tune.weights_of(request, tune.parse_text(request.text))
    with contextlib.suppress(NotBuilt, FetchFailed, MissingTool):
        return tune.chosen_types(request, tools, inputs, weights, session.read_only())
    return None


def _quant(
    request: Request,
    quant_type: str,
    stored: _Stored,
    chosen: Mapping[str, allocate.Chosen],
    session: Session,
) -> QuantFacts | None:
    tools, model, corpus, imatrix = stored.tools, stored.model, stored.corpus, stored.imatrix
    if tools and model and corpus and imatrix:
        metadata = tune.metadata_of(tools, model, corpus, imatrix, request)
        heldout, options = tune.heldout_in(corpus), tune.quant_options(request, model)
        spec = run.QuantSpec(model, imatrix, quant_type, options, metadata, heldout)
        spec = dataclasses.replace(spec, awq=request.awq, feedback=request.feedback)
        if size_types.is_size(quant_type) and quant_type not in chosen:
            return None
        spec = tune.of_size(spec, chosen.get(quant_type))
        with contextlib.suppress(NotBuilt):
            return run.quantize(tools, spec, session.read_only())
    return None


def _is_answered(
    request: Request,
    stored: _Stored,
    quant: QuantFacts | None,
    chosen: Mapping[str, allocate.Chosen],
    session: Session,
) -> bool:
    if not (stored.model and quant):
        return False
    result = tune.Result(stored.model, stored.corpus, stored.imatrix, (quant,), (), chosen)
    with contextlib.suppress(NotBuilt):
        inputs = quick.case_of(request, result, session.read_only()).inputs()
        return session.store.find("quick", inputs) is not None
    return False


def _sources(text: Mixture | Path) -> str:
    """Return where a corpus that is not built yet may come from."""
    if isinstance(text, Path):
        return str(text)
    names = [s.name for p in text.parts if p.language for s in p.language.sources]
    return "from the first that can be reached: " + ", ".join(dict.fromkeys(names))
