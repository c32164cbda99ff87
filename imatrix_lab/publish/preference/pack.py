"""Answers of two or more quants to the same prompts, on a page for blind votes, and its key.

The page has answers under hashes; which quant wrote which stands in the key, a file that stays with
whoever made the page. The hashes are salted: nobody finds them out by running the models again.
"""

import dataclasses
import json
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core import config
from imatrix_lab.core.files import canonical_json, from_json, write_whole
from imatrix_lab.core.outputs import Rules, any_file, check_file
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadRecords, BadText, UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.publish.preference import page
from imatrix_lab.publish.preference.prompts import Prompts, texts_of
from imatrix_lab.tasks import backends
from imatrix_lab.tasks.backends import Answerer
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.types import ComputeOptions, Generated, GenerateItem, TaskRequest

KEY = "imatrix_lab preference key"


@dataclass(frozen=True)
class PackRequest:
    """Prompts, two or more models in the order of their names (a, b, …), and the page's place."""

    prompts: Prompts
    models: tuple[str, ...]
    out: Path
    compute: ComputeOptions
    max_tokens: int = 300
    parallel: int = 16
    force: bool = False

    def key_path(self) -> Path:
        """Return where the key goes: beside the page."""
        return self.out.with_suffix(".key.json")


@dataclass(frozen=True)
class Key:
    """Which system (a, b, …) gave which answer, and what the systems are.

    Attributes
    ----------
    pack : hash of the page's content; votes carry it.
    request : hash of what was asked of whom; the same request keeps its salt.
    systems : signature of each quant by name.
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
    protocol: dict[str, Any]
    prompts: dict[str, str]
    answers: dict[str, dict[str, str]]
    identical: tuple[tuple[str, ...], ...] = field(default=())


def make(request: PackRequest, session: Session) -> Key:
    """Answer the prompts with every model, and write the page and its key.

    Raises UsageError: one model, or two files of the same bytes; BadText: a prompt that a model
    cannot answer.
    """
    if len(request.models) < 2:
        raise UsageError("a comparison needs two models", fix="--a FILE --b FILE")
    rules = Rules(force=request.force, progress=session.progress)
    check_file(request.out, rules, _other_page)
    check_file(request.key_path(), rules, _other_key)
    names = [chr(ord("a") + i) for i in range(len(request.models))]
    systems, protocols, answers = {}, [], {}
    by_id = request.prompts.by_id()
    task = TaskRequest((), (), request.models, request.out.parent, request.compute,
                       parallel=request.parallel)  # fmt: skip
    for name, opened in zip(names, backends.open_all(task, session), strict=True):
        with opened() as answerer:
            systems[name] = {"name": answerer.label, **answerer.quant()}
            protocols.append({**answerer.instrument(), "max_tokens": request.max_tokens})
            answers[name] = _answers(request, by_id, answerer, systems[name], protocols[-1])
    shas = [str(system["sha256"]) for system in systems.values()]
    if twice := [m for m, sha in zip(request.models, shas, strict=True) if shas.count(sha) > 1]:
        raise UsageError(f"{twice[0]} and {twice[1]} are the same file", fix="--a FILE --b OTHER")
    content = canonical_json([shas, by_id, protocols])
    digest = sha256(content.encode()).hexdigest()
    key = _key(request, systems, protocols[0], digest)
    key = _filled(key, by_id, answers)
    old = _read_or_none(request.key_path())
    if old and old.request != key.request and not request.force:
        check_file(request.key_path(), rules, any_file)
    write_whole(request.key_path(), json.dumps(config.plain(key), ensure_ascii=False, indent=1))
    write_whole(request.out, page.render(_page_data(key), texts_of(key.language)))
    return key


def read_key(path: Path) -> Key:
    """Return a page's key; BadRecords if the file is none."""
    try:
        raw = from_json(path.read_bytes())
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page") from error
    except ValueError as error:
        raise BadRecords(f"not JSON: {error}", where=path) from error
    if not isinstance(raw, dict) or raw.get("kind") != KEY:
        what = "this is no key of a page for votes"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page")
    key = config.build(Key, raw, path)
    if not (_agrees(key) and _digest(key) == key.pack):
        what = "this key is not as it was written: its answers are not those of its page"
        raise BadRecords(what, where=path, fix="--key FILE, the one made with the page")
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


