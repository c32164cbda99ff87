"""Errors of tensors at types, against what the real llama-quantize makes of them."""

import dataclasses
import re

import gguf
import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, quant_error
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.llamacpp import ggml, programs
from imatrix_lab.models import resolve, weights
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.quantize import error_sums, errors
from imatrix_lab.quantize.errors import Language
from imatrix_lab.types import ImatrixFacts, Model
from tests import tiny_model

K_TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")


def as_model(*paths):
    sha256 = "".join(sha256_file(p) for p in paths)
    return Model(paths[0].stem, paths[0], paths, sha256, resolve.facts(paths), paths[0].name)


def made_up(path, folder, seed=0):
    """An imatrix of a model, its columns far apart in size; one expert is not reached."""
    rng, entries = np.random.default_rng(seed), {}
    for name, tensor in weights.tensors(as_model(path)).items():
        if name.startswith("blk.") and resolve.quantizable(tensor.info):
            n_columns, _, *rest = tensor.info.shape
            counts = rng.integers(100, 900, *rest or (1,)).astype(np.float32)
            counts[1:2] = 0
            sums = rng.lognormal(0, 2, (len(counts), n_columns)) * counts[:, None]
            entries[name] = Entry(sums.astype(np.float32), counts)
    out = folder / f"{path.stem}-{seed}.imatrix.gguf"
    format.write(out, Imatrix(entries, ("x",), 4, 128, "nb"), {})
    return ImatrixFacts(out, sha256_file(out), "nb", len(entries), 512, 4, 128, 0)


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    moe = tiny_model.write(folder / "moe-f16.gguf", experts=4)
    narrow = tiny_model.write(folder / "narrow-f16.gguf", channels=96, feed_forward=256)
    return {"dense": tiny, "moe": moe, "narrow": narrow}


