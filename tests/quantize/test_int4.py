"""INT4: against GPTQ and AWQ's search in numpy, against llm-compressor, in files."""

import dataclasses
import json

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.models import resolve, weights
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import feedback, int4
from imatrix_lab.types import NOT_FOR_USE, ComputeOptions, Request
from tests import tiny_model


@pytest.fixture(scope="session")
def kernel(store_at, tools, tmp_path_factory):
    """The compiled rounding."""
    folder = tmp_path_factory.mktemp("int4")
    return feedback.Kernel(tools, Session(store_at(folder), Silent()))


@dataclasses.dataclass
class Case:
    """Weights, and inputs that go with their neighbours."""

    w: np.ndarray
    x: np.ndarray

    @property
    def h(self):
        return (self.x.T @ self.x / len(self.x)).astype(np.float32)

    def loss(self, q, part=slice(None)):
        error = (self.w - q)[:, part].astype(np.float64)
        return np.sum((error @ self.h[part, part]) * error)


def case(rows=64, columns=512):
    rng, at = np.random.default_rng(1), np.arange(columns)
    near = np.exp(-np.abs(np.subtract.outer(at, at)) / 40)
    x = rng.normal(size=(4 * columns, columns)) @ (rng.normal(size=(columns, columns)) * near)
    w = rng.standard_t(4, size=(rows, columns))
    w[:, 0] = 0  # a group's largest weight lies half way between two codes: not in the first column
    return Case(w.astype(np.float32), (x / x.std()).astype(np.float32))


def gptq(kernel, c, h=None):
    """Weights of `c` as `Gptq` rounds them."""
    h = c.h if h is None else h
    way = int4.Gptq(kernel)
    return way.rounded(c.w, way.prepared(h[None], 1, len(h)), np.diag(h))


def by_the_paper(w, h):
    """GPTQ in float64, as in the paper, with the scales of `w`."""
    h = h.astype(np.float64)
    upper = np.linalg.cholesky(np.linalg.inv(h + 0.01 * h.diagonal().mean() * np.eye(len(h)))).T
    largest = np.abs(w.reshape(len(w), -1, 128)).max(axis=2).astype(np.float64)
    step = (largest / 7.5).repeat(128, axis=1)
    left, q = w.astype(np.float64), np.zeros(w.shape)
    for i in range(w.shape[1]):
        q[:, i] = np.clip(np.rint(left[:, i] / step[:, i]), -8, 7) * step[:, i]
        error = (left[:, i] - q[:, i]) / upper[i, i]
        left[:, i + 1 :] -= np.outer(error, upper[i, i + 1 :])
    return q


def rows_alike(a, b):
    """How many rows agree to 1e-4; one may part where a value is half way between two codes."""
    return np.isclose(a, b, rtol=1e-4, atol=1e-6).all(axis=1).mean()


def test_gptq_is_that_of_the_paper(kernel):
    c = case()
    q = gptq(kernel, c)
    assert rows_alike(q, by_the_paper(c.w, c.h)) >= 63 / 64
    assert c.loss(q) < 0.6 * c.loss(gptq(kernel, c, np.diag(c.h.diagonal())))


def test_weights_of_columns_that_were_never_active_become_zero(kernel):
    c, dead = case(), np.arange(512) % 5 == 0
    c.x[:, dead] = 0
    q = gptq(kernel, c)
    assert not q[:, dead].any() and q[:, ~dead].any()


def test_an_expert_that_no_token_reached_is_rounded_all_the_same(kernel):
    c = case()
    q = gptq(kernel, c, np.zeros((512, 512), np.float32))
    groups = c.w.reshape(64, 4, 128)
    step = np.abs(groups).max(axis=2, keepdims=True) / 7.5
    assert np.abs((q.reshape(groups.shape) - groups) / step).max() < 0.51
    assert all(len(np.unique(g)) <= 16 for row in q.reshape(groups.shape) for g in row)


def by_the_inputs(c, group):
    """AutoAWQ's search for one group, by the outputs for all inputs."""
    x, w = c.x[:, group].astype(np.float64), c.w[:, group]
    best, least = np.empty(w.shape), np.full(len(w), np.inf)
    for i in range(10):
        limit = np.abs(w).max(axis=1, keepdims=True) * np.float32(1 - i / 20)
        cut = np.clip(w, -limit, limit)
        step = (cut.max(axis=1, keepdims=True) - cut.min(axis=1, keepdims=True)) / 15
        zero = np.rint(-cut.min(axis=1, keepdims=True) / step)
        q = (np.clip(np.rint(cut / step) + zero, 0, 15) - zero) * step
        loss = ((x @ (q - w).T) ** 2).mean(axis=0)
        best[loss < least], least[loss < least] = q[loss < least], loss[loss < least]
    return best


def test_clipping_by_moments_is_clipping_by_inputs():
    c = case()
    q = int4.clipped(c.w, int4.diagonal_blocks(c.h.reshape(1, 512, 512), 512))
    for start in range(0, 512, 128):
        group = slice(start, start + 128)
        assert rows_alike(q[:, group], by_the_inputs(c, group)) >= 63 / 64
        assert c.loss(q, group) < 0.95 * c.loss(int4.nearest(c.w), group)


def test_moments_of_groups_are_those_on_the_diagonal():
    whole = np.arange(512 * 512, dtype=np.float32).reshape(512, 512)
    halves = np.stack([whole[:256, :256], whole[256:, 256:]])
    groups = int4.diagonal_blocks(whole[None], 512)
    np.testing.assert_array_equal(groups, int4.diagonal_blocks(halves, 512))
    np.testing.assert_array_equal(groups[3], whole[384:, 384:])
    assert len(int4.diagonal_blocks(halves, 384)) == 3  # the last block is filled up


