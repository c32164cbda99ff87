"""Quants against their full model on held-out text: from a request to files of records."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import place, replacing
from imatrix_lab.core.names import slug
from imatrix_lab.core.outputs import Rules, any_file, check_file, check_folder
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import packing
from imatrix_lab.corpus.build import HELDOUT
from imatrix_lab.corpus.documents import read
from imatrix_lab.corpus.user_text import UserText
from imatrix_lab.errors import BadRecords, BadText, UsageError
from imatrix_lab.llamacpp import compute
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import Toolchain
from imatrix_lab.models import resolve
from imatrix_lab.models.resolve import check_spec, resolve_to_run
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.records import parquet, runs
from imatrix_lab.score import compatible, kernel, run
from imatrix_lab.score.job import Job, placed, settings_for
from imatrix_lab.score.text import Text, plan
from imatrix_lab.score.windows import Protocol
from imatrix_lab.types import TOKENS_DEFAULT, Document, Model, ModelFacts, Request, ScoreRequest

CONTEXT = {"document": 1024, "llamacpp": 512}


def score(request: ScoreRequest, session: Session) -> list[Path]:
    """Score every quant on every text; return the files of records, text by text."""
    _check(request, session)
    tools = get_toolchain(request.compute.backend, session, own=False)
    reference = resolve_to_run(request.reference, session, tools)
    quants = [resolve_to_run(spec, session, tools) for spec in request.quants]
    return score_models(request, tools, reference, quants, session)


def _check(request: ScoreRequest, session: Session) -> None:
    """Check models, texts and output folder before llama.cpp is built."""
    check_folder(request.out)
    for spec in (request.reference, *request.quants):
        check_spec(spec, session.store)
    labels = [slug(label) for label, _ in request.texts]
    if repeated := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"two texts are called {repeated[0]}", fix="--text NAME=FILE names them")
    for label, path in request.texts:
        if path is None:
            tune.parse_text(label, allow_file=True)
        else:
            documents_in(path, label, request, session.progress.say)
    if reference := resolve.unhashed(request.reference):
        _protocol(request, reference.facts)
        compatible.check(reference, list(filter(None, map(resolve.unhashed, request.quants))))


def score_models(
    request: ScoreRequest, tools: Toolchain, reference: Model, quants: list[Model], session: Session
) -> list[Path]:
    """Score models that are resolved already; the request's own are not looked at."""
    progress, protocol = session.progress, _protocol(request, reference.facts)
    quants = _distinct(quants, progress)
    for warning in (
        *compatible.check(reference, quants),
        *compatible.suspicions(reference, quants),
    ):
        progress.say(f"note: {warning}")
    texts = [
        Text(slug(label), _documents(request, label, path, reference, tools, session))
        for label, path in request.texts
    ]
    settings = settings_for(reference, request.compute, protocol.n_ctx, request.n_rows)
    settings = dataclasses.replace(settings, n_batch=min(protocol.n_ctx, settings.n_batch))
    compiled = kernel.get(tools, settings.threads, session)
    logits_bytes = 2 * 4 * settings.n_rows * reference.facts.n_vocab
    largest = sorted(quants, key=lambda quant: -quant.facts.size_bytes)[: run.QUANTS_MAX]
    needed = sum(model.facts.size_bytes + logits_bytes for model in (reference, *largest))
    fits = needed <= compute.MEMORY_SHARE * compute.memory_bytes()
    is_live = fits if request.base_logits == "auto" else request.base_logits == "live"
    at_once = [reference, *largest] if is_live else [reference]
    settings = placed(tools, at_once, settings, request.compute, session)
    files = []
    with Vocabulary(tools, reference.path) as vocabulary:  # all texts, before the hours of scoring
        if limit := request.document_tokens:
            cut = [packing.starts(text.documents, limit, vocabulary.count) for text in texts]
            texts = [Text(t.label, tuple(d), limit) for t, d in zip(texts, cut, strict=True)]
        plans = [plan(text, vocabulary, protocol, settings.sequences_max) for text in texts]
    for text, batches in zip(texts, plans, strict=True):
        if protocol.name == "document" and len(text.documents) == 1:
            progress.say(
                f"note: {text.label} is one document, so there will be no intervals, which need"
                " several documents. A .jsonl file has one on each line"
            )
        job = Job(tools, compiled, reference, text, batches, protocol, settings)
        if is_live:
            scores = run.live(job, quants, session)
        else:
            scores = run.cached(job, quants, request.rest_share, session)
        for quant, artifact in zip(quants, scores, strict=True):
            _note_facts(artifact.facts, text.label, quant.label, progress)
            files.append(_place(artifact, text, reference, quant, request.out, progress))
    return files


