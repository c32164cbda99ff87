"""What a request would do, without doing it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact, NotBuilt, Store
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.errors import FetchFailed, MissingTool
from imatrix_lab.imatrix import collect
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.compute import WINDOW
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.convert import converter
from imatrix_lab.pipeline import quick as cases
from imatrix_lab.pipeline.tune import (
    corpus_of,
    imatrix_options,
    metadata_of,
    mixture_or_folder,
    quant_options,
)
from imatrix_lab.quantize import run as quantizing
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, Request


@dataclass(frozen=True)
class Step:
    """One line of a plan: what, whether the store has it, and what is known of its cost."""

    name: str
    cached: bool
    detail: str


def plan(request: Request, session: Session) -> list[Step]:
    """Return the steps a request would take; builds and downloads nothing.

    What depends on a step that has not run is said to be unknown until then.
    """
    wanted = mixture_or_folder(request.text)
    backend = request.compute.backend
    tools = toolchain.find(session.store, backend)
    steps = [_step("toolchain", tools, f"llama.cpp for {backend}, minutes to build")]
    if request.model == "demo" or request.model.startswith("hf:"):
        model = _if_there(request, tools, session)
        steps.append(_step(f"model {request.model}", model, "fetched and prepared once"))
    else:
        model = resolve.resolve(request.model, session)
        steps.append(
            _step(f"model {request.model}", model, f"{model.facts.size_bytes / 2**30:.2f} GiB")
        )
    corpus = _corpus_if_there(request, tools, model, session)
    label = wanted.label if isinstance(wanted, Mixture) else wanted.name
    detail = corpus.source if corpus else _sources(wanted)
    steps.append(_step(f"corpus {label}", corpus, detail))
    imatrix = None
    n_ctx = request.compute.n_ctx or WINDOW
    detail = f"at most {request.n_tokens // n_ctx} windows of {n_ctx} tokens"
    if tools and model and corpus:
        options = imatrix_options(request, model, corpus)
        detail = f"{collect.window_count(corpus, options)} windows of {n_ctx} tokens"
        found = session.store.find("imatrix", collect.inputs(model, corpus, options, tools))
        imatrix = collect.facts(found) if found else None
    steps.append(_step(f"imatrix {label}", imatrix, detail))
    for quant_type in request.types:
        steps.append(_quant_step(request, quant_type, tools, model, corpus, imatrix, session.store))
    if request.quick is not False:
        steps.append(_quick_step(request, tools, model, corpus, imatrix, session))
    return steps


def _quant_step(
    request: Request, quant_type: str, tools: Toolchain | None, model: Model | None,
    corpus: CorpusFacts | None, imatrix: ImatrixFacts | None, store: Store,
) -> Step:  # fmt: skip
    if tools is None or model is None:
        return Step(
            f"quantize {quant_type}", False, "size known once toolchain and model are there"
        )
    options = quant_options(request, model)
    size_bytes = quantizing.estimate(tools, model, quant_type, options)
    found = None
    if corpus and imatrix:
        found = _quant_if_there(request, quant_type, tools, model, corpus, imatrix, store)
    return _step(f"quantize {quant_type}", found, f"{size_bytes / 2**20:.2f} MiB")


def _quant_if_there(
    request: Request, quant_type: str, tools: Toolchain, model: Model,
    corpus: CorpusFacts, imatrix: ImatrixFacts, store: Store,
) -> Artifact | None:  # fmt: skip
    options = quant_options(request, model)
    heldout = quantizing.HeldOut(corpus.heldout_sha256, "", corpus.n_heldout_tokens)
    metadata = metadata_of(tools, corpus, imatrix)
    wanted = quantizing.inputs(model, imatrix, quant_type, heldout, metadata, options, tools)
    return store.find("quant", wanted)


def _quick_step(
    request: Request, tools: Toolchain | None, model: Model | None, corpus: CorpusFacts | None,
    imatrix: ImatrixFacts | None, session: Session,
) -> Step:  # fmt: skip
    """Return the last step: what tuning bought the first type."""
    found = None
    if tools and model and corpus and imatrix:
        quant = _quant_if_there(
            request, request.types[0], tools, model, corpus, imatrix, session.store
        )
        with contextlib.suppress(NotBuilt):
            english = cases.english(request, tools, model, corpus, session.read_only())
            if quant:
                sha256 = quant.sha256(quant.facts["file"])
                wanted = cases.inputs(request, tools, model, corpus, sha256, english)
                found = session.store.find("quick", wanted)
    what = "with other imatrices, scored beside it, if that is quick; --no-quick leaves it out"
    return _step(f"quick answer {request.types[0]}", found, f"the same type {what}")


def _step(name: str, found: object | None, detail: str) -> Step:
    return Step(name, found is not None, detail)


def _sources(wanted: Mixture | Path) -> str:
    """Return where a corpus that is not built yet may come from."""
    if isinstance(wanted, Path):
        return str(wanted)
    names = [s.name for p in wanted.parts if p.language for s in p.language.sources]
    return "from the first that can be reached: " + ", ".join(dict.fromkeys(names))


def _corpus_if_there(
    request: Request, tools: Toolchain | None, model: Model | None, session: Session
) -> CorpusFacts | None:
    if tools is None or model is None:
        return None
    try:
        return corpus_of(request, tools, model, session.read_only())
    except NotBuilt:
        return None


def _if_there(request: Request, tools: Toolchain | None, session: Session) -> Model | None:
    """Return a model that need not be fetched or built, else None."""
    try:
        return resolve.resolve(
            request.model, session.read_only(), converter(tools) if tools else None
        )
    except NotBuilt:
        return None
    except (FetchFailed, MissingTool) as error:
        session.progress.say(f"note: {error.what}")
        return None
