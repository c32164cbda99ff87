"""Answers of two or more quants to the same prompts, on a page for blind votes, and its key.

The page has answers under hashes; which quant wrote which stands in the key, a file that stays with
whoever made the page. The hashes are salted: nobody finds them out by running the models again.
"""

import dataclasses
import json
import random
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core import config
from imatrix_lab.core.files import canonical_json, from_json, sealed_json, unsealed, write_whole
from imatrix_lab.core.outputs import Rules, any_file, check_file
from imatrix_lab.core.paths import expanded
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadRecords, BadText, UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.publish.preference import page
from imatrix_lab.publish.preference.prompts import Prompts, texts_of
from imatrix_lab.score.generate import MIN_P
from imatrix_lab.tasks import backends
from imatrix_lab.tasks.backends import Answerer
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.types import ComputeOptions, Generated, GenerateItem, Sampling, TaskRequest

KEY = "imatrix_lab preference key"


@dataclass(frozen=True)
class PackRequest:
    """Prompts, two or more models in the order of their names (a, b, …), and the page's place."""

    prompts: Prompts
    models: tuple[str, ...]
    out: Path
    compute: ComputeOptions
    max_tokens: int = 300
    sampling: Sampling | None = None
    parallel: int = 16
    force: bool = False


@dataclass(frozen=True)
class Key:
    """Which system (a, b, …) gave which answer, and what the systems are.

    Attributes
    ----------
    pack : hash of the page's content; votes carry it.
    request : hash of what was asked of whom.
    systems : signature of each quant by name, and how it was asked.
    prompts : texts by name.
    answers : by hash: prompt, system, text.
    identical : (prompt, system, system) whose answers are the same text, which nobody is shown.
    """

    kind: str
    version: str
    pack: str
    request: str
    salt: str
    language: str
    systems: dict[str, dict[str, Any]]
    prompts: dict[str, str]
    answers: dict[str, dict[str, str]]
    identical: tuple[tuple[str, ...], ...] = field(default=())


def make(request: PackRequest, session: Session) -> Key:
    """Answer the prompts with every model, and write the page, its key and A's answers as text.

    Raises UsageError: one model, or two files of the same bytes; BadText: a prompt that a model
    cannot answer.
    """
    if len(request.models) < 2:
        raise UsageError("a comparison needs two models", fix="--a FILE --b FILE")
    inputs = tuple(path for path in map(expanded, request.models) if path.is_file())
    rules = Rules(inputs, request.force, session.progress)
    check(request.out, rules)
    task = TaskRequest((), (), request.models, request.out.parent, request.compute,
                       parallel=request.parallel)  # fmt: skip
    every = backends.open_all(task, session)
    systems = []
    for opened in every:
        with opened() as answerer:
            systems.append(asked(answerer, request.max_tokens, request.sampling))
    key, prompts = begun(request.prompts, systems, request.out, rules), request.prompts.by_id()
    journals = [journal(request.out, {**system, "prompts": prompts}) for system in systems]
    if not key.answers:
        answers = []
        for opened, own in zip(every, journals, strict=True):
            with opened() as answerer:
                answers.append(
                    answers_of(answerer, prompts, request.max_tokens, own, request.sampling)
                )
        key = filled(key, prompts, answers)
    finish(key, request.out)
    for own in journals:
        own.remove()
    return key


def key_path(page_path: Path) -> Path:
    """Return where the key of a page is: beside it."""
    return page_path.with_suffix(".key.json")


def text_path(page_path: Path) -> Path:
    """Return where prompts and A's answers are, as text to score quants on."""
    return page_path.with_suffix(".a.jsonl")


def check(out: Path, rules: Rules) -> None:
    """Raise `UsageError` for no name of a page, or another file where it, or its key, is to be."""
    if out.suffix.lower() not in (".html", ".htm"):
        page = out / "vote.html" if out.is_dir() else out.with_suffix(".html")
        fix = f"--out {shlex.quote(str(page))}"
        raise UsageError("the page is HTML, and its name does not say so", where=out, fix=fix)
    has_key = _read_or_none(key_path(out)) is not None
    check_file(out, rules, _other_page)
    for path in (key_path(out), text_path(out)):
        check_file(path, rules, lambda path: "" if has_key else any_file(path))