def _place(
    artifact: Artifact, text: Text, reference: Model, quant: Model, out: Path, progress: Progress
) -> Path:
    """Put records into the output folder, with the names of this request; return their path.

    The store knows models and texts by content, so their names may be those of an earlier
    request. Other records with the same file name are kept.
    """
    source = artifact.path / run.RECORDS
    signature = parquet.read(source, []).signature
    named = {
        **signature,
        "text": {**signature["text"], "label": text.label},
        "reference": {**signature["reference"], "name": reference.label},
        "quant": {**signature["quant"], "name": quant.label},
    }
    target = out / f"{text.label}.{quant.label}.parquet"
    if target.exists() and not _same_run(target, named):
        progress.say(f"note: {target.name} has other records and is kept")
        target = out / f"{text.label}.{quant.label}.{artifact.fingerprint[:8]}.parquet"
    check_file(target, Rules(), lambda path: "" if _same_run(path, named) else any_file(path))
    if named == signature:
        place(source, target)
        return target
    out.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        parquet.write(temporary, parquet.read(source).columns, named)
    return target


def _same_run(path: Path, signature: dict[str, Any]) -> bool:
    """Return whether a file has the same numbers, or an earlier version of them."""
    try:
        existing = parquet.read(path, []).signature
    except BadRecords:
        return False
    return existing.get("quant", {}).get("sha256") == signature["quant"]["sha256"] and (
        runs.instrument(existing) == runs.instrument(signature)
    )


def _protocol(request: ScoreRequest, reference: ModelFacts) -> Protocol:
    trained = reference.n_ctx_train or CONTEXT[request.protocol]
    n_ctx = request.compute.n_ctx or min(CONTEXT[request.protocol], trained)
    if n_ctx > trained:
        raise UsageError(f"--ctx {n_ctx} is more than the model's context of {trained} tokens")
    if request.protocol == "llamacpp":
        if request.overlap is not None:
            raise UsageError("--overlap works only with --protocol document")
        return Protocol("llamacpp", n_ctx, 0)
    overlap = n_ctx // 4 if request.overlap is None else request.overlap
    if not 0 < overlap < n_ctx - 1:
        raise UsageError(f"--overlap {overlap} must be from 1 to {n_ctx - 2} (--ctx {n_ctx})")
    return Protocol("document", n_ctx, overlap)


def _distinct(quants: list[Model], progress: Progress) -> list[Model]:
    """Return each quant once, under a unique name."""
    distinct: dict[str, Model] = {}
    for quant in quants:
        if quant.sha256 in distinct:
            progress.say(f"note: {quant.path.name} is the same file as another; scored once")
        distinct.setdefault(quant.sha256, quant)
    labels = [quant.label for quant in distinct.values()]
    return [
        dataclasses.replace(quant, label=f"{quant.label}.{quant.sha256[:8]}")
        if labels.count(quant.label) > 1
        else quant
        for quant in distinct.values()
    ]


def _documents(
    request: ScoreRequest,
    label: str,
    path: Path | None,
    reference: Model,
    tools: Toolchain,
    session: Session,
) -> tuple[Document, ...]:
    """Return a text's documents: a file's, or the held-out ones of a language."""
    if path is None:
        tuning = Request(label, (), request.reference, TOKENS_DEFAULT, request.out, request.compute)
        documents = read(tune.corpus_of(tuning, tools, reference, session).heldout)
    else:
        documents = documents_in(path, label, request)
    documents = documents[: request.limit]
    if not any(d.text.strip() for d in documents):
        raise BadText(f"the text {label} is empty", where=path)
    return tuple(documents)


def documents_in(
    path: Path,
    label: str,
    request: ScoreRequest | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Document]:
    """Return the documents of a file (its rows, or one document) or of a corpus folder."""
    if (path / HELDOUT).is_file():
        return read(path / HELDOUT)
    if not path.is_file():
        fix = f"--text {label}=FILE, or a language: --text nb"
        raise BadText("no such text", where=path, fix=fix)
    text = UserText(path, request.field if request else "")
    # the same bytes as llama-perplexity reads
    keep_cr = bool(request and request.protocol == "llamacpp")
    limit = request.limit if request else None
    documents = list(itertools.islice(text.documents(keep_cr), limit))
    text.say(say)
    return documents


def _note_facts(facts: dict[str, Any], text: str, quant: str, progress: Progress) -> None:
    if facts["n_skipped"]:
        progress.say(f"note: {text}: {facts['n_skipped']} documents have nothing to score")
    if facts["n_nonfinite"]:
        progress.say(
            f"note: {quant} on {text}: {facts['n_nonfinite']:,} of {facts['n_scored']:,} tokens"
            " have no finite score; they are counted, but in no average"
        )
    if gap := facts["gap"]:
        progress.say(
            f"note: {quant} on {text}: the divergence is a {facts['divergence']}; on"
            f" {gap['n_sampled']} sampled tokens it misses {gap['gap_share']:.2%} of it,"
            f" {gap['gap_nats']:.2g} nats"
        )
