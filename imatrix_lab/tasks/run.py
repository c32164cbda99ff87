"""Benchmarks on quants: from a request to files of item records."""

import dataclasses
import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.outputs import any_file, check_folder
from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import (
    BadRecords,
    BadText,
    FetchFailed,
    ImatrixLabError,
    ToolFailed,
    UsageError,
)
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.records import parquet
from imatrix_lab.tasks import backends, dedup, definition, load, prompt, records
from imatrix_lab.tasks.backends import Answerer
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.items import Item, make_items, with_gold_kind
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.locale import Locale, get_locale, load_locales
from imatrix_lab.tasks.scorers import score
from imatrix_lab.tasks.scorers.score import METRICS_VERSION, TEXT_METRICS_VERSION, Outcome
from imatrix_lab.types import Part, TaskRequest

Openers = Iterable[Callable[[], AbstractContextManager[Answerer]]]
"""Each opens a quant, when the one before is done."""


@dataclass(frozen=True)
class Prepared:
    """The items of one task in one language, ready to be asked; `facts` of them are recorded."""

    task: Definition
    locale: Locale
    items: tuple[Item, ...]
    prefix: str
    variant: str
    facts: dict[str, Any]


def run_quants(request: TaskRequest, session: Session) -> list[Path]:
    """Return the files of records of benchmarks on quants.

    What is wrong with the request is an error before llama.cpp is built or anything fetched.
    """
    check_folder(request.out)
    backends.check(request.endpoint, request.quants, session)

    def openers() -> Openers:
        yield from backends.open_all(request, session)  # after the items are read

    return run(request, openers(), session.progress, session.store)


def run(
    request: TaskRequest,
    openers: Openers,
    progress: Progress,
    store: Store | None = None,
    part: Part | None = None,
) -> list[Path]:
    """Ask every item of every task and language; return the files of records.

    The user's store, if none is given, keeps items that come from the Hub. A `part` of the items
    is only answered, and the file of answers returned: a run of all of them, with these files where
    they are on a machine of the same kind, writes the records.
    """
    chosen = pairs(map(definition.get, request.tasks), request, progress)
    for task, code in chosen:
        get_locale(code)
        load.check_data(task, request.data)
    session = Session(store or Store(), progress)
    benchmarks = [prepare(task, code, request, session) for task, code in chosen]
    paths = []
    for open_quant in openers:
        with open_quant() as answerer:
            paths += [_run(prepared, answerer, request, progress, part) for prepared in benchmarks]
    return [path for path in paths if path]


def pairs(
    tasks: Iterable[Definition], request: TaskRequest, progress: Progress
) -> list[tuple[Definition, str]]:
    """Return every task with each of the request's languages that it has; note which it lacks.

    `UsageError` if nothing is left, or the request's variant, languages and data disagree.
    """
    every = [(task, code) for task in tasks for code in _languages(task, request)]
    for task, _ in every:
        _check(task, request)
    data = None if len(request.languages) > 1 else request.data
    chosen = [(task, code) for task, code in every if load.has(task, code, data)]
    if not chosen:
        load.own_code(*every[0])  # raises, with the languages of the task
    for task, code in every:
        if (task, code) not in chosen:
            progress.say(f"note: {task.name} has no {code!r}: skipped")
    return chosen


def _check(task: Definition, request: TaskRequest) -> None:
    variant, data = request.variant, request.data
    if variant and task.generates():
        what = f"{task.name} is answered in free text: --variant has no meaning for it"
        raise UsageError(what, fix="leave --variant out")
    if not task.generates() and (request.max_tokens or request.thinking):
        what = f"{task.name} is scored by likelihood: nothing is written, and nothing thought"
        raise UsageError(what, fix="leave --max-tokens and --thinking out")
    if variant == "letter" and not task.shows_letters():
        what = f"the prompt of {task.name} does not show letters"
        raise UsageError(what, fix="--variant raw, token or byte")
    in_one = data and load.in_one(task, data) and (data.is_file() or not task.languages)
    if in_one and len(request.languages) > 1:
        what = f"{task.name}: these data are in one language, but --langs names several"
        fix = "one at a time: --langs with the language of the data"
        raise UsageError(what, where=data, fix=fix)


