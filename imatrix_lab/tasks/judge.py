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
from imatrix_lab.records import parquet
from imatrix_lab.records import runs as compared
from imatrix_lab.records.runs import Run
from imatrix_lab.tasks import judge_prompts as judges
from imatrix_lab.tasks import locale as speeches
from imatrix_lab.tasks import records
from imatrix_lab.tasks.chat import Chat, prompt_hash
from imatrix_lab.tasks.journal import Journal
from imatrix_lab.tasks.judge_prompts import Judgement
from imatrix_lab.tasks.locale import Speech

Row = dict[str, Any]
_TEXTS = ("prompt", "gold", "output", "other")
_FIELDS = dataclasses.fields(Judgement)


@dataclass(frozen=True)
class Grades:
    """A judge's grades of a run's free-form answers.

    Attributes
    ----------
    mean : of the grades; `mean_rule` of the rule's scores on the same items.
    kappa : Cohen's, between judge and rule, right being a half or more; see `judges.kappa`.
    failed : answers that the judge gave no grade for, by what went wrong.
    file : every judgement, one a line, with the hash of its prompt, and the model.
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
    """Which of two quants' answers a judge prefers; each pair was asked in both orders.

    Attributes
    ----------
    failed : pairs without a verdict, by what went wrong.
    """

    model: str
    n_a: int
    n_b: int
    n_ties: int
    failed: dict[str, int]
    file: Path


def grade(path: Path, chat: Chat, progress: Progress, limit: int | None = None) -> Grades:
    """Grade the answers of a run; judgements that are there already are kept.

    Raises
    ------
    UsageError : not one file of item records, or no judge's prompts in its language.
    BadRecords : prompts and outputs were not kept, or nothing is free form.
    ImatrixLabError : the judge gave no grade at all.
    """
    run, rows = _free_form(path)
    rows = [row for row in rows if not row["task"].endswith("/multiple-choice")]
    if run.signature["task"]["scorer"] not in ("mixeval", "number") or not rows:
        raise BadRecords("there is no answer in free form to grade", where=path)
    speech = speeches.get(str(run.signature["task"]["language"]))
    chosen = rows[:limit]
    file = path.with_suffix(f".judge.{records.name_part(chat.model)}.jsonl")

    def one(row: Row) -> Judgement:
        return judges.grade(row["item_id"], row["prompt"], row["gold"], row["output"], speech, chat)

    found = _asked(chosen, one, file, chat, speech, progress)
    pairs = [(j.value, row["score"]) for j, row in zip(found, chosen, strict=True)
             if math.isfinite(j.value) and math.isfinite(row["score"])]  # fmt: skip
    said, rule = [p[0] for p in pairs], [p[1] for p in pairs]
    return Grades(chat.model, len(pairs), _failed(found), _mean(said), _mean(rule),
                  judges.kappa(said, rule), file)  # fmt: skip


def prefer(
    path_a: Path, path_b: Path, chat: Chat, progress: Progress, limit: int | None = None
) -> Preferences:
    """Ask which of two runs' answers is better, item by item, in both orders.

    Raises
    ------
    BadRecords : see `grade`; or they were not asked the same.
    """
    (run, rows), (other, rows_b) = _free_form(path_a), _free_form(path_b)
    compared.require_comparable([run, other])
    speech = speeches.get(str(run.signature["task"]["language"]))
    by_id = {row["item_id"]: row for row in rows_b}
    chosen = [
        {**row, "other": by_id[row["item_id"]]["output"]} for row in rows if row["item_id"] in by_id
    ][:limit]
    if not chosen:
        raise BadRecords("these runs have no item in common", where=path_b)
    judge = records.name_part(chat.model)
    file = path_a.with_name(f"{path_a.stem}.against.{path_b.stem}.{judge}.jsonl")

    def one(row: Row) -> Judgement:
        answers = row["output"], row["other"]
        return judges.prefer(row["item_id"], row["prompt"], answers, speech, chat)

    found = _asked(chosen, one, file, chat, speech, progress)
    values = [j.value for j in found]
    return Preferences(chat.model, values.count(1.0), values.count(0.0), values.count(0.5),
                       _failed(found), file)  # fmt: skip


def _asked(
    rows: Sequence[Row], one: Callable[[Row], Judgement], file: Path, chat: Chat, speech: Speech,
    progress: Progress,
) -> list[Judgement]:  # fmt: skip
    """Return a judgement an item; those in the file are not asked again, unless they failed."""
    key = canonical_json([chat.model, chat.identity, judges.MAX_TOKENS, speech.words, speech.judge])
    asked = {
        row["item_id"]: prompt_hash((("", "\0".join(row.get(name, "") for name in _TEXTS)),), key)
        for row in rows
    }
    journal, found = Journal(file, Judgement), {}
    for name, prompt in asked.items():
        known = journal.found.get(name, {})
        if known.get("asked") == prompt and not known["error"]:
            found[name] = Judgement(**{f.name: known[f.name] for f in _FIELDS})
    with journal as add, progress.task(f"judge {file.stem}", len(rows), "items") as bar:
        bar.update(len(found), "judged before" if found else "")
        left = [row for row in rows if row["item_id"] not in found]
        for judgement in each(one, left, chat.parallel):
            plain = dataclasses.asdict(judgement)
            value = judgement.value if math.isfinite(judgement.value) else None
            add({**plain, "value": value, "asked": asked[judgement.id],
                 "identity": chat.identity})  # fmt: skip
            found[judgement.id] = judgement
            bar.update(len(found))
    every = [found[row["item_id"]] for row in rows]
    if all(math.isnan(judgement.value) for judgement in every):
        raise ImatrixLabError(
            f"no verdict came of {len(every):,} answers: {every[0].error}", where=file,
            fix="read the replies there; a judge must be a model that follows instructions",
        )  # fmt: skip
    return every


def _failed(found: Sequence[Judgement]) -> dict[str, int]:
    return records.error_classes([judgement.error for judgement in found])


def _free_form(path: Path) -> tuple[Run, list[Row]]:
    found = compared.find(path)
    if len(found) != 1 or found[0].kind != "item":
        raise UsageError("a judge needs one file of item records", fix="name the .parquet file")
    table = parquet.read(path)
    if "output" not in table.columns:
        raise BadRecords(
            "these records have no prompts and outputs", where=path, fix="task run --keep-text"
        )
    names = ("task", "item_id", "gold", "prompt", "output", "error")
    columns = [records.words(table, name) for name in names]
    rows = [
        {**dict(zip(names, words, strict=True)), "score": value}
        for *words, value in zip(*columns, table.array("score").tolist(), strict=True)
    ]
    rows = [row for row in rows if not row["error"]]
    if found[0].signature["task"]["scorer"] == "choice" or not rows:
        raise BadRecords("there is no answer in free form to judge", where=path)
    return found[0], rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
