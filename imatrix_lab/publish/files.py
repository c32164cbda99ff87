"""What is published of a folder that `tune` or `quantize` filled: files, card, texts, results."""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab.core import digests, process
from imatrix_lab.core.files import canonical_json, need_room, sealed_json, sha256_file
from imatrix_lab.core.format import size
from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.paths import HOST_PATH
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Artifact
from imatrix_lab.corpus import documents
from imatrix_lab.corpus.build import CALIBRATION, HELDOUT
from imatrix_lab.corpus.mixture import languages_of
from imatrix_lab.errors import BadModel, BadRecords, UsageError
from imatrix_lab.llamacpp.build import get_toolchain
from imatrix_lab.llamacpp.toolchain import default_backend
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import deliver
from imatrix_lab.pipeline.card import picture, scores, text
from imatrix_lab.pipeline.card.scores import Scores
from imatrix_lab.pipeline.card.text import Release
from imatrix_lab.quantize.run import types_path
from imatrix_lab.quantize.sensitivity import SUFFIX
from imatrix_lab.score.text import Text
from imatrix_lab.types import NOT_FOR_USE

CARD, RESULTS, SCORES = deliver.CARD, "results.json", "scores"
LARGEST_BYTES = 20_000_000_000
"""Of a file on the Hub, as it advises; larger ones are split."""
_GIVEN = ("public-domain", "permissive", "share-alike")
"""Classes of licences with which a text may be given as it is, its sources named."""


@dataclass(frozen=True)
class Item:
    """A file as it will be called on the Hub; `content` is its path here, or its bytes."""

    name: str
    content: Path | bytes
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Collected:
    """Everything to publish; the card is its last item. `notes`: what a publisher should know."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = field(default=())

    def card(self) -> str:
        """Return the card's text."""
        content = self.items[-1].content
        assert isinstance(content, bytes)
        return content.decode()

    def picture(self) -> str:
        """Return the card's picture, or ""."""
        contents = (item.content for item in self.items if item.name == picture.NAME)
        content = next(contents, b"")
        assert isinstance(content, bytes)
        return content.decode()


def collect(
    folder: Path, repo: str, records: Sequence[Path], with_text: bool, dry_run: bool,
    session: Session,
) -> Collected:  # fmt: skip
    """Return what is published of a folder.

    Without `records`, those in the folder ``scores`` are taken, if they are of these files. A dry
    run splits no file.

    Raises UsageError: nothing in it is ours, or a file was changed; BadModel: a file's metadata has
    a path of a machine; BadRecords: `records` are not of these files.
    """
    entries = deliver.entries_of(folder) or {}
    entries = {
        name: e
        for name, e in entries.items()
        if (folder / name).exists() and e.get("type") not in NOT_FOR_USE
    }
    quants = {name: e for name, e in entries.items() if e["kind"] == "quant"}
    if not quants:
        fix = "imatrix-lab tune LANGUAGE; for files that others made: imatrix-lab card FILE"
        raise UsageError("no files here that imatrix-lab made", where=folder, fix=fix)
    for name, entry in entries.items():
        _check(folder / name, entry["sha256"], session)
    scored, notes = _scores(folder, quants, records, session)
    items, shards = list[Item](), dict[str, list[str]]()
    for name, entry in entries.items():
        item = _item(folder / name, entry["sha256"])
        items.append(item)
        if item.size_bytes > LARGEST_BYTES and name in quants:
            if dry_run:
                notes.append(f"{name} will be split: it is larger than {size(LARGEST_BYTES)}")
                continue
            items[-1:] = parts = _split(item, session)
            shards[name] = [part.name for part in parts]
    items += [_item(path) for name in quants if (path := types_path(folder / name)).exists()]
    texts = _texts(entries, scored, with_text, session)
    items += [*texts.items, *_sensitivities(quants, session)]
    items.append(_made(MANIFEST, sealed_json({"files": entries})))
    if scored.files:
        items.append(_made(RESULTS, canonical_json(scored.as_json())))
        items.append(_made(picture.NAME, picture.svg(scored)))
    written = text.card(entries, Release(repo, scored, shards, texts.calibration, texts.heldout))
    if not deliver.card_is_ours(folder):
        notes.append(f"{CARD} was changed by hand and is published as it is")
        written = (folder / CARD).read_text("utf-8")
    if {e["imatrix_sha256"] for e in quants.values()} - {
        "",
        *(e["sha256"] for e in entries.values()),
    }:
        notes.append("an imatrix that was not made with these files does not go along")
    if not any(e["license"] for e in quants.values()):
        notes.append("the original names no licence: see that it may be published")
    if not any(e["base_model"] for e in quants.values()):
        what = "the original's repository is not known, so that the Hub does not list these files"
        notes.append(f"{what} beside it: quantize --model hf:org/name, or add base_model to {CARD}")
    return Collected((*items, _made(CARD, written)), (*notes, *texts.notes))


