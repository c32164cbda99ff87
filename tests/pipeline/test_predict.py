"""Whole predictions, with the real llama-quantize."""

import shlex
from pathlib import Path

import gguf
import numpy as np
import pytest

from imatrix_lab.cli import main as cli_main
from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadImatrix, BadModel, UsageError
from imatrix_lab.imatrix import format, output_error, quant_error
from imatrix_lab.imatrix.output_error import Basis
from imatrix_lab.llamacpp import programs
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.pipeline.predict import PredictRequest, predict_losses
from imatrix_lab.quantize import metadata
from imatrix_lab.quantize import run as quantize
from imatrix_lab.types import ComputeOptions, Request

COMPUTE = ComputeOptions("cpu", threads=2)


def request(model, imatrices, types=("Q2_K",), quants=(), **rest):
    named = tuple((name, path) for name, path in imatrices.items())
    return PredictRequest(str(model), named, types, tuple(quants), COMPUTE, **rest)


@pytest.fixture
def two(tiny, imatrix_of):
    return {"nb": imatrix_of(tiny, "nb"), "en": imatrix_of(tiny, "en"), "none": None}


def overall(predictions):
    return {(r.calibration, r.type): r.losses.overall().tolist() for r in predictions.rows}


def by_hand(model, quant, imatrix):
    """The mean over tensors in float64, with gguf-py's dequantization."""
    tensors = {t.name: t for t in gguf.GGUFReader(quant).tensors}
    losses = []
    for t in gguf.GGUFReader(model).tensors:
        if t.name in (seen := format.read(imatrix).entries):
            w, q = (
                gguf.dequantize(x.data, x.tensor_type).astype(float) for x in (t, tensors[t.name])
            )
            s = seen[t.name].sums.astype(float)
            if w.ndim == 2:
                w, q = w[None], q[None]
            losses.append((s[:, None] * (w - q) ** 2).sum() / (s[:, None] * w**2).sum())
    return np.mean(losses)


TYPES = {"tiny": ("Q2_K", "Q4_K_M"), "moe": ("Q3_K_S",)}


@pytest.mark.parametrize("which", TYPES)
def test_against_an_independent_computation(request, store, imatrix_of, quantized, which):
    model = request.getfixturevalue(which)
    nb, en = imatrix_of(model, "nb"), imatrix_of(model, "en")
    job = PredictRequest(
        str(model), (("nb", nb), ("en", en), ("none", None)), TYPES[which], (), COMPUTE
    )
    losses = overall(predict_losses(job, Session(store, Silent())))
    assert len(losses) == 3 * len(TYPES[which])
    for (calibration, quant_type), values in losses.items():
        quant = quantized(model, quant_type, {"nb": nb, "en": en, "none": None}[calibration])
        assert values == pytest.approx([by_hand(model, quant, i) for i in (nb, en)], rel=1e-4)
    for quant_type in TYPES[which]:  # columns far apart in size: the own calibration is best
        by_nb, by_en, plain = (losses[name, quant_type] for name in ("nb", "en", "none"))
        assert by_nb[0] < min(by_en[0], plain[0]) and by_en[1] < min(by_nb[1], plain[1])


def test_the_errors_alone_make_calibrations_differ(tiny, two, store):
    predictions = predict_losses(request(tiny, two), Session(store, Silent()))
    energy = {r.losses.energy.tobytes() for r in predictions.rows}
    lost = {r.losses.lost.tobytes() for r in predictions.rows}
    assert len(energy) == 1 and len(lost) == 3
    assert set(predictions.outside) == {"token_embd.weight", "output.weight"}
    assert 0 < predictions.outside_share < 1


def test_quants_are_removed_and_what_they_came_to_is_kept(tiny, two, store, monkeypatch):
    job = request(tiny, two)
    first = overall(predict_losses(job, Session(store, Silent())))
    assert not [p for p in store.root.rglob("*.gguf") if "toolchain" not in p.parts]
    monkeypatch.setattr(quantize, "run_quantize", None)
    again = predict_losses(job, Session(store, Silent()))
    assert overall(again) == first
    only = predict_losses(request(tiny, {"nb": two["nb"]}), Session(store, Silent()))
    assert overall(only) == {("nb", "Q2_K"): first["nb", "Q2_K"][:1]}