def _other_key(path: Path) -> str:
    return "" if _read_or_none(path) else any_file(path)


def _read_or_none(path: Path) -> Key | None:
    try:
        return read_key(path)
    except (BadRecords, UsageError):
        return None


def _answers(
    request: PackRequest, prompts: Mapping[str, str], answerer: Answerer,
    system: Mapping[str, Any], protocol: Mapping[str, Any],
) -> dict[str, str]:  # fmt: skip
    """Return a model's answer to each prompt; those of a stopped run are not asked again."""
    content = canonical_json([dict(system), dict(protocol), dict(prompts)])
    digest = sha256(content.encode()).hexdigest()[:16]
    folder = request.out.parent / ".unfinished"
    journal = Journal(folder / f"{request.out.stem}.{digest}.jsonl", Generated)
    answers = {name: answer for name in prompts if (answer := journal.get(name))}
    left = [_item(n, t, request, answerer) for n, t in prompts.items() if n not in answers]
    with journal:
        for answer in answerer.generate(left) if left else ():
            if answer.error:
                what = f"{answerer.label} does not answer a prompt: {answer.error}"
                raise BadText(what, where=prompts[answer.id])
            journal.add(answer)
            answers[answer.id] = answer
    return {name: thoughts.answer(answers[name].text).strip() for name in prompts}


def _item(name: str, text: str, request: PackRequest, answerer: Answerer) -> GenerateItem:
    role = "user" if answerer.is_chat else ""
    more = thoughts.EXTRA_TOKENS if answerer.opened else 0
    return GenerateItem(name, ((role, text),), request.max_tokens, thought_tokens=more)


def _key(
    request: PackRequest, systems: dict[str, dict[str, Any]], protocol: dict[str, Any], digest: str
) -> Key:
    """Return a key without answers: with the salt of an earlier page of the same request."""
    old = _read_or_none(request.key_path())
    salt = old.salt if old and old.request == digest else secrets.token_hex(16)
    return Key(KEY, __version__, "", digest, salt, request.prompts.language, systems, protocol, {},
               {})  # fmt: skip


def _filled(key: Key, prompts: Mapping[str, str], answers: Mapping[str, Mapping[str, str]]) -> Key:
    by_hash: dict[str, dict[str, str]] = {}
    for system, texts in answers.items():
        for prompt, text in texts.items():
            answer = {"prompt": prompt, "system": system, "text": text}
            by_hash[_name(key, answer)] = answer
    identical = tuple(
        (prompt, a, b)
        for a, b in combinations(answers, 2)
        for prompt in prompts
        if answers[a][prompt] == answers[b][prompt]
    )
    key = dataclasses.replace(key, prompts=dict(prompts), answers=by_hash, identical=identical)
    return dataclasses.replace(key, pack=_digest(key))


def _page_data(key: Key) -> dict[str, Any]:
    """Return what the page knows: in an order, and with names, that say nothing of systems."""
    hashes = sorted(key.answers)
    shuffled = random.Random(key.salt)
    pairs = [sorted(pair) for pair in _pairs(key)]
    shuffled.shuffle(pairs)
    shown = sorted({name for pair in pairs for name in pair})
    return {
        "pack": key.pack,
        "language": key.language,
        "prompts": key.prompts,
        "answers": {name: key.answers[name]["text"] for name in hashes if name in shown},
        "pairs": [[key.answers[first]["prompt"], first, second] for first, second in pairs],
    }


def _pairs(key: Key) -> Iterator[tuple[str, str]]:
    """Yield the hashes of two answers to one prompt that are not the same text."""
    same = {frozenset((prompt, a, b)) for prompt, a, b in key.identical}
    of_prompt: dict[str, dict[str, str]] = {}
    for name, answer in key.answers.items():
        of_prompt.setdefault(answer["prompt"], {})[answer["system"]] = name
    for prompt, systems in of_prompt.items():
        for a, b in combinations(sorted(systems), 2):
            if frozenset((prompt, a, b)) not in same:
                yield systems[a], systems[b]
