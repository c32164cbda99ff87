"""Votes of people in a study: answers of its quants, a page of them, and what the votes say."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from imatrix_lab.core.outputs import Rules
from imatrix_lab.errors import ImatrixLabError, UsageError
from imatrix_lab.publish.preference import judges, pack, prompts, votes
from imatrix_lab.publish.preference.prompts import Prompts
from imatrix_lab.report.results import Missing, Preference
from imatrix_lab.study.actions import Result, model_in
from imatrix_lab.study.calibrations import Calibration
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import FILES, Turn
from imatrix_lab.study.kinds import Kind, kinds
from imatrix_lab.study.recipe import NONE, Recipe
from imatrix_lab.tasks import backends
from imatrix_lab.types import Model, TaskRequest

ORIGINAL = "original"
FOLDER, VOTES = "preference", "votes"
"""Where the page lies in a study's folder, and people's votes in it."""


def chosen(
    recipe: Recipe, calibrations: Sequence[Calibration]
) -> tuple[list[Calibration | None], Kind]:
    """Return what people vote on, None for the original, and the quants' kind.

    Raises UsageError: fewer than two, or one that the study does not make.
    """
    settings, every = recipe.preference, {kind.label: kind for kind in kinds(recipe)}
    kind = every.get(settings.type or next(iter(every)))
    if kind is None:
        fix = f"one of {', '.join(every)}"
        raise UsageError(f"preference.type: there is no {settings.type!r}", fix=fix)
    if not settings.prompts:
        return [], kind
    made = [c for c in calibrations if kind.is_made(c)]
    first = {NONE if c.kind == NONE else c.label: c for c in reversed(made)}
    if len(set(settings.models)) < 2:
        fix = f'set models = ["{ORIGINAL}", "{recipe.calibration.texts[0]}"]'
        raise UsageError("preference.models: people choose between two or more", fix=fix)
    unknown = [name for name in settings.models if name != ORIGINAL and name not in first]
    if unknown:
        fix = f"name {ORIGINAL}, or one of {', '.join(first)}"
        raise UsageError(f"preference.models: there is no {unknown[0]!r} {kind.label}", fix=fix)
    return [first.get(name) for name in settings.models], kind


@cache
def _prompts(source: str) -> Prompts:
    return prompts.read(source)


def n_prompts(recipe: Recipe) -> int:
    """Return how many prompts each model answers."""
    return len(_prompts(recipe.preference.prompts).by_id())


def inputs(recipe: Recipe) -> dict[str, Any]:
    """Return what determines the answers besides the models; UsageError: there are no prompts."""
    by_id = _prompts(recipe.preference.prompts).by_id()
    return {"prompts": by_id, "max_tokens": recipe.preference.max_tokens}


def answers(shared: Shared, model: Model, step: str, turn: Turn) -> Result:
    """Let a quant answer the prompts, or without a step the original."""
    settings, out = shared.recipe.preference, page_path(shared.folder, model.label)
    session = shared.session(turn.progress)
    request = TaskRequest((), (), (), out.parent, shared.compute(turn.threads))
    asked = model_in(turn.results[step]) if step else model
    by_id = _prompts(settings.prompts).by_id()
    with backends.open_local(request, shared.tools, asked, session) as answerer:
        system = pack.asked(answerer, settings.max_tokens)
        journal = pack.journal(out, {**system, "prompts": by_id})
        texts = pack.answers_of(answerer, by_id, settings.max_tokens, journal)
    journal.remove()
    return {"system": system, "texts": texts}


def page(shared: Shared, model: Model, steps: Sequence[str], turn: Turn) -> Result:
    """Write the page; the same answers keep the page that people may have voted on."""
    out = page_path(shared.folder, model.label)
    results = [turn.results[step] for step in steps]
    asked = _prompts(shared.recipe.preference.prompts)
    key = pack.begun(asked, [result["system"] for result in results], out, Rules())
    if not key.answers:
        key = pack.filled(key, asked.by_id(), [result["texts"] for result in results])
    pack.finish(key, out)
    return {FILES: [str(out), str(pack.key_path(out)), str(pack.text_path(out))]}


def page_path(folder: Folder, label: str) -> Path:
    """Return where a model's page is."""
    return folder.of(FOLDER, f"{label}.html")


def tallies(shared: Shared) -> Iterator[Preference | Missing | str]:
    """Yield what people's votes say; what is wrong with them; what a reader must know of them."""
    if not shared.recipe.preference.prompts:
        return
    files = sorted(shared.folder.of(FOLDER, VOTES).glob("*.json"))
    margin = shared.recipe.preference.margin / 100
    for model in shared.models:
        out = page_path(shared.folder, model.label)
        if not out.exists():
            continue
        try:
            key = pack.read_key(pack.key_path(out))
            ballots = votes.read_ballots(files, key) if files else []
            if not ballots:
                yield f"No votes yet: send {FOLDER}/{out.name}, put what comes back into {VOTES}/."
                continue
            verdicts = judges.read(key, pack.key_path(out))
            tally = votes.tally(ballots, key, margin or float("nan"), verdicts)
        except ImatrixLabError as error:
            why = f"{Path(error.where or out).name}: {error.what}"
            yield Missing(f"{model.label}.{VOTES}", why, error.fix or "", ("votes",))
            continue
        for judge in tally.judges:
            yield votes.judge_sentence(judge, tally)
        for pair in tally.pairs:
            names = [str(key.systems[name]["name"]) for name in (pair.a, pair.b)]
            mean = pair.difference
            yield Preference(
                model=model.label,
                text=key.language,
                a=names[0],
                b=names[1],
                n_people=mean.n_raters,
                n_prompts=pair.n_prompts,
                n_wins_a=pair.n_wins_a,
                n_ties=pair.n_ties,
                n_wins_b=pair.n_wins_b,
                n_identical=pair.n_identical,
                estimate=votes.POINTS * mean.interval.estimate,
                low=votes.POINTS * mean.interval.low,
                high=votes.POINTS * mean.interval.high,
                p_value=mean.p_value,
                verdict=pair.verdict,
                plain=votes.sentence(pair, tally),
            )
