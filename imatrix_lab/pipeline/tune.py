"""The whole path: text in a language -> importance matrix -> language-tuned GGUF files."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab import __version__
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import build as corpora
from imatrix_lab.corpus import languages, mixture
from imatrix_lab.corpus.documents import decode
from imatrix_lab.corpus.mixture import Mixture
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import collect, expected, format, validate
from imatrix_lab.llamacpp import toolchain
from imatrix_lab.llamacpp.compute import compute_for
from imatrix_lab.llamacpp.programs import OVERRIDE_BYTES_MAX
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve as models
from imatrix_lab.models.convert import converter
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import deliver, model_card
from imatrix_lab.quantize import run
from imatrix_lab.quantize.run import HeldOut
from imatrix_lab.report import results
from imatrix_lab.types import CorpusFacts, ImatrixFacts, Model, QuantFacts, Request


@dataclass(frozen=True)
class Result:
    """What was made, and where it lies.

    Attributes
    ----------
    corpus : None where the imatrix was there already.
    """

    model: Model
    corpus: CorpusFacts | None
    imatrix: ImatrixFacts | None
    quants: tuple[QuantFacts, ...]
    files: tuple[Path, ...]


def tune(request: Request, session: Session) -> Result:
    """Run the whole path; every step is taken from the store if it is there."""
    mixture_or_folder(request.text)  # what is wrong is told before anything is built
    deliver.check_folder(request.out)
    study = results.read(request.study) if request.study else None
    tools, model = prepare(request, session)
    corpus = corpus_of(request, tools, model, session)
    compared = model_card.of_study(study, model, corpus.language) if study else None
    imatrix = imatrix_of(request, tools, model, corpus, session)
    made = _quants(request, tools, model, imatrix, heldout_in(corpus), corpus, session)
    if compared:
        deliver.add(request.out, deliver.imatrix_name(model, imatrix), {"study": compared})
    return made


def prepare(request: Request, session: Session) -> tuple[Toolchain, Model]:
    """Return toolchain and model, built and fetched if need be."""
    tools = toolchain.get(request.compute.backend, session)
    return tools, models.resolve(request.model, session, converter(tools))


def corpus_of(request: Request, tools: Toolchain, model: Model, session: Session) -> CorpusFacts:
    """Return the text of a request: of a language or mixture, a corpus folder, or a file."""
    special = request.parse_special or request.corpus.chat > 0
    wanted = mixture_or_folder(request.text, files=True)
    with Vocabulary(tools, model.path, special) as vocabulary:
        if isinstance(wanted, Mixture):
            found = corpora.build(
                wanted, model, vocabulary, request.n_tokens, request.corpus, session
            )
        elif wanted.is_dir():
            return corpora.from_folder(wanted)
        else:
            found = corpora.from_file(wanted, model, vocabulary, request.n_tokens, session)
    if found.n_tokens < request.n_tokens:
        kept = " that keep its shares" if isinstance(wanted, Mixture) and wanted.parts[1:] else ""
        session.progress.say(
            f"note: there are {found.n_tokens:,} tokens of {found.language_name} for"
            f" calibration{kept}, fewer than the {request.n_tokens:,} asked for"
        )
    return found


def mixture_or_folder(text: str, files: bool = False) -> Mixture | Path:
    """Return what text is meant: a language or mixture comes first, then a folder of ours.

    Parameters
    ----------
    files : a text file may be meant too.

    Raises
    ------
    UsageError : none of these.
    """
    found = mixture.parse_or_path(text, corpora.CALIBRATION)
    if isinstance(found, Path) and found.is_file() and not files:
        return mixture.parse(text)  # which says that there is no such language
    return found


def imatrix_of(
    request: Request,
    tools: Toolchain,
    model: Model,
    corpus: CorpusFacts,
    session: Session,
) -> ImatrixFacts:
    """Return the importance matrix of a text, collected if it is not there."""
    options = imatrix_options(request, model, corpus)
    return collect.collect(tools, model, corpus, options, session)


def imatrix_options(request: Request, model: Model, corpus: CorpusFacts) -> collect.Options:
    """Return what a request says about collecting."""
    return collect.Options(
        compute_for(model.facts, request.compute),
        request.parse_special or corpus.parse_special,
        request.process_output,
    )


def imatrix(request: Request, out: Path | None, session: Session) -> Path:
    """Make an importance matrix and put it at `out`; return its path."""
    tools, model = prepare(request, session)
    corpus = corpus_of(request, tools, model, session)
    found = imatrix_of(request, tools, model, corpus, session)
    target = out or Path(f"{model.label}-{corpus.language}.imatrix.gguf")
    deliver.place(found.path, target)
    return target


def quants(request: Request, imatrix_path: Path | None, session: Session) -> Result:
    """Quantize with an importance matrix that is there (None: without); `text` is held out.

    Raises
    ------
    BadImatrix : it does not fit the model, or must not be used.
    """
    deliver.check_folder(request.out)
    tools, model = prepare(request, session)
    found = None
    if imatrix_path:
        found = existing_imatrix(imatrix_path, model, session.progress, request.force)
    text = request.text or (found.language if found else "")
    if not request.text and text not in (*languages.load_all(), *mixture.names()):
        raise UsageError("which text is held out to verify with?", fix="--heldout nb, or a file")
    heldout = heldout_of(text, request, tools, model, session)
    return _quants(request, tools, model, found, heldout, None, session)


def heldout_of(
    text: str, request: Request, tools: Toolchain, model: Model, session: Session
) -> HeldOut:
    """Return text to verify with: a language's held-out documents, or a file."""
    path = mixture_or_folder(text, files=True)
    if isinstance(path, Mixture) or path.is_dir():
        asked = dataclasses.replace(request, text=text)
        return heldout_in(corpus_of(asked, tools, model, session))
    own = decode(path.read_bytes(), str(path))
    with Vocabulary(tools, model.path) as vocabulary:
        return HeldOut(sha256_file(path), own, vocabulary.count(own))


