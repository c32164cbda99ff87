"""Scores quants against their full model on held-out text, into files of records."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import disk_error
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import build as corpora
from imatrix_lab.corpus import documents as docs
from imatrix_lab.corpus.documents import decode
from imatrix_lab.errors import BadRecords, BadText, UsageError
from imatrix_lab.llamacpp import compute, toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import convert, resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import deliver, tune
from imatrix_lab.records import parquet, runs
from imatrix_lab.score import compatible, kernel, run, text
from imatrix_lab.score.engine import Settings
from imatrix_lab.score.job import Job, settings_for
from imatrix_lab.score.text import Text
from imatrix_lab.score.windows import Protocol
from imatrix_lab.types import TOKENS_DEFAULT, Document, Model, Request, ScoreRequest

CONTEXT = {"document": 1024, "llamacpp": 512}
MEMORY_SHARE = 0.8


def score(request: ScoreRequest, session: Session) -> list[Path]:
    """Score every quant on every text; return the files of records, text by text.

    Raises
    ------
    BadModel : a quant is damaged, or of another vocabulary or architecture.
    BadText : a text with nothing to score.
    """
    _check(request)
    tools = toolchain.get(request.compute.backend, session, own=False)
    converter = convert.converter(tools)
    reference = resolve.resolve(request.reference, session, converter)
    quants = [resolve.resolve(spec, session, converter) for spec in request.quants]
    return score_models(request, tools, reference, quants, session)


def _check(request: ScoreRequest) -> None:
    """Check texts, output folder and models before llama.cpp is built."""
    labels = [corpora.slug(label) for label, _ in request.texts]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"two texts are called {twice[0]}", fix="--text NAME=FILE names them")
    for label, path in request.texts:
        if path is None:
            tune.parse_text(label, allow_file=True)
        else:
            documents_in(path, label)
    if request.out.exists() and not request.out.is_dir():
        raise UsageError("the output folder is a file", where=request.out, fix="--out FOLDER")


def score_models(
    request: ScoreRequest,
    tools: Toolchain,
    reference: Model,
    quants: list[Model],
    session: Session,
) -> list[Path]:
    """Score models that are resolved already, in place of the request's own."""
    say = session.progress.say
    protocol = _protocol(request, reference)
    quants = _distinct(quants, session.progress)
    for warning in compatible.check(reference, quants):
        say(f"note: {warning}")
    texts = [
        _text(request, label, path, reference, tools, session) for label, path in request.texts
    ]
    settings = settings_for(reference, request.compute, protocol.n_ctx, request.n_rows)
    settings = dataclasses.replace(settings, n_batch=min(protocol.n_ctx, settings.n_batch))
    compiled = kernel.get(tools, settings.threads, session)
    live = _live(request, reference, quants, settings)
    files = []
    with Vocabulary(tools, reference.path) as vocabulary:  # errors come before hours of work
        plans = [text.plan(t, vocabulary, protocol, settings.sequences_max) for t in texts]
    for document_set, plan in zip(texts, plans, strict=True):
        job = Job(tools, compiled, reference, document_set, plan, protocol, settings)
        if protocol.name == "document" and len(document_set.documents) == 1:
            say(
                f"note: {document_set.label} is one document, so there are no intervals, which are"
                " over documents. A .jsonl file has one document a line"
            )
        if live:
            artifacts = run.together(job, quants, session)
        else:
            artifacts = run.cached(job, quants, request.rest_share, session)
        for quant, artifact in zip(quants, artifacts, strict=True):
            for warning in _warnings(artifact, document_set.label, quant.label):
                say(f"note: {warning}")
            files.append(_place(artifact, job, quant, request.out, session.progress))
    return files


def _place(artifact: Artifact, job: Job, quant: Model, out: Path, progress: Progress) -> Path:
    """Put records into the output folder, under the names of this request; return their path.

    The store knows models and texts by content, so their names may be those of an earlier
    request. Other records of the same name are kept.
    """
    label, source = job.text.label, artifact.path / run.RECORDS
    signature = parquet.read(source, []).signature
    named = {
        **signature,
        "text": {**signature["text"], "label": label},
        "reference": {**signature["reference"], "name": job.reference.label},
        "quant": {**signature["quant"], "name": quant.label},
    }
    target = out / f"{label}.{quant.label}.parquet"
    if target.exists() and not _same_run(target, named):
        progress.say(f"note: {target.name} has other records, and is kept")
        target = out / f"{label}.{quant.label}.{artifact.fingerprint[:8]}.parquet"
    if named == signature:
        deliver.place(source, target)
        return target
    out.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        parquet.write(temporary, parquet.read(source).columns, named)
        temporary.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _same_run(path: Path, signature: dict[str, Any]) -> bool:
    """Return whether a file has the same numbers, or an earlier version of them."""
    try:
        other = parquet.read(path, []).signature
    except BadRecords:
        return False
    return other.get("quant", {}).get("sha256") == signature["quant"]["sha256"] and (
        runs.instrument(other) == runs.instrument(signature)
    )


