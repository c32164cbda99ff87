"""AWQ: scaled models compute the same, their imatrices are those that would be collected."""

import dataclasses
import json
import math

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, UsageError
from imatrix_lab.imatrix import format, moments, quant_error
from imatrix_lab.llamacpp import ggml, programs
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.models import resolve, scaling, weights
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import awq, errors, run, sizes
from imatrix_lab.score.engine import Engine, Settings
from imatrix_lab.score.windows import Decode
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model
from tests.quantize import layers
from tests.quantize.test_feedback import Killed

N_TOKENS = 128
TOKENS = np.random.default_rng(7).integers(4, 290, N_TOKENS).astype(np.int32)
EXACT_NATS, SAME_NATS = 1e-7, 1e-4


def a_model(path):
    return resolve.resolve(str(path), Session(Store(), Silent()))


def log_probabilities(tools, kernel, path):
    """Of each next token after each of `TOKENS`, by llama.cpp."""
    settings = Settings(1, N_TOKENS, N_TOKENS, N_TOKENS, 1, 0)
    numbers, zeros = np.arange(N_TOKENS, dtype=np.int32), np.zeros(N_TOKENS, np.int32)
    step = Decode(TOKENS, numbers, zeros, zeros + 1, np.ones(N_TOKENS, bool))
    with Engine(tools, kernel, a_model(path), settings, Interruptible()) as engine:
        engine.begin()
        logits = engine.decode(step).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def kld_nats(tools, kernel, path, other):
    p, q = (log_probabilities(tools, kernel, x) for x in (path, other))
    assert np.isfinite(p).all() and p.std() > 0.1
    return (np.exp(p) * (p - q)).sum(axis=1).mean()


