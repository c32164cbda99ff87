"""llama-quantize driven: sizes, metadata, fallback, refusal."""

import dataclasses
import math
import subprocess
from pathlib import Path

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, BadModel, UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import compute, programs
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run as quantize
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model


@pytest.fixture(scope="session")
def tiny_imatrix(store_at, tiny, own_text, tmp_path_factory):
    """An imatrix over a little text."""
    folder = tmp_path_factory.mktemp("imatrix")
    request = Request(
        str(own_text(4 * 128)),
        (),
        str(tiny),
        10**6,
        folder,
        ComputeOptions("cpu", n_ctx=128, threads=1),
    )
    return tune.imatrix(request, folder / "nb.imatrix.gguf", Session(store_at(folder), Silent()))


def run(model, imatrix, types, heldout, out, **rest):
    request = Request(
        str(heldout),
        programs.quant_types(types),
        str(model),
        10**6,
        out,
        ComputeOptions("cpu", threads=1),
        **rest,
    )
    return tune.quants(request, imatrix, Session(Store(), Silent()))


def test_every_type_gives_a_file_that_works(tools, tiny, tiny_imatrix, own_text, tmp_path):
    result = run(tiny, tiny_imatrix, programs.QUANT_TYPES, own_text(600), tmp_path / "out")
    assert len(result.quants) == len(programs.QUANT_TYPES)
    for q in result.quants:
        assert math.isfinite(q.perplexity) and q.fallback == ()
        assert q.path.stat().st_size == q.size_bytes
    by_type = {q.type: q for q in result.quants}
    assert by_type["Q2_K"].size_bytes < by_type["Q4_K_M"].size_bytes < by_type["Q8_0"].size_bytes
    assert by_type["F16"].perplexity == pytest.approx(by_type["F16"].perplexity_reference, rel=1e-3)


def test_report_and_llama_quantizes_log_agree(tools, tiny, tiny_imatrix, own_text, tmp_path):
    (q,) = run(tiny, tiny_imatrix, ["Q4_K_M"], own_text(600), tmp_path / "out").quants
    argv = [
        tools.program("llama-quantize"),
        "--imatrix",
        tiny_imatrix,
        tiny,
        tmp_path / "x",
        "Q4_K",
    ]
    log = subprocess.run([*map(str, argv), "1"], check=True, capture_output=True, text=True)
    size_bytes, bits_per_weight = programs.quant_size(log.stdout + log.stderr)
    tensors = sum(t.size_bytes for t in read_header(q.path).tensors)
    assert abs(tensors - size_bytes) <= 0.005 * 2**20
    assert q.bits_per_weight == pytest.approx(bits_per_weight, abs=0.005)


def test_metadata_is_whole_and_tells_no_path(tools, tiny, tiny_imatrix, own_text, tmp_path):
    mode = tiny_imatrix.stat().st_mode
    (q,) = run(tiny, tiny_imatrix, ["Q3_K_S"], own_text(600), tmp_path / "out").quants
    assert tiny_imatrix.stat().st_mode == mode and tiny_imatrix.stat().st_nlink <= 2
    assert not list((tmp_path / "out").glob("*.imatrix.gguf"))
    found = read_header(q.path).metadata
    from imatrix_lab.core.files import sha256_file

    assert found["imatrix_lab.imatrix.sha256"] == sha256_file(tiny_imatrix)
    assert found["imatrix_lab.toolchain.commit"] == programs.COMMIT
    assert found["quantize.imatrix.chunks_count"] == 4
    text = " ".join(str(v) for v in found.values())
    assert str(Path.home()) not in text and "/" not in found["quantize.imatrix.file"]
    assert str(tmp_path) not in text and str(tiny_imatrix.parent) not in text


def test_fallback_is_reported_as_llama_quantize_counts_it(tools, own_text, tmp_path):
    odd = tiny_model.write(tmp_path / "odd-f16.gguf", channels=320)
    (q,) = run(odd, None, ["Q4_K_M"], own_text(600), tmp_path / "out").quants
    dry = [tools.program("llama-quantize"), "--dry-run", odd, "Q4_K_M", "1"]
    log = subprocess.run([*map(str, dry)], check=True, capture_output=True, text=True)
    assert (
        f"{len(q.fallback)} of {q.n_tensors} tensor(s) required fallback" in log.stdout + log.stderr
    )
    assert q.fallback and all("->" in f for f in q.fallback)
    assert q.path.name == "odd-Q4_K_M.gguf"


def test_a_quantized_model_is_refused_unless_allowed(tools, tiny, own_text, tmp_path):
    text = own_text(600)
    (q,) = run(tiny, None, ["Q4_K_M"], text, tmp_path / "out").quants
    with pytest.raises(BadModel, match="already quantized"):
        run(q.path, None, ["Q3_K_S"], text, tmp_path / "out")
    (again,) = run(q.path, None, ["Q3_K_S"], text, tmp_path / "out", allow_requantize=True).quants
    assert math.isfinite(again.perplexity)


