"""What a study's numbers stand on: models, texts, languages, and under which terms."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from imatrix_lab.corpus import languages
from imatrix_lab.corpus.languages import Language
from imatrix_lab.errors import UsageError
from imatrix_lab.records import parquet
from imatrix_lab.report.results import Licence
from imatrix_lab.study.analyse.index import Grid, Record
from imatrix_lab.study.products import Made
from imatrix_lab.tasks import definition
from imatrix_lab.types import Model

RIGHT_TO_LEFT = {"Adlm", "Arab", "Hebr", "Mand", "Mend", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"}
"""Scripts of ISO 15924 that are written from right to left, of those in use."""
UNKNOWN = "not known"


def models(made: Made) -> dict[str, dict[str, Any]]:
    """Return what there is to know of each model, by label."""
    return {label: _model(model) for label, model in made.models.items()}


def _model(model: Model) -> dict[str, Any]:
    f = model.facts
    return {
        "name": f.name, "origin": model.origin, "base_model": model.base_model,
        "sha256": model.sha256, "licence": f.license, "architecture": f.architecture,
        "n_parameters": f.n_parameters, "n_layers": f.n_layers, "n_vocab": f.n_vocab,
        "type": f.file_type, "size_bytes": f.size_bytes,
        "bits_per_weight": round(f.bits_per_weight, 4),
    }  # fmt: skip


def named(made: Made, grid: Grid) -> dict[str, dict[str, str]]:
    """Return the languages of calibrations, texts and tasks: name, script, direction by code."""
    known = languages.load_all()
    codes = {code for i in made.imatrices for code in i.shares}
    codes |= {r.text for r in (*grid.tokens, *grid.items)}
    return {code: _language(known[code]) for code in sorted(codes & known.keys())}


def _language(found: Language) -> dict[str, str]:
    direction = "rtl" if found.script in RIGHT_TO_LEFT else "ltr"
    return {"name": found.name, "native_name": found.native_name, "script": found.script,
            "direction": direction}  # fmt: skip


def licences(made: Made, grid: Grid) -> list[Licence]:
    """Return models, calibration texts, held-out texts and tasks, each once."""
    rows = [
        Licence(f"model {label}", model.facts.license or UNKNOWN, model.origin)
        for label, model in made.models.items()
    ]
    texts = [(i, i.corpus) for i in made.imatrices]
    rows += sorted(
        (Licence(f"calibration text {i.label}", corpus.licence, corpus.source)
         for i, corpus in texts if corpus),
        key=lambda row: (
            grid.rank("calibration", row.what.rpartition(" ")[2]), row.source, row.licence,
        ),
    )  # fmt: skip
    for _, records in itertools.groupby(grid.tokens, key=Record.place):
        rows += _heldout(next(records))
    rows += _of_tasks(made, grid)
    return list(dict.fromkeys(rows))


def _heldout(record: Record) -> Iterator[Licence]:
    """Yield the sources of a text's documents, whose ids begin with them."""
    what = f"held-out text {record.text}"
    language = languages.load_all().get(record.text)
    sources = {s.name: s for s in language.sources} if language else {}
    ids = parquet.read(record.run.path, ["doc_id"]).words("doc_id").names
    for name in sorted({i.partition("/")[0].partition("@")[0] for i in ids}):
        if found := sources.get(name):
            yield Licence(what, found.licence, found.origin)
        else:
            yield Licence(what, UNKNOWN, "documents of one's own")


def _of_tasks(made: Made, grid: Grid) -> Iterator[Licence]:
    """Yield the data of each task, and in which version."""
    known = {}
    for task in made.recipe.tasks:
        with contextlib.suppress(UsageError):  # a file of the user's own, which may be gone
            found = definition.get(task.name)
            known[found.name] = found.licence
    for r in grid.items:
        origin = r.run.signature["task"]["origin"]
        where = ", ".join(f"{name} {version[:12]}" for name, version in origin.items())
        yield Licence(f"task {r.task}", known.get(r.task, UNKNOWN), where)
