"""`task translate`: a benchmark's file in another language, by a model, for a person to review."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.progress import Progress
from imatrix_lab.store import canonical_json, write_whole
from imatrix_lab.tasks import load
from imatrix_lab.tasks import speech as speeches
from imatrix_lab.tasks import translate as texts
from imatrix_lab.tasks.chat import Chat, prompt_hash
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.speech import Speech
from imatrix_lab.tasks.translate import Translation

_ORDER = ("context", "question", "options", "gold")


@dataclass(frozen=True)
class Translated:
    """What was written.

    Attributes
    ----------
    items : the benchmark in its own schema, as a JSON list.
    review : every text beside its translation, TSV, flagged ones first.
    manifest : that it is machine-translated, by what, from what.
    """

    items: Path
    review: Path
    manifest: Path
    n_texts: int
    n_flagged: int
    n_failed: int


def translate(
    task: Definition, source: str, to: str, data: Path | None, out: Path, limit: int | None,
    chat: Chat, progress: Progress,
) -> Translated:  # fmt: skip
    """Translate a task's items into a language.

    Parameters
    ----------
    source : the language its items are in.
    limit : only the first so many items.

    Raises
    ------
    ImatrixLabError : nothing at all could be translated.
    """
    speech = speeches.get(to)
    rows = load.rows(task, source, data)
    chosen = rows.rows[:limit]
    wanted = texts.columns(task)
    translator = _Translator(speech, chat, Journal(out / ".unfinished" / f"{task.name}.{to}.jsonl"))
    done, review = [], []
    with (
        translator.journal as add,
        progress.task(f"translate {task.name} to {to}", len(chosen), "items") as bar,
    ):
        for place, row in enumerate(chosen):
            new, found = translator.row(row, wanted, add)
            notes = texts.inconsistent(row, new, wanted)
            name = str(row.get("id", place))
            review += [
                (name, one, notes if one.field in ("gold", "options") else []) for one in found
            ]
            done.append(new)
            bar.update(place + 1)
    failed = [one for _, one, _ in review if one.error]
    if failed and len(failed) == len(review):
        raise ImatrixLabError(f"nothing could be translated: {failed[0].error}",
                              fix="check the endpoint; then run again")  # fmt: skip
    written = _write(task, to, out, done, review)
    manifest = {
        "task": task.name, "language": to, "from": source, "machine_translated": True,
        "model": chat.model, "package_version": __version__, "origin": dict(rows.origin),
        "licence": task.licence, "citation": task.citation, "n_items": len(done),
        "n_texts": written.n_texts, "n_flagged": written.n_flagged, "n_failed": written.n_failed,
        "instruction": speech.words["translate"],
    }  # fmt: skip
    write_whole(written.manifest, canonical_json(manifest))
    if not failed:
        translator.journal.remove()
    return written


class _Translator:
    """Translates texts once; what an earlier run translated is not asked again."""

    def __init__(self, speech: Speech, chat: Chat, journal: Journal):
        self._speech, self._chat, self.journal = speech, chat, journal

    def row(
        self, row: Mapping[str, Any], wanted: Mapping[str, str], add: Any
    ) -> tuple[dict[str, Any], list[Translation]]:
        """Return a row with its texts translated, and what was done to each."""
        by_text: dict[str, str] = {}
        found: list[Translation] = []
        parts = sorted(texts.texts(row, wanted), key=lambda part: _ORDER.index(part[0]))
        for kind, text in parts:
            if text in by_text:
                continue
            beside = self._beside(kind, text, parts, by_text)
            one = self._one(kind, text, beside, add)
            by_text[text] = one.text
            found.append(one)
        return texts.apply(row, wanted, by_text), found

    def _beside(
        self, kind: str, text: str, parts: list[tuple[str, str]], by_text: Mapping[str, str]
    ) -> str:
        if kind not in ("gold", "options"):
            return ""
        contexts = [t for k, t in parts if k == "context" and text.casefold() in t.casefold()]
        questions = [t for k, t in parts if k == "question"]
        chosen = (contexts or questions)[:1]
        return by_text.get(chosen[0], "") if chosen else ""

    def _one(self, kind: str, text: str, beside: str, add: Any) -> Translation:
        messages = texts.prompt(kind, text, beside, self._speech)
        known = self.journal.found.get(prompt_hash(messages, self._chat.model))
        if known and not known["error"]:
            return Translation(**{**known, "flags": tuple(known["flags"])})
        one = texts.translate(kind, text, messages, self._chat)
        add(dataclasses.asdict(one))
        return one


def _write(
    task: Definition, to: str, out: Path, rows: list[dict[str, Any]],
    review: list[tuple[str, Translation, list[str]]],
) -> Translated:  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    items, sheet = out / f"{task.name}.{to}.json", out / f"{task.name}.{to}.review.tsv"
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["item", "field", "flags", "source", "translation"])
    lines: list[tuple[str, str, str, str, str]] = [
        (name, one.field, "; ".join([*one.flags, *notes, *([one.error] if one.error else [])]),
         one.source, one.text)
        for name, one, notes in review
    ]  # fmt: skip
    lines.sort(key=lambda line: line[2] == "")
    writer.writerows(lines)
    write_whole(items, canonical_json(rows))
    write_whole(sheet, table.getvalue())
    return Translated(
        items, sheet, out / f"{task.name}.{to}.manifest.json", len(lines),
        sum(bool(line[2]) for line in lines), sum(bool(one.error) for _, one, _ in review),
    )  # fmt: skip
