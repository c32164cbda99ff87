"""`task judge`: a model's opinion of answers, beside the rule's, or of two quants' answers."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.files import canonical_json
from imatrix_lab.core.parallel import each
from imatrix_lab.core.progress import Progress
from imatrix_lab.errors import BadRecords, ImatrixLabError, UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.records import parquet, runs
from imatrix_lab.records.runs import Run
from imatrix_lab.tasks import judge_prompts, records
from imatrix_lab.tasks.chat import Chat, prompt_hash
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.judge_prompts import Judgement
from imatrix_lab.tasks.locale import Locale, get_locale

Row = dict[str, Any]


@dataclass(frozen=True)
class Grades:
    """A judge's mean grade of a run's free-form answers, and the rule's on the same items.

    `kappa` is Cohen's, right being a half or more; `failed` counts answers without a grade by
    reason; `file` has every judgement, one a line.
    """

    model: str
    n: int
    failed: dict[str, int]
    mean: float
    mean_rule: float
    kappa: float
    file: Path


@dataclass(frozen=True)
class Preferences:
    """Which of two quants' answers a judge prefers; pairs without a verdict are `failed`."""

    model: str
    n_a: int
    n_b: int
    n_ties: int
    failed: dict[str, int]
    file: Path


def grade(path: Path, chat: Chat, progress: Progress, limit: int | None = None) -> Grades:
    """Grade the free-form answers of a run; judgements of an earlier call are kept."""
    run, rows = free_form(path)
    rows = [row for row in rows if not row["task"].endswith("/multiple-choice")][:limit]
    if run.signature["task"]["scorer"] not in ("mixeval", "number") or not rows:
        raise BadRecords("no free-form answers to grade", where=path)
    locale = get_locale(run.signature["task"]["language"])
    file = path.with_suffix(f".judge.{records.name_part(chat.model)}.jsonl")
    judgements = judged(rows, judge_prompts.grade, file, chat, locale, progress)
    pairs = [(j.value, row["score"]) for j, row in zip(judgements, rows, strict=True)]
    pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
    grades, rule = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    n = len(pairs) or math.nan
    mean, mean_rule = sum(grades) / n, sum(rule) / n
    failed = records.error_classes([judgement.error for judgement in judgements])
    kappa = judge_prompts.kappa(grades, rule)
    return Grades(chat.model, len(pairs), failed, mean, mean_rule, kappa, file)


def prefer(
    path_a: Path, path_b: Path, chat: Chat, progress: Progress, limit: int | None = None
) -> Preferences:
    """Ask which of two runs' answers is better, item by item, in both orders."""
    (run, rows), (run_b, rows_b) = free_form(path_a), free_form(path_b)
    runs.require_comparable([run, run_b])
    locale = get_locale(run.signature["task"]["language"])
    outputs = {row["item_id"]: row["output"] for row in rows_b}
    rows = [{**row, "other": outputs[row["item_id"]]} for row in rows if row["item_id"] in outputs]
    if not rows:
        raise BadRecords("these runs have no item in common", where=path_b)
    judge = records.name_part(chat.model)
    file = path_a.with_name(f"{path_a.stem}.against.{path_b.stem}.{judge}.jsonl")
    judgements = judged(rows[:limit], judge_prompts.prefer, file, chat, locale, progress)
    values = [judgement.value for judgement in judgements]
    counts = (values.count(1.0), values.count(0.0), values.count(0.5))
    failed = records.error_classes([judgement.error for judgement in judgements])
    return Preferences(chat.model, *counts, failed, file)


def judged(
    rows: Sequence[Row], ask: Callable[[Row, Locale, Chat], Judgement], file: Path, chat: Chat,
    locale: Locale, progress: Progress,
) -> list[Judgement]:  # fmt: skip
    """Return a judgement an item; those in the file are not asked again, unless they failed.

    Rows have `item_id`, `prompt`, `output`, `gold` (to grade) or `other` (to prefer). Raises
    ImatrixLabError: no reply has a verdict.
    """
    settings = [chat.model, chat.identity, judge_prompts.MAX_TOKENS, locale.words]
    key = canonical_json([*settings, dataclasses.asdict(locale.judge)])
    hashes = {}
    for row in rows:
        texts = (row["prompt"], row.get("gold", ""), row["output"], row.get("other", ""))
        hashes[row["item_id"]] = prompt_hash((("", "\0".join(texts)),), key)
    journal, done = Journal(file, Judgement), {}
    for item_id, digest in hashes.items():
        judgement = journal.get(item_id)
        if judgement and journal.entries[item_id].get("asked") == digest:
            done[item_id] = judgement
    with journal, progress.task(f"judge {file.stem}", len(rows), "items") as bar:
        bar.update(len(done), "judged before" if done else "")
        left = [row for row in rows if row["item_id"] not in done]
        for judgement in each(lambda row: ask(row, locale, chat), left, chat.parallel):
            value = judgement.value if math.isfinite(judgement.value) else None
            asked = hashes[judgement.id]
            journal.add(judgement, value=value, asked=asked, identity=chat.identity)
            done[judgement.id] = judgement
            bar.update(len(done))
    judgements = [done[row["item_id"]] for row in rows]
    if all(math.isnan(judgement.value) for judgement in judgements):
        what = f"no verdict on {len(judgements):,} answers: {judgements[0].error}"
        fix = "read the replies in that file; a judge must be a model that follows instructions"
        raise ImatrixLabError(what, where=file, fix=fix)
    return judgements


def free_form(path: Path) -> tuple[Run, list[Row]]:
    """Return a run and its rows with an answer in free text; `BadRecords` if there are none."""
    every = runs.find(path)
    if len(every) != 1 or every[0].kind != "item":
        raise UsageError("a judge needs one file of item records", fix="name the .parquet file")
    table = parquet.read(path)
    if "output" not in table.columns:
        what = "these records have no prompts and outputs"
        raise BadRecords(what, where=path, fix="run the task again with --keep-text")
    rows = [
        {**row, "output": thoughts.answer(row["output"])}
        for row in records.table_rows(table)
        if not row["error"]
    ]
    if every[0].signature["task"]["scorer"] == "choice" or not rows:
        raise BadRecords("no free-form answers to judge", where=path)
    return every[0], rows
