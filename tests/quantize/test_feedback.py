"""Feedback: against GPTQ in numpy, in files, with experts, threads and kills."""

import dataclasses
import math

import gguf
import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, BadModel, UsageError
from imatrix_lab.imatrix import format, moments
from imatrix_lab.llamacpp import programs
from imatrix_lab.models import resolve, weights
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import feedback, run
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model

CODES = {
    "Q4_0": [(slice(2, 18), 0x00, 0x11)],
    "Q4_1": [(slice(4, 20), 0x00, 0x11)],
    "Q5_0": [(slice(2, 6), 0x00, 0x00), (slice(6, 22), 0x00, 0x11)],
    "Q5_1": [(slice(4, 8), 0x00, 0x00), (slice(8, 24), 0x00, 0x11)],
    "Q8_0": [(slice(2, 34), 0x81, 0x82)],
    "Q2_K": [(slice(16, 80), 0x00, 0x55)],
    "Q3_K": [(slice(0, 32), 0x00, 0x00), (slice(32, 96), 0x00, 0x55)],
    "Q4_K": [(slice(16, 144), 0x00, 0x11)],
    "Q5_K": [(slice(16, 48), 0x00, 0x00), (slice(48, 176), 0x00, 0x11)],
    "Q6_K": [(slice(0, 128), 0x00, 0x11), (slice(128, 192), 0x00, 0x00)],
}
"""Bytes of a block that hold codes, where all codes are 0, and where all are 1."""
HIGHEST = {"Q2_K": 3, "Q3_K": 7, "Q4_K": 15, "Q5_K": 31, "Q6_K": 63, "Q8_0": 254}
HIGHEST |= {"Q4_0": 15, "Q4_1": 15, "Q5_0": 31, "Q5_1": 31}


@pytest.fixture(scope="session")
def fed(store_at, tools, tmp_path_factory):
    """The compiled rounding."""
    folder = tmp_path_factory.mktemp("feedback")
    return feedback.Kernel(tools, Session(store_at(folder), Silent()))


def correlated(n, seed=0, strength=40.0):
    """Second moments of inputs that go with their neighbours."""
    rng = np.random.default_rng(seed)
    near = np.exp(-np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / strength)
    x = rng.normal(size=(4 * n, n)) @ (rng.normal(size=(n, n)) * near)
    return x.T @ x / len(x)


def blocks_of(h, width):
    return np.stack([h[i : i + width, i : i + width] for i in range(0, len(h), width)])


def grid(ggml, raw, kind):
    """Step and offset of each weight of a block, by changing its codes."""
    values = []
    for which in (1, 2):
        changed = raw.copy()
        for part in CODES[kind]:
            changed[:, part[0]] = part[which]
        values.append(ggml.dequantize(changed, kind).astype(np.float64))
    return values[1] - values[0], values[0]


def gptq(ggml, w, h, importance, kind):
    """GPTQ as in the paper, in float64, with ggml's grids; dequantized."""
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    left, q = w.astype(np.float64), np.zeros(w.shape)
    width = 256 if kind.endswith("K") else 32
    for b in range(0, w.shape[1], width):
        part = slice(b, b + width)
        raw = ggml.quantize(left[:, part].astype(np.float32), kind, importance[part])
        step, offset = grid(ggml, raw, kind)
        for i in range(width):
            c, scale = b + i, np.where(step[:, i] == 0, np.inf, step[:, i])
            code = np.clip(np.rint((left[:, c] - offset[:, i]) / scale), 0, HIGHEST[kind])
            q[:, c] = offset[:, i] + step[:, i] * code
            error = (left[:, c] - q[:, c]) / upper[c, c]
            left[:, c + 1 :] -= np.outer(error, upper[c, c + 1 :])
    return q


def loss(w, q, h):
    return np.einsum("rc,cd,rd->", w - q, h, w - q)


def shrunk(h, shrink):
    return (1 - shrink) * h + shrink * np.diag(np.diag(h))