def test_a_foreign_imatrix_is_refused(tools, tiny, tiny_imatrix, own_text, tmp_path):
    found = format.read(tiny_imatrix)
    short = {name: e for name, e in found.entries.items() if name != "blk.1.ffn_down.weight"}
    format.write(tmp_path / "short.gguf", format.Imatrix(short, ("x",), 4, 128), {})
    with pytest.raises(BadImatrix, match="1 of 14 tensors are missing"):
        run(tiny, tmp_path / "short.gguf", ["Q4_K_M"], own_text(600), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_a_tensor_that_a_sibling_knows_is_filled_in(
    tools, tiny, tiny_imatrix, own_text, tmp_path, suffix
):
    """The same bytes as with the whole imatrix: up reads what gate reads, v and k what q reads."""
    whole, text = format.read(tiny_imatrix), own_text(600)
    gone = ("ffn_gate", "attn_k", "attn_v")
    short = {n: e for n, e in whole.entries.items() if not any(part in n for part in gone)}
    part = dataclasses.replace(whole, entries=short)
    path = tmp_path / f"nb.{suffix}"
    format.write(path, part)
    (q,) = run(tiny, path, ["Q4_K_M"], text, tmp_path / "a").quants
    (expected,) = run(tiny, tiny_imatrix, ["Q4_K_M"], text, tmp_path / "b").quants
    values = [_values(p) for p in (q.path, expected.path)]
    assert values[0] == values[1]


def _values(path):
    header = read_header(path)
    raw = path.read_bytes()
    return {t.name: raw[t.offset : t.offset + t.size_bytes] for t in header.tensors}


def test_without_text_to_verify_with_it_asks(tools, tiny):
    with pytest.raises(UsageError) as caught:
        run(tiny, None, ["Q4_K_M"], "", Path("out"))
    assert "--heldout" in caught.value.fix


@pytest.mark.parametrize(
    ("found", "quant_type", "good"),
    [
        (11.0, "Q4_K_M", True),
        (26.0, "Q4_K_M", True),
        (28.0, "Q4_K_M", False),
        (math.nan, "Q4_K_M", False),
        (math.inf, "Q2_K", False),
        (150.0, "Q3_K_S", True),
        (250.0, "Q3_K_S", False),
        (5e4, "IQ1_S", False),
    ],
)
def test_what_counts_as_broken(found, quant_type, good):
    def verify():
        quantize._verify(found, 10.0, quant_type, 32_000, Path("x.gguf"))

    if good:
        verify()
    else:
        with pytest.raises(BadModel, match="broken"):
            verify()


def test_types_that_need_an_imatrix_of_every_layer(tools, tiny, tiny_imatrix, tmp_path):
    """llama-imatrix does not run the layers for multi-token prediction."""
    whole = format.read(tiny_imatrix)
    entries = {name: e for name, e in whole.entries.items() if name.startswith("blk.0.")}
    part = tmp_path / "part.gguf"
    format.write(part, dataclasses.replace(whole, entries=entries), {})
    mtp = tiny_model.write(
        tmp_path / "mtp-f16.gguf", extra=lambda w: w.add_uint32("llama.nextn_predict_layers", 1)
    )
    facts = resolve.facts((mtp,))
    program = str(tools.program("llama-quantize"))
    for quant_type in ("Q2_K_S", "IQ3_XXS", "IQ3_XS", "Q2_K", "Q4_K_M"):
        argv = [program, "--imatrix", str(part), str(tiny), str(tmp_path / "q"), quant_type, "1"]
        done = subprocess.run(argv, capture_output=True, check=False)
        if done.returncode == 0:
            quantize.check_layers(facts, mtp, [quant_type])
        else:
            assert b"Missing importance matrix" in done.stdout + done.stderr
            with pytest.raises(BadModel, match="MTP"):
                quantize.check_layers(facts, mtp, ["Q4_K_M", quant_type])
            quantize.check_layers(resolve.facts((tiny,)), tiny, [quant_type])


def test_a_type_that_takes_an_imatrix_says_so(tools, tiny, own_text, tmp_path):
    with pytest.raises(UsageError, match="IQ2_XXS requires an imatrix"):
        run(tiny, None, ["IQ2_XXS"], own_text(600), tmp_path / "out")


def test_without_text_to_verify_with_a_quant_has_the_same_bytes(tools, tiny, own_text, tmp_path):
    """What is scored anyway need not be verified first; a copy that was is found by its inputs."""
    (verified,) = run(tiny, None, ["Q4_K_M"], own_text(600), tmp_path / "out").quants
    model = resolve.resolve(str(tiny), Session(Store(), Silent()))
    options = quantize.Options(compute.compute_for(model.facts, ComputeOptions("cpu", threads=1)))
    metadata = tune.metadata_of(tools, model, None, None)
    spec = quantize.QuantSpec(model, None, "Q4_K_M", options, metadata)
    inputs = quantize.inputs(spec, tools)
    any_check = {k: v for k, v in inputs.items() if k != "heldout_sha256"}
    found = Store().like("quant", any_check)
    assert found and quantize.facts(found).sha256 == verified.sha256
    assert Store().like("quant", {**any_check, "type": "Q3_K_S"}) is None
    made = quantize.quantize(tools, spec, Session(Store(), Silent()))
    assert made.sha256 == verified.sha256 and made.path != verified.path
    assert math.isnan(made.perplexity) and made.n_windows == 0
