"""Predicted loss: the formula, mixtures, and whole predictions with the real llama-quantize."""

import math
import shlex
from functools import partial
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
from imatrix_lab.imatrix import format, predict
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.imatrix.quant_error import Columns
from imatrix_lab.llamacpp import programs
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import predict as forecast
from imatrix_lab.pipeline import tune
from imatrix_lab.pipeline.predict import PredictRequest
from imatrix_lab.quantize import run as quantize
from imatrix_lab.types import ComputeOptions, Request
from tests.imatrix.made_up import imatrix


def made_up(seed=0, shapes=(("blk.0.attn_q.weight", (1, 6)), ("blk.1.ffn_up_exps.weight", (3, 4)))):
    """Column sums as a reader has them."""
    rng = np.random.default_rng(seed)
    found = {name: Columns(*rng.random((2, *shape))) for name, shape in shapes}
    return {name: partial(found.get, name) for name in found}


def entries(columns, seed, scale=1.0):
    rng = np.random.default_rng([1, seed])
    shapes = {n: get().error.shape for n, get in columns.items()}
    return Imatrix(
        {
            n: Entry(
                (scale * rng.lognormal(0, 2, s)).astype(np.float32),
                rng.integers(1, 99, s[0]).astype(np.float32),
            )
            for n, s in shapes.items()
        },
        (), 1, 128,
    )  # fmt: skip


# -- the formula


def test_the_formula_written_out():
    columns = made_up()
    languages = {"nb": entries(columns, 0), "en": entries(columns, 1)}
    found = predict.losses(columns, languages)
    assert found.tensors == tuple(columns) and found.languages == ("nb", "en")
    for i, name in enumerate(columns):
        c = columns[name]()
        for j, language in enumerate(languages.values()):
            above = below = 0.0
            for matrix, column in np.ndindex(c.error.shape):
                s = float(language.entries[name].sums[matrix, column])
                above += s * c.error[matrix, column]
                below += s * c.power[matrix, column]
            assert found.relative()[i, j] == pytest.approx(above / below, rel=1e-12)
    np.testing.assert_allclose(found.overall(), found.relative().mean(0))


@pytest.mark.parametrize("scale", [1e-6, 1 / 3, 1e6])
def test_the_scale_of_an_imatrix_cancels(scale):
    columns = made_up()
    one, other = (predict.losses(columns, {"nb": entries(columns, 0, s)}) for s in (1.0, scale))
    np.testing.assert_allclose(other.relative(), one.relative(), rtol=1e-6)


def test_an_expert_counts_by_its_tokens_and_one_without_any_not_at_all():
    shape = ("blk.0.ffn_up_exps.weight", (3, 2))
    error = np.array([[1.0, 1], [2, 2], [100, 100]])
    columns = {shape[0]: lambda: Columns(error, np.ones((3, 2)))}
    sums = np.array([[3.0, 3], [1, 1], [0, 0]], np.float32)
    entry = Entry(sums, np.array([30, 10, 0], np.float32))
    found = predict.losses(columns, {"nb": Imatrix({shape[0]: entry}, (), 1, 128)})
    assert found.overall().tolist() == [(3 * 1 + 1 * 2) / 4]


def test_an_old_file_with_one_count_for_all_experts():
    columns = made_up()
    whole = entries(columns, 0)
    flat = {n: Entry(e.sums.reshape(1, -1), e.counts[:1]) for n, e in whole.entries.items()}
    old = Imatrix(flat, (), 1, 128)
    found = predict.losses(columns, {"new": whole, "old": old}).relative()
    assert found[:, 0].tolist() == found[:, 1].tolist()


def test_groups_by_role_and_layer():
    names = [
        "blk.0.attn_q.weight", "blk.7.attn_q.weight", "blk.7.ffn_up_exps.weight", "output.weight",
    ]  # fmt: skip
    columns = made_up(shapes=[(n, (1, 4)) for n in names])
    found = predict.losses(columns, {"nb": entries(columns, 0)})
    relative = found.relative()[:, 0]
    roles, layers = found.grouped("role"), found.grouped("layer")
    assert list(roles) == ["attn_q", "ffn_up_exps", "output"]
    assert list(layers) == ["0", "7", "output"]
    assert roles["attn_q"][0] == pytest.approx(relative[:2].mean())
    assert layers["7"][0] == pytest.approx(relative[1:3].mean())


