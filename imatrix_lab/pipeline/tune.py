"""The whole path: text in a language -> importance matrix -> language-tuned GGUF files."""

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core.files import place, sha256_file
from imatrix_lab.core.format import some
from imatrix_lab.core.names import readable, slug
from imatrix_lab.core.outputs import Rules, check_file, check_folder
from imatrix_lab.core.paths import without_folders
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.corpus import languages, mixture
from imatrix_lab.corpus.build import (
    CALIBRATION,
    build,
    from_file,
    from_folder,
    heldout_of_file,
    heldout_text,
)
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.corpus.user_text import UserText
from imatrix_lab.errors import FetchFailed, MissingTool, UsageError
from imatrix_lab.imatrix import (
    collect,
    devices,
    expected,
    format,
    passes,
    repair,
    validate,
    windows,
)
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.llamacpp import size_types
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.compute import WINDOW, compute_for
from imatrix_lab.llamacpp.programs import OVERRIDE_BYTES_MAX
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve, scaling
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import allocate, deliver
from imatrix_lab.pipeline.allocate import Chosen
from imatrix_lab.pipeline.card.studies import of_study
from imatrix_lab.quantize import awq, feedback, int4, probes, run
from imatrix_lab.quantize.metadata import Value, general_pairs
from imatrix_lab.quantize.run import HeldOut
from imatrix_lab.report import results
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request


@dataclass(frozen=True)
class Result:
    """What a run produced; `corpus` is None with an imatrix of the user's own, or none."""

    model: Model
    corpus: CorpusFacts | None
    imatrix: ImatrixFacts | None
    quants: tuple[QuantFacts, ...]
    files: tuple[Path, ...]
    chosen: Mapping[str, Chosen] = field(default_factory=dict)


def tune(request: Request, session: Session) -> Result:
    """Run the whole path; what the store has already is not made again."""
    request = with_moments(request)
    rules = check(request, session)
    study = results.read(request.study) if request.study else None
    tools, model = prepare(request, session)
    names = check_model(request, model, rules)
    corpus = corpus_of(request, tools, model, session)
    compared = of_study(study, model, corpus.language) if study else None
    imatrix = imatrix_of(request, tools, model, corpus, session)
    inputs = deliver.Made(model, corpus, imatrix, heldout_in(corpus))
    chosen = chosen_types(
        request, tools, inputs, weights_of(request, parse_text(request.text)), session
    )
    deliver.check_files(request, dataclasses.replace(names, chosen=chosen), rules)
    result = _quantize(request, tools, inputs, chosen, session)
    if compared:
        deliver.add(
            request.out,
            deliver.imatrix_name(model.label, imatrix.language, request.moments),
            {"study": compared},
        )
    return result


def with_moments(request: Request) -> Request:
    """Return a request that collects what it needs: AWQ and feedback take second moments."""
    needed = request.awq or request.feedback
    return dataclasses.replace(request, moments=True) if needed else request


def check(request: Request, session: Session) -> Rules:
    """Raise what is wrong with text, model, study or output folder; only headers are read."""
    text = parse_text(request.text)
    _check_tokens(request, text)
    if request.feedback:
        feedback.check_types(request.types)
    resolve.check_spec(request.model, session.store)
    if request.awq:
        awq.check(True, request.types, request.model)
    allocate.check(request)
    weights_of(request, text)
    run.check_spec(request.model, request.types, request.allow_requantize)
    rules = rules_of(request, session)
    deliver.check_folder(request.out, rules)
    if label := resolve.label_of(request.model):
        deliver.check_files(request, deliver.Names(label, _language(request)), rules)
    if request.study:
        results.read(request.study)
    return rules


def check_model(request: Request, model: Model, rules: Rules) -> deliver.Names:
    """Raise what is wrong with a model that is here, and files in its way; return their names."""
    run.check(model.facts, model.path, request.types, request.allow_requantize)
    run.check_layers(model.facts, model.path, request.types)
    allocate.check_model(request, model)
    if request.awq:
        scaling.check(model)
    names = deliver.Names(model.label, _language(request), model)
    deliver.check_files(request, names, rules)
    return names