def _protocol(request: ScoreRequest, reference: Model) -> Protocol:
    trained = reference.facts.n_ctx_train or CONTEXT[request.protocol]
    n_ctx = request.compute.n_ctx or min(CONTEXT[request.protocol], trained)
    if n_ctx > trained:
        raise UsageError(f"--ctx {n_ctx} is more than the model's context of {trained} tokens")
    if request.protocol == "llamacpp":
        if request.overlap is not None:
            raise UsageError("--overlap needs --protocol document; llamacpp has no overlap")
        return Protocol("llamacpp", n_ctx, 0)
    overlap = n_ctx // 4 if request.overlap is None else request.overlap
    if not 0 < overlap < n_ctx - 1:
        raise UsageError(f"--overlap {overlap} must be from 1 to {n_ctx - 2} (--ctx {n_ctx})")
    return Protocol("document", n_ctx, overlap)


def _distinct(quants: list[Model], progress: Progress) -> list[Model]:
    """Return each quant once, under a name that no other has."""
    distinct: dict[str, Model] = {}
    for quant in quants:
        if quant.sha256 in distinct:
            progress.say(f"note: {quant.path.name} is the same file as another; scored once")
        distinct.setdefault(quant.sha256, quant)
    labels = [q.label for q in distinct.values()]
    for sha256, quant in distinct.items():
        if labels.count(quant.label) > 1:
            distinct[sha256] = dataclasses.replace(quant, label=f"{quant.label}.{sha256[:8]}")
    return list(distinct.values())


def _text(
    request: ScoreRequest, label: str, path: Path | None, reference: Model, tools: Toolchain,
    session: Session,
) -> Text:  # fmt: skip
    """Return a text: a file's documents, or a language's held-out ones."""
    if path is None:
        corpus_request = Request(
            label, (), request.reference, TOKENS_DEFAULT, request.out, request.compute
        )
        documents = docs.read(tune.corpus_of(corpus_request, tools, reference, session).heldout)
    else:  # keep_cr: the same bytes as llama-perplexity
        documents = documents_in(path, label, keep_cr=request.protocol == "llamacpp")
    documents = documents[: request.limit]
    if not any(d.text.strip() for d in documents):
        raise BadText(f"the text {label} is empty", where=path)
    return Text(corpora.slug(label), tuple(documents))


def documents_in(path: Path, label: str, keep_cr: bool = False) -> list[Document]:
    """Return the documents of a file (``.jsonl``, or one document) or of a corpus folder.

    Raises
    ------
    BadText : it does not exist, or is not UTF-8.
    """
    if (path / corpora.HELDOUT).is_file():
        return docs.read(path / corpora.HELDOUT)
    if not path.is_file():
        raise BadText(
            "no such text", where=path, fix=f"--text {label}=FILE, or a language: --text nb"
        )
    if path.suffix == ".jsonl":
        return docs.read(path)
    whole = decode(path.read_bytes(), str(path), keep_cr)
    return [Document(path.stem, whole, path.name, "unknown")]


def _live(request: ScoreRequest, reference: Model, quants: list[Model], settings: Settings) -> bool:
    """Return whether all models are to be in memory at once."""
    if request.base_logits != "auto":
        return request.base_logits == "live"
    logits_bytes = 2 * 4 * settings.n_rows * reference.facts.n_vocab
    needed = sum(m.facts.size_bytes + logits_bytes for m in (reference, *quants))
    return needed <= MEMORY_SHARE * compute.memory_bytes()


def _warnings(artifact: Artifact, text_label: str, quant_label: str) -> Iterator[str]:
    facts = artifact.facts
    if facts["n_skipped"]:
        yield f"{text_label}: {facts['n_skipped']} documents have nothing to score"
    if facts["n_nonfinite"]:
        yield (
            f"{quant_label} on {text_label}: {facts['n_nonfinite']:,} of"
            f" {facts['n_scored']:,} tokens have no finite score; they are counted, not averaged"
        )
    if gap := facts["gap"]:
        yield (
            f"{quant_label} on {text_label}: the divergence is a {facts['divergence']}; on"
            f" {gap['n_sampled']} sampled tokens it misses {gap['gap_share']:.2%} of it,"
            f" {gap['gap_nats']:.2g} nats"
        )