def _scores(
    folder: Path, quants: Mapping[str, Mapping[str, Any]], records: Sequence[Path], session: Session
) -> tuple[Scores, list[str]]:
    """Return what records say, and what there is to note about that."""
    models = {e["model_sha256"] for e in quants.values()}
    names = {e["sha256"]: name for name, e in quants.items()}
    paths = records or [path for path in [Path(SCORES)] if path.is_dir()]
    if not paths:
        return Scores(), [_not_scored(folder, quants)]
    try:
        model_sha256 = models.pop() if len(models) == 1 else ""
        return scores.of_records(paths, names, model_sha256, session.progress), []
    except BadRecords:
        if records:
            raise
        return Scores(), [_not_scored(folder, quants)]


def _not_scored(folder: Path, quants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return that the card has no scores, and the command that makes some."""
    reference = next(iter(quants.values()))["model"] or "ORIGINAL"
    words = ["imatrix-lab", "score", "run", "--reference", reference, "--quant"]
    words += [str(folder / name) for name in quants]
    texts = {x for e in quants.values() for x in languages_of(e["language"])}
    return f"the card has no scores: {shlex.join([*words, '--text', *(sorted(texts) or ['LANG'])])}"


def _check(path: Path, sha256: str, session: Session) -> None:
    if digests.sha256_of(path, session) != sha256:
        what = "this file is not the one in manifest.json"
        raise UsageError(what, where=path, fix="delete it, and run the command that made it again")
    if path.suffix == ".gguf":
        check_metadata(path)


def check_metadata(path: Path) -> None:
    """Raise BadModel if a GGUF file's metadata has a path of somebody's machine."""
    metadata = read_header(path).metadata
    for key, value in metadata.items():
        words = (
            [] if key.startswith("tokenizer.") else value if isinstance(value, list) else [value]
        )
        for word in words:
            if isinstance(word, str) and HOST_PATH.search(word):
                what = f"its metadata has a path of a machine: {key} is {word!r}"
                fix = "remove it from the original, or from the imatrix, and quantize again"
                raise BadModel(what, where=path, fix=fix)


def _item(path: Path, sha256: str = "") -> Item:
    return Item(path.name, path, sha256 or sha256_file(path), path.stat().st_size)


def _made(name: str, written: str) -> Item:
    content = written.encode()
    return Item(name, content, hashlib.sha256(content).hexdigest(), len(content))


def _split(item: Item, session: Session) -> list[Item]:
    """Return the parts of a file that is too large, made by llama-gguf-split in the store."""
    assert isinstance(item.content, Path)
    source, stem = item.content.absolute(), item.content.stem

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        need_room(out, item.size_bytes, f"the parts of {item.name}")
        tools = get_toolchain(default_backend(), session)
        limit = f"{LARGEST_BYTES * 95 // 100_000_000}M"  # it counts tensors alone
        argv = ["--split", "--split-max-size", limit, str(source), str(out / stem)]
        with session.progress.task(f"split {item.name}", 1, "") as task:
            process.run([tools.program("llama-gguf-split"), *argv], log=scratch / "split.log")
            task.update(1)
        return {}

    inputs = {"sha256": item.sha256, "name": stem, "limit_bytes": LARGEST_BYTES}
    artifact = session.store.own.get("split", stem, inputs, make, session.progress)
    names = sorted(artifact.manifest["files"])
    return [_item(artifact.path / name, artifact.sha256(name)) for name in names]


@dataclass
class _Texts:
    """Texts by their sha256 or label, those of them that go along, and what is said of others."""

    calibration: dict[str, text.Text] = field(default_factory=dict)
    heldout: dict[str, text.Text] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _texts(
    entries: Mapping[str, Mapping[str, Any]], scored: Scores, with_text: bool, session: Session
) -> _Texts:
    """Return the texts behind files and scores, as far as the store has them."""
    texts = _Texts()
    corpora = [a for a in session.store.artifacts() if a.manifest["kind"] == "corpus"]
    calibrated = {e["corpus_sha256"] for e in entries.values() if e.get("corpus_sha256")}
    for corpus in corpora:
        language, sources = corpus.facts["language"], corpus.facts.get("sources", [])
        if (sha256 := corpus.sha256(CALIBRATION)) in calibrated:
            used = [s for s in sources if s["n_used"]]
            name = f"calibration-{language}.txt" if with_text and _given(used) else ""
            if with_text and not name:
                texts.notes.append(f"calibration text {language} stays here: its licence")
            texts.calibration[sha256] = text.Text(_named(used), name)
            _add(texts, name, corpus, CALIBRATION)
        labels = [s.summary.text for s in scored.files if _is_start(s.summary.signature, corpus)]
        for label in dict.fromkeys(labels):
            used = [s for s in sources if s["n_heldout"]]
            is_given = all(s["kind"] == "written" for s in used) or (with_text and _given(used))
            name = f"heldout-{label}.jsonl" if used and is_given else ""
            texts.heldout[label] = text.Text(_named(used), name)
            _add(texts, name, corpus, HELDOUT)
    if calibrated - texts.calibration.keys():
        texts.notes.append("a calibration text is not in this store: its sources are not listed")
    return texts


def _add(texts: _Texts, name: str, corpus: Artifact, file: str) -> None:
    if name and name not in {item.name for item in texts.items}:
        path = corpus.path / file
        texts.items.append(Item(name, path, corpus.sha256(file), path.stat().st_size))


def _given(sources: Sequence[Mapping[str, Any]]) -> bool:
    return bool(sources) and all(s["licence_class"] in _GIVEN for s in sources)


def _named(sources: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(f"{s['name']}: {s['origin']} ({s['licence']})" for s in sources)


def _is_start(signature: Mapping[str, Any], corpus: Artifact) -> bool:
    """Whether what was scored is the first documents of a corpus's held-out text."""
    facts = signature["text"]
    if facts["n_documents"] > corpus.facts["n_heldout"]:
        return False
    first = documents.read(corpus.path / HELDOUT)[: facts["n_documents"]]
    return Text(facts["label"], tuple(first)).sha256() == str(facts["sha256"])


def _sensitivities(quants: Mapping[str, Mapping[str, Any]], session: Session) -> Iterator[Item]:
    """Yield the sensitivities by which types were chosen, from the store."""
    chosen = {
        x: s
        for e in quants.values()
        for x, s in e.get("chosen", {}).get("sensitivities", {}).items()
    }
    for artifact in session.store.artifacts() if chosen else ():
        for name, entry in artifact.manifest["files"].items():
            for language, sha256 in chosen.items():
                if name.endswith(SUFFIX) and entry["sha256"] == sha256:
                    content = artifact.path / name
                    yield Item(f"{language}{SUFFIX}", content, sha256, entry["size_bytes"])