@pytest.mark.parametrize(
    ("kind", "width"), [*((t, 512) for t in feedback.TYPES), ("Q4_K", 256), ("Q5_1", 256)]
)
def test_codes_are_those_of_gptq_and_lie_where_they_belong(fed, kind, width):
    n, ggml, rng = 512, fed.ggml, np.random.default_rng(1)
    h = correlated(n) * np.kron(np.eye(n // width), np.ones((width, width)))
    w, importance = rng.normal(size=(70, n)).astype(np.float32), np.diag(h).astype(np.float32)
    raw = fed.rounded(w, kind, feedback.factor(blocks_of(h, width), 0.01), importance)
    q = ggml.dequantize(raw, kind)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    np.testing.assert_allclose(q, theirs, rtol=1e-6, atol=1e-6)
    expected = gptq(ggml, w, shrunk(h, 0.01), importance, kind)
    # float and double part where a value is half way between two codes, and in that row only
    alike = np.isclose(q, expected, rtol=1e-4, atol=1e-5).all(axis=1)
    assert alike.mean() > 0.85
    assert loss(w, q, h) == pytest.approx(loss(w, expected, h), rel=0.01)


@pytest.mark.parametrize("kind", feedback.TYPES)
def test_output_error_falls_most_where_inputs_go_together(fed, kind):
    n, rng = 512, np.random.default_rng(2)
    w, ratios = rng.normal(size=(64, n)).astype(np.float32), []
    for strength in (3.0, 200.0):
        h = correlated(n, strength=strength)
        importance = np.diag(h).astype(np.float32)
        raw = fed.rounded(w, kind, feedback.factor(h[None], 0.01), importance)
        plain = fed.ggml.dequantize(fed.ggml.quantize(w, kind, importance), kind)
        ratios.append(loss(w, fed.ggml.dequantize(raw, kind), h) / loss(w, plain, h))
    assert ratios[1] < ratios[0] < 1.0
    assert ratios[1] < 0.8


@pytest.mark.parametrize("kind", feedback.TYPES)
def test_without_correlations_each_weight_takes_the_nearest_value(fed, kind):
    n, rng, ggml = 256, np.random.default_rng(3), fed.ggml
    w = rng.normal(size=(5, n)).astype(np.float32)
    importance = rng.uniform(0.5, 2, n).astype(np.float32)
    factor = feedback.factor(np.diag(importance)[None], 0.05)
    assert not factor.any()
    q = ggml.dequantize(fed.rounded(w, kind, factor, importance), kind)
    width = 256 if kind.endswith("K") else 32
    for b in range(0, n, width):
        part = slice(b, b + width)
        step, offset = grid(ggml, ggml.quantize(w[:, part], kind, importance[part]), kind)
        scale = np.where(step == 0, np.inf, step)
        code = np.clip(np.rint((w[:, part] - offset) / scale), 0, HIGHEST[kind])
        np.testing.assert_allclose(q[:, part], offset + step * code, rtol=1e-5, atol=1e-6)


def test_columns_that_were_never_active_take_no_part(fed):
    n, rng = 512, np.random.default_rng(4)
    h, dead = correlated(n), np.arange(n) % 5 == 0
    h[dead], h[:, dead] = 0, 0
    factor = feedback.factor(h[None], 0.01)
    assert np.isfinite(factor).all() and not factor[0, dead].any() and not factor[0][:, dead].any()
    w = rng.normal(size=(3, n)).astype(np.float32)
    raw = fed.rounded(w, "Q4_K", factor, np.diag(h).astype(np.float32))
    assert np.isfinite(fed.ggml.dequantize(raw, "Q4_K")).all()


def test_singular_moments_are_shrunk_until_they_are_not():
    x = np.random.default_rng(5).normal(size=(3, 256))  # three tokens
    x[:, 1] = x[:, 0]
    factor = feedback.factor((x.T @ x)[None], 0.0)
    assert np.isfinite(factor).all() and factor.any()
    assert not feedback.factor(np.zeros((1, 256, 256)), 0.05).any()


def test_weights_that_are_no_numbers_are_refused(fed):
    w = np.ones((2, 256), np.float32)
    w[1, 7] = math.inf
    with pytest.raises(BadModel):
        fed.rounded(w, "Q4_K", np.zeros((1, 256, 256), np.float32), np.ones(256, np.float32))


def test_fewer_tokens_are_shrunk_more():
    shrinkages = [feedback.shrinkage(n, 1024) for n in (1, 512, 4096, 65_536, 10**7)]
    assert shrinkages == sorted(shrinkages, reverse=True)
    assert shrinkages[0] == 1.0 and shrinkages[-1] > 0


# -- files


def request(model, text, **rest):
    compute = ComputeOptions("cpu", n_ctx=128, threads=rest.pop("threads", 1))
    return Request(str(text), (), str(model), 10**6, text.parent, compute, **rest)


@pytest.fixture(scope="session")
def tiny_moments(store_at, tiny, own_text, tmp_path_factory):
    """An imatrix with moments over a little text."""
    folder = tmp_path_factory.mktemp("moments")
    session = Session(store_at(folder), Silent())
    asked = request(tiny, own_text(8 * 128), moments=True)
    return tune.imatrix(asked, folder / "nb.moments.gguf", session)


def quantized(model, imatrix, types, heldout, out, **rest):
    return tune.quants(
        dataclasses.replace(
            request(model, heldout), types=programs.quant_types(types), out=out, **rest
        ),
        imatrix,
        Session(Store(), Silent()),
    )


def test_a_file_with_feedback_works_and_has_the_size_of_its_type(
    fed, tiny, tiny_moments, own_text, tmp_path
):
    arguments = (tiny, tiny_moments, ["Q3_K_M", "Q4_0"], own_text(600))
    plain = quantized(*arguments, tmp_path / "plain").quants
    result = quantized(*arguments, tmp_path / "fed", feedback=True)
    measured = moments.read(tiny_moments)
    ours = weights.tensors(resolve.resolve(str(tiny), Session(Store(), Silent())))
    for a, b in zip(plain, result.quants, strict=True):
        assert math.isfinite(b.perplexity)
        both = [{t.name: t for t in read_header(q.path).tensors} for q in (a, b)]
        assert [t.type_name for t in both[0].values()] == [t.type_name for t in both[1].values()]
        changed = {n for n, t in both[0].items() if raw(a.path, t) != raw(b.path, both[1][n])}
        assert changed == set(measured.first)  # the embedding and the head have no moments
        for name in changed:
            w = weights.read_rows(fed.ggml, ours[name], 0, ours[name].info.shape[1])
            h = block_diagonal(measured.blocks(name), w.shape[1])
            losses = [loss(w, values(fed.ggml, q.path, name), h) for q in (b, a)]
            assert losses[0] < losses[1]
        said = read_header(b.path).metadata
        assert "imatrix_lab.feedback" in said and "imatrix_lab.feedback.shrinkage" in said
        assert resolve.facts((b.path,)).calibration.endswith("-feedback")
        assert b.name.endswith(f"-feedback-{b.type}.gguf") and b.name != a.name


def raw(path, info):
    with path.open("rb") as file:
        file.seek(info.offset)
        return file.read(info.size_bytes)


def values(ggml, path, name):
    (info,) = (t for t in read_header(path).tensors if t.name == name)
    return weights.read_rows(ggml, weights.FileTensor(path, info), 0, info.shape[1])


def block_diagonal(blocks, n):
    h, width = np.zeros((n, n)), blocks.shape[1]
    for i, block in enumerate(blocks):
        h[i * width : (i + 1) * width, i * width : (i + 1) * width] = block
    return h[:n, :n]


def rounding(tools, tiny, imatrix, folder):
    """What `apply` needs: a source, and a fresh quant."""
    plain = folder / f"plain-{len(list(folder.glob('plain*.gguf')))}.gguf"
    model = resolve.resolve(str(tiny), Session(Store(), Silent()))
    argv = [tools.program("llama-quantize"), "--imatrix", imatrix, tiny, plain, "Q4_K_M", "1"]
    process.run(argv, timeout_s=120)
    return feedback.Source(model, imatrix), plain


def test_threads_change_no_bit(fed, tools, tiny, tiny_moments, tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "_STRIP_WEIGHTS", 1 << 14)
    files = [rounding(tools, tiny, tiny_moments, tmp_path) for _ in range(2)]
    for (source, path), threads in zip(files, (1, 3), strict=True):
        feedback.apply(fed, source, path, threads, Silent())
    monkeypatch.undo()
    whole = rounding(tools, tiny, tiny_moments, tmp_path)
    feedback.apply(fed, *whole, 1, Silent())
    assert len({path.read_bytes() for _, path in (*files, whole)}) == 1


class Killed(Silent):
    """Progress that ends the run in the middle."""

    def __init__(self, after):
        self.after = after

    def task(self, name, total, unit):
        outer = super().task(name, total, unit)
        killed = self

        class Task:
            def __enter__(self):
                self.inner = outer.__enter__()
                return self

            def __exit__(self, *exc):
                return outer.__exit__(*exc)

            def update(self, done, note=""):
                if done > killed.after * total:
                    raise KeyboardInterrupt
                self.inner.update(done, note)

        return Task()


def test_what_was_killed_goes_on_and_ends_with_the_same_bytes(
    fed, tools, tiny, tiny_moments, tmp_path, monkeypatch
):
    (source, path), (_, other) = (rounding(tools, tiny, tiny_moments, tmp_path) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        feedback.apply(fed, source, path, 1, Killed(0.5))
    done = path.with_suffix(".rounded").read_text().split()
    assert done
    names = list[str]()
    original = feedback.Kernel.rounded
    monkeypatch.setattr(
        feedback.Kernel, "rounded", lambda *a, **k: names.append("") or original(*a, **k)
    )
    todo = feedback.apply(fed, source, path, 1, Silent())
    assert len(names) == len(todo) - len(done)  # one strip each
    feedback.apply(fed, source, other, 1, Silent())
    assert path.read_bytes() == other.read_bytes()


def test_experts_are_rounded_by_their_own_moments_and_stay_without_tokens(
    fed, tools, own_store, own_text, tmp_path
):
    model = tiny_model.write(tmp_path / "moe-f16.gguf", experts=4)
    session = Session(own_store, Silent())
    whole = tune.imatrix(request(model, own_text(512), moments=True), None, session)
    matrix, name = format.read(whole), "blk.1.ffn_down_exps.weight"
    matrix.entries[name].counts[2] = 0  # this expert saw nothing
    imatrix = tmp_path / "unhit.gguf"
    format.write(imatrix, matrix)
    source, path = rounding(tools, model, imatrix, tmp_path)
    before = values_of_experts(path, name)
    feedback.apply(fed, source, path, 2, Silent())
    after = values_of_experts(path, name)
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, False]


def values_of_experts(path, name):
    (info,) = (t for t in read_header(path).tensors if t.name == name)
    n = info.size_bytes // info.shape[2]
    return [raw(path, info)[i * n : (i + 1) * n] for i in range(info.shape[2])]


def test_what_cannot_work_is_told_before_anything_is_made(tiny, tiny_moments, own_text, tmp_path):
    text, out = own_text(600), tmp_path / "out"
    plain = tmp_path / "plain.gguf"
    matrix = format.read(tiny_moments)
    format.write(plain, dataclasses.replace(matrix, more=(), metadata={}))
    for imatrix, kind in ((None, "Q4_K_M"), (plain, "Q4_K_M"), (tiny_moments, "IQ4_XS")):
        with pytest.raises(UsageError) as error:
            quantized(tiny, imatrix, [kind], text, out, feedback=True)
        assert error.value.fix
    assert not out.exists()


def test_feedback_is_part_of_what_a_file_is(tools, tiny, tiny_moments):
    model = resolve.resolve(str(tiny), Session(Store(), Silent()))
    options = run.Options(programs.Compute(1))
    spec = run.QuantSpec(model, None, "Q4_K_M", options)
    both = [run.inputs(s, tools) for s in (spec, dataclasses.replace(spec, feedback=True))]
    assert both[0] != both[1] and both[1]["feedback"]["version"] == feedback.VERSION


def test_moments_that_are_no_numbers_are_refused(fed, tools, tiny, tiny_moments, tmp_path):
    source, path = rounding(tools, tiny, tiny_moments, tmp_path)
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(tiny_moments.read_bytes())
    (info,) = (
        t for t in read_header(tiny_moments).tensors if t.name == "blk.1.ffn_down.weight.in_block"
    )
    content[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    damaged.write_bytes(content)
    with pytest.raises(BadImatrix):
        feedback.apply(fed, dataclasses.replace(source, imatrix=damaged), path, 1, Silent())
