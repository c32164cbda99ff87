"""Moments: against numpy on the same activations, files, mixtures, llama-quantize."""

import ctypes
import dataclasses
import re
import subprocess

import gguf
import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix import collector, format, merge, moments
from imatrix_lab.llamacpp import native
from imatrix_lab.pipeline import tune
from tests import tiny_model
from tests.imatrix import made_up
from tests.imatrix.test_collect import request


@pytest.fixture
def session():
    return Session(Store(), Silent())


def collected(model, text, out, session, **rest):
    return tune.imatrix(request(model, text, moments=True, **rest), out, session)


class Tensor(ctypes.Structure):
    """ggml_tensor of the pinned commit (ggml.h)."""


Tensor._fields_ = [
    ("type", ctypes.c_int32),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int32),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


def read_by(tools, session, x, block, threads=1, lengths=None, window=None):
    """The collector after it was shown a product with the rows `x`, once."""
    flag, n_columns = ctypes.c_int32(0), x.shape[-1]
    sums = collector.Collector(tools, collector.Settings(threads, block), flag, session).__enter__()
    functions, room = sums._functions, np.empty(x.size + 16, np.float32)
    skip = -room.ctypes.data % 64 // 4
    rows = room[skip : skip + x.size].reshape(x.shape)
    rows[:] = x
    w, x_t, t = Tensor(name=b"blk.0.attn_q.weight"), Tensor(data=rows.ctypes.data), Tensor()
    w.ne[:] = (n_columns, 8, 1, 1)
    x_t.ne[:] = (n_columns, len(rows), 1, 1)
    x_t.nb[:] = (4, 4 * n_columns, rows.nbytes, rows.nbytes)
    base = ctypes.CDLL(str(tools.library_dir / "libggml-base.so"))
    base.ggml_backend_cpu_buffer_from_ptr.restype = ctypes.c_void_p
    base.ggml_backend_cpu_buffer_from_ptr.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    x_t.buffer = base.ggml_backend_cpu_buffer_from_ptr(rows.ctypes.data, rows.nbytes)
    t.op = functions.mul_mat
    t.src[0], t.src[1] = ctypes.pointer(w), ctypes.pointer(x_t)
    collect = sums._library.collect
    collect.restype = ctypes.c_bool
    sums.begin(lengths or [len(x)], window or len(x), may_end=True)
    assert collect(ctypes.byref(t), ctypes.c_bool(True), sums._self)
    assert collect(ctypes.byref(t), ctypes.c_bool(False), sums._self), sums.fault
    return sums