def test_llm_compressor_gets_the_same_weights(kernel):
    missing = "llmcompressor is not installed: pip install -e '.[oracle]'"
    pytest.importorskip("llmcompressor", reason=missing)
    import torch
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import W4A16, W4A16_ASYM
    from compressed_tensors.quantization.utils import calculate_qparams
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    c = case()
    w, h = torch.from_numpy(c.w), torch.from_numpy(c.h)
    groups, scheme = w.reshape(64, 4, 128), W4A16["weights"]
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme)
    np.testing.assert_allclose(int4.symmetric(c.w), scale, rtol=1e-6)
    theirs, *_ = quantize_weight(
        w[None].clone(), h[None].clone(), scale[None], zero[None], None, scheme
    )
    assert rows_alike(gptq(kernel, c), theirs[0].numpy()) >= 63 / 64

    scheme = W4A16_ASYM["weights"]
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme)
    assert rows_alike(int4.nearest(c.w), fake_quantize(w, scale, zero, scheme).numpy()) >= 63 / 64


# -- files


def request(model, text, **rest):
    compute = ComputeOptions("cpu", n_ctx=128, threads=1)
    return Request(str(text), (), str(model), 10**6, text.parent, compute, **rest)


@pytest.fixture(scope="session")
def tiny_moments(store_at, tiny, own_text, tmp_path_factory):
    """An imatrix with whole moments over a little text."""
    folder = tmp_path_factory.mktemp("moments")
    asked = request(tiny, own_text(8 * 128), moments=True, full=".")
    return tune.imatrix(asked, folder / "nb.moments.gguf", Session(store_at(folder), Silent()))


def quantized(model, imatrix, types, heldout, out, **rest):
    asked = dataclasses.replace(request(model, heldout), types=types, out=out, **rest)
    return tune.quants(asked, imatrix, Session(Store(), Silent()))


def test_files_stand_for_int4_and_say_so(kernel, tiny, tiny_moments, own_text, tmp_path):
    result = quantized(tiny, tiny_moments, NOT_FOR_USE, own_text(600), tmp_path / "out")
    ours = weights.tensors(resolve.resolve(str(tiny), Session(Store(), Silent())))
    card = (tmp_path / "out" / "README.md").read_text()
    for q, path in zip(result.quants, result.files, strict=True):
        assert q.type in path.name and path.name.endswith("-not-for-use-F16.gguf")
        header = read_header(path)
        assert header.text("imatrix_lab.int4") == q.type == resolve.facts((path,)).file_type
        assert "not for use" in header.text("imatrix_lab.int4.note")
        assert ("channels scaled" in q.scaled) == (q.type == "INT4_AWQ")
        assert f"{path.name} is not for use" in card
        n_int4 = 0
        for info in header.tensors:
            before, after = (
                weights.read_rows(kernel.ggml, t, 0, weights.n_rows(info))
                for t in (ours[info.name], weights.FileTensor(path, info))
            )
            if info.type_name == "F16" and info.name.startswith("blk."):
                n_int4 += info.n_elements
                groups = np.unique(after.reshape(-1, 128)[7])
                assert len(groups) <= 16 and (before != after).any()
            else:  # AWQ divides norms by its scales
                may_change = q.type == "INT4_AWQ" and "_norm." in info.name
                assert may_change or np.array_equal(before, after)
        n = result.model.facts.n_parameters
        bits = {"INT4_GPTQ": 4.125, "INT4_AWQ": 4.15625}[q.type]
        n_f32 = sum(t.n_elements for t in header.tensors if t.type_name == "F32")
        expected = (bits * n_int4 + 32 * n_f32 + 16 * (n - n_int4 - n_f32)) / n
        assert q.bits_per_weight == pytest.approx(expected, abs=1e-3)
        entry = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"][path.name]
        assert entry["size_bytes"] == path.stat().st_size and "not for use" in entry["note"]


def test_feedback_within_blocks_is_told(tools, own_store, own_text, tmp_path):
    model = tiny_model.write(tmp_path / "wide-f16.gguf", channels=512)
    session = Session(own_store, Silent())
    imatrix = tune.imatrix(request(model, own_text(1024), moments=True), None, session)
    assert int4.metadata("INT4_GPTQ", imatrix)["imatrix_lab.int4.feedback"] == "within 256 columns"
    assert "imatrix_lab.int4.feedback" not in int4.metadata("INT4_AWQ", imatrix)


def test_what_cannot_work_is_told_before_anything_is_made(tiny, tiny_moments, own_text, tmp_path):
    out, plain = tmp_path / "out", tmp_path / "plain.gguf"
    matrix = format.read(tiny_moments)
    format.write(plain, dataclasses.replace(matrix, more=(), metadata={}))
    for imatrix, rest in ((None, {}), (plain, {}), (tiny_moments, {"feedback": True})):
        with pytest.raises(UsageError, match=r"INT4_GPTQ (has|needs)") as error:
            quantized(tiny, imatrix, ("INT4_GPTQ",), own_text(600), out, **rest)
        assert error.value.fix
    assert not out.exists()


def test_weights_that_f16_cannot_hold_are_refused():
    with pytest.raises(BadModel):
        int4.half(np.array([[1.0, 1e6]], np.float32))
