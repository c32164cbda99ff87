"""`task translate`: a benchmark's file in another language, by a model, for a person to review."""

import csv
import dataclasses
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core.files import canonical_json, write_whole
from imatrix_lab.core.parallel import each
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.tasks import load
from imatrix_lab.tasks import locale as speeches
from imatrix_lab.tasks import translate_prompts as texts
from imatrix_lab.tasks.chat import Chat
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.locale import Speech
from imatrix_lab.tasks.translate_prompts import Translation

_ORDER = ("context", "question", "options", "gold")


@dataclass(frozen=True)
class Translated:
    """What was written.

    Attributes
    ----------
    items : the benchmark in its own schema, as a JSON list.
    review : every text beside its translation, TSV, flagged ones first.
    manifest : that it is machine-translated, by what, from what.
    n_left_out : items of which a text could not be translated.
    """

    items: Path
    review: Path
    manifest: Path
    n_texts: int
    n_flagged: int
    n_left_out: int


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
    translator = _Translator(
        speech,
        chat,
        texts.columns(task),
        Journal(out / f"{task.name}.{to}.texts.jsonl", Translation),
    )
    done: dict[int, _Done] = {}
    with (
        translator.journal as add,
        progress.task(f"translate {task.name} to {to}", len(chosen), "items") as bar,
    ):

        def one(place: int) -> tuple[int, _Done]:
            return place, translator.row(chosen[place], str(chosen[place].get("id", place)), add)

        for place, found in each(one, range(len(chosen)), chat.parallel):
            done[place] = found
            bar.update(len(done))
    every = [done[place] for place in range(len(chosen))]
    failed = [text.error for one in every for text in one.texts if text.error]
    if failed and all(one.failed() for one in every):
        raise ImatrixLabError(f"nothing could be translated: {failed[0]}",
                              fix="check the model and the endpoint; then run again")  # fmt: skip
    written = _write(task, to, out, every)
    manifest = {
        "task": task.name, "language": to, "from": source, "machine_translated": True,
        "model": chat.model, "model_identity": chat.identity,
        "package_version": __version__, "origin": dict(rows.origin),
        "licence": task.licence, "citation": task.citation,
        "n_items": len(every) - written.n_left_out, "n_left_out": written.n_left_out,
        "n_texts": written.n_texts, "n_flagged": written.n_flagged,
        "instruction": speech.words["translate"],
    }  # fmt: skip
    write_whole(written.manifest, canonical_json(manifest))
    return written


@dataclass(frozen=True)
class _Done:
    """A row with its texts translated.

    Attributes
    ----------
    notes : what is wrong with the row as a whole.
    """

    name: str
    row: dict[str, Any]
    texts: tuple[Translation, ...]
    notes: tuple[str, ...]

    def failed(self) -> bool:
        """Whether a part of it is in the old language."""
        return any(text.error for text in self.texts)


class _Translator:
    """Translates texts once; what an earlier run translated is not asked again.

    Parameters
    ----------
    wanted : the columns to translate, and what each is.
    """

    def __init__(self, speech: Speech, chat: Chat, wanted: Mapping[str, str], journal: Journal):
        self._speech, self._chat, self._wanted, self.journal = speech, chat, wanted, journal
        self._locks: dict[str, threading.Lock] = {}

    def row(self, row: Mapping[str, Any], name: str, add: Any) -> _Done:
        """Return a row with its texts translated; any thread may ask."""
        by_text: dict[str, str] = {}
        found = []
        parts = sorted(texts.texts(row, self._wanted), key=lambda part: _ORDER.index(part[0]))
        for kind, text in parts:
            if text in by_text:
                continue
            beside = self._beside(kind, text, parts, by_text)
            one = self._one(kind, text, beside, add)
            by_text[text] = one.text
            found.append(one)
        new = texts.apply(row, self._wanted, by_text)
        return _Done(name, new, tuple(found), tuple(texts.inconsistent(row, new, self._wanted)))

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
        key = texts.key_of(messages, self._chat)
        with self._locks.setdefault(key, threading.Lock()):  # another row may have the same text
            known = self.journal.found.get(key)
            if known and not known["error"]:
                return Translation(**{**known, "flags": tuple(known["flags"])})
            one = texts.translate(kind, text, messages, self._chat)
            add(dataclasses.asdict(one))
            return one


def _write(task: Definition, to: str, out: Path, every: Sequence[_Done]) -> Translated:
    """Write the items, but for those that are half in the old language, and what to review."""
    items, sheet = out / f"{task.name}.{to}.json", out / f"{task.name}.{to}.review.tsv"
    lines = []
    for one in every:
        for text in one.texts:
            notes = one.notes if text.field in ("gold", "options") else ()
            flags = "; ".join((*text.flags, *notes, *filter(None, [text.error])))
            lines.append((one.name, text.field, flags, text.source, text.text))
    lines.sort(key=lambda line: line[2] == "")
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["item", "field", "flags", "source", "translation"])
    writer.writerows(lines)
    whole = [one.row for one in every if not one.failed()]
    write_whole(items, canonical_json(whole))
    write_whole(sheet, table.getvalue())
    return Translated(
        items, sheet, out / f"{task.name}.{to}.manifest.json", len(lines),
        sum(bool(line[2]) for line in lines), len(every) - len(whole),
    )  # fmt: skip