def asked(answerer: Answerer, max_tokens: int, sampling: Sampling | None = None) -> dict[str, Any]:
    """Return what a model is, and how it is asked."""
    protocol = {**answerer.instrument(), "max_tokens": max_tokens}
    protocol |= {"sampling": {**config.plain(sampling), "min_p": MIN_P}} if sampling else {}
    return {"name": answerer.label, **answerer.quant(), "protocol": protocol}


def begun(prompts: Prompts, systems: Sequence[dict[str, Any]], out: Path, rules: Rules) -> Key:
    """Return a key without answers, or with those of the same request, which keeps its page.

    `systems` are what `asked` returns, in order.

    Raises UsageError: two models are one file, or another page's key is there, without which votes
    on it are lost.
    """
    shas = [str(system["sha256"]) for system in systems]
    if twice := [s["name"] for s in systems if shas.count(str(s["sha256"])) > 1]:
        raise UsageError(f"{twice[0]} and {twice[-1]} are the same file", fix="--a FILE --b OTHER")
    nameless = [{k: v for k, v in system.items() if k != "name"} for system in systems]
    request = sha256(canonical_json([nameless, prompts.by_id()]).encode()).hexdigest()
    old = _read_or_none(key_path(out))
    if old and old.request == request:
        return old
    if old:
        what = "the key of a page with other answers, without which votes on it are lost"
        check_file(key_path(out), rules, lambda _: what)
    named = {chr(ord("a") + i): system for i, system in enumerate(systems)}
    return Key(
        KEY, __version__, "", request, secrets.token_hex(16), prompts.language, named, {}, {}
    )


def finish(key: Key, out: Path) -> None:
    """Write a page, its key, and A's answers as text."""
    texts = {a["prompt"]: a["text"] for a in key.answers.values() if a["system"] == "a"}
    rows = ({"text": f"{text}\n\n{texts[name]}"} for name, text in key.prompts.items())
    write_whole(key_path(out), sealed_json(config.plain(key)))
    write_whole(text_path(out), "".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in rows))
    write_whole(out, page.render(_page_data(key), texts_of(key.language)))


def read_key(path: Path) -> Key:
    """Return a page's key; BadRecords if the file is none."""
    try:
        raw = from_json(path.read_bytes())
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page") from error
    except ValueError as error:
        fix = "--key FILE, the one made with the page"
        raise BadRecords(f"not JSON: {error}", where=path, fix=fix) from error
    if not isinstance(raw, dict) or raw.get("kind") != KEY:
        what = "this is no key of a page for votes"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page")
    try:
        key = config.build(Key, unsealed(raw), path)
        if not (_agrees(key) and _digest(key) == key.pack):
            raise ValueError("its answers are not those of its page")
    except ValueError as error:
        what = f"this key was changed: {error}"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page") from error
    return key


def _agrees(key: Key) -> bool:
    """Whether all that a key names is in it."""
    answers = key.answers.values()
    return (
        all(isinstance(system.get("name"), str) for system in key.systems.values())
        and all(answer.keys() == {"prompt", "system", "text"} for answer in answers)
        and all(a["prompt"] in key.prompts and a["system"] in key.systems for a in answers)
        and all(_name(key, answer) == name for name, answer in key.answers.items())
        and all(
            len(alike) == 3 and alike[0] in key.prompts and {*alike[1:]} <= key.systems.keys()
            for alike in key.identical
        )
    )


def _name(key: Key, answer: Mapping[str, str]) -> str:
    """Return the hash under which an answer stands on the page."""
    words = (key.salt, answer["prompt"], answer["system"], answer["text"])
    return sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()[:16]


def _digest(key: Key) -> str:
    """Return the hash of a page's content, which names it."""
    content = canonical_json(_page_data(dataclasses.replace(key, pack="")))
    return sha256(content.encode()).hexdigest()[:16]