def _check_tokens(request: Request, text: Mixture | Path) -> None:
    """Raise UsageError, BadText: the text, or what is asked for of it, does not fill a window."""
    n_ctx = request.compute.n_ctx or WINDOW
    if request.windows != windows.STREAM:
        return
    if isinstance(text, Path) and text.is_dir():
        windows.count(from_folder(text), n_ctx)
    elif request.n_tokens < n_ctx:
        what = f"an importance matrix needs a window of {n_ctx} tokens, not {request.n_tokens}"
        raise UsageError(what, fix=f"--tokens {n_ctx} or more, or a smaller context (--ctx)")


def _language(request: Request) -> str:
    """Return the label of a corpus that is built, or will be."""
    text = parse_text(request.text)
    return text.label if isinstance(text, Mixture) else from_folder(text).language


def rules_of(request: Request, session: Session, *inputs: Path) -> Rules:
    """Return which files a request must not replace."""
    text = parse_text(request.text, allow_file=True)
    texts = (text,) if isinstance(text, Path) else ()
    files = (*resolve.files_of(request.model), *texts, *inputs)
    return Rules(files, request.force, session.progress)


def prepare(request: Request, session: Session) -> tuple[Toolchain, Model]:
    """Return toolchain and model, built and fetched if need be.

    Raises UsageError, BadModel: there is no such model; raised before llama.cpp is built.
    """
    resolve.check_spec(request.model, session.store)
    tools = get_toolchain(request.compute.backend, session)
    return tools, resolve.resolve_to_run(request.model, session, tools)


def corpus_of(request: Request, tools: Toolchain, model: Model, session: Session) -> CorpusFacts:
    """Return the text of a request: of a language or mixture, a corpus folder, or a file."""
    text = parse_text(request.text, allow_file=True)
    if isinstance(text, Path) and text.is_dir():
        return from_folder(text)
    special = request.parse_special or request.corpus.chat > 0
    n_tokens = request.n_tokens
    with Vocabulary(tools, model.path, special) as vocabulary:
        if isinstance(text, Path):
            own = UserText(text, request.field)
            corpus = from_file(own, model, vocabulary, n_tokens, session)
        else:
            corpus = build(text, model, vocabulary, n_tokens, request.corpus, session)
    if corpus.n_tokens < n_tokens:
        mixed = isinstance(text, Mixture) and len(text.parts) > 1
        session.progress.say(
            f"note: only {corpus.n_tokens:,} tokens of {corpus.language_name} for"
            f" calibration{' in these shares' if mixed else ''}, not {n_tokens:,}"
        )
    return corpus


def parse_text(text: str, allow_file: bool = False) -> Mixture | Path:
    """Return the language or mixture of that name, or else a corpus folder (or a text file).

    Raises UsageError: none of these.
    """
    parsed = mixture.parse_or_path(text, CALIBRATION)
    if isinstance(parsed, Path) and parsed.is_file() and not allow_file:
        file = shlex.quote(text)
        fix = f"imatrix-lab corpus add {file} --lang CODE --name mine --licence CC0-1.0, to make it"
        fix += f" text of a language; or imatrix-lab imatrix build --corpus {file}, and quantize"
        what = "a language or a corpus folder is needed here, with held-out text; this is a file"
        raise UsageError(what, where=text, fix=fix)
    return parsed


def check_text(request: Request) -> Mixture | Path:
    """Return the text of a request as `parse_text`, a file if it begins as text can be read.

    Raises UsageError, BadText: there is no such text, or there is none in it.
    """
    text = parse_text(request.text, allow_file=True)
    if isinstance(text, Path) and text.is_file():
        next(UserText(text, request.field).paragraphs())
    return text