@pytest.fixture(scope="module")
def imatrices(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imatrices")
    return {name: made_up(path, folder) for name, path in models.items()}


@pytest.fixture(scope="module")
def session(store_at, tmp_path_factory):
    return Session(store_at(tmp_path_factory.mktemp("store")), Silent())


@pytest.fixture(scope="module")
def options_of(tools, models, imatrices, session):
    """A function: model, types and languages -> options, with the model's made-up imatrix."""

    def make(name, types, languages=None, important=True, threads=2):
        imatrix = imatrices[name]
        languages = languages or {"nb": Language(format.read(imatrix.path))}
        used = imatrix if important else None
        return errors.options(
            tools, as_model(models[name]), used, types, languages, session, threads
        )

    return make


def dry_run(tools, path, types, imatrix=None):
    """Bytes of each tensor that llama-quantize announces for types of single tensors."""
    argv = [tools.program("llama-quantize"), "--dry-run"]
    argv += ["--imatrix", imatrix.path] if imatrix else []
    for name, kind in types.items():
        argv += ["--tensor-type", f"^{re.escape(name)}$={kind.lower()}"]
    output = process.run([*argv, path, "Q4_0", "1"], timeout_s=60).tail
    return programs.quant_size(output)[0]


# -- against llama-quantize


@pytest.mark.parametrize("name", ["dense", "moe", "narrow"])
@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K"])
def test_errors_are_those_of_the_file(
    tools, models, imatrices, options_of, kind, name, tmp_path, session, monkeypatch
):
    """With all rows, only rounding is left."""
    monkeypatch.setattr(error_sums, "ROWS", 1 << 20)
    path, imatrix, quant = models[name], imatrices[name], tmp_path / "quant.gguf"
    argv = [tools.program("llama-quantize"), "--imatrix", imatrix.path, "--pure", path, quant]
    process.run(
        [*argv, {"Q2_K": "Q2_K", "Q4_K": "Q4_K_S", "Q6_K": "Q6_K"}[kind], "2"], timeout_s=60
    )
    written = {t.name: t.tensor_type.name for t in gguf.GGUFReader(quant).tensors}
    kernel = quant_error.kernel(tools, session)
    quant_error.write(tmp_path, kernel, as_model(path), as_model(quant), 2, Silent())
    columns = quant_error.read(tmp_path / quant_error.FILE)
    entries = format.read(imatrix.path).entries
    options = options_of(name, [kind])
    assert options.keys() == columns.keys()
    for tensor, by_type in options.items():
        sums = columns[tensor]()
        s = entries[tensor].sums if tensor in entries else 1.0
        share = (s * sums.error).sum() / (s * sums.power).sum()
        assert by_type[written[tensor]].errors["nb"] == pytest.approx(share, rel=2e-4), tensor


@pytest.mark.parametrize("name", ["dense", "moe", "narrow"])
def test_sizes_are_those_that_llama_quantize_announces(tools, models, imatrices, options_of, name):
    """Among them rows of 96, which take other types than the one that is wanted."""
    options = options_of(name, [*K_TYPES, "IQ3_XXS"])
    tensors = weights.tensors(as_model(models[name]))
    rest = sum(t.info.size_bytes for n, t in tensors.items() if n not in options)
    for pick in (1, 3, -1):
        types = {n: [*by_type][pick] for n, by_type in options.items()}
        n_bytes = rest + sum(options[n][t].size_bytes for n, t in types.items())
        announced = dry_run(tools, models[name], types, imatrices[name])
        assert abs(n_bytes - announced) <= 0.005 * 2**20 + 1


@pytest.mark.parametrize("columns", [256, 96, 48])
@pytest.mark.parametrize("kind", [*K_TYPES, "IQ4_XS", "IQ3_S", "IQ2_XXS", "Q4_0"])
def test_fallbacks_are_those_of_llama_quantize(tools, tmp_path, kind, columns):
    path = tiny_model.write(tmp_path / "model.gguf", channels=columns, feed_forward=256)
    argv = [tools.program("llama-quantize"), "--dry-run", "--tensor-type", f"attn_q={kind.lower()}"]
    output = process.run([*argv, path, "Q4_0", "1"], timeout_s=60).tail
    line = next(row for row in output.splitlines() if "] blk.0.attn_q.weight" in row)
    assert f"({errors.fallback(kind, columns).lower()})" in line.lower() or (
        errors.fallback(kind, columns) == "F16" and "->" not in line
    )


def test_experts_count_as_often_as_tokens_reach_them(options_of, imatrices):
    whole = format.read(imatrices["moe"].path)
    name = "blk.0.ffn_up_exps.weight"
    entry = whole.entries[name]
    shares = []
    for expert in (0, 2):
        sums = entry.sums * (np.arange(4) == expert)[:, None]
        alone = dataclasses.replace(
            whole, entries={**whole.entries, name: Entry(sums, entry.counts)}
        )
        shares.append(Language(alone))
    options = options_of("moe", ["Q3_K"], {"all": Language(whole), "0": shares[0], "2": shares[1]})
    by_language = options[name]["Q3_K"].errors
    assert by_language["0"] != by_language["2"]
    never = dataclasses.replace(
        whole, entries={**whole.entries, name: Entry(entry.sums * 0, entry.counts)}
    )
    options = options_of("moe", ["Q3_K"], {"nb": Language(never)})
    assert options[name]["Q3_K"].errors == {"nb": 0.0}


# -- what is offered


def test_types_that_need_importance_are_offered_where_it_is(options_of):
    options = options_of("dense", ["IQ2_XXS", "IQ3_XXS", "IQ3_S", "Q2_K"])
    assert list(options["blk.0.attn_q.weight"]) == ["F16", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "Q2_K"]
    assert list(options["token_embd.weight"]) == ["F16", "IQ3_S", "Q2_K"]
    options = options_of("dense", ["IQ2_XXS", "Q2_K"], important=False)
    assert list(options["blk.0.attn_q.weight"]) == ["F16", "Q2_K"]


def test_what_llama_quantize_leaves_alone_is_not_offered(options_of):
    names = options_of("moe", ["Q8_0"]).keys()
    assert "blk.0.ffn_gate_exps.weight" in names and "token_embd.weight" in names
    assert not any("norm" in n or "gate_inp" in n for n in names)


def test_the_own_type_loses_nothing_and_is_as_large_as_it_is(tools, tiny, session, tmp_path):
    quant = tmp_path / "q8.gguf"
    process.run([tools.program("llama-quantize"), tiny, quant, "Q8_0", "1"], timeout_s=60)
    language = {"nb": Language(Imatrix({}, (), 0, 0))}
    options = errors.options(tools, as_model(quant), None, K_TYPES, language, session, 1)
    tensors = weights.tensors(as_model(quant))
    for name, by_type in options.items():
        assert next(iter(by_type)) == "Q8_0"
        assert by_type["Q8_0"] == errors.Option(tensors[name].info.size_bytes, {"nb": 0.0})
        assert by_type["Q4_K"].errors["nb"] > by_type["Q6_K"].errors["nb"] > 0


def test_tensors_that_models_are_published_in_stay():
    info = TensorInfo("blk.0.ffn_up_exps.weight", (256, 2, 2), "MXFP4", 0, 1)
    assert errors.candidates(info, K_TYPES, True) == ("MXFP4",)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q8_K"])
def test_a_type_that_weights_do_not_have(options_of, kind):
    with pytest.raises(UsageError, match=f"{kind} is not a type of weights"):
        options_of("dense", [kind])


# -- importance


def test_importance_is_what_llama_quantize_takes(tools, models, imatrices, tmp_path):
    """Bytes of experts, one of which no token reached, are those of the file."""
    path, quant, name = models["moe"], tmp_path / "quant.gguf", "blk.1.ffn_down_exps.weight"
    argv = [tools.program("llama-quantize"), "--imatrix", imatrices["moe"].path, "--pure"]
    process.run([*argv, path, quant, "Q2_K", "1"], timeout_s=60)
    lib, tensor = ggml.load(tools), weights.tensors(as_model(path))[name]
    importance = errors.importance_of(format.read(imatrices["moe"].path), name, tensor.info)
    assert (importance[1] == 1).all() and importance.dtype == np.float32
    n_rows = tensor.info.shape[1]
    raw = [
        lib.quantize(weights.read_rows(lib, tensor, i * n_rows, n_rows), "Q2_K", importance[i])
        for i in range(4)
    ]
    written = weights.tensors(as_model(quant))[name]
    assert np.concatenate(raw).tobytes() == weights.read_raw(written, 0, 4 * n_rows).tobytes()
    assert errors.importance_of(None, name, tensor.info) is None


# -- rows for tokens


def test_frequencies_leave_room_for_tokens_not_seen():
    counts = np.array([6, 2, 1, 1, 0, 0])
    shares = errors.frequencies(counts, 7)
    assert shares.sum() == pytest.approx(1)
    assert shares[4:].sum() == pytest.approx(0.2)  # two tokens of ten were seen once
    assert shares[0] == pytest.approx(3 * shares[1])
    assert errors.frequencies(None, 4).tolist() == [0.25] * 4
    assert errors.frequencies(np.array([1, 1, 0]), 3).tolist() == [0, 0, 1]
    assert errors.frequencies(np.array([3, 1]), 2).tolist() == [0.75, 0.25]


def test_rows_of_tokens_count_as_often_as_the_language_has_them(tools, tmp_path, session):
    """Two kinds of rows, one of which a type takes without loss."""
    values = np.random.default_rng(0).normal(0, 1, (300, 256)).astype(np.float16)
    values[100:] = np.sign(values[100:])  # two values: exact at Q4_0
    path = one_tensor(tmp_path / "model.gguf", values, "token_embd.weight")
    counts = np.zeros(300, np.int64)
    counts[:100] = 7
    imatrix = Imatrix({}, (), 0, 0)
    languages = {
        "rough": Language(imatrix, counts),
        "exact": Language(imatrix, counts[::-1].copy()),
    }
    languages["all"] = Language(imatrix)
    options = errors.options(tools, path, None, ["Q8_0"], languages, session, 1)
    shares = options["token_embd.weight"]["Q8_0"].errors
    assert shares["rough"] > shares["all"] > shares["exact"]
    assert shares["all"] == pytest.approx(shares["rough"] / 3, rel=0.1)


def one_tensor(path, values, name="blk.0.ffn_up.weight"):
    """A file with one tensor, as a model."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return as_model(path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_a_head_too(tools, tmp_path, session, tied):
    rng = np.random.default_rng(1)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    embedding = rng.normal(0, 1, (64, 256)).astype(np.float16)
    embedding[:, :32] *= 8
    writer.add_tensor("token_embd.weight", embedding)
    if not tied:
        writer.add_tensor("output.weight", embedding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    sums = rng.lognormal(0, 2, (1, 256)).astype(np.float32)
    name = "token_embd.weight" if tied else "output.weight"
    activations = Imatrix({name: Entry(sums, np.ones(1, np.float32))}, (), 0, 0)
    languages = {"head": Language(activations), "unknown": Language(Imatrix({}, (), 0, 0))}
    options = errors.options(tools, as_model(path), None, ["Q4_0"], languages, session, 1)
    as_embedding = options["token_embd.weight"]["Q4_0"].errors["unknown"]
    lib = ggml.load(tools)
    w = embedding.astype(np.float32)
    lost = (w - lib.dequantize(lib.quantize(w, "Q4_0", None), "Q4_0")) ** 2
    as_head = (lost * sums).sum() / (w**2 * sums).sum()
    assert as_embedding == pytest.approx(lost.sum() / (w**2).sum(), rel=1e-4)
    assert as_head != pytest.approx(as_embedding, rel=0.01)
    if tied:
        both = (as_head + as_embedding) / 2
        assert options["token_embd.weight"]["Q4_0"].errors["head"] == pytest.approx(both, rel=1e-4)
    else:
        assert options["token_embd.weight"]["Q4_0"].errors["head"] == pytest.approx(as_embedding)
        assert options["output.weight"]["Q4_0"].errors["head"] == pytest.approx(as_head, rel=1e-4)


# -- samples, the store


def test_few_rows_tell_of_all(tools, tmp_path, session, monkeypatch):
    """With rows that differ a thousandfold, for the imatrix's language and one far from it."""
    rng = np.random.default_rng(2)
    values = rng.normal(0, 1, (4096, 256)) * rng.lognormal(0, 2, (4096, 1))
    values[rng.integers(0, 4096, 200)] = 0
    model = one_tensor(tmp_path / "model.gguf", values.astype(np.float32))
    name, ones = "blk.0.ffn_up.weight", np.ones(1, np.float32)
    near, far = (Entry(rng.lognormal(0, 1, (1, 256)).astype(np.float32), ones) for _ in range(2))
    path = tmp_path / "imatrix.gguf"
    format.write(path, Imatrix({name: near}, ("x",), 1, 1, "nb"), {})
    facts = ImatrixFacts(path, sha256_file(path), "nb", 1, 1, 1, 1, 0)
    languages = {
        "near": Language(Imatrix({name: near}, (), 0, 0)),
        "far": Language(Imatrix({name: far}, (), 0, 0)),
    }

    def measured():
        options = errors.options(tools, model, facts, ["Q3_K", "Q4_K"], languages, session, 2)
        return np.array([list(options[name][t].errors.values()) for t in ("Q3_K", "Q4_K")])

    sampled = measured()
    monkeypatch.setattr(error_sums, "ROWS", 1 << 20)
    whole = measured()
    assert (abs(sampled / whole - 1) < 0.02).all()
    assert (sampled != whole).all()


def test_what_is_known_is_not_computed_again(
    tools, models, imatrices, tmp_path, store_at, monkeypatch
):
    """A run that stops goes on at the type it was at; another language costs nothing."""
    session = Session(store_at(tmp_path / "store"), Silent())
    imatrix, model = imatrices["dense"], as_model(models["dense"])
    language = Language(format.read(imatrix.path))
    arguments = (tools, model, imatrix)
    quantize, kinds = ggml.Ggml.quantize, []

    def stopped(self, rows, type_name, importance):
        kinds.append(type_name)
        if type_name == stop:
            raise KeyboardInterrupt
        return quantize(self, rows, type_name, importance)

    monkeypatch.setattr(ggml.Ggml, "quantize", stopped)
    stop = "Q4_K"
    with pytest.raises(KeyboardInterrupt):
        errors.options(*arguments, ["Q3_K", "Q4_K"], {"nb": language}, session, 1)
    assert "Q3_K" in kinds
    kinds.clear()
    stop = ""
    first = errors.options(*arguments, ["Q3_K", "Q4_K"], {"nb": language}, session, 1)
    assert first["blk.0.attn_q.weight"]["Q3_K"].errors["nb"] > 0
    n_layers = kinds.count("Q4_K")
    assert n_layers > 0
    kinds.clear()
    other = made_up(models["dense"], tmp_path, seed=5)
    second = errors.options(
        *arguments, ["Q3_K", "Q4_K"], {"en": Language(format.read(other.path))}, session, 1
    )
    assert kinds == []
    name = "blk.0.attn_q.weight"
    assert second[name]["Q3_K"].errors["en"] != first[name]["Q3_K"].errors["nb"]


def test_threads_change_nothing(tools, models, imatrices, tmp_path, store_at, monkeypatch):
    monkeypatch.setattr(error_sums, "STRIP_WEIGHTS", 4096)
    language = {"nb": Language(format.read(imatrices["moe"].path))}
    results = []
    for threads in (1, 3):
        session = Session(store_at(tmp_path / f"{threads}"), Silent())
        model = as_model(models["moe"])
        arguments = (tools, model, imatrices["moe"], ["Q3_K"], language, session, threads)
        results.append(errors.options(*arguments))
    assert results[0] == results[1]


def test_weights_that_are_no_numbers_are_refused(tools, tmp_path, session):
    values = np.ones((512, 256), np.float16)
    values[300, 5] = np.nan
    model = one_tensor(tmp_path / "model.gguf", values)
    language = {"nb": Language(Imatrix({}, (), 0, 0))}
    with pytest.raises(BadModel, match=r"ffn_up.weight has NaN or infinite"):
        errors.options(tools, model, None, ["IQ4_XS"], language, session, 1)


def test_long_steps_are_shown(tools, models, imatrices, tmp_path, store_at, monkeypatch):
    shown = []

    class Noted(Silent):
        def task(self, name, total, unit):
            shown.append((name, total, unit))
            return super().task(name, total, unit)

    language = {"nb": Language(format.read(imatrices["dense"].path))}
    arguments = (tools, as_model(models["dense"]), imatrices["dense"], ["Q8_0"], language)
    errors.options(*arguments, Session(store_at(tmp_path / "a"), Noted()), 1)
    assert shown == []
    monkeypatch.setattr(error_sums, "SHOWN_WEIGHTS", 0)
    errors.options(*arguments, Session(store_at(tmp_path / "b"), Noted()), 1)
    assert len(shown) == 4  # rows are drawn and quantized, of layers and of tokens
    assert all(total > 0 and unit == "weights" for _, total, unit in shown)


def test_weights_that_cannot_be_read_are_refused(tools, tmp_path, session):
    model = one_tensor(tmp_path / "model.gguf", np.ones((4, 256), np.int32))
    with pytest.raises(BadModel, match=r"ffn_up.weight is I32: not weights"):
        errors.options(tools, model, None, ["Q4_K"], {}, session, 1)


def test_weights_that_overflow_a_type_are_told(tools, tmp_path, session):
    model = one_tensor(tmp_path / "model.gguf", np.full((4, 48), 1e6, np.float32))
    with pytest.raises(BadModel, match=r"ffn_up.weight overflows at F16"):
        errors.options(
            tools, model, None, ["Q4_K"], {"nb": Language(Imatrix({}, (), 0, 0))}, session, 1
        )
