"""Predicted loss: the formula, and mixtures."""

import math
from functools import partial

import numpy as np
import pytest

from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix import format, predict
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.imatrix.quant_error import Columns
from tests.imatrix.made_up import imatrix


def made_up(seed=0, shapes=(("blk.0.attn_q.weight", (1, 6)), ("blk.1.ffn_up_exps.weight", (3, 4)))):
    """Column sums as a reader has them."""
    rng = np.random.default_rng(seed)
    sums = {name: Columns(*rng.random((2, *shape))) for name, shape in shapes}
    return {name: partial(sums.get, name) for name in sums}


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
    losses = predict.losses(columns, languages)
    assert losses.tensors == tuple(columns) and losses.languages == ("nb", "en")
    for i, name in enumerate(columns):
        c = columns[name]()
        for j, language in enumerate(languages.values()):
            above = below = 0.0
            for matrix, column in np.ndindex(c.error.shape):
                s = float(language.entries[name].sums[matrix, column])
                above += s * c.error[matrix, column]
                below += s * c.power[matrix, column]
            assert losses.relative()[i, j] == pytest.approx(above / below, rel=1e-12)
    np.testing.assert_allclose(losses.overall(), losses.relative().mean(0))


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
    losses = predict.losses(columns, {"nb": Imatrix({shape[0]: entry}, (), 1, 128)})
    assert losses.overall().tolist() == [(3 * 1 + 1 * 2) / 4]


def test_an_old_file_with_one_count_for_all_experts():
    columns = made_up()
    whole = entries(columns, 0)
    flat = {n: Entry(e.sums.reshape(1, -1), e.counts[:1]) for n, e in whole.entries.items()}
    old = Imatrix(flat, (), 1, 128)
    losses = predict.losses(columns, {"new": whole, "old": old}).relative()
    assert losses[:, 0].tolist() == losses[:, 1].tolist()


def test_groups_by_role_and_layer():
    names = [
        "blk.0.attn_q.weight", "blk.7.attn_q.weight", "blk.7.ffn_up_exps.weight", "output.weight",
    ]  # fmt: skip
    columns = made_up(shapes=[(n, (1, 4)) for n in names])
    losses = predict.losses(columns, {"nb": entries(columns, 0)})
    relative = losses.relative()[:, 0]
    roles, layers = losses.grouped("role"), losses.grouped("layer")
    assert list(roles) == ["attn_q", "ffn_up_exps", "output"]
    assert list(layers) == ["0", "7", "output"]
    assert roles["attn_q"][0] == pytest.approx(relative[:2].mean())
    assert layers["7"][0] == pytest.approx(relative[1:3].mean())


def test_only_tensors_that_all_have_count():
    columns = made_up()
    short = entries(columns, 1)
    del short.entries["blk.0.attn_q.weight"]
    losses = predict.losses(columns, {"nb": entries(columns, 0), "en": short})
    assert losses.tensors == ("blk.1.ffn_up_exps.weight",)
    short.entries.clear()
    with pytest.raises(BadImatrix):
        predict.losses(columns, {"en": short})


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1, 11), (6, 2)])
def test_an_imatrix_of_other_shapes_is_refused(shape):
    columns = made_up()
    odd = entries(columns, 0)
    odd.entries["blk.1.ffn_up_exps.weight"] = Entry(
        np.ones(shape, np.float32), np.ones(shape[0], np.float32)
    )
    with pytest.raises(BadImatrix, match=r"ffn_up_exps.weight of nb .* \[3, 4\]"):
        predict.losses(columns, {"nb": odd})


def test_a_tensor_whose_activations_meet_no_weight_is_skipped():
    columns = made_up(shapes=[("x", (1, 2)), ("y", (1, 2))])
    columns["x"] = lambda: Columns(np.zeros((1, 2)), np.array([[0.0, 1.0]]))
    blind = imatrix(x=([1, 0], [1]), y=([1, 1], [1]))
    assert predict.losses(columns, {"nb": blind}).tensors == ("y",)
    del columns["y"]
    with pytest.raises(BadImatrix):
        predict.losses(columns, {"nb": blind})


def test_what_a_dat_fills_in_counts_nothing(tmp_path):
    name = "blk.0.ffn_up_exps.weight"
    columns = {name: lambda: Columns(np.array([[1.0, 1], [50, 50]]), np.full((2, 2), 100.0))}
    whole = imatrix(**{name: ([0.1, 0.3, 0, 0], [900, 0])})
    format.write(tmp_path / "a.dat", whole)
    for nb in (whole, format.read(tmp_path / "a.dat")):
        assert predict.losses(columns, {"nb": nb}).overall() == pytest.approx([0.01])


# -- mixtures


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 12, 38])
def test_the_grid_is_whole_and_bounded(n):
    mixtures = predict.grid(n)
    assert len(mixtures) <= predict.GRID_MAX and len(np.unique(mixtures, axis=0)) == len(mixtures)
    assert (mixtures >= 0).all()
    np.testing.assert_allclose(mixtures.sum(1), 1)
    assert {tuple(r) for r in np.eye(n)} <= {tuple(r) for r in mixtures}
    if n == 3:
        assert len(mixtures) == math.comb(22, 2)
    steps = mixtures[mixtures > 0].min() if n > 1 else 0.05
    assert (steps == pytest.approx(0.05)) == (n <= 5)


def test_mixtures_are_exact_where_losses_are_quadratic():
    """Quants as points, a language's loss its own plus the squared distance from its own quant."""
    rng = np.random.default_rng(0)
    points, own = rng.normal(size=(4, 9)), rng.random(4)

    def losses_at(point):
        return own + ((point - points) ** 2).sum(1)

    pure = np.array([losses_at(p) for p in points])
    weights = rng.dirichlet(np.ones(4), 50)
    expected = np.array([losses_at(w @ points) for w in weights])
    np.testing.assert_allclose(predict.mixture_losses(pure, weights), expected)
    np.testing.assert_allclose(predict.mixture_losses(pure, np.eye(4)), pure)


def test_the_quantity_to_minimize():
    losses = np.array([[1.0, 4.0], [3.0, 3.0]])
    assert predict.objective(losses, None).tolist() == [4, 3]
    assert predict.objective(losses, np.array([3.0, 1.0])).tolist() == [1.75, 3]