def _languages(task: Definition, request: TaskRequest) -> tuple[str, ...]:
    if request.languages:
        return request.languages
    if not task.languages:
        raise UsageError(f"{task.name} does not say its languages", fix="--langs en,nb")
    known = load_locales()
    return tuple(code for code in task.languages if code in known)


def _as_requested(task: Definition, request: TaskRequest) -> Definition:
    chosen = {"max_tokens": request.max_tokens, "enable_thinking": request.thinking}
    options: dict[str, Any] = {k: value for k, value in chosen.items() if value is not None}
    return dataclasses.replace(task, prompt=dataclasses.replace(task.prompt, **options))


def prepare(task: Definition, code: str, request: TaskRequest, session: Session) -> Prepared:
    """Return the items of a task in a language, without repeats, and the examples before them."""
    locale, progress = get_locale(code), session.progress
    task = _as_requested(task, request)
    if request.data is None and task.source.hub:
        progress.say(f"{task.name} {code}: from the Hub, {task.source.hub} …")
    source = load.rows(task, code, request.data, session)
    task, golds_note = with_gold_kind(source.rows, task, locale)
    items, rejected = make_items(source.rows, task, locale)
    unique = dedup.merge(items)
    variant = request.variant or task.prompt.variant
    shots = task.prompt.shots if request.shots is None else request.shots
    prefix, items = prompt.examples(unique.items, task, locale, variant, shots)
    if request.limit:  # drawn by the hash of their ids: the same items in every language
        ids = sorted((i.id for i in items), key=lambda name: sha256(name.encode()).digest())
        drawn = set(ids[: request.limit])
        items = [item for item in items if item.id in drawn]
    skipped = [f"{n:,} skipped: {reason}" for reason, n in rejected.items()]
    if not items:
        what = f"{task.name} in {code}: no item that can be scored"
        raise BadText("; ".join([what, *skipped]), where=task.path)
    is_pinned = request.data is not None or task.source.is_pinned()
    facts = {
        "name": task.name, "language": code, "scorer": task.scorer, "shots": shots,
        "variant": "" if task.generates() else variant, "origin": dict(source.origin),
        "pinned": is_pinned, "n_given": len(source.rows), "n_unique": len(unique.items),
        "n_near": unique.n_near, "n_conflicts": unique.n_conflicts, "rejected": rejected,
        "sha256": _sha256(prefix, items, task, locale, variant),
    }  # fmt: skip
    if not is_pinned:
        newest = ", ".join(f"{name} at {commit[:12]}" for name, commit in source.origin.items())
        progress.say(f"note: {task.name} is not pinned to a commit; this is {newest}")
    n_repeats = len(source.rows) - sum(rejected.values()) - len(unique.items)
    counts = {"repeats merged": n_repeats, "near-duplicates clustered": unique.n_near,
              "repeats with another right answer": unique.n_conflicts}  # fmt: skip
    n_clusters = len({item.cluster for item in items})
    notes = [f"{n:,} {what}" for what, n in counts.items() if n]
    summary = f"{task.name} {code}: {len(items):,} items in {n_clusters:,} clusters"
    progress.say("; ".join([summary, *notes, *skipped]))
    if golds_note:
        progress.say(f"{task.name} {code}: {golds_note}")
    return Prepared(task, locale, tuple(items), prefix, variant, facts)


