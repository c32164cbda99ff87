"""`task translate`: a benchmark's file in another language, by a model, for a person to review."""

import csv
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab import __version__
from imatrix_lab.core.files import canonical_json, from_json, write_whole
from imatrix_lab.core.outputs import Rules, any_file, check_file, check_folder, replaceable
from imatrix_lab.core.parallel import each
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import ImatrixLabError
from imatrix_lab.tasks import load, translate_prompts
from imatrix_lab.tasks.chat import Chat
from imatrix_lab.tasks.definition import Definition
from imatrix_lab.tasks.journal import Journal, other_than_journal
from imatrix_lab.tasks.locale import Locale, get_locale
from imatrix_lab.tasks.translate_prompts import Translation

_ORDER = ("context", "question", "options", "gold")


@dataclass(frozen=True)
class Translated:
    """The files of a translated task: its items in the benchmark's own schema, as a JSON list.

    `review` has every text beside its translation, TSV, flagged ones first; `manifest` says that
    it is machine-translated, by what, from what. Items with a text that failed are left out.
    """

    items: Path
    review: Path
    manifest: Path
    n_texts: int
    n_flagged: int
    n_left_out: int


@dataclass(frozen=True)
class _Row:
    """A row with its texts translated; `notes` say what is wrong with it as a whole."""

    name: str
    row: dict[str, Any]
    texts: tuple[Translation, ...]
    notes: tuple[str, ...]

    def failed(self) -> bool:
        return any(text.error for text in self.texts)


@dataclass(frozen=True)
class TranslateRequest:
    """Translate the first `limit` items of a task from one language into another."""

    task: Definition
    source: str
    to: str
    data: Path | None
    out: Path
    limit: int | None = None


def check(request: TranslateRequest, rules: Rules, model: str = "") -> None:
    """Raise unless the files can be written; those of the same translation are replaced."""
    *written, manifest, journal = _paths(request.task, request.to, request.out)
    same = {"task": request.task.name, "language": request.to, "from": request.source}
    same |= {"model": model} if model else {}
    try:
        old = dict(from_json(manifest.read_bytes()))
    except (OSError, ValueError, TypeError):
        old = {}
    is_ours = same.items() <= old.items()
    check_folder(request.out)
    if request.data or not load.has(request.task, request.source, None):
        load.rows(request.task, request.source, request.data)  # raises what is wrong with it
    for path in (*written, manifest):
        check_file(path, rules, replaceable if is_ours else any_file)
    check_file(journal, rules, other_than_journal)


def _paths(task: Definition, to: str, out: Path) -> tuple[Path, Path, Path, Path]:
    """Return where items, review, manifest and single texts are written."""
    suffixes = ("json", "review.tsv", "manifest.json", "texts.jsonl")
    items, review, manifest, journal = (out / f"{task.name}.{to}.{s}" for s in suffixes)
    return items, review, manifest, journal


def translate(request: TranslateRequest, chat: Chat, progress: Progress) -> Translated:
    """Translate a task; `ImatrixLabError` if nothing at all could be translated."""
    task, to, out = request.task, request.to, request.out
    locale = get_locale(to)
    benchmark = load.rows(task, request.source, request.data)
    chosen = benchmark.rows[: request.limit]
    journal = Journal(_paths(task, to, out)[-1], Translation)
    translator = _Translator(locale, chat, translate_prompts.columns(task), journal)
    done: dict[int, _Row] = {}
    name = f"translate {task.name} to {to}"
    with journal, progress.task(name, len(chosen), "items") as bar:

        def translate_row(place: int) -> tuple[int, _Row]:
            return place, translator.row(chosen[place], str(chosen[place].get("id", place)))

        for place, row in each(translate_row, range(len(chosen)), chat.parallel):
            done[place] = row
            bar.update(len(done))
    rows = [done[place] for place in range(len(chosen))]
    errors = [text.error for row in rows for text in row.texts if text.error]
    if errors and all(row.failed() for row in rows):
        what = f"nothing could be translated: {errors[0]}"
        raise ImatrixLabError(what, fix="check the model and the endpoint; then run again")
    written = _write(task, to, out, rows)
    manifest = {
        "task": task.name, "language": to, "from": request.source, "machine_translated": True,
        "model": chat.model, "model_identity": chat.identity,
        "package_version": __version__, "origin": dict(benchmark.origin),
        "licence": task.licence, "citation": task.citation,
        "n_items": len(rows) - written.n_left_out, "n_left_out": written.n_left_out,
        "n_texts": written.n_texts, "n_flagged": written.n_flagged,
        "instruction": locale.words["translate"],
    }  # fmt: skip
    write_whole(written.manifest, canonical_json(manifest))
    return written


class _Translator:
    """Translates texts once, in any thread; what an earlier run translated is not asked again."""

    def __init__(
        self, locale: Locale, chat: Chat, columns: Mapping[str, str], journal: Journal[Translation]
    ):
        self._locale, self._chat, self._columns, self._journal = locale, chat, columns, journal
        self._locks: dict[str, threading.Lock] = {}

    def row(self, row: Mapping[str, Any], name: str) -> _Row:
        by_text: dict[str, str] = {}
        translations = []
        parts = translate_prompts.texts(row, self._columns)
        for field, text in sorted(parts, key=lambda part: _ORDER.index(part[0])):
            if text not in by_text:
                beside = by_text.get(_belongs_to(text, parts), "")
                translations.append(self._translate(field, text, beside))
                by_text[text] = translations[-1].text
        new = translate_prompts.apply(row, self._columns, by_text)
        notes = dict.fromkeys(translate_prompts.inconsistent(row, new, self._columns))
        return _Row(name, new, tuple(translations), tuple(notes))

    def _translate(self, field: str, text: str, beside: str) -> Translation:
        messages = translate_prompts.prompt(field, text, beside, self._locale)
        key = translate_prompts.key_of(messages, self._chat)
        with self._locks.setdefault(key, threading.Lock()):  # another row may have the same text
            translation = self._journal.get(key)
            if not translation:
                translation = translate_prompts.translate(field, text, messages, self._chat)
                self._journal.add(translation)
            return translation


def _belongs_to(text: str, parts: Sequence[tuple[str, str]]) -> str:
    contexts = [t for field, t in parts if field == "context" and text.casefold() in t.casefold()]
    questions = [t for field, t in parts if field == "question"]
    return next(iter(contexts or questions), "")


def _write(task: Definition, to: str, out: Path, rows: Sequence[_Row]) -> Translated:
    """Write the items, but for those that are half in the old language, and what to review."""
    lines = []
    for row in rows:
        for text in row.texts:
            notes = row.notes if text.field in ("gold", "options") else ()
            flags = "; ".join((*text.flags, *notes, *filter(None, [text.error])))
            lines.append((row.name, text.field, flags, text.source, text.text))
    lines.sort(key=lambda line: line[2] == "")
    table = io.StringIO()
    header = ("item", "field", "flags", "source", "translation")
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows([header, *lines])
    whole = [row.row for row in rows if not row.failed()]
    items, review, manifest, _ = _paths(task, to, out)
    write_whole(items, canonical_json(whole))
    write_whole(review, table.getvalue())
    n_flagged = sum(bool(line[2]) for line in lines)
    return Translated(items, review, manifest, len(lines), n_flagged, len(rows) - len(whole))