@pytest.mark.parametrize("n_columns", [32, 80, 256, 640, 1000])
@pytest.mark.parametrize("n_rows", [16, 130, 200])
def test_sums_are_numpys(tools, session, n_columns, n_rows):
    rng = np.random.default_rng(n_columns + n_rows)
    x = rng.normal(0.3, 1, (n_rows, n_columns)).astype(np.float32)
    sums = read_by(tools, session, x, 256)
    (source,) = sums.inputs()
    found = sums.sums(source, 0)
    wide = x.astype(np.float64)
    assert found.n == n_rows
    assert np.allclose(found.shard, (wide**2).sum(0), rtol=1e-12) and not found.squares.any()
    assert np.allclose(found.total, wide.sum(0), rtol=1e-9, atol=1e-9)
    blocks = sums.blocks(source, 0)
    assert blocks.shape == (-(-n_columns // 256), 256, 256)
    for b, block in enumerate(blocks):
        part = wide[:, 256 * b : 256 * (b + 1)]
        whole = np.zeros((256, 256))
        whole[: part.shape[1], : part.shape[1]] = part.T @ part
        assert np.allclose(block, whole, rtol=1e-4, atol=1e-3 * n_rows**0.5)
        assert np.array_equal(block, block.T)
    sums.__exit__()


def test_whole_products_and_threads(tools, session):
    x = np.random.default_rng(1).normal(0, 1, (200, 640)).astype(np.float32)
    by_threads = []
    for threads in (1, 3):
        sums = read_by(tools, session, x, 640, threads)
        (source,) = sums.inputs()
        by_threads.append(sums.blocks(source, 0))
        sums.__exit__()
    one, three = by_threads
    assert np.array_equal(one, three)
    assert np.allclose(one[0], x.T.astype(float) @ x, rtol=1e-4, atol=1e-2)


def test_a_file_agrees_with_its_imatrix_and_is_one(tools, tiny, own_text, tmp_path, session):
    text = own_text(6 * 128)
    path = collected(tiny, text, tmp_path / "m.gguf", session)
    plain = tune.imatrix(request(tiny, text), tmp_path / "i.gguf", session)
    ours, theirs = format.read(path).entries, format.read(plain).entries
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[n].sums, theirs[n].sums) for n in ours)
    matrix_moments = moments.read(path)
    assert moments.read(plain) is None
    assert (
        matrix_moments.first["blk.1.attn_k.weight"] == matrix_moments.first["blk.1.attn_q.weight"]
    )
    assert (
        matrix_moments.first["blk.1.ffn_up.weight"] == matrix_moments.first["blk.1.ffn_gate.weight"]
    )
    assert len(matrix_moments.inputs) == 8
    assert matrix_moments.shape("blk.0.ffn_down.weight") == (1, 2, 256)
    for name in matrix_moments.inputs:
        diagonal = np.concatenate([np.diag(b) for b in matrix_moments.blocks(name)])
        assert np.allclose(diagonal, ours[name].sums[0], rtol=1e-5)
    assert not moments.check(path)
    format.write(tmp_path / "again.gguf", format.read(path))
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
    out = tmp_path / "q.gguf"
    for imatrix, quant in ((path, out), (plain, tmp_path / "p.gguf")):
        argv = [tools.program("llama-quantize"), "--imatrix", imatrix, tiny, quant, "Q4_K"]
        subprocess.run([*map(str, argv)], check=True, capture_output=True)
    tensors = [[t.data.tobytes() for t in gguf.GGUFReader(q).tensors] for q in (out, quant)]
    assert tensors[0] == tensors[1]


def test_experts_have_their_own(tools, tmp_path, own_text, session):
    model = tiny_model.write(tmp_path / "moe.gguf", experts=4)
    path = collected(model, own_text(4 * 128), tmp_path / "m.gguf", session)
    entries, matrix_moments = format.read(path).entries, moments.read(path)
    name = matrix_moments.first["blk.0.ffn_up_exps.weight"]
    assert name == matrix_moments.first["blk.0.ffn_gate_exps.weight"]
    assert matrix_moments.shape(name) == (4, 1, 256)
    for expert in range(4):
        (block,) = matrix_moments.blocks(name, expert)
        assert np.allclose(np.diag(block), entries[name].sums[expert], rtol=1e-5)
    assert not moments.check(path)


def test_whole_ones_by_name(tiny, own_text, tmp_path, session):
    text = own_text(3 * 128)
    path = collected(tiny, text, tmp_path / "m.gguf", session, full=r"blk\.1\.ffn_down")
    matrix_moments = moments.read(path)
    assert matrix_moments.shape("blk.1.ffn_down.weight") == (1, 1, 512)
    assert matrix_moments.shape("blk.0.ffn_down.weight") == (1, 2, 256)
    assert moments.facts(path)["n_whole"] == 1
    with pytest.raises(UsageError):
        collected(tiny, text, tmp_path / "n.gguf", session, full="nothing")


@pytest.mark.parametrize("by", ["tokens", "energy"])
def test_mixtures_add(tiny, own_text, tmp_path, session, by):
    paths = []
    for i, n in enumerate((3, 5)):
        text = own_text(n * 128 + i)
        paths.append(collected(tiny, text, tmp_path / f"{i}.gguf", session))
    inputs = [merge.MergeInput(p, format.read(p), 1.0 + i) for i, p in enumerate(paths)]
    mixture = merge.merge(inputs, by)
    format.write(tmp_path / "mix.gguf", mixture)
    mixed, entries = moments.read(tmp_path / "mix.gguf"), mixture.entries
    assert not moments.check(tmp_path / "mix.gguf")
    for name in mixed.inputs:
        diagonal = np.concatenate([np.diag(b) for b in mixed.blocks(name)])
        assert np.allclose(diagonal, entries[name].sums[0], rtol=1e-4)
    plain = tune.imatrix(request(tiny, own_text(3 * 128)), tmp_path / "i.gguf", session)
    both = [inputs[0], merge.MergeInput(plain, format.read(plain))]
    assert not merge.merge(both, by).more