@pytest.fixture(scope="session")
def collected(store_at, own_text, tmp_path_factory):
    """A function: model file -> its imatrix with moments over a little text."""
    folder = tmp_path_factory.mktemp("awq")
    session, files = Session(store_at(folder), Silent()), {}

    def make(path):
        if path not in files:
            out = folder / f"{len(files)}.moments.gguf"
            compute = ComputeOptions("cpu", n_ctx=128, threads=1)
            text = str(own_text(16 * 128))
            asked = Request(text, (), str(path), 10**6, folder, compute, moments=True)
            files[path] = tune.imatrix(asked, out, session)
        return files[path]

    return make


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A function: architecture -> a file of `layers`."""
    folder = tmp_path_factory.mktemp("families")

    def make(architecture):
        path = folder / f"{architecture}-f16.gguf"
        return path if path.exists() else layers.write(path, architecture)

    return make


def searching(tools, path, imatrix, type_name="Q4_0"):
    model, library = a_model(path), ggml.load(tools)
    known = awq.Activations.read(imatrix, model)
    names = {n: type_name for n in quant_error.tensors(model) if n in known.entries}
    return awq.Search(library, model, known, names, awq.by_ggml(library, names, known))


def scaled_by(search, scales, folder):
    """A model and an imatrix with certain scales, in files."""
    search = dataclasses.replace(search)
    object.__setattr__(search, "scales", lambda found: scales[found.pair])
    found = [awq.Found(pair, (0.5,) * pair.n_sets, (1, 1)) for pair in scales]
    files = folder / "scaled.gguf", folder / "scaled.imatrix.gguf"
    awq.scaled(search, found, *files, Silent())
    return files


def by_powers_of_two(pair, seed=0):
    """Scales that no arithmetic rounds."""
    exponents = np.random.default_rng(seed).integers(-1, 2, (pair.n_sets, pair.n_channels))
    return np.exp2(exponents * pair.degree).astype(np.float64)


N_PAIRS = {"olmo2": 2, "phi2": 2, "command-r": 3, "starcoder2": 3, "gpt-oss": 3, "qwen2moe": 5}
"""In a layer; of other families: attention, values, FFN, and what it makes."""


@pytest.mark.parametrize("architecture", layers.FEATURES)
def test_a_scaled_model_computes_the_same_and_its_imatrix_is_its_own(
    tools, kernel, family, collected, tmp_path, architecture
):
    path = family(architecture)
    search = searching(tools, path, collected(path))
    pairs = search.places().pairs
    assert len(pairs) == layers.LAYERS * N_PAIRS.get(architecture, 4)
    model, imatrix = scaled_by(search, {p: by_powers_of_two(p) for p in pairs}, tmp_path)
    changed = {t.name for t in read_header(path).tensors if differs(path, model, t.name)}
    named = {n for p in pairs for n in (*(m.name for m in p.makers), *p.readers)}
    assert changed == named
    assert kld_nats(tools, kernel, path, model) < EXACT_NATS
    again, ours = (format.read(f).entries for f in (collected(model), imatrix))
    assert again.keys() == ours.keys()
    for name, entry in again.items():
        assert np.array_equal(entry.counts, ours[name].counts)
        np.testing.assert_allclose(entry.sums, ours[name].sums, rtol=1e-3)
    assert not moments.check(imatrix)
    known = [moments.read(f) for f in (collected(model), imatrix)]
    for name in known[0].inputs:
        for which in range(known[0].shape(name)[0]):
            a, b = (k.blocks(name, which) for k in known)
            size = np.sqrt(np.einsum("bii->bi", a)).reshape(len(a), -1, 1)
            assert np.abs(a - b).max() < 1e-3 * (size * size.transpose(0, 2, 1)).max()


def differs(path, other, name):
    contents = []
    for file in (path, other):
        (info,) = (t for t in read_header(file).tensors if t.name == name)
        with file.open("rb") as f:
            f.seek(info.offset)
            contents.append(f.read(info.size_bytes))
    return contents[0] != contents[1]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen2moe"])
def test_found_scales_lose_less_and_change_no_logits(
    tools, kernel, family, collected, tmp_path, architecture
):
    path = family(architecture)
    search = searching(tools, path, collected(path), "Q3_K")
    found = awq.choose(search, search.places(), 2, tmp_path / "journal", Silent())
    assert all(f.shares[1] <= f.shares[0] for f in found)
    assert sum(f.shares[1] for f in found) < 0.98 * sum(f.shares[0] for f in found)
    model = tmp_path / "scaled.gguf"
    awq.scaled(search, found, model, tmp_path / "imatrix.gguf", Silent())
    assert kld_nats(tools, kernel, path, model) < SAME_NATS


def test_predicted_losses_are_those_of_all_rows(tools, family, collected, monkeypatch):
    """In numpy, from the whole matrix and its moments."""
    path = family("llama")
    monkeypatch.setattr(awq, "ROWS", 10**6)
    search = searching(tools, path, collected(path), "Q4_0")
    (pair,) = (p for p in search.places().pairs if p.name == "blk.1.ffn_up.weight")
    name, known = "blk.1.ffn_down.weight", search.activations.moments
    info = search.tensors[name].info
    w = weights.read_rows(search.ggml, search.tensors[name], 0, info.shape[1]).astype(np.float64)
    n_tokens = search.activations.entries[name].counts[0]
    mean, blocks = known.sums(name)[0] / n_tokens, known.blocks(name) / n_tokens
    h = np.outer(mean, mean)
    for i, block in enumerate(blocks):
        part = slice(256 * i, 256 * i + 256)
        h[part, part] = block
    squares = np.diag(h)
    shares = []
    for exponent in awq.EXPONENTS:
        s = np.sqrt(squares) ** exponent
        s /= np.exp(np.log(s).mean())
        raw = search.ggml.quantize((w * s).astype(np.float32), "Q4_0", (squares / s**2))
        error = search.ggml.dequantize(raw, "Q4_0") / s - w
        shares.append(np.einsum("rc,cd,rd", error, h, error) / np.einsum("rc,cd,rd", w, h, w))
    found = search.best(pair)
    assert found.shares == pytest.approx((shares[0], min(shares)), rel=1e-3)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    tools, family, collected, tmp_path, monkeypatch
):
    path = family("llama")
    search = searching(tools, path, collected(path))
    places, journal = search.places(), tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        awq.choose(search, places, 1, journal, Killed(0.5))
    n_done = len(journal.read_text().splitlines())
    assert 0 < n_done < len(places.pairs)
    found = awq.choose(search, places, 2, journal, Silent())
    assert len(journal.read_text().splitlines()) == len(places.pairs)
    assert found == awq.choose(search, places, 1, tmp_path / "other", Silent())
    model, imatrix = tmp_path / "scaled.gguf", tmp_path / "imatrix.gguf"
    with pytest.raises(KeyboardInterrupt):
        awq.scaled(search, found, model, imatrix, Killed(0.5))
    with model.open("ab") as file:
        file.write(b"half a tensor")
    awq.scaled(search, found, model, imatrix, Silent())
    awq.scaled(search, found, tmp_path / "whole.gguf", imatrix, Silent())
    assert model.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


# -- what cannot be scaled


def test_other_architectures_are_refused(tmp_path):
    model = a_model(tiny_model.write(tmp_path / "tiny-f16.gguf"))
    facts = dataclasses.replace(model.facts, architecture="mamba")
    with pytest.raises(BadModel) as error:
        scaling.check(dataclasses.replace(model, facts=facts))
    assert error.value.fix


@pytest.mark.parametrize(
    ("architecture", "named"),
    [("starcoder2", "ffn_up"), ("phi2", "ffn_up"), ("gpt-oss", "ffn_up_exps"), ("olmo2", "attn_q")],
)
def test_what_is_left_has_a_reason(family, architecture, named):
    places = scaling.places(a_model(family(architecture)))
    assert places.skipped[f"blk.1.{named}.weight"]
    assert not any(p.name == f"blk.1.{named}.weight" for p in places.pairs)


def test_a_layer_with_a_tensor_of_unknown_use_is_left(tmp_path):
    def odd(writer):
        writer.add_tensor("blk.0.attn_sub_norm.weight", np.ones(256, np.float32))

    places = scaling.places(a_model(tiny_model.write(tmp_path / "odd-f16.gguf", extra=odd)))
    assert {p.name.split(".")[1] for p in places.pairs} == {"1"} and "blk.0.*" in places.skipped


def test_a_reader_that_the_table_does_not_know_stops_its_pair(tools, family, collected):
    path = family("llama")
    search = searching(tools, path, collected(path))
    known = search.activations.moments
    first = {**known.first, "blk.0.ffn_down.weight": "blk.0.attn_output.weight"}
    search = dataclasses.replace(
        search,
        activations=dataclasses.replace(
            search.activations, moments=dataclasses.replace(known, first=first)
        ),
    )
    places = search.places()
    skipped = {"blk.0.attn_v.weight", "blk.0.ffn_up.weight"}
    assert set(places.skipped) == skipped and not skipped & {p.name for p in places.pairs}


def test_weights_beyond_f16_are_refused(tools, family, collected, tmp_path):
    path = family("llama")
    search = searching(tools, path, collected(path))
    pair = search.places().pairs[0]
    with pytest.raises(BadModel):
        scaled_by(search, {pair: np.full((1, pair.n_channels), 1e6)}, tmp_path)


# -- commands


def quants(model, imatrix, types, text, out, **rest):
    compute = ComputeOptions("cpu", n_ctx=128, threads=2)
    asked = Request(str(text), (), str(model), 10**6, out, compute, **rest)
    asked = dataclasses.replace(asked, types=tuple(types))
    return tune.quants(asked, imatrix, Session(Store(), Silent()))


@pytest.mark.parametrize("with_feedback", [False, True])
def test_a_quant_says_that_it_was_scaled(
    tools, family, collected, own_text, tmp_path, with_feedback
):
    path = family("qwen2")
    imatrix, ways = collected(path), {"awq": True, "feedback": with_feedback}
    arguments = path, imatrix, ["Q3_K_M"], own_text(600)
    (plain,) = quants(*arguments, tmp_path / "plain").quants
    (quant,) = quants(*arguments, tmp_path / "out", **ways).quants
    assert quant.name.endswith("-awq-feedback-Q3_K_M.gguf" if with_feedback else "-awq-Q3_K_M.gguf")
    header, other = read_header(quant.path), read_header(plain.path)
    assert "imatrix_lab.awq" in header.metadata and "imatrix_lab.awq" not in other.metadata
    assert [(t.name, t.shape, t.type_name) for t in header.tensors] == [
        (t.name, t.shape, t.type_name) for t in other.tensors
    ]
    named = {k: v for k, v in header.metadata.items() if not k.startswith("imatrix_lab.")}
    assert named == {k: v for k, v in other.metadata.items() if not k.startswith("imatrix_lab.")}
    assert "-awq" in resolve.facts((quant.path,)).calibration
    assert abs(math.log(quant.perplexity / plain.perplexity)) < 0.2
    out = tmp_path / "out"
    entry = json.loads((out / "manifest.json").read_text())["files"][quant.name]
    assert entry["request"]["awq"] and "--awq" in entry["command"]
    assert (
        entry["scaled"] == quant.scaled and quant.scaled in (tmp_path / "out/README.md").read_text()
    )


def test_scales_are_for_the_types_that_were_chosen(tools, family, collected, own_store):
    path = family("llama")
    model, session = a_model(path), Session(own_store, Silent())
    imatrix = tune.existing_imatrix(collected(path), model, Silent())
    types = dict.fromkeys(quant_error.tensors(model), "Q8_0")
    types |= {name: "Q3_K" for name in types if "blk.1" in name}
    options = run.Options(programs.Compute(2))
    metadata = tune.metadata_of(tools, model, None, imatrix)
    spec = run.QuantSpec(model, imatrix, "size:Q4_K_M", options, metadata, awq=True)
    spec = dataclasses.replace(spec, mix=run.Mix("Q3_K_M", types))
    quant = run.quantize(tools, spec, session)
    got = {t.name: t.type_name for t in read_header(quant.path).tensors}
    assert types.items() <= got.items()
    assert quant.size_bytes == sizes.fixed_bytes(
        model, sizes.header_bytes(model, imatrix, metadata), types
    ) + sum(sizes.padded(errors.size_bytes(t.info, types[n])) for n, t in ours(model, types))
    assert not list(own_store.root.glob("work/quant*"))


def ours(model, names):
    return [(n, t) for n, t in weights.tensors(model).items() if n in names]


def test_errors_of_scaled_weights_are_no_errors(tools, kernel_store, tmp_path):
    def said(writer):
        writer.add_string(scaling.SCALED, "version 1")

    model = a_model(tiny_model.write(tmp_path / "tiny-f16.gguf"))
    quant = a_model(tiny_model.write(tmp_path / "quant.gguf", extra=said))
    kernel = quant_error.kernel(tools, Session(kernel_store, Silent()))
    with pytest.raises(BadModel) as error:
        quant_error.paired(kernel, model, quant)
    assert error.value.fix


def test_what_cannot_work_is_told_before_anything_is_made(family, tiny, own_text, tmp_path):
    text, out = own_text(600), tmp_path / "out"
    with pytest.raises(UsageError) as error:
        quants(tiny, None, ["Q4_K_M"], text, out, awq=True)
    assert error.value.fix and not out.exists()


def test_scales_are_part_of_what_a_file_is(tools, tiny):
    options = run.Options(programs.Compute(1))
    spec = run.QuantSpec(a_model(tiny), None, "Q4_K_M", options)
    both = [run.inputs(s, tools) for s in (spec, dataclasses.replace(spec, awq=True))]
    assert both[0] != both[1] and both[1]["awq"]["version"] == awq.VERSION
