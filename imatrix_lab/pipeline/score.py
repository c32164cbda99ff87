"""Quants against their full model on held-out text: from a request to files of records."""

import dataclasses
import os
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
    BadModel : a quant is damaged, or of another vocabulary or architecture; before any work.
    BadText : a text with nothing to score.
    """
    tools = toolchain.get(request.compute.backend, session, own=False)
    converter = convert.converter(tools)
    reference = resolve.resolve(request.reference, session, converter)
    found = [resolve.resolve(spec, session, converter) for spec in request.quants]
    return score_models(request, tools, reference, found, session)


def score_models(
    request: ScoreRequest,
    tools: Toolchain,
    reference: Model,
    found: list[Model],
    session: Session,
) -> list[Path]:
    """Do the same for models that were found already; the request's own are not looked at."""
    protocol = _protocol(request, reference)
    quants = _distinct(found, session.progress)
    for warning in compatible.check(reference, quants):
        session.progress.say(f"note: {warning}")
    texts = [_text(request, label, path, reference, tools, session)
             for label, path in request.texts]  # fmt: skip
    labels = [t.label for t in texts]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"two texts are called {twice[0]}", fix="--text NAME=FILE names them")
    settings = settings_for(reference, request.compute, protocol.n_ctx, request.n_rows)
    settings = dataclasses.replace(settings, n_batch=min(protocol.n_ctx, settings.n_batch))
    compiled = kernel.get(tools, settings.threads, session)
    live = _live(request, reference, quants, settings)
    written = []
    with Vocabulary(tools, reference.path) as vocabulary:  # all texts, before any hours pass
        plans = [text.plan(one, vocabulary, protocol, settings.sequences_max) for one in texts]
    for one, plan in zip(texts, plans, strict=True):
        job = Job(tools, compiled, reference, one, plan, protocol, settings)
        _tell(job, session.progress)
        if live:
            scores = run.together(job, quants, session)
        else:
            scores = run.cached(job, quants, request.rest_share, session)
        for quant, artifact in zip(quants, scores, strict=True):
            _warn(artifact, one, quant, request, session.progress)
            written.append(_placed(artifact, one, reference, quant, request.out, session.progress))
    return written


def _placed(
    artifact: Artifact, one: Text, reference: Model, quant: Model, out: Path, progress: Progress
) -> Path:
    """Put records into the output folder, under the names of this request; return their path.

    The store knows models and texts by content, so their names may be those of an earlier
    request. Other records of the same name are kept.
    """
    source = artifact.path / run.RECORDS
    signature = parquet.read(source, []).signature
    named = {
        **signature,
        "text": {**signature["text"], "label": one.label},
        "reference": {**signature["reference"], "name": reference.label},
        "quant": {**signature["quant"], "name": quant.label},
    }
    target = out / f"{one.label}.{quant.label}.parquet"
    if target.exists() and not _same_run(target, named):
        progress.say(f"note: {target.name} holds other records, and stays")
        target = out / f"{one.label}.{quant.label}.{artifact.fingerprint[:8]}.parquet"
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
        there = parquet.read(path, []).signature
    except BadRecords:
        return False
    return there.get("quant", {}).get("sha256") == signature["quant"]["sha256"] and (
        runs.instrument(there) == runs.instrument(signature)
    )


def _protocol(request: ScoreRequest, reference: Model) -> Protocol:
    trained = reference.facts.n_ctx_train or CONTEXT[request.protocol]
    n_ctx = request.compute.n_ctx or min(CONTEXT[request.protocol], trained)
    if n_ctx > trained:
        raise UsageError(f"--ctx {n_ctx} is more than the model's context of {trained} tokens")
    if request.protocol == "llamacpp":
        if request.overlap is not None:
            raise UsageError("--overlap is of the document protocol; llamacpp has none")
        return Protocol("llamacpp", n_ctx, 0)
    overlap = n_ctx // 4 if request.overlap is None else request.overlap
    if not 0 < overlap < n_ctx - 1:
        raise UsageError(f"--overlap {overlap} must be from 1 to {n_ctx - 2} (--ctx {n_ctx})")
    return Protocol("document", n_ctx, overlap)


def _distinct(quants: list[Model], progress: Progress) -> list[Model]:
    """Return each quant once, under a name that no other has."""
    found: dict[str, Model] = {}
    for quant in quants:
        if quant.sha256 in found:
            progress.say(f"note: {quant.path.name} is the same file as another; scored once")
        found.setdefault(quant.sha256, quant)
    labels = [q.label for q in found.values()]
    return [
        dataclasses.replace(q, label=f"{q.label}.{q.sha256[:8]}") if labels.count(q.label) > 1
        else q
        for q in found.values()
    ]  # fmt: skip


def _text(
    request: ScoreRequest, label: str, path: Path | None, reference: Model, tools: Toolchain,
    session: Session,
) -> Text:  # fmt: skip
    """Return a text: a file's documents, or a language's held-out ones."""
    if path is None:
        documents = _heldout(request, label, reference, tools, session)
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
    BadText : there is none, or it is not UTF-8.
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


def _heldout(
    request: ScoreRequest, word: str, reference: Model, tools: Toolchain, session: Session,
) -> list[Document]:  # fmt: skip
    asked = Request(word, (), request.reference, TOKENS_DEFAULT, request.out, request.compute)
    corpus = tune.corpus_of(asked, tools, reference, session)
    return docs.read(corpus.heldout)


def _live(request: ScoreRequest, reference: Model, quants: list[Model], settings: Settings) -> bool:
    """Return whether all models are to be in memory at once."""
    if request.base_logits != "auto":
        return request.base_logits == "live"
    logits_bytes = 2 * 4 * settings.n_rows * reference.facts.n_vocab
    everyone = [reference, *quants]
    needed = sum(m.facts.size_bytes + logits_bytes for m in everyone)
    return needed <= MEMORY_SHARE * compute.memory_bytes()


def _tell(job: Job, progress: Progress) -> None:
    """Say what a text is worth before hours are spent on it."""
    n = len(job.text.documents)
    if job.protocol.name == "document" and n == 1:
        progress.say(
            f"note: {job.text.label} is one document, and intervals are over documents: there will"
            " be none. A .jsonl file has one document a line"
        )


def _warn(
    artifact: Artifact, one: Text, quant: Model, request: ScoreRequest, progress: Progress
) -> None:
    facts = artifact.facts
    if facts["n_skipped"]:
        progress.say(f"note: {one.label}: {facts['n_skipped']} documents have nothing to score")
    if facts["n_nonfinite"]:
        progress.say(
            f"note: {quant.label} on {one.label}: {facts['n_nonfinite']:,} of"
            f" {facts['n_scored']:,} tokens have no finite score; they are counted, not averaged"
        )
    if gap := facts["gap"]:
        progress.say(
            f"note: {quant.label} on {one.label}: the divergence is a {facts['divergence']}; on"
            f" {gap['n_sampled']} sampled tokens it misses {gap['gap_share']:.2%} of it,"
            f" {gap['gap_nats']:.2g} nats"
        )
