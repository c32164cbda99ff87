"""The records of steps -> everything a study made."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from imatrix_lab import __version__
from imatrix_lab.core.paths import data_dir
from imatrix_lab.imatrix.format import layer_and_role
from imatrix_lab.quantize.allocate import bits_of
from imatrix_lab.report.results import (
    ALL_SAMPLES,
    Calibration,
    Missing,
    Prediction,
    Preference,
    TensorTypes,
    Times,
)
from imatrix_lab.study import actions, votes
from imatrix_lab.study.analyse.index import Products
from imatrix_lab.study.calibrations import calibrations
from imatrix_lab.study.context import Shared
from imatrix_lab.study.folder import RECIPE
from imatrix_lab.study.graph import FILES, Records, StepRecord, Steps
from imatrix_lab.study.kinds import kinds
from imatrix_lab.study.recipe import NONE, PLAIN
from imatrix_lab.study.scheduler import Outcome


def products(shared: Shared, steps: Steps, outcome: Outcome, total_s: float) -> Products:
    """Return what was made, in the order of the steps; all runs of the study took `total_s`."""
    records = {s.id: outcome.records[s.id] for s in steps if s.id in outcome.records}
    kinds = {s.id: s.kind for s in steps if not s.part_of}

    def of(*names: str) -> dict[str, StepRecord]:
        return {step: record for step, record in records.items() if kinds.get(step) in names}

    imatrices = of("imatrix", "merge")
    # the recipe is one that ships, or lies beside the results
    shipped, own = data_dir("recipes") / f"{shared.recipe.name}.toml", shared.folder.of(RECIPE)
    is_shipped = shipped.is_file() and shipped.read_bytes() == own.read_bytes()
    command = f"imatrix-lab study run {shared.recipe.name if is_shipped else RECIPE}"
    facts = [actions.imatrix_in(record.result) for record in imatrices.values()]
    seconds = {
        step: record.seconds for step, record in records.items() if kinds.get(step) != "tidy"
    }
    voted = list(votes.tallies(shared))
    return Products(
        recipe=shared.recipe,
        models={model.label: model for model in shared.models},
        calibrations=tuple(_calibrations(shared, imatrices)),
        imatrices={f.sha256: f.path for f in facts if f.path.exists()},
        quants=tuple(actions.quant_in(record.result) for record in of("quant").values()),
        predictions=tuple(_predictions(of("loss"), of("quant"))),
        tensor_types=tuple(_tensor_types(shared, of("quant"))),
        token_records=_files(of("score")),
        item_records=_files(of("task")),
        missing=(*shared.missing, *outcome.missing, *(v for v in voted if isinstance(v, Missing))),
        times=Times(seconds, total_s),
        commands=(f"imatrix-lab --version  # {__version__}", command),
        preferences=tuple(v for v in voted if isinstance(v, Preference)),
        notes=tuple(v for v in voted if isinstance(v, str)),
    )


def _calibrations(shared: Shared, records: Records) -> Iterator[Calibration]:
    for model in shared.models:
        for planned in calibrations(shared.recipe):
            record = records.get(f"{model.label}.imatrix.{planned.id}")
            if record is None and planned.kind != NONE:
                continue
            facts = actions.imatrix_in(record.result) if record else None
            corpus = actions.corpus_in(record.result) if record else None
            parts = [f"{model.label}.imatrix.{part.id}" for part, _ in planned.parts]
            yield Calibration(
                model=model.label,
                **{key: getattr(planned, key) for key in ("label", "name", "kind", "sample")},
                shares=planned.shares(),
                n_tokens=facts.n_tokens if facts else 0,
                imatrix_sha256=facts.sha256 if facts else "",
                corpus_sha256=corpus.sha256 if corpus else "",
                source=corpus.source if corpus else "",
                licence=corpus.licence if corpus else "",
                merged_from=tuple(
                    actions.imatrix_in(records[p].result).sha256 for p in parts if p in records
                ),
            )


def _predictions(losses: Records, quants: Records) -> Iterator[Prediction]:
    for step, record in losses.items():
        quant_step = step.replace(".loss.", ".quant.", 1)
        if quant_step not in quants:  # its record could not be read
            continue
        q = actions.quant_in(quants[quant_step].result)
        klds = record.result.get(actions.KLDS, {})
        for language, loss in record.result[actions.LOSSES].items():
            kld = klds.get(language, math.nan)
            place = (q.model, q.calibration, q.sample, q.type, language)
            yield Prediction(*place, loss, math.nan, kld)


def _tensor_types(shared: Shared, quants: Records) -> Iterator[TensorTypes]:
    """Yield the types of each first sample, in a study that chooses them; not of each quantizer."""
    made = kinds(shared.recipe)
    shown = {kind.label for kind in made if kind.quantizer == PLAIN}
    n_layers = {model.label: model.facts.n_layers for model in shared.models}
    for record in quants.values() if any(kind.is_size for kind in made) else ():
        q = actions.quant_in(record.result)
        if q.type in shown and q.sample in (ALL_SAMPLES, 1):
            types = record.result.get(actions.TYPES, {})
            roles = _by_role(types, n_layers[q.model])
            bits = {name: bits_of(name) for name in sorted(set(types.values()))}
            yield TensorTypes(q.model, q.calibration, q.type, roles, bits)


def _by_role(types: Mapping[str, str], n_layers: int) -> dict[str, tuple[str, ...]]:
    roles: dict[str, list[str]] = {}
    for name, type_name in types.items():
        layer, role = layer_and_role(name)
        row = roles.setdefault(role, [""] * (1 if layer is None else n_layers))
        row[layer or 0] = type_name
    return {role: tuple(row) for role, row in roles.items()}


def _files(records: Records) -> tuple[Path, ...]:
    """Return the files that exist: a missing one was made again, or that failed."""
    files = (Path(file) for record in records.values() for file in record.result[FILES])
    return tuple(file for file in files if file.exists())
