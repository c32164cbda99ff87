"""Expected errors of what the real llama-quantize made, against outputs computed in float64."""

import gguf
import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadImatrix
from imatrix_lab.imatrix import format, moments, output_error, predict, quant_error
from imatrix_lab.imatrix.format import Entry
from tests import tiny_model
from tests.imatrix.made_up import write_moments

UP, DOWN = "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"
COLUMNS = {UP: tiny_model.CHANNELS, DOWN: tiny_model.FEED_FORWARD}


def moments_file(path, inputs, block=256):
    """A language of the moments of rows, by the tensor that reads them."""
    write_moments(path, inputs, block)
    return output_error.Language(format.read(path), moments.read(path))


def rows(seed, n_columns, n=600, mean=0.0):
    """Activations of correlated columns; with a mean, in a tenth of them."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (n, 12)) @ rng.normal(0, 0.3, (12, n_columns))
    shift = mean * rng.choice([-1, 1], n_columns) * (rng.random(n_columns) < 0.1)
    return (hidden + rng.normal(0, 1, (n, n_columns)) + shift).astype(np.float32).astype(float)


def expected(kernel, model, quant, languages, out, threads=2):
    """Write and read the expected errors in each language."""
    outs = [(out / str(i), language) for i, language in enumerate(languages)]
    for folder, _ in outs:
        folder.mkdir(exist_ok=True, parents=True)
    output_error.write(outs, kernel, model, quant, threads, Silent())
    return [output_error.read(folder / output_error.FILE) for folder, _ in outs]


def matrices(path, name):
    (tensor,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(float)
    return values.reshape(-1, *values.shape[-2:])


def outputs(model, quant, name, inputs):
    """Squared outputs lost and all of them, from the outputs themselves."""
    pairs = zip(matrices(model, name), matrices(quant, name), inputs, strict=True)
    sums = [(((x @ (w - q).T) ** 2).sum(), ((x @ w.T) ** 2).sum()) for w, q, x in pairs]
    return np.sum(sums, axis=0)


@pytest.fixture(scope="module")
def q2(tiny, quantized):
    return quantized(tiny, "Q2_K")


@pytest.mark.parametrize("mean", [0, 5])
def test_exact_where_a_block_has_all_columns(tiny, q2, loss_kernel, as_model, tmp_path, mean):
    inputs = {name: [rows(i, n, mean=mean)] for i, (name, n) in enumerate(COLUMNS.items())}
    language = moments_file(tmp_path / "m.gguf", inputs, block=1 << 20)
    (errors,) = expected(loss_kernel, as_model(tiny), as_model(q2), [language], tmp_path)
    assert errors.keys() == inputs.keys()
    for name, x in inputs.items():
        assert errors[name] == pytest.approx(outputs(tiny, q2, name, x), rel=1e-5)
    assert output_error.basis([language], COLUMNS) == output_error.Basis(exact=2)


def test_blocks_know_the_mean_of_all_columns(tiny, q2, loss_kernel, as_model, tmp_path):
    """Independent columns in two blocks: squares miss the mean, blocks nothing but noise."""
    rng = np.random.default_rng(1)
    shift = 6 * (rng.random(512) < 0.3)
    x = rng.normal(shift, 1, (4000, 512))
    language = moments_file(tmp_path / "m.gguf", {DOWN: [x]})
    model, quant = as_model(tiny), as_model(q2)
    (errors,) = expected(loss_kernel, model, quant, [language], tmp_path)
    lost, energy = outputs(tiny, q2, DOWN, [x])
    assert errors[DOWN] == pytest.approx((lost, energy), rel=0.02)
    quant_error.write(tmp_path, loss_kernel, model, quant, 2, Silent())
    columns = quant_error.read(tmp_path / quant_error.FILE)
    squares = predict.losses(columns, {"x": language.imatrix})
    row = squares.tensors.index(DOWN)
    assert abs(squares.lost[row, 0] / lost - 1) > 0.05
    assert output_error.basis([language], {DOWN: 512}) == output_error.Basis(blocks=1)


def test_languages_share_a_pass_whatever_their_blocks(tiny, q2, loss_kernel, as_model, tmp_path):
    """The same numbers as alone, to the last bit, and on any number of threads."""
    xs = [rows(i, 512, mean=i) for i in range(3)]
    languages = [
        moments_file(tmp_path / f"{i}.gguf", {DOWN: [x]}, block)
        for i, (x, block) in enumerate(zip(xs, (256, 512, 256), strict=True))
    ]
    model, quant = as_model(tiny), as_model(q2)
    together = expected(loss_kernel, model, quant, languages, tmp_path, threads=3)
    alone = [expected(loss_kernel, model, quant, [i], tmp_path, 1)[0] for i in languages]
    assert together == alone
    (lost, energy) = together[1][DOWN]
    assert (lost, energy) == pytest.approx(outputs(tiny, q2, DOWN, [xs[1]]), rel=1e-5)


def test_experts_and_what_has_no_moments(moe, quantized, loss_kernel, as_model, tmp_path):
    name, quant = "blk.0.ffn_up_exps.weight", quantized(moe, "Q3_K_S")
    xs = [rows(i, tiny_model.CHANNELS, n, mean=3) for i, n in enumerate((300, 0, 90, 17))]
    language = moments_file(tmp_path / "m.gguf", {name: xs})
    plain = Entry(np.full((1, tiny_model.CHANNELS), 7, np.float32), np.array([5], np.float32))
    language.imatrix.entries["blk.0.attn_q.weight"] = plain
    (errors,) = expected(loss_kernel, as_model(moe), as_model(quant), [language], tmp_path)
    assert errors[name] == pytest.approx(outputs(moe, quant, name, xs), rel=1e-4)
    w, q = (matrices(p, "blk.0.attn_q.weight") for p in (moe, quant))
    squares = (7 * ((w - q) ** 2).sum(), 7 * (w**2).sum())
    assert errors["blk.0.attn_q.weight"] == pytest.approx(squares, rel=1e-4)


def test_blocks_of_rows_of_any_size(tiny, q2, loss_kernel, as_model, tmp_path, monkeypatch):
    x = rows(3, 512, mean=2)
    language = moments_file(tmp_path / "m.gguf", {DOWN: [x]}, 512)
    monkeypatch.setattr(quant_error, "BLOCK_WEIGHTS", 5000)
    (errors,) = expected(loss_kernel, as_model(tiny), as_model(q2), [language], tmp_path)
    assert errors[DOWN] == pytest.approx(outputs(tiny, q2, DOWN, [x]), rel=1e-5)


def test_columns_that_fill_no_vector(loss_kernel, as_model, tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "w.gguf", tmp_path / "q.gguf"]
    for path in paths:
        tiny_model.write(path, channels=72, seed=len(path.name) + path.name.count("q"))
    x = rng.normal(1, 1, (200, 72))
    language = moments_file(tmp_path / "m.gguf", {UP: [x]}, block=1 << 20)
    (errors,) = expected(loss_kernel, *map(as_model, paths), [language], tmp_path)
    assert errors[UP] == pytest.approx(outputs(*paths, UP, [x]), rel=1e-5)


def test_moments_of_other_shapes_are_refused(tiny, q2, loss_kernel, as_model, tmp_path):
    language = moments_file(tmp_path / "m.gguf", {UP: [rows(0, 512)]})
    with pytest.raises(BadImatrix, match=r"\[1, 512\].*\[1, 256\]"):
        expected(loss_kernel, as_model(tiny), as_model(q2), [language], tmp_path)
