"""The records of steps -> everything a study made."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imatrix_lab import __version__
from imatrix_lab.core.paths import data_dir
from imatrix_lab.report import results
from imatrix_lab.report.results import Missing
from imatrix_lab.study import actions, calibrations
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import RECIPE
from imatrix_lab.study.graph import FILES, Failure, Record, Step
from imatrix_lab.study.products import Made, MadeImatrix, MadeLoss
from imatrix_lab.study.recipe import NONE
from imatrix_lab.study.scheduler import Outcome


def made(shared: Shared, steps: Sequence[Step], outcome: Outcome, total_s: float) -> Made:
    """Return what there is, in the order of the steps; what failed is missing.

    Parameters
    ----------
    total_s : that all runs of the study took.
    """
    done = {s.id: outcome.records[s.id] for s in steps if s.id in outcome.records}
    kinds = {s.id: s.kind for s in steps}

    def of(kind: str) -> dict[str, Record]:
        return {step: record for step, record in done.items() if kinds[step] == kind}

    seconds = {step: record.seconds for step, record in done.items() if kinds[step] != "tidy"}
    return Made(
        recipe=shared.recipe,
        models={model.label: model for model in shared.models},
        tools=shared.tools.signature(),
        imatrices=tuple(_imatrices(shared, {**of("imatrix"), **of("merge")})),
        quants=tuple(actions.quant_in(record.result) for record in of("quant").values()),
        losses=tuple(_losses(of("loss"), of("quant"))),
        token_records=_files(of("score")),
        item_records=_files(of("task")),
        missing=(*shared.missing, *map(_missing, outcome.failures)),
        times=results.Times(seconds, total_s),
        commands=_commands(shared),
    )


def _commands(shared: Shared) -> tuple[str, ...]:
    """Return what repeats the study: the recipe is one that ships, or lies beside the results."""
    ours = shared.folder.of(RECIPE).read_bytes()
    shipped = data_dir("recipes") / f"{shared.recipe.name}.toml"
    is_shipped = shipped.is_file() and shipped.read_bytes() == ours
    name = shared.recipe.name if is_shipped else RECIPE
    return (f"imatrix-lab --version  # {__version__}", f"imatrix-lab study run {name}")


def _imatrices(shared: Shared, done: Mapping[str, Record]) -> Iterator[MadeImatrix]:
    for model in shared.models:
        for wanted in calibrations.calibrations(shared.recipe):
            record = done.get(f"{model.label}.imatrix.{wanted.id}")
            if wanted.kind != NONE and record is None:
                continue
            facts = actions.imatrix_in(record.result) if record else None
            parts: tuple[str, ...] = ()
            if wanted.is_merged:
                steps = [f"{model.label}.imatrix.{single.id}" for single, _ in wanted.parts]
                parts = tuple(actions.imatrix_in(done[s].result).sha256 for s in steps if s in done)
            yield MadeImatrix(
                model=model.label,
                label=wanted.label,
                name=wanted.name,
                kind=wanted.kind,
                sample=wanted.sample,
                shares=wanted.shares(),
                path=facts.path if facts and facts.path.exists() else None,
                facts=facts,
                corpus=actions.corpus_in(record.result) if record else None,
                merged_from=parts,
            )


def _losses(done: Mapping[str, Record], quants: Mapping[str, Record]) -> Iterator[MadeLoss]:
    for step, record in done.items():
        quant = quants.get(step.replace(".loss.", ".quant.", 1))
        if quant is None:  # its record could not be read
            continue
        made = actions.quant_in(quant.result)
        for language, loss in record.result[actions.LOSSES].items():
            yield MadeLoss(made.model, made.calibration, made.sample, made.type, language, loss)


def _files(done: Mapping[str, Record]) -> tuple[Path, ...]:
    """Return the files that there are: one that is gone was made again, or that failed."""
    files = (Path(file) for record in done.values() for file in record.result[FILES])
    return tuple(file for file in files if file.exists())


def _missing(failure: Failure) -> Missing:
    left_out = tuple(step.what for step in failure.left_out if not step.is_tidying)
    return Missing(failure.step.what, failure.why, failure.fix, left_out)