def imatrix_of(
    request: Request, tools: Toolchain, model: Model, corpus: CorpusFacts, session: Session
) -> ImatrixFacts:
    """Return the importance matrix of a text, collected if the store lacks it."""
    return collect.collect(tools, model, corpus, imatrix_options(request, model, corpus), session)


def imatrix_options(request: Request, model: Model, corpus: CorpusFacts) -> collect.Options:
    """Return what a request says about collecting."""
    return collect.Options(
        compute_for(model.facts, request.compute),
        request.parse_special or corpus.parse_special,
        request.process_output,
        request.moments,
        request.full,
        request.windows,
        request.memory_bytes,
        request.compute.fit_target_mib,
        may_grow=request.compute.n_batch is None,
    )


def imatrix_estimate(
    request: Request, out: Path | None, session: Session
) -> passes.Estimate | devices.DeviceEstimate:
    """Return how an importance matrix would be collected, and how long that would take.

    A model of the user's is not hashed; of a text that is not built, `n_tokens` are assumed.
    Raises what `imatrix` raises before it begins; UsageError: the model is not here yet.
    """
    text, _ = _check_imatrix(request, out, session)
    tools = get_toolchain(request.compute.backend, session)
    try:
        model = resolve.unhashed(request.model) or resolve.resolve(
            request.model, session.read_only(), tools
        )
    except NotBuilt as error:
        fix = f"imatrix-lab model fetch {shlex.quote(request.model)}"
        raise UsageError(f"{request.model} is not here yet", fix=fix) from error
    n_tokens = request.n_tokens
    if isinstance(text, Path) and text.is_dir():
        n_tokens = from_folder(text).n_tokens
    options = collect.Options(
        compute_for(model.facts, request.compute),
        process_output=request.process_output,
        moments=request.moments,
        full=request.full,
        memory_bytes=request.memory_bytes,
        fit_target_mib=request.compute.fit_target_mib,
        may_grow=request.compute.n_batch is None,
    )
    n_windows = max(1, n_tokens // options.compute.n_ctx)
    return collect.estimate(tools, model, options, n_windows, session)


def _check_memory(request: Request) -> None:
    """Raise UsageError: `memory_bytes` contradicts other settings."""
    if request.memory_bytes and request.compute.backend == "blas":
        what = "with BLAS one window is read at a time: its sums depend on the number"
        raise UsageError(what, fix="leave --memory out, or take --backend cpu")
    if request.memory_bytes and request.compute.n_batch:
        raise UsageError("--memory chooses the batch", fix="leave --batch or --memory out")


def imatrix(request: Request, out: Path | None, session: Session) -> Path:
    """Compute an importance matrix and put it at `out`; return its path."""
    _, rules = _check_imatrix(request, out, session)
    tools, model = prepare(request, session)
    corpus = corpus_of(request, tools, model, session)
    target = out or Path(deliver.imatrix_name(model.label, corpus.language, request.moments))
    same = collect.identity(model, corpus, imatrix_options(request, model, corpus))
    check_file(target, rules, format.other_than(same))
    facts = imatrix_of(request, tools, model, corpus, session)
    place(facts.path, target)
    return target


def _check_imatrix(
    request: Request, out: Path | None, session: Session
) -> tuple[Mixture | Path, Rules]:
    """Raise what is wrong with text, model or output; only headers are read."""
    _check_memory(request)
    text = check_text(request)
    _check_tokens(request, text)
    resolve.check_spec(request.model, session.store)
    rules, label = rules_of(request, session), resolve.label_of(request.model)
    if out:
        check_file(out, rules, format.other_than({}))
    elif label and isinstance(text, Mixture):
        name = deliver.imatrix_name(label, text.label, request.moments)
        check_file(Path(name), rules, format.other_than({}))
    else:
        check_folder(Path())
    return text, rules


def quants(request: Request, imatrix_path: Path | None, session: Session) -> Result:
    """Quantize with an existing importance matrix (None: without); verify on text `text`.

    Raises BadImatrix: it is damaged, does not fit the model, or has errors.
    Raises UsageError: no text to verify with.
    """
    resolve.check_spec(request.model, session.store)
    allocate.check(request)
    run.check_spec(request.model, request.types, request.allow_requantize)
    text, language = request.text, ""
    if request.awq:
        awq.check(imatrix_path is not None, request.types, request.model)
    if request.feedback:
        feedback.check(imatrix_path, request.types)
    int4.check(imatrix_path, request.types, request.awq or request.feedback)
    if not imatrix_path:
        run.check_types(request.types)
    else:
        matrix = format.read(imatrix_path)  # a bad file is reported before llama.cpp is built
        language = label_of(matrix, imatrix_path)
        text = text or language
    weights = weights_of(request, language)
    if not request.text and text not in (*languages.load_all(), *mixture.files()):
        raise UsageError("which text verifies the files?", fix="--heldout nb, or a text file")
    verified = dataclasses.replace(request, text=text)
    source = check_text(verified)
    rules = rules_of(verified, session, *filter(None, [imatrix_path]))
    deliver.check_folder(request.out, rules)
    tools, model = prepare(request, session)
    run.check(model.facts, model.path, request.types, request.allow_requantize)
    allocate.check_model(request, model)
    if request.awq or int4.AWQ in request.types:
        scaling.check(model)
    imatrix = None
    if imatrix_path:
        imatrix = given_imatrix(imatrix_path, model, session, request.force)
    language = imatrix.language if imatrix else ""
    names = deliver.Names(model.label, language, model, imatrix)
    deliver.check_files(request, names, rules)
    if isinstance(source, Mixture) or source.is_dir():
        heldout = heldout_in(corpus_of(verified, tools, model, session))
    else:
        own = UserText(source, request.field)
        with Vocabulary(tools, model.path) as vocabulary:
            start = heldout_of_file(own, vocabulary, run.VERIFY_TOKENS, session)
            heldout = HeldOut(*start, own.name)
    if imatrix and imatrix.is_of_text(heldout.sha256):
        session.progress.say(
            f"WARNING: the imatrix was computed from {heldout.name}: perplexity on the same text"
            " tells little of others; --heldout takes another text, or a language"
        )
    inputs = deliver.Made(model, None, imatrix, heldout)
    chosen = chosen_types(request, tools, inputs, weights, session)
    deliver.check_files(request, dataclasses.replace(names, chosen=chosen), rules)
    return _quantize(request, tools, inputs, chosen, session)


def heldout_in(corpus: CorpusFacts) -> HeldOut:
    """Return the held-out documents of a corpus."""
    name = f"{corpus.language_name}, held out when the calibration text was chosen"
    return HeldOut(corpus.heldout_sha256, heldout_text(corpus), corpus.n_heldout_tokens, name)


def given_imatrix(path: Path, model: Model, session: Session, force: bool = False) -> ImatrixFacts:
    """Return a user's importance matrix, checked; what siblings know of it is filled in.

    Raises BadImatrix: it has errors, and `force` is not given.
    """
    matrix = format.read(path)
    whole, changes = repair.from_siblings(matrix, expected.of(model))
    if not changes:
        return existing_imatrix(path, model, session.progress, force)
    session.progress.say(
        f"note: {path.name} lacks {len(changes)} tensors, which read the same input as others that"
        f" it has: {some(changes)}"
    )
    name = f"imatrix.{'dat' if matrix.legacy else 'gguf'}"

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        format.write(out / name, whole)
        return {"changes": changes}

    inputs = {"mended_sha256": sha256_file(path), "model_sha256": model.sha256}
    language = label_of(matrix, path)
    mended = session.store.get("imatrix", f"{language}-mended", inputs, make, session.progress)
    facts = existing_imatrix(mended.path / name, model, session.progress, force)
    unnamed = "" if matrix.language else readable(path.name)
    return dataclasses.replace(facts, language=language, unnamed=unnamed)


def label_of(matrix: Imatrix, path: Path) -> str:
    """Return an importance matrix's label, or else the file's name, to name quants by.

    Without the word imatrix: llama.cpp takes no file with it in its name for a model.
    """
    name = re.sub("imatrix", "", path.stem, flags=re.IGNORECASE).strip("-_.")
    return slug(matrix.label or name or "own")


def existing_imatrix(
    path: Path, model: Model, progress: Progress, force: bool = False
) -> ImatrixFacts:
    """Return a user's importance matrix, checked against the model.

    Raises BadImatrix: it has errors, and `force` is not given.
    """
    matrix = format.read(path)
    findings = validate.check(matrix, expected.of(model))
    spec = resolve.spec_of(model)
    fix = f"imatrix-lab imatrix check {shlex.quote(str(path))} --model {spec}; or compute it again:"
    fix += f" imatrix-lab imatrix build --model {spec} --corpus LANGUAGE"
    return ImatrixFacts(
        path=path.absolute(),
        sha256=sha256_file(path),
        language=label_of(matrix, path),
        unnamed="" if matrix.language else readable(path.name),
        n_tensors=len(matrix.entries),
        n_tokens=0 if matrix.legacy else matrix.n_tokens(),
        n_chunks=matrix.chunk_count,
        n_ctx=0 if matrix.legacy else matrix.chunk_size,
        unhit_experts=findings.n_without_tokens,
        forced=findings.require_sound(path, fix, progress, force),
        datasets=tuple(map(without_folders, matrix.datasets)),
        licence=matrix.metadata.get(format.LICENCE, ""),
        corpus_sha256=matrix.metadata.get(format.CORPUS, ""),
        text_sha256s=tuple(matrix.metadata.get(format.TEXTS, "").split()),
    )


def weights_of(request: Request, text: Mixture | Path | str) -> dict[str, float]:
    """Return the languages that files of a size are for, with weights; none without a size.

    By default those of the text, or of the imatrix with that label. Raises UsageError: of none.
    """
    if not any(map(size_types.is_size, request.types)):
        return {}
    if request.choice.languages:
        return dict(request.choice.languages)
    if isinstance(text, Path):
        return {from_folder(text).language: 1.0}
    if isinstance(text, Mixture) and all(p.language and not p.shuffled for p in text.parts):
        return {part.label: part.weight for part in text.parts}
    if isinstance(text, str) and languages.is_name(text):
        return {languages.get(text).code: 1.0}
    what = "for which language are the types of tensors chosen?"
    raise UsageError(what, fix="--for nb, or --for nb=1,en=0.3")


def chosen_types(
    request: Request,
    tools: Toolchain,
    inputs: deliver.Made,
    weights: Mapping[str, float],
    session: Session,
) -> dict[str, Chosen]:
    """Return the types of tensors for each size that is asked for, by the request's type."""
    quant_types = list(filter(size_types.is_size, request.types))
    if not quant_types:
        return {}
    model, imatrix = inputs.model, inputs.imatrix
    named = dict.fromkeys(x for _, limited in request.choice.no_worse_than for x in limited)
    own = {inputs.corpus.language: inputs.corpus} if inputs.corpus else {}
    texts = {}
    for language in (*weights, *(x for x in named if x not in weights)):
        other = dataclasses.replace(request, text=language, moments=False, full="")
        corpus = own.get(language) or corpus_of(other, tools, model, session)
        is_given = imatrix and imatrix.language == language and not imatrix.unnamed
        matrix = imatrix if is_given else imatrix_of(other, tools, model, corpus, session)
        assert matrix
        texts[language] = (corpus, matrix)
    texts |= _known_texts(request, tools, model, texts, session)
    metadata = metadata_of(tools, model, inputs.corpus, imatrix, request)
    case = allocate.Case(request, tools, model, imatrix, texts, weights, metadata, session)
    return {quant_type: case.choose(quant_type) for quant_type in quant_types}


def _known_texts(
    request: Request, tools: Toolchain, model: Model, texts: allocate.Texts, session: Session
) -> dict[str, tuple[CorpusFacts, ImatrixFacts]]:
    """Return other languages whose sensitivities the store has for this model, for predictions."""
    known, read_only = {}, session.read_only()
    for language in allocate.measured(model, session):
        other = dataclasses.replace(request, text=language, moments=False, full="")
        if language in texts or not languages.is_name(language):
            continue
        with contextlib.suppress(NotBuilt, FetchFailed, MissingTool):
            corpus = corpus_of(other, tools, model, read_only)
            text = (corpus, imatrix_of(other, tools, model, corpus, read_only))
            probes.sensitivity_of(tools, model, text, request.compute, read_only)
            known[language] = text
    return known


def _quantize(
    request: Request,
    tools: Toolchain,
    inputs: deliver.Made,
    chosen: Mapping[str, Chosen],
    session: Session,
) -> Result:
    """Quantize to every requested type, and put the files into the output folder."""
    model, corpus, imatrix = inputs.model, inputs.corpus, inputs.imatrix
    options, facts = quant_options(request, model), list[QuantFacts]()
    metadata = metadata_of(tools, model, corpus, imatrix, request)
    for quant_type in request.types:
        spec = run.QuantSpec(model, imatrix, quant_type, options, metadata, inputs.heldout)
        spec = dataclasses.replace(spec, awq=request.awq, feedback=request.feedback)
        facts.append(run.quantize(tools, of_size(spec, chosen.get(quant_type)), session))
    request = dataclasses.replace(request, force=bool(imatrix and imatrix.forced))  # as recorded
    files = deliver.deliver(request, inputs, tuple(facts), chosen)
    return Result(model, corpus, imatrix, tuple(facts), files, chosen)


def of_size(spec: run.QuantSpec, chosen: Chosen | None) -> run.QuantSpec:
    """Return a quant with the types that were chosen for it, if they were."""
    if not chosen:
        return spec
    metadata = {**spec.metadata, **chosen.metadata}
    return dataclasses.replace(spec, metadata=metadata, mix=chosen.mix)


def quant_options(request: Request, model: Model) -> run.Options:
    """Return what a request says about quantizing."""
    return run.Options(compute_for(model.facts, request.compute), request.allow_requantize)


def metadata_of(
    tools: Toolchain,
    model: Model,
    corpus: CorpusFacts | None,
    imatrix: ImatrixFacts | None,
    request: Request | None = None,
) -> dict[str, Value]:
    """Return what goes into every quantized GGUF; fields without a value are left out.

    With a `request`, who quantizes it, and how its tensors are rounded, too.
    """
    metadata = {
        "version": __version__,
        **deliver.named(imatrix),
        "imatrix.sha256": imatrix.sha256 if imatrix else "",
        "imatrix.tokens": str(imatrix.n_tokens) if imatrix and imatrix.n_tokens else "",
        "imatrix.forced": imatrix.forced if imatrix else "",
        "corpus.sha256": corpus.sha256 if corpus else "",
        "corpus.source": corpus.source if corpus else "",
        "corpus.licence": corpus.licence if corpus else "",
        "toolchain.commit": tools.commit,
        "toolchain.backend": tools.backend,
    }
    metadata |= awq.metadata() if request and request.awq else {}
    metadata |= feedback.metadata() if request and request.feedback else {}
    return {
        **general_pairs(model, imatrix, request.quantized_by if request else ""),
        **{
            f"imatrix_lab.{key}": value.encode()[:OVERRIDE_BYTES_MAX].decode("utf-8", "ignore")
            for key, value in metadata.items()
            if value
        },
    }
