"""Where a study's numbers come from: models, texts, languages, and their licences."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

from imatrix_lab.corpus import languages
from imatrix_lab.errors import UsageError
from imatrix_lab.records import parquet
from imatrix_lab.report.results import Licence
from imatrix_lab.study.analyse.index import Index, Products, RecordFile
from imatrix_lab.tasks import definition

RIGHT_TO_LEFT = {"Adlm", "Arab", "Hebr", "Mand", "Mend", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"}
"""Scripts of ISO 15924 that are written from right to left, of those in use."""
UNKNOWN = "not known"


def models(products: Products) -> dict[str, dict[str, Any]]:
    """Return the facts of each model, by label."""
    same = ("name", "architecture", "n_parameters", "n_layers", "n_vocab", "size_bytes")
    rows = {}
    for label, model in products.models.items():
        row = {key: getattr(model, key) for key in ("origin", "base_model", "sha256")}
        row |= {key: getattr(model.facts, key) for key in same}
        row |= {"licence": model.facts.license, "type": model.facts.file_type}
        rows[label] = row | {"bits_per_weight": round(model.facts.bits_per_weight, 4)}
    return rows


def named(products: Products, index: Index) -> dict[str, dict[str, str]]:
    """Return the languages of calibrations, texts and tasks: name, script, direction by code."""
    known = languages.load_all()
    codes = {code for c in products.calibrations for code in c.shares}
    codes |= {r.text for r in (*index.tokens, *index.items)}
    rows = {}
    for code in sorted(codes & known.keys()):
        rows[code] = {key: getattr(known[code], key) for key in ("name", "native_name", "script")}
        rows[code]["direction"] = "rtl" if known[code].script in RIGHT_TO_LEFT else "ltr"
    return rows


def licences(products: Products, index: Index) -> list[Licence]:
    """Return models, calibration texts, held-out texts and tasks, each once."""
    rows = [
        Licence(f"model {label}", model.facts.license or UNKNOWN, model.origin)
        for label, model in products.models.items()
    ]
    texts = [c for c in products.calibrations if c.corpus_sha256]
    texts.sort(key=lambda c: (index.rank("calibration", c.label), c.source, c.licence))
    rows += [Licence(f"calibration text {c.label}", c.licence, c.source) for c in texts]
    for _, records in itertools.groupby(index.tokens, key=RecordFile.place):
        rows += _heldout(next(records))
    rows += _of_tasks(products, index)
    return list(dict.fromkeys(rows))


def _heldout(record: RecordFile) -> Iterator[Licence]:
    """Yield the sources of a text's documents, whose ids begin with them."""
    what = f"held-out text {record.text}"
    language = languages.load_all().get(record.text)
    sources = {s.name: s for s in language.sources} if language else {}
    ids = parquet.read(record.run.path, ["doc_id"]).words("doc_id").names
    for name in sorted({i.partition("/")[0].partition("@")[0] for i in ids}):
        source = sources.get(name)
        facts = (source.licence, source.origin) if source else (UNKNOWN, "documents of one's own")
        yield Licence(what, *facts)


def _of_tasks(products: Products, index: Index) -> Iterator[Licence]:
    known = {}
    for task in products.recipe.tasks:
        with contextlib.suppress(UsageError):  # a file of the user's own, which may be gone
            definition_ = definition.get(task.name)
            known[definition_.name] = definition_.licence
    for r in index.items:
        origin = r.run.signature["task"]["origin"]
        where = ", ".join(f"{name} {version[:12]}" for name, version in origin.items())
        yield Licence(f"task {r.task}", known.get(r.task, UNKNOWN), where)