def test_only_tensors_that_all_have_count():
    columns = made_up()
    short = entries(columns, 1)
    del short.entries["blk.0.attn_q.weight"]
    found = predict.losses(columns, {"nb": entries(columns, 0), "en": short})
    assert found.tensors == ("blk.1.ffn_up_exps.weight",)
    short.entries.clear()
    with pytest.raises(BadImatrix, match="no tensor in common"):
        predict.losses(columns, {"en": short})


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 11), (6, 2)])
def test_an_imatrix_of_other_shapes_is_refused(shape):
    columns = made_up()
    odd = entries(columns, 0)
    odd.entries["blk.1.ffn_up_exps.weight"] = Entry(
        np.ones(shape, np.float32), np.ones(shape[0], np.float32)
    )
    with pytest.raises(BadImatrix, match=r"ffn_up_exps.weight of nb is for .* has \[3, 4\]"):
        predict.losses(columns, {"nb": odd})


def test_a_tensor_whose_activations_meet_no_weight_is_left_out():
    columns = made_up(shapes=[("x", (1, 2)), ("y", (1, 2))])
    columns["x"] = lambda: Columns(np.zeros((1, 2)), np.array([[0.0, 1.0]]))
    blind = imatrix(x=([1, 0], [1]), y=([1, 1], [1]))
    assert predict.losses(columns, {"nb": blind}).tensors == ("y",)
    del columns["y"]
    with pytest.raises(BadImatrix, match="in no tensor"):
        predict.losses(columns, {"nb": blind})


def test_what_a_dat_fills_in_counts_nothing(tmp_path):
    name = "blk.0.ffn_up_exps.weight"
    columns = {name: lambda: Columns(np.array([[1.0, 1], [50, 50]]), np.full((2, 2), 100.0))}
    whole = imatrix(**{name: ([0.1, 0.3, 0, 0], [900, 0])})
    format.write(tmp_path / "a.dat", whole)
    for found in (whole, format.read(tmp_path / "a.dat")):
        assert predict.losses(columns, {"nb": found}).overall() == pytest.approx([0.01])


# -- mixtures


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 12, 38])
def test_the_grid_is_whole_and_bounded(n):
    found = predict.grid(n)
    assert len(found) <= predict.GRID_MAX and len(np.unique(found, axis=0)) == len(found)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
    assert {tuple(r) for r in np.eye(n)} <= {tuple(r) for r in found}
    if n == 3:
        assert len(found) == math.comb(22, 2)
    steps = found[found > 0].min() if n > 1 else 0.05
    assert (steps == pytest.approx(0.05)) == (n <= 5)


def test_mixtures_are_exact_where_losses_are_quadratic():
    """Quants as points, a language's loss its own plus the squared distance from its own quant."""
    rng = np.random.default_rng(0)
    points, own = rng.normal(size=(4, 9)), rng.random(4)

    def losses_at(point):
        return own + ((point - points) ** 2).sum(1)

    pure = np.array([losses_at(p) for p in points])
    weights = rng.dirichlet(np.ones(4), 50)
    wanted = np.array([losses_at(w @ points) for w in weights])
    np.testing.assert_allclose(predict.mixture_losses(pure, weights), wanted)
    np.testing.assert_allclose(predict.mixture_losses(pure, np.eye(4)), pure)


def test_what_is_to_be_small():
    found = np.array([[1.0, 4.0], [3.0, 3.0]])
    assert predict.objective(found, None).tolist() == [4, 3]
    assert predict.objective(found, np.array([3.0, 1.0])).tolist() == [1.75, 3]


# -- whole predictions


COMPUTE = ComputeOptions("cpu", threads=2)


def request(model, imatrices, types=("Q2_K",), quants=(), **rest):
    named = tuple((name, path) for name, path in imatrices.items())
    return PredictRequest(str(model), named, types, tuple(quants), COMPUTE, **rest)


@pytest.fixture
def two(tiny, imatrix_of):
    return {"nb": imatrix_of(tiny, "nb"), "en": imatrix_of(tiny, "en"), "none": None}


def overall(found):
    return {(r.calibration, r.type): r.losses.overall().tolist() for r in found.rows}


def by_hand(model, quant, imatrix):
    """The mean over tensors in float64, with gguf-py's dequantization."""
    tensors = {t.name: t for t in gguf.GGUFReader(quant).tensors}
    found = []
    for t in gguf.GGUFReader(model).tensors:
        if t.name in (seen := format.read(imatrix).entries):
            w, q = (
                gguf.dequantize(x.data, x.tensor_type).astype(float) for x in (t, tensors[t.name])
            )
            s = seen[t.name].sums.astype(float)
            if w.ndim == 2:
                w, q = w[None], q[None]
            found.append((s[:, None] * (w - q) ** 2).sum() / (s[:, None] * w**2).sum())
    return np.mean(found)


TYPES = {"tiny": ("Q2_K", "Q4_K_M"), "moe": ("Q3_K_S",)}