def _other_page(path: Path) -> str:
    text = path.read_bytes()[:4096].decode("utf-8", "replace")
    return "" if page.MARK in text else any_file(path)


def _read_or_none(path: Path) -> Key | None:
    try:
        return read_key(path)
    except (BadRecords, UsageError):
        return None


def journal(out: Path, inputs: Mapping[str, Any]) -> Journal[Generated]:
    """Return the answers of a run that was stopped, to go on with."""
    digest = sha256(canonical_json(inputs).encode()).hexdigest()[:16]
    return Journal(out.parent / ".unfinished" / f"{out.stem}.{digest}.jsonl", Generated)


def answers_of(
    answerer: Answerer,
    prompts: Mapping[str, str],
    max_tokens: int,
    journal: Journal[Generated],
    sampling: Sampling | None = None,
) -> dict[str, str]:
    """Return a model's answer to each prompt; those in the journal are not asked again.

    Raises BadText: a prompt that it cannot answer.
    """
    answers = {name: answer for name in prompts if (answer := journal.get(name))}
    item = partial(_item, answerer, max_tokens, sampling)
    left = [item(name, text) for name, text in prompts.items() if name not in answers]
    with journal:
        for answer in answerer.generate(left) if left else ():
            if answer.error:
                what = f"{answerer.label} does not answer a prompt: {answer.error}"
                raise BadText(what, where=prompts[answer.id])
            journal.add(answer)
            answers[answer.id] = answer
    return {name: thoughts.answer(answers[name].text).strip() for name in prompts}


def _item(
    answerer: Answerer, max_tokens: int, sampling: Sampling | None, name: str, text: str
) -> GenerateItem:
    message = ("user" if answerer.is_chat else "", text)
    more = thoughts.EXTRA_TOKENS if answerer.opened else 0
    return GenerateItem(name, (message,), max_tokens, thought_tokens=more, sampling=sampling)


def filled(key: Key, prompts: Mapping[str, str], answers: Sequence[Mapping[str, str]]) -> Key:
    """Return a key with the answers of each system, by the prompt's name.

    Raises BadText: every answer is the same text, and there is nothing to vote on.
    """
    named = dict(zip(key.systems, answers, strict=True))
    by_hash: dict[str, dict[str, str]] = {}
    for system, texts in named.items():
        for prompt, text in texts.items():
            answer = {"prompt": prompt, "system": system, "text": text}
            by_hash[_name(key, answer)] = answer
    identical = tuple(
        (prompt, a, b)
        for a, b in combinations(named, 2)
        for prompt in prompts
        if named[a][prompt] == named[b][prompt]
    )
    if len(identical) == len(prompts) * len(list(combinations(named, 2))):
        raise BadText("nothing to vote on: the models answer every prompt with the same text")
    key = dataclasses.replace(key, prompts=dict(prompts), answers=by_hash, identical=identical)
    return dataclasses.replace(key, pack=_digest(key))


def _page_data(key: Key) -> dict[str, Any]:
    """Return what the page knows: in an order, and with names, that say nothing of systems."""
    hashes = sorted(key.answers)
    shuffled = random.Random(key.salt)
    drawn = sorted(sorted(pair) for pair in pairs(key))
    shuffled.shuffle(drawn)
    shown = {name for pair in drawn for name in pair}
    return {
        "pack": key.pack,
        "language": key.language,
        "prompts": key.prompts,
        "answers": {name: key.answers[name]["text"] for name in hashes if name in shown},
        "pairs": [[key.answers[first]["prompt"], first, second] for first, second in drawn],
    }


def pairs(key: Key) -> Iterator[tuple[str, str]]:
    """Yield the hashes of two answers to one prompt that are not the same text, a before b."""
    same = {frozenset((prompt, a, b)) for prompt, a, b in key.identical}
    of_prompt: dict[str, dict[str, str]] = {}
    for name, answer in key.answers.items():
        of_prompt.setdefault(answer["prompt"], {})[answer["system"]] = name
    for prompt, systems in of_prompt.items():
        for a, b in combinations(sorted(systems), 2):
            if frozenset((prompt, a, b)) not in same:
                yield systems[a], systems[b]