def test_a_killed_run_does_not_quantize_again(tiny, two, store, monkeypatch):
    job, write = request(tiny, {"nb": two["nb"]}), quant_error.write
    monkeypatch.setattr(quant_error, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        predict_losses(job, Session(store, Silent()))
    monkeypatch.setattr(quant_error, "write", write)
    monkeypatch.setattr(quantize, "run_quantize", None)
    assert len(predict_losses(job, Session(store, Silent())).rows) == 1


def test_a_quant_that_is_there_comes_to_the_same(tiny, two, store, quantized, monkeypatch):
    made = overall(predict_losses(request(tiny, two), Session(store, Silent())))
    quants = [(n, quantized(tiny, "Q2_K", p)) for n, p in two.items()]
    monkeypatch.setattr(quantize, "run_quantize", None)
    given = predict_losses(request(tiny, two, (), quants), Session(store, Silent()))
    assert overall(given) == made


class Recorder(Silent):
    """Keeps the messages."""

    def __init__(self):
        self.messages = []

    def say(self, message):
        self.messages.append(message)


def test_without_an_imatrix_a_type_that_needs_one_is_skipped_before_anything_is_made(
    tiny, two, store
):
    recorder = Recorder()
    job = request(tiny, {"nb": two["nb"], "none": None}, ("IQ2_XXS", "Q2_K"))
    predictions = predict_losses(job, Session(store, recorder))
    rows = {(r.calibration, r.type) for r in predictions.rows}
    assert rows == {("nb", "IQ2_XXS"), ("nb", "Q2_K"), ("none", "Q2_K")}
    assert sum("IQ2_XXS" in message for message in recorder.messages) == 1


def test_a_name_does_not_leave_the_store(tiny, two, store):
    odd = request(tiny, {"../../out": two["nb"]})
    predict_losses(odd, Session(store, Silent()))
    assert not list(store.root.parent.glob("out*")) and list((store.root / "loss").glob("*out*"))


def test_a_quant_of_the_store_is_used(tiny, two, store, own_text, tmp_path, monkeypatch):
    job = Request(str(own_text(600)), ("Q2_K",), str(tiny), 10**6, tmp_path / "quants", COMPUTE)
    tune.quants(job, two["nb"], Session(store, Silent()))
    monkeypatch.setattr(quantize, "run_quantize", None)
    recorder = Recorder()
    predictions = predict_losses(request(tiny, {"nb": two["nb"]}), Session(store, recorder))
    assert len(predictions.rows) == 1 and not any(
        "made one at a time" in s for s in recorder.messages
    )


def test_names_that_do_not_match_are_refused_first(tiny, two, store, quantized, monkeypatch):
    monkeypatch.setattr(quantize, "run_quantize", None)
    twice = (("a", two["nb"]), ("a", two["en"]))
    jobs = [
        request(tiny, {"none": None}),
        request(tiny, two, (), [("sv", quantized(tiny, "Q2_K"))]),
        request(tiny, two, select={"sv": 1.0}),
        PredictRequest(str(tiny), twice, ("Q2_K",), (), COMPUTE),
    ]
    for job in jobs:
        with pytest.raises(UsageError) as error:
            predict_losses(job, Session(store, Silent()))
        assert error.value.fix


def test_what_does_not_belong_to_the_model(tiny, moe, two, store, quantized, imatrix_of, tmp_path):
    with pytest.raises(BadModel) as caught:
        predict_losses(
            request(tiny, two, (), [("none", quantized(moe, "Q2_K"))]), Session(store, Silent())
        )
    assert "--quant" in caught.value.fix and "--reference" not in caught.value.fix
    with pytest.raises(BadImatrix):
        predict_losses(request(tiny, {"x": imatrix_of(moe, "nb")}), Session(store, Silent()))
    half = tmp_path / "half.gguf"
    half.write_bytes(two["nb"].read_bytes()[:-100])
    with pytest.raises(BadImatrix):
        predict_losses(request(tiny, {"x": half}), Session(store, Silent()))


def test_a_quant_made_with_another_imatrix_is_refused(tiny, two, store, tools, quantized, tmp_path):
    model = resolve.resolve(str(tiny), Session(store, Silent()))
    facts = tune.existing_imatrix(two["nb"], model, Silent())
    path = tmp_path / "q.gguf"
    pairs = metadata.for_program(tune.metadata_of(tools, model, None, facts))
    options = programs.QuantizeOptions(1, str(two["nb"]), pairs)
    program = tools.program("llama-quantize")
    argv = programs.quantize_argv(program, tiny, path, "Q2_K", options)
    process.run(argv)
    foreign = quantized(tiny, "Q2_K", two["en"])  # by llama-quantize alone
    for name, quant in (("en", path), ("none", path), ("none", foreign)):
        with pytest.raises(BadModel, match="--quant"):
            predict_losses(request(tiny, two, (), [(name, quant)]), Session(store, Silent()))
    with pytest.raises(BadModel, match="--quant"):
        plain = [("nb", quantized(tiny, "Q2_K"))]
        predict_losses(request(tiny, two, (), plain), Session(store, Silent()))
    recorder = Recorder()
    unsure = [("nb", quantized(tiny, "Q2_K", two["nb"]))]
    predict_losses(request(tiny, two, (), unsure), Session(store, recorder))
    assert any("not verified" in message for message in recorder.messages)
    predictions = predict_losses(request(tiny, two, (), [("nb", path)]), Session(store, Silent()))
    assert [r.type for r in predictions.rows] == ["Q2_K"]


def test_the_mixture_that_loses_least_is_quantized_and_compared(
    tiny, two, store, quantized, tmp_path, monkeypatch
):
    predictions = predict_losses(request(tiny, two, select="worst"), Session(store, Silent()))
    (best,) = predictions.selections
    assert best.n_candidates == 21 and sum(best.weights.values()) == pytest.approx(1)
    assert 0 < best.weights["nb"] < 1
    monkeypatch.chdir(tmp_path)
    assert cli_main.run(shlex.split(best.command)[1:]) == 0
    judged = {a.manifest["inputs"].get("imatrix_sha256") for a in store.artifacts()}
    assert sha256_file(Path("mixture.gguf")) in judged
    (tmp_path / "mixture.gguf").rename(tmp_path / "mix.gguf")
    quant = quantized(tiny, "Q2_K", tmp_path / "mix.gguf")
    expected = {n: by_hand(tiny, quant, two[n]) for n in ("nb", "en")}
    assert best.recomputed == pytest.approx(expected, rel=1e-4)
    assert best.objective == pytest.approx(max(expected.values()), rel=1e-4)
    pure = overall(predictions)
    assert best.pure_objective["nb"] == max(pure["nb", "Q2_K"])
    assert best.objective < min(best.pure_objective.values())
    for name in ("nb", "en"):  # better for each than the other's calibration
        other = "en" if name == "nb" else "nb"
        assert best.predicted[name] < pure[other, "Q2_K"][("nb", "en").index(name)]


def test_a_language_that_alone_counts_gets_its_own_calibration(tiny, two, store):
    predictions = predict_losses(request(tiny, two, select={"en": 2.0}), Session(store, Silent()))
    (best,) = predictions.selections
    assert best.weights["en"] >= 0.9


# -- moments


@pytest.fixture(scope="module")
def with_moments(tiny, own_text, store_at, tmp_path_factory):
    """Two moments files of real text."""
    folder, paths = tmp_path_factory.mktemp("moments"), {}
    session = Session(store_at(folder / "store"), Silent())
    options = ComputeOptions("cpu", threads=1, n_ctx=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMATRIX_LAB_DATA", str(folder / "data"))
        for name, n_tokens in (("nb", 1024), ("en", 768)):
            text = str(own_text(n_tokens))
            job = Request(text, (), str(tiny), 10**6, folder, options, moments=True)
            paths[name] = tune.imatrix(job, folder / f"{name}.moments.gguf", session)
    return paths


def test_moments_are_used_where_all_have_them(tiny, with_moments, store, monkeypatch):
    job = request(tiny, {**with_moments, "none": None})
    first = predict_losses(job, Session(store, Silent()))
    n_tensors = len(first.rows[0].losses.tensors)
    # ffn_down alone has more columns than one block
    assert first.basis == Basis(exact=n_tensors - 2, blocks=2)
    monkeypatch.setattr(quantize, "run_quantize", None)
    monkeypatch.setattr(output_error, "write", None)
    again = predict_losses(job, Session(store, Silent()))
    assert overall(again) == overall(first)
    alone = predict_losses(request(tiny, {"en": with_moments["en"]}), Session(store, Silent()))
    assert overall(alone)["en", "Q2_K"] == overall(first)["en", "Q2_K"][1:]


def test_a_mix_of_both_kinds_is_told(tiny, with_moments, two, store):
    recorder = Recorder()
    mixed = {"nb": with_moments["nb"], "sv": two["en"]}
    predictions = predict_losses(request(tiny, mixed), Session(store, recorder))
    assert predictions.basis.squares == len(predictions.rows[0].losses.tensors)
    (note,) = (m for m in recorder.messages if "--moments" in m)
    assert "nb" in note and "sv" in note
    plain = predict_losses(request(tiny, {"sv": two["en"]}), Session(store, Silent()))
    assert overall(predictions)["sv", "Q2_K"][1:] == overall(plain)["sv", "Q2_K"]


def test_quants_that_are_there_are_judged_by_moments(tiny, with_moments, store, quantized):
    quants = [("nb", quantized(tiny, "Q2_K", with_moments["nb"]))]
    given = predict_losses(request(tiny, with_moments, (), quants), Session(store, Silent()))
    made = predict_losses(request(tiny, with_moments), Session(store, Silent()))
    assert overall(given)["nb", "Q2_K"] == overall(made)["nb", "Q2_K"]


def test_the_same_file_under_two_names(tiny, with_moments, store):
    twice = {"a": with_moments["nb"], "b": with_moments["nb"]}
    rows = predict_losses(request(tiny, twice), Session(store, Silent())).rows
    assert {tuple(r.losses.overall()) for r in rows} == {tuple(rows[0].losses.overall())}


def test_a_mixture_is_judged_by_moments(tiny, with_moments, store):
    job = request(tiny, with_moments, select="worst")
    (best,) = predict_losses(job, Session(store, Silent())).selections
    assert set(best.recomputed) == {"nb", "en"} and best.objective > 0