def _sha256(
    prefix: str, items: Iterable[Item], task: Definition, locale: Locale, variant: str
) -> str:
    """Return a hash of everything that is asked, of what is right, and of how answers are read."""
    head: list[Any] = [prefix]
    if task.generates():
        rules = {"code": locale.code, "name": locale.name, "spaces": locale.spaces}
        for part in (locale.answer, locale.numbers, locale.identify):
            rules |= dataclasses.asdict(part)
        head += [task.prompt.max_tokens, prompt.stops(task, locale), rules]
    by_letter = variant == "letter"
    texts = [
        [i.id, prompt.ask(i, task, locale, by_letter), i.options, i.golds, i.cluster] for i in items
    ]
    return sha256(canonical_json([*head, *texts]).encode()).hexdigest()


def _run(
    prepared: Prepared, answerer: Answerer, request: TaskRequest, progress: Progress,
    part: Part | None,
) -> Path | None:  # fmt: skip
    generates, instrument = prepared.task.generates(), answerer.instrument()
    if generates:
        instrument["protocol"] |= _thinking(prepared, answerer)
    signature = {
        "kind": "item", "metrics_version": TEXT_METRICS_VERSION if generates else METRICS_VERSION,
        "package_version": __version__, "task": prepared.facts, "quant": answerer.quant(),
        **instrument,
    }  # fmt: skip
    fingerprint = {name: part for name, part in signature.items() if name != "package_version"}
    key = sha256(canonical_json(fingerprint).encode()).hexdigest()[:16]
    name = f"{prepared.task.name}.{prepared.locale.code}.{answerer.label}"
    path, is_complete = _place(request, name, key, signature)
    if is_complete:
        progress.say(f"{path.name} is complete")
        return None if part else path
    if prepared.task.prompt.enable_thinking and not (answerer.has_switch or answerer.opened):
        progress.say(f"note: {answerer.label} is not known to think: nothing changes for it")
    folder, stem = request.out / ".unfinished", f"{name}.{key}"
    own = folder / f"{stem}{f'.{part[0]}-of-{part[1]}' if part else ''}.jsonl"
    others = sorted(folder.glob(f"{glob.escape(stem)}.*"))
    journal = Journal(own, Outcome, others)
    items = prepared.items[part[0] :: part[1]] if part else prepared.items
    outcomes = _answer(prepared, items, answerer, journal, name, progress)
    if part:
        return own
    prompts = _prompts(prepared, answerer.is_chat) if request.keep_text else None
    rows = [(item, outcomes[item.id]) for item in prepared.items]
    if all(outcome.error for _, outcome in rows):
        raise _all_failed(f"{name}: all of {len(rows):,} items failed: {rows[0][1].error}", request)
    records.write(path, prepared.task.name, rows, signature, prompts, prepared.prefix)
    errors = [outcome.error for _, outcome in rows if outcome.error]
    if note := _unread(
        prepared, [outcome for _, outcome in rows], _thought_tokens(prepared, answerer)
    ):
        progress.say(f"note: {name}: {note}")
    for reason, n in records.error_classes(errors).items():
        first = next(error for error in errors if error.startswith(reason))
        progress.say(f"note: {name}: {n:,} of {len(rows):,} items failed, not counted: {first}")
    if not errors:
        journal.remove()
    return path


def _all_failed(what: str, request: TaskRequest) -> ImatrixLabError:
    if request.endpoint:
        return FetchFailed(what, where=request.endpoint, fix="check the address and the key")
    return ToolFailed(what, fix="check the model; a larger --ctx if prompts are too long")


