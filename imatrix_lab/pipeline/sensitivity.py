"""How much each language suffers from errors in each part of a model: text to a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imatrix_lab.core.format import size
from imatrix_lab.core.outputs import check_file, check_folder
from imatrix_lab.core.session import Session
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import ggml
from imatrix_lab.llamacpp.compute import memory_bytes
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import probes, sensitivity
from imatrix_lab.quantize.sensitivity import SUFFIX, Sensitivity
from imatrix_lab.score import kernel
from imatrix_lab.score.job import settings_for
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, ModelFacts, Request

_FILE = f"language{SUFFIX}"


def build(request: Request, imatrix_path: Path | None, out: Path | None, session: Session) -> Path:
    """Measure a language's coefficients and put them at `out`; return its path.

    Without an imatrix, that of the same text is collected.
    """
    text = tune.check_text(request)
    resolve.check_spec(request.model, session.store)
    if files := resolve.files_of(request.model):
        check_memory(resolve.facts(files), request, files[0])
    if imatrix_path:
        format.read(imatrix_path)
    rules = tune.rules_of(request, session, *filter(None, [imatrix_path]))
    if out:
        check_file(out, rules, lambda _: "")
    elif isinstance(text, Mixture):
        check_file(Path(f"{text.label}{SUFFIX}"), rules, lambda _: "")
    else:
        check_folder(Path())
    tools, model = tune.prepare(request, session)
    corpus = tune.corpus_of(request, tools, model, session)
    target = out or Path(f"{corpus.language}{SUFFIX}")
    check_file(target, rules, sensitivity.other_than(corpus.language, model.sha256))
    if imatrix_path:
        imatrix = tune.given_imatrix(imatrix_path, model, session)
    else:
        imatrix = tune.imatrix_of(request, tools, model, corpus, session)
    sensitivity.write(target, of(request, tools, model, (corpus, imatrix), session))
    return target


def of(
    request: Request,
    tools: Toolchain,
    model: Model,
    text: tuple[CorpusFacts, ImatrixFacts],
    session: Session,
) -> Sensitivity:
    """Return the coefficients of a text with its imatrix, measured if the store lacks them."""
    corpus, imatrix = text
    check_memory(model.facts, request, model.path)
    settings = probes.settings_for(settings_for(model, request.compute, probes.PIECE_TOKENS))
    with Vocabulary(tools, model.path, corpus.parse_special) as vocabulary:
        windows = probes.pieces(corpus, vocabulary)
    compiled = kernel.get(tools, settings.threads, session)
    probing = probes.Probing(
        tools, compiled, ggml.load(tools), model, settings, format.read(imatrix.path),
        corpus.language, windows,
    )  # fmt: skip
    inputs = probes.inputs(probing, imatrix.sha256, corpus.sha256)

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        measured = probes.measure(probing, inputs, scratch, session)
        sensitivity.write(out / _FILE, measured)
        return {"n_groups": len(measured.coefficients), "n_tokens": sum(measured.tokens)}

    label = f"{model.label}-{corpus.language}"
    artifact = session.store.get("sensitivity", label, inputs, make, session.progress)
    measured = sensitivity.read(artifact.path / _FILE)
    return dataclasses.replace(measured, language=corpus.language)


def check_memory(facts: ModelFacts, request: Request, path: Path) -> None:
    """Raise ImatrixLabError for a model that does not fit in memory: its weights are changed."""
    on_cpu = request.compute.backend == "cpu" or request.compute.gpu_layers == 0
    if on_cpu and facts.size_bytes > (memory := memory_bytes()):
        what = f"sensitivities need the whole model in memory: {size(facts.size_bytes)}, and this"
        fix = "a Q8_0 of it, or a machine with more memory"
        raise ImatrixLabError(f"{what} machine has {size(memory)}", where=path, fix=fix)