def test_damage_is_said(tiny, own_text, tmp_path, session):
    path = collected(tiny, own_text(3 * 128), tmp_path / "m.gguf", session)
    raw = bytearray(path.read_bytes())
    bad = tmp_path / "bad.gguf"
    with pytest.raises(BadImatrix):  # by the checksum
        bad.write_bytes(raw.replace(b"in_sum2", b"in_sum3", 1))
        moments.read(bad)
    raw = raw.replace(format.CRC32.encode(), format.CRC32.upper().encode())
    header = moments.read(path).header
    (block,) = (t for t in header.tensors if t.name == "blk.0.ffn_down.weight.in_block")
    raw[block.offset : block.offset + 4] = np.float32(1e9).tobytes()
    bad.write_bytes(raw)
    (finding,) = moments.check(bad)
    assert finding.severity == "error" and finding.tensors == ("blk.0.ffn_down.weight",)
    cut = re.sub(rb"ffn_down\.weight\.in_sum\b(?!2)", b"ffn_down.weight.in_sux", bytes(raw))
    bad.write_bytes(cut)
    with pytest.raises(BadImatrix):
        moments.read(bad)


def test_the_layout_of_ggmls_tensors(tools, session):
    """What `collect.cpp` takes a tensor to be is what the library makes."""
    library = native.compiled(collector.SOURCE, "collect", tools, session)
    base = ctypes.CDLL(str(tools.library_dir / "libggml-base.so"))
    for name in ("ggml_init", "ggml_new_tensor_2d", "ggml_mul_mat"):
        getattr(base, name).restype = ctypes.c_void_p

    class Params(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_size_t),
            ("buffer", ctypes.c_void_p),
            ("no_alloc", ctypes.c_bool),
        ]

    context = ctypes.c_void_p(base.ggml_init(Params(1 << 20, None, False)))
    sizes = [(32, 3), (32, 5)]
    w, x = (
        ctypes.c_void_p(base.ggml_new_tensor_2d(context, 0, *map(ctypes.c_int64, s))) for s in sizes
    )
    base.ggml_set_name(w, b"w.weight")
    product = ctypes.c_void_p(base.ggml_mul_mat(context, w, x))
    number = collector._functions(tools).mul_mat
    library.layout_agrees.restype = ctypes.c_bool
    assert library.layout_agrees(product, w, x, ctypes.c_int32(number))
    assert not library.layout_agrees(product, x, w, ctypes.c_int32(number))
    assert ctypes.sizeof(Tensor) + 32 == base.ggml_tensor_overhead()
    base.ggml_free(context)


def test_sums_of_other_columns_than_squares_are_refused(tmp_path):
    path = tmp_path / "x.gguf"
    made_up.write_moments(path, {"blk.0.attn_q.weight": [np.ones((4, 64), np.float32)]}, block=32)
    whole = format.read(path)
    entries = {n: format.Entry(e.sums[:, :32], e.counts) for n, e in whole.entries.items()}
    format.write(path, dataclasses.replace(whole, entries=entries))
    with pytest.raises(BadImatrix, match="other columns"):
        moments.check(path)


def test_moments_that_are_anothers_are_refused(tmp_path):
    path = tmp_path / "x.gguf"
    rows = [np.ones((4, 64), np.float32)]
    made_up.write_moments(path, {"blk.0.attn_q.weight": rows, "blk.0.attn_k.weight": rows})
    for record in ('{"a": "blk.0.attn_q.weight"}', "[" * 9000, "[]"):
        format.write(path, format.read(path), {moments.KEY: record})
        with pytest.raises(BadImatrix):
            moments.check(path)
