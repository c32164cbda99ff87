"""Probes of a real model in memory, against files that are written and scored."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from imatrix_lab.core.outputs import Rules
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadRecords, BadText, ImatrixLabError, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.llamacpp import ggml
from imatrix_lab.models import weights
from imatrix_lab.models.resolve import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import sensitivity as stage
from imatrix_lab.quantize import errors, plots, probes, sensitivity
from imatrix_lab.quantize.sensitivity import Sensitivity, coefficient
from imatrix_lab.score import run
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.engine import Engine
from imatrix_lab.score.patched import Patched
from imatrix_lab.score.text import Batches
from imatrix_lab.score.windows import Protocol, batches
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model
from tests.score import made

GROUP, PROTOCOL = "ffn_down.1", Protocol("document", 64, 16)


@pytest.fixture(autouse=True)
def few_pieces(monkeypatch):
    """Six short pieces of text at most, four at first."""
    for name, value in (("PIECE_TOKENS", 24), ("PIECES_MIN", 4), ("PIECES_MAX", 6)):
        monkeypatch.setattr(probes, name, value)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "nb.txt"
    path.write_text("\n\n".join(made.prose(200, i) for i in range(12)))
    return path


@pytest.fixture
def store(score_store, tmp_path):
    return score_store(tmp_path / "store")


@pytest.fixture
def seen(monkeypatch):
    """What was probed."""
    probings, measure = [], probes.measure

    def watching(probing, *rest):
        probings.append(probing)
        return measure(probing, *rest)

    monkeypatch.setattr(probes, "measure", watching)
    return probings


def request(model, text, **rest):
    compute = ComputeOptions("cpu", threads=1, n_ctx=64)
    return Request(str(text), (), str(model), 4096, out=None, compute=compute, **rest)


def build(model, text, store, tmp_path, **rest):
    """Measure and read the file."""
    progress = rest.pop("progress", Silent())
    path = stage.build(request(model, text), None, tmp_path / "x.json", Session(store, progress))
    return sensitivity.read(path)


def written(tools, model, imatrix, names, folder):
    """A copy of a model in which some tensors are what Q3_K makes of them."""
    library, path = ggml.load(tools), folder / "changed.gguf"
    shutil.copyfile(model.path, path)
    with path.open("r+b") as file:
        for name in names:
            tensor = weights.tensors(model)[name]
            rows = weights.read_rows(library, tensor, 0, weights.n_rows(tensor.info))
            by_column = errors.importance_of(imatrix, name, tensor.info)[0]
            quantized = library.quantize(rows, "Q3_K", by_column)
            changed = library.dequantize(quantized, "Q3_K")
            file.seek(tensor.info.offset)
            file.write(library.quantize(changed, tensor.info.type_name, None).tobytes())
    return path


def test_a_probe_in_memory_is_a_file_with_the_same_tensors_scored(
    reference, text, tools, kernel, store, tmp_path, seen
):
    measured = build(reference, text, store, tmp_path)
    session, group = Session(store, Silent()), measured.coefficients[GROUP]
    model = resolve(str(reference), session)
    imatrix = format.read(next(store.root.glob("imatrix/*/imatrix.gguf")))
    quant = written(tools, model, imatrix, ["blk.1.ffn_down.weight"], tmp_path)
    probing = seen[0]
    plan = Batches(tuple(batches(probing.windows[:4], probing.settings.n_ctx, 2)), {}, 0)
    job = made.job(tools, kernel, model, made.documents([50]), PROTOCOL)
    job = dataclasses.replace(job, plan=plan, settings=probing.settings)
    rows = Checkpoint(tmp_path, plan.sizes())
    run.decode_together(job, [made.load(quant, store)], [rows], Silent())
    klds = [piece.mean() for piece in np.split(rows.all()["kld"], np.cumsum(measured.tokens)[:-1])]
    assert group.type == "Q3_K"
    assert np.allclose(klds, group.kld_nats, rtol=1e-5)
    assert group.kld_nats_per_error == pytest.approx(np.mean(klds) / group.error, rel=1e-2)


def test_what_is_restored_diverges_by_exactly_zero(
    reference, text, store, tmp_path, monkeypatch
):
    def and_back(self, engine, names, type_name):
        for name in names:
            engine.replace(name, lambda rows, matrix: 2 * rows)
            engine.restore(name)

    monkeypatch.setattr(probes._Run, "_replace", and_back)
    measured = build(reference, text, store, tmp_path)
    assert measured.coefficients == {}
    assert measured.tokens