@pytest.mark.parametrize("which", TYPES)
def test_against_an_independent_computation(request, store, imatrix_of, quantized, which):
    model = request.getfixturevalue(which)
    nb, en = imatrix_of(model, "nb"), imatrix_of(model, "en")
    asked = PredictRequest(
        str(model), (("nb", nb), ("en", en), ("none", None)), TYPES[which], (), COMPUTE
    )
    found = overall(forecast.predict_losses(asked, Session(store, Silent())))
    assert len(found) == 3 * len(TYPES[which])
    for (calibration, kind), values in found.items():
        quant = quantized(model, kind, {"nb": nb, "en": en, "none": None}[calibration])
        assert values == pytest.approx([by_hand(model, quant, i) for i in (nb, en)], rel=1e-4)
    for kind in TYPES[which]:  # columns far apart in size: the own calibration is best
        assert found["nb", kind][0] < min(found["en", kind][0], found["none", kind][0])
        assert found["en", kind][1] < min(found["nb", kind][1], found["none", kind][1])


def test_the_errors_alone_make_calibrations_differ(tiny, two, store):
    found = forecast.predict_losses(request(tiny, two), Session(store, Silent()))
    energy = {r.losses.energy.tobytes() for r in found.rows}
    lost = {r.losses.lost.tobytes() for r in found.rows}
    assert len(energy) == 1 and len(lost) == 3
    assert set(found.outside) == {"token_embd.weight", "output.weight"}
    assert 0 < found.outside_share < 1


def test_quants_are_removed_and_what_they_came_to_is_kept(tiny, two, store, monkeypatch):
    asked = request(tiny, two)
    first = overall(forecast.predict_losses(asked, Session(store, Silent())))
    assert not [p for p in store.root.rglob("*.gguf") if "toolchain" not in p.parts]
    monkeypatch.setattr(quantize, "run", None)
    again = forecast.predict_losses(asked, Session(store, Silent()))
    assert overall(again) == first
    only = forecast.predict_losses(request(tiny, {"nb": two["nb"]}), Session(store, Silent()))
    assert overall(only) == {("nb", "Q2_K"): first["nb", "Q2_K"][:1]}