def heldout_in(corpus: CorpusFacts) -> HeldOut:
    """Return the held-out documents of a corpus."""
    return HeldOut(corpus.heldout_sha256, corpora.heldout_text(corpus), corpus.n_heldout_tokens)


def existing_imatrix(
    path: Path, model: Model, progress: Progress, force: bool = False
) -> ImatrixFacts:
    """Return a user's importance matrix, checked against the model.

    Raises
    ------
    BadImatrix : see `check.check`; errors only pass with `force`.
    """
    found = format.read(path)
    findings = validate.check(found, expected.of(model))
    mends = f"imatrix-lab imatrix check {path} --model {model.origin}; or compute it anew:"
    mends += f" imatrix-lab imatrix build --model {model.origin} --corpus LANGUAGE"
    return ImatrixFacts(
        path=path.absolute(),
        sha256=sha256_file(path),
        language=corpora.slug(found.language or path.stem),
        n_tensors=len(found.entries),
        n_tokens=0 if found.legacy else found.n_tokens(),
        n_chunks=found.chunk_count,
        n_ctx=0 if found.legacy else found.chunk_size,
        unhit_experts=findings.n_without_tokens,
        forced=findings.require_sound(path, mends, progress, force),
    )


def _quants(
    request: Request,
    tools: Toolchain,
    model: Model,
    imatrix: ImatrixFacts | None,
    heldout: HeldOut,
    corpus: CorpusFacts | None,
    session: Session,
) -> Result:
    """Quantize to every type asked for, and deliver."""
    options = quant_options(request, model)
    metadata = metadata_of(tools, corpus, imatrix)
    made = tuple(
        run.quantize(tools, model, imatrix, t, heldout, metadata, options, session)
        for t in request.types
    )
    files = deliver.deliver(request, model, corpus, imatrix, made)
    return Result(model, corpus, imatrix, made, files)


def quant_options(request: Request, model: Model) -> run.Options:
    """Return what a request says about quantizing."""
    return run.Options(compute_for(model.facts, request.compute), request.allow_requantize)


def metadata_of(
    tools: Toolchain, corpus: CorpusFacts | None, imatrix: ImatrixFacts | None
) -> dict[str, str]:
    """Return what goes into every quantized GGUF; what has no value is left out."""
    found = {
        "version": __version__,
        "language": imatrix.language if imatrix else "",
        "imatrix.sha256": imatrix.sha256 if imatrix else "",
        "imatrix.tokens": str(imatrix.n_tokens) if imatrix and imatrix.n_tokens else "",
        "imatrix.forced": imatrix.forced if imatrix else "",
        "corpus.sha256": corpus.sha256 if corpus else "",
        "corpus.source": corpus.source if corpus else "",
        "corpus.licence": corpus.licence if corpus else "",
        "toolchain.commit": tools.commit,
        "toolchain.backend": tools.backend,
    }
    return {
        f"imatrix_lab.{key}": _at_most(OVERRIDE_BYTES_MAX, value)
        for key, value in found.items()
        if value
    }


def _at_most(n_bytes: int, text: str) -> str:
    return text.encode()[:n_bytes].decode("utf-8", "ignore")
