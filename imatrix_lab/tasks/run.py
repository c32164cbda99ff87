"""Benchmarks on quants: from a request to files of item records."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords, BadText, UsageError
from imatrix_lab.records import parquet
from imatrix_lab.tasks import dedup, load, prompt, records
from imatrix_lab.tasks import definition as definitions
from imatrix_lab.tasks import items as made
from imatrix_lab.tasks import locale as speeches
from imatrix_lab.tasks.backends import Answerer
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.items import Item
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.scorers import score
from imatrix_lab.tasks.scorers.score import METRICS_VERSION, Outcome
from imatrix_lab.types import TaskRequest


@dataclass(frozen=True)
class Prepared:
    """The items of one task in one language, ready to be asked.

    Attributes
    ----------
    facts : what is recorded of them: how many there were, what was merged, where they are from.
    """

    definition: Definition
    speech: Speech
    items: tuple[Item, ...]
    prefix: str
    variant: str
    facts: dict[str, Any]


def run(
    request: TaskRequest,
    answerers: Iterable[Callable[[], AbstractContextManager[Answerer]]],
    progress: Progress,
) -> list[Path]:
    """Ask every item of every task and language; return the files of records.

    Parameters
    ----------
    answerers : one a quant; each is opened when the one before is done.

    Raises
    ------
    UsageError : an unknown task or language; before any work.
    BadText : a task has no item that can be scored.
    """
    tasks = [definitions.get(word) for word in request.tasks]
    ready = [prepare(*one, request, progress) for one in pairs(tasks, request, progress)]
    written = []
    for open_one in answerers:
        with open_one() as answerer:
            written += [_ask(one, answerer, request, progress) for one in ready]
    return written


def pairs(
    tasks: Iterable[Definition], request: TaskRequest, progress: Progress
) -> list[tuple[Definition, str]]:
    """Return every task with every language asked for that it has; tell which it has not.

    Raises
    ------
    UsageError : nothing is left, a task cannot be scored by the variant asked for, or several
        languages are asked for of one file.
    """
    wanted = [(task, code) for task in tasks for code in _languages(task, request)]
    for task, _ in wanted:
        if request.variant:
            _check_variant(task, request.variant)
    several = len(request.languages) > 1
    if several and request.data:
        for task, _ in wanted:
            _check_data(task, request.data)
    data = None if several else request.data
    found = [(task, code) for task, code in wanted if load.has(task, code, data)]
    if not found:
        load.own_code(*wanted[0])  # says what there is
    for task, code in wanted:
        if (task, code) not in found:
            progress.say(f"note: {task.name} has no {code!r}: left out")
    return found


def _check_variant(task: Definition, variant: str) -> None:
    if task.generates():
        raise UsageError(f"{task.name} is answered in free text: --variant means nothing there")
    if variant == "letter" and not task.shows_letters():
        raise UsageError(
            f"the prompt of {task.name} does not show letters", fix="--variant raw, token or byte"
        )


def _check_data(task: Definition, data: Path) -> None:
    """Refuse data in one language for several."""
    if load.in_one(task, data) and (data.is_file() or not task.languages):
        raise UsageError(
            f"{task.name}: these data do not say their language, and several are asked for",
            where=data, fix="one at a time: --langs with the language that they are in",
        )  # fmt: skip


def _languages(task: Definition, request: TaskRequest) -> tuple[str, ...]:
    if request.languages:
        return request.languages
    if not task.languages:
        raise UsageError(f"{task.name} does not say its languages", fix="--langs en,nb")
    return tuple(code for code in task.languages if code in speeches.load_all())


def prepare(task: Definition, code: str, request: TaskRequest, progress: Progress) -> Prepared:
    """Return the items of a task in a language, without repeats, and the examples before them.

    Raises
    ------
    BadText : none that can be scored.
    """
    speech = speeches.get(code)
    if request.data is None and task.source.hub:
        progress.say(f"{task.name} {code}: from the Hub, {task.source.hub} …")
    rows = load.rows(task, code, request.data)
    found = made.make(rows.rows, task, code, speech)
    unique = dedup.merge(found.items)
    variant = request.variant or task.variant
    shots = task.shots if request.shots is None else request.shots
    prefix, left = prompt.examples(unique.items, task, speech, variant, shots)
    asked = _limited(left, request.limit)
    rejected = {why: len(ids) for why, ids in found.rejected.items()}
    if not asked:
        why = "".join(f"; {n:,} left out: {why}" for why, n in rejected.items())
        raise BadText(f"{task.name} in {code}: no item that can be scored{why}", where=task.path)
    facts = {
        "name": task.name, "language": code, "scorer": task.scorer, "shots": shots,
        "variant": "" if task.generates() else variant, "origin": dict(rows.origin),
        "pinned": request.data is not None or task.source.is_pinned(),
        "n_given": len(rows.rows), "n_unique": len(unique.items), "n_near": unique.n_near,
        "n_conflicts": unique.n_conflicts, "rejected": rejected,
        "sha256": _sha256(prefix, asked, task, speech, variant),
    }  # fmt: skip
    if not facts["pinned"]:
        progress.say(f"note: {task.name} is not pinned; the newest: {_said(rows.origin)}")
    _tell(facts, len(asked), len({i.cluster for i in asked}), progress)
    return Prepared(task, speech, tuple(asked), prefix, variant, facts)


def _said(origin: Mapping[str, str]) -> str:
    return ", ".join(f"{where} at {what[:12]}" for where, what in origin.items())


def _limited(items: list[Item], limit: int | None) -> list[Item]:
    """Return so many items, drawn by the hash of their ids: the same in every language."""
    if limit is None or limit >= len(items):
        return items
    drawn = sorted(items, key=lambda item: sha256(item.id.encode()).digest())[:limit]
    chosen = {item.id for item in drawn}
    return [item for item in items if item.id in chosen]


def _sha256(
    prefix: str, items: Iterable[Item], task: Definition, speech: Speech, variant: str
) -> str:
    """Return a hash of everything that is asked, of what is right, and of how answers are read."""
    head: list[Any] = [prefix]
    if task.generates():
        rules = dataclasses.asdict(speech)
        del rules["words"], rules["judge"]
        head += [task.max_tokens, prompt.ends(task, speech), rules]
    texts = [[i.id, prompt.ask(i, task, speech, variant == "letter"), i.options, i.golds, i.cluster]
             for i in items]  # fmt: skip
    return sha256(canonical_json([*head, *texts]).encode()).hexdigest()


def _tell(facts: dict[str, Any], n_asked: int, n_clusters: int, progress: Progress) -> None:
    """Say what the items are, before hours are spent on them."""
    repeated = facts["n_given"] - sum(facts["rejected"].values()) - facts["n_unique"]
    notes = [
        f"{n:,} {what}"
        for n, what in (
            (repeated, "repeats merged"),
            (facts["n_near"], "near-duplicates clustered"),
            (facts["n_conflicts"], "repeats with another right answer"),
            *((n, f"left out: {why}") for why, n in facts["rejected"].items()),
        )
        if n
    ]
    progress.say(
        f"{facts['name']} {facts['language']}: {n_asked:,} items in {n_clusters:,} groups"
        + "".join(f"; {note}" for note in notes)
    )


def _ask(one: Prepared, answerer: Answerer, request: TaskRequest, progress: Progress) -> Path:
    """Ask what is not answered yet, and write the records."""
    signature = {
        "kind": "item", "metrics_version": METRICS_VERSION, "package_version": __version__,
        "task": one.facts, "quant": answerer.quant(), **answerer.instrument(),
    }  # fmt: skip
    key = sha256(canonical_json({k: v for k, v in signature.items() if k != "package_version"})
                 .encode()).hexdigest()[:16]  # fmt: skip
    name = f"{one.definition.name}.{one.speech.code}.{answerer.label}"
    path, is_there = _place(request, name, key, signature)
    if is_there:
        progress.say(f"{path.name} is there already")
        return path
    journal = Journal(request.out / ".unfinished" / f"{name}.{key}.jsonl", Outcome)
    items = {item.id: item for item in one.items}
    done = {i: _outcome(e) for i, e in journal.found.items() if i in items and not e["error"]}
    if done:
        progress.say(f"{name}: {len(done):,} of {len(items):,} items were answered before")
    left = [item for item in one.items if item.id not in done]
    with journal as add:
        for outcome in _outcomes(one, left, answerer):
            add(dataclasses.asdict(outcome))
            done[outcome.id] = outcome
    for item in one.items:
        done.setdefault(item.id, score.failed(item, "no answer came"))
    prompts = None
    if request.keep_text:
        prompts = {item.id: _prompt(one, item, answerer.is_chat) for item in one.items}
    rows = [(item, done[item.id]) for item in one.items]
    records.write(path, one.definition.name, rows, signature, prompts, one.prefix)
    errors = [outcome.error for _, outcome in rows if outcome.error]
    for kind, n in records.error_classes(errors).items():
        first = next(error for error in errors if error.startswith(kind))
        progress.say(f"note: {name}: {n:,} of {len(rows):,} items failed, not counted: {first}")
    if not errors:
        journal.remove()
    return path


def _outcomes(one: Prepared, items: list[Item], answerer: Answerer) -> Iterator[Outcome]:
    by_id = {item.id: item for item in items}
    task, speech = one.definition, one.speech
    if not items:
        return
    if not task.generates():
        asked = [prompt.choice_item(i, task, speech, one.variant, one.prefix) for i in items]
        for scores in answerer.choose(asked):
            yield score.of_likelihoods(by_id[scores.id], scores, one.variant)
        return
    for found in answerer.generate(
        [prompt.generate_item(i, task, speech, one.prefix, answerer.is_chat) for i in items]
    ):
        yield score.of_text(by_id[found.id], found, task.scorer, speech)


def _prompt(one: Prepared, item: Item, is_chat: bool) -> str:
    """Return what was asked after the examples."""
    task, speech = one.definition, one.speech
    if task.generates():
        return prompt.generate_item(item, task, speech, is_chat=is_chat).messages[0][1]
    return prompt.choice_item(item, task, speech, one.variant).context


def _outcome(entry: dict[str, Any]) -> Outcome:
    return Outcome(**{f.name: entry[f.name] for f in dataclasses.fields(Outcome)})


def _place(
    request: TaskRequest, name: str, key: str, signature: dict[str, Any]
) -> tuple[Path, bool]:
    """Return where records go, and whether the same are there, whole. Others are kept."""
    for path in (request.out / f"{name}.parquet", request.out / f"{name}.{key[:8]}.parquet"):
        if not path.exists():
            return path, False
        try:
            there = parquet.read(path)
        except BadRecords:
            continue
        old = {**there.signature, "package_version": __version__}
        if canonical_json(old) == canonical_json(signature):
            text = "prompt" in there.columns or not request.keep_text
            return path, text and not any(records.words(there, "error"))
    return path, False