def test_a_killed_run_does_not_quantize_again(tiny, two, store, monkeypatch):
    asked, write = request(tiny, {"nb": two["nb"]}), forecast.loss.write
    monkeypatch.setattr(forecast.loss, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forecast.predict_losses(asked, Session(store, Silent()))
    monkeypatch.setattr(forecast.loss, "write", write)
    monkeypatch.setattr(quantize, "run", None)
    assert len(forecast.predict_losses(asked, Session(store, Silent())).rows) == 1


def test_a_quant_that_is_there_comes_to_the_same(tiny, two, store, quantized, monkeypatch):
    made = overall(forecast.predict_losses(request(tiny, two), Session(store, Silent())))
    quants = [(n, quantized(tiny, "Q2_K", p)) for n, p in two.items()]
    monkeypatch.setattr(quantize, "run", None)
    given = forecast.predict_losses(request(tiny, two, (), quants), Session(store, Silent()))
    assert overall(given) == made


class Heard(Silent):
    """What was said."""

    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def test_without_an_imatrix_a_type_that_takes_one_is_left_out_before_anything_is_made(
    tiny, two, store
):
    heard = Heard()
    asked = request(tiny, {"nb": two["nb"], "none": None}, ("IQ2_XXS", "Q2_K"))
    found = forecast.predict_losses(asked, Session(store, heard))
    rows = {(r.calibration, r.type) for r in found.rows}
    assert rows == {("nb", "IQ2_XXS"), ("nb", "Q2_K"), ("none", "Q2_K")}
    assert [s for s in heard.said if "takes an imatrix" in s] == [
        "note: IQ2_XXS takes an imatrix; it is left out for none"
    ]


def test_a_name_does_not_leave_the_store(tiny, two, store):
    odd = request(tiny, {"../../out": two["nb"]})
    forecast.predict_losses(odd, Session(store, Silent()))
    assert not list(store.root.parent.glob("out*")) and list((store.root / "loss").glob("*out*"))


def test_a_quant_of_the_store_is_used(tiny, two, store, own_text, tmp_path, monkeypatch):
    asked = Request(str(own_text(600)), ("Q2_K",), str(tiny), 10**6, tmp_path / "quants", COMPUTE)
    tune.quants(asked, two["nb"], Session(store, Silent()))
    monkeypatch.setattr(quantize, "run", None)
    heard = Heard()
    found = forecast.predict_losses(request(tiny, {"nb": two["nb"]}), Session(store, heard))
    assert len(found.rows) == 1 and not any("made one at a time" in s for s in heard.said)


def test_what_cannot_be_meant_is_said_first(tiny, two, store, quantized, monkeypatch):
    monkeypatch.setattr(quantize, "run", None)

    def run(*args, **rest):
        return forecast.predict_losses(request(*args, **rest), Session(store, Silent()))

    with pytest.raises(UsageError, match="no language"):
        run(tiny, {"none": None})
    with pytest.raises(UsageError, match="no imatrix called sv"):
        run(tiny, two, (), [("sv", quantized(tiny, "Q2_K"))])
    with pytest.raises(UsageError, match="no imatrix is called sv"):
        run(tiny, two, select={"sv": 1.0})
    twice = PredictRequest(str(tiny), (("a", two["nb"]), ("a", two["en"])), ("Q2_K",), (), COMPUTE)
    with pytest.raises(UsageError, match="two imatrices are called a"):
        forecast.predict_losses(twice, Session(store, Silent()))


def test_what_does_not_belong_to_the_model(tiny, moe, two, store, quantized, imatrix_of, tmp_path):
    with pytest.raises(BadModel, match="not a quant of the reference") as caught:
        forecast.predict_losses(
            request(tiny, two, (), [("none", quantized(moe, "Q2_K"))]), Session(store, Silent())
        )
    assert "--quant" in caught.value.fix and "--reference" not in caught.value.fix
    with pytest.raises(BadImatrix, match="missing"):
        forecast.predict_losses(
            request(tiny, {"x": imatrix_of(moe, "nb")}), Session(store, Silent())
        )
    half = tmp_path / "half.gguf"
    half.write_bytes(two["nb"].read_bytes()[:-100])
    with pytest.raises(BadImatrix, match="truncated"):
        forecast.predict_losses(request(tiny, {"x": half}), Session(store, Silent()))


def test_a_quant_made_with_another_imatrix_is_refused(tiny, two, store, tools, quantized, tmp_path):
    model = resolve.resolve(str(tiny), Session(store, Silent()))
    facts = tune.existing_imatrix(two["nb"], model, Silent())
    path = tmp_path / "q.gguf"
    options = programs.QuantizeOptions(1, str(two["nb"]), tune.metadata_of(tools, None, facts))
    program = tools.program("llama-quantize")
    argv = programs.quantize_argv(program, tiny, path, "Q2_K", options)
    process.run(argv)
    foreign = quantized(tiny, "Q2_K", two["en"])  # by llama-quantize alone
    for name, quant in (("en", path), ("none", path), ("none", foreign)):
        with pytest.raises(BadModel, match="made with another imatrix"):
            forecast.predict_losses(
                request(tiny, two, (), [(name, quant)]), Session(store, Silent())
            )
    with pytest.raises(BadModel, match="made without an imatrix, not nb"):
        plain = [("nb", quantized(tiny, "Q2_K"))]
        forecast.predict_losses(request(tiny, two, (), plain), Session(store, Silent()))
    heard = Heard()
    unsure = [("nb", quantized(tiny, "Q2_K", two["nb"]))]
    forecast.predict_losses(request(tiny, two, (), unsure), Session(store, heard))
    assert any("not verified" in said for said in heard.said)
    found = forecast.predict_losses(
        request(tiny, two, (), [("nb", path)]), Session(store, Silent())
    )
    assert [r.type for r in found.rows] == ["Q2_K"]


def test_the_mixture_that_loses_least_is_quantized_and_compared(
    tiny, two, store, quantized, tmp_path, monkeypatch
):
    found = forecast.predict_losses(request(tiny, two, select="worst"), Session(store, Silent()))
    (one,) = found.selections
    assert one.n_candidates == 21 and sum(one.weights.values()) == pytest.approx(1)
    assert 0 < one.weights["nb"] < 1
    monkeypatch.chdir(tmp_path)
    assert cli_main.run(shlex.split(one.command)[1:]) == 0
    judged = {a.manifest["inputs"].get("imatrix_sha256") for a in store.artifacts()}
    assert sha256_file(Path("mixture.gguf")) in judged
    (tmp_path / "mixture.gguf").rename(tmp_path / "mix.gguf")
    quant = quantized(tiny, "Q2_K", tmp_path / "mix.gguf")
    wanted = {n: by_hand(tiny, quant, two[n]) for n in ("nb", "en")}
    assert one.recomputed == pytest.approx(wanted, rel=1e-4)
    assert one.objective == pytest.approx(max(wanted.values()), rel=1e-4)
    pure = overall(found)
    assert one.pure_objective["nb"] == max(pure["nb", "Q2_K"])
    assert one.objective < min(one.pure_objective.values())
    for name in ("nb", "en"):  # better for each than the other's calibration
        other = "en" if name == "nb" else "nb"
        assert one.predicted[name] < pure[other, "Q2_K"][("nb", "en").index(name)]


def test_a_language_that_alone_counts_gets_its_own_calibration(tiny, two, store):
    found = forecast.predict_losses(
        request(tiny, two, select={"en": 2.0}), Session(store, Silent())
    )
    (one,) = found.selections
    assert one.weights["en"] >= 0.9