def _unread(prepared: Prepared, outcomes: Sequence[Outcome], thought_tokens: int) -> str:
    """Return how many answers lacked tokens to be read, and what gives them more, or ""."""
    unread = [outcome for outcome in outcomes if not (outcome.parsed or outcome.error)]
    n_thinking = sum(thoughts.has_marks(outcome.output) for outcome in unread)
    n = sum(outcome.cut or thoughts.has_marks(outcome.output) for outcome in unread)
    if not n:
        return ""
    whose = f", {n_thinking:,} of them in thoughts" if n_thinking else ""
    more = max(4 * prepared.task.prompt.max_tokens, thought_tokens // 2)
    count = f"{n:,} of {len(outcomes):,} answers ended before they could be read"
    return f"{count}{whose}; try: --max-tokens {more}"


def _answer(
    prepared: Prepared, items: Sequence[Item], answerer: Answerer, journal: Journal[Outcome],
    name: str, progress: Progress,
) -> dict[str, Outcome]:  # fmt: skip
    outcomes = {item.id: outcome for item in items if (outcome := journal.get(item.id))}
    if outcomes:
        progress.say(f"{name}: {len(outcomes):,} of {len(items):,} items were answered before")
    left = [item for item in items if item.id not in outcomes]
    with journal:
        for outcome in _outcomes(prepared, left, answerer) if left else ():
            journal.add(outcome)
            outcomes[outcome.id] = outcome
    failed = {item.id: score.failed(item, "no answer came") for item in items}
    return failed | _without_thoughts(outcomes)


def _without_thoughts(outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Return outcomes, those unread that were cut off in thoughts which a server's prompt began.

    That it does shows in the outputs that end such thoughts.
    """
    if not any(thoughts.begun_by_prompt(outcome.output) for outcome in outcomes.values()):
        return outcomes
    return {
        name: score.within_thoughts(outcome)
        if outcome.cut and not thoughts.has_marks(outcome.output)
        else outcome
        for name, outcome in outcomes.items()
    }


def _outcomes(prepared: Prepared, items: list[Item], answerer: Answerer) -> Iterator[Outcome]:
    by_id = {item.id: item for item in items}
    task, locale, prefix = prepared.task, prepared.locale, prepared.prefix
    if task.generates():
        more, is_chat = _thought_tokens(prepared, answerer), answerer.is_chat
        texts = [prompt.generate_item(i, task, locale, prefix, is_chat, more) for i in items]
        for answer in answerer.generate(texts):
            yield score.of_text(by_id[answer.id], answer, task.scorer, locale)
        return
    choices = [prompt.choice_item(i, task, locale, prepared.variant, prefix) for i in items]
    for scores in answerer.choose(choices):
        yield score.of_likelihoods(by_id[scores.id], scores, prepared.variant)


def _thought_tokens(prepared: Prepared, answerer: Answerer) -> int:
    thinks = answerer.has_switch and prepared.task.prompt.enable_thinking
    return thoughts.EXTRA_TOKENS if thinks or answerer.opened else 0


def _thinking(prepared: Prepared, answerer: Answerer) -> dict[str, Any]:
    """Return what the signature says of thinking: nothing where the model cannot."""
    wish = {"enable_thinking": prepared.task.prompt.enable_thinking} if answerer.has_switch else {}
    more = _thought_tokens(prepared, answerer)
    return {**wish, "thought_tokens": more} if more else wish


def _prompts(prepared: Prepared, is_chat: bool) -> dict[str, str]:
    items, task, locale, variant = prepared.items, prepared.task, prepared.locale, prepared.variant
    if not task.generates():
        return {i.id: prompt.choice_item(i, task, locale, variant).context for i in items}
    texts = [prompt.generate_item(i, task, locale, is_chat=is_chat) for i in items]
    return {text.id: text.messages[0][1] for text in texts}


def _place(
    request: TaskRequest, name: str, key: str, signature: dict[str, Any]
) -> tuple[Path, bool]:
    """Return where records go, and whether the same are there, complete; others are kept."""
    for path in (request.out / f"{name}.parquet", request.out / f"{name}.{key[:8]}.parquet"):
        if not path.exists():
            return path, False
        try:
            table = parquet.read(path)
        except BadRecords:
            continue
        old = {**table.signature, "package_version": __version__}
        if canonical_json(old) == canonical_json(signature):
            has_text = "prompt" in table.columns or not request.keep_text
            return path, has_text and not any(records.words(table, "error"))
    raise UsageError(f"not replaced: {any_file(path)}", where=path, fix="another --out")
