"""What a model says of itself; split models; names that mean nothing."""

import os
import random
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.paths import pip_install
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadModel, ImatrixLabError, MissingTool, UsageError
from imatrix_lab.models import hub, resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model
from tests.fakes.hub_server import HubServer


@pytest.fixture(scope="module")
def shards(tools, tiny, tmp_path_factory):
    """The small model in parts."""
    folder = tmp_path_factory.mktemp("split")
    argv = [tools.program("llama-gguf-split"), "--split-max-tensors", "8", tiny, folder / "parts"]
    subprocess.run([*map(str, argv)], check=True, capture_output=True)
    return sorted(folder.glob("*.gguf"))


def test_facts(tiny):
    found = resolve.resolve(str(tiny), Session(Store(), Silent()))
    facts = found.facts
    assert (facts.architecture, facts.n_layers, facts.channels) == ("llama", 2, 256)
    assert (facts.file_type, facts.n_ctx_train, facts.license) == ("F16", 2048, "cc0-1.0")
    assert facts.n_vocab == 4 + 256 + len(tiny_model.PIECES)
    assert facts.size_bytes == tiny.stat().st_size and facts.fallback == ()
    assert facts.tensor_types == {"F16": 16, "F32": 5}
    assert found.label == "tiny" and found.sha256 == sha256_file(tiny)
    assert 16 < facts.bits_per_weight < 16.1


def test_rows_that_are_no_multiple_of_256_are_named(tmp_path):
    odd = tiny_model.write(tmp_path / "odd.gguf", channels=320)
    facts = resolve.resolve(str(odd), Session(Store(), Silent())).facts
    assert "blk.0.attn_q.weight" in facts.fallback
    assert "blk.0.ffn_down.weight" not in facts.fallback  # 512 columns
    assert not any("norm" in name for name in facts.fallback)


def test_any_shard_names_the_whole_split_model(tiny, shards):
    whole = resolve.resolve(str(tiny), Session(Store(), Silent())).facts
    for shard in shards:
        found = resolve.resolve(str(shard), Session(Store(), Silent()))
        assert found.label == "parts" and found.path == shards[0]
        assert found.facts.n_parameters == whole.n_parameters
        assert found.facts.tensor_types == whole.tensor_types
    assert len({resolve.resolve(str(s), Session(Store(), Silent())).sha256 for s in shards}) == 1


def test_a_split_model_goes_the_whole_way(shards, own_store, own_text, tmp_path):
    text = own_text(4 * 128)
    compute = ComputeOptions("cpu", n_ctx=128, threads=1)
    request = Request(str(text), ("Q4_K_M",), str(shards[1]), 10**6, tmp_path, compute)
    path = tune.imatrix(request, tmp_path / "i.gguf", Session(own_store, Silent()))
    result = tune.quants(request, path, Session(own_store, Silent()))
    assert result.quants[0].n_tensors == 21 and result.quants[0].fallback == ()


def test_a_missing_shard_is_named(shards, tmp_path):
    for path in shards[:-1]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(BadModel, match=shards[-1].name):
        resolve.resolve(str(tmp_path / shards[0].name), Session(Store(), Silent()))


def test_parts_of_two_models_do_not_make_one(shards, tmp_path):
    for path in shards:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / shards[-1].name).write_bytes(shards[0].read_bytes())
    with pytest.raises(ImatrixLabError):
        resolve.resolve(str(tmp_path / shards[0].name), Session(Store(), Silent()))


def test_the_hash_is_remembered_until_the_file_changes(tiny, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    first = resolve.resolve(str(copy), Session(Store(), Silent())).sha256
    raw = bytearray(copy.read_bytes())
    raw[-5] ^= 1
    copy.write_bytes(raw)
    os.utime(copy, ns=(1, 1))
    second = resolve.resolve(str(copy), Session(Store(), Silent())).sha256
    assert first == sha256_file(tiny) and second == sha256_file(copy) != first


@pytest.mark.parametrize("name", ["nonsense", "demo2", "org/repo", ""])
def test_a_name_of_no_known_form(name):
    with pytest.raises(ImatrixLabError):
        resolve.resolve(name, Session(Store(), Silent()))


def test_a_wrong_name_is_an_error_before_any_work(tiny, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    resolve.check_spec(str(tiny), store)
    resolve.check_spec("hf:org/repo@main:*.gguf", store)
    (tmp_path / "torn.gguf").write_bytes(tiny.read_bytes()[:5000])
    for name in ("nonsense", "hf:org", ""):
        with pytest.raises(ImatrixLabError):
            resolve.check_spec(name, store)
    for name in ("torn.gguf", "none.gguf"):
        with pytest.raises(BadModel):
            resolve.check_spec(str(tmp_path / name), store)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingTool):
        resolve.check_spec("demo", store)
    assert not store.root.exists()


def test_an_imatrix_or_a_vocabulary_is_not_a_model(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "vocab.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadModel, match="no tensors"):
        resolve.resolve(str(tmp_path / "vocab.gguf"), Session(Store(), Silent()))


def test_a_truncated_model_is_told_before_any_program_runs(tools, tiny, tmp_path):
    raw = tiny.read_bytes()
    rng = random.Random(1)
    torn, out = tmp_path / "torn.gguf", tmp_path / "out"
    for size in sorted(rng.randrange(len(raw)) for _ in range(50)):
        torn.write_bytes(raw[:size])
        with pytest.raises(BadModel):
            tune.tune(
                Request("nb", ("Q4_K_M",), str(torn), 999, out, ComputeOptions("cpu")),
                Session(Store(), Silent()),
            )
    assert not out.exists()


def test_usage_error_shows_the_forms():
    with pytest.raises(UsageError) as caught:
        resolve.resolve("nonsense", Session(Store(), Silent()))
    assert "hf:org/repo" in str(caught.value) and "demo" in str(caught.value)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_folder_of_safetensors_is_said_to_be_convertible(named, tools, tmp_path, monkeypatch):
    folder = tmp_path / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"x")
    spec = folder if named == "folder" else folder / "model-00001-of-00001.safetensors"
    for missing in (["torch"], []):
        monkeypatch.setattr(hub, "missing_packages", lambda missing=missing: missing)
        with pytest.raises(UsageError, match="convert") as caught:
            resolve.check_spec(str(spec))
        install, _, command = caught.value.fix.rpartition("; ")
        assert install == (pip_install("imatrix_lab[convert]") if missing else "")
    # the remedy is a command that llama.cpp's converter understands
    words = shlex.split(command)
    assert Path(words[1]).is_file() and words[2] == str(folder)
    assert words[3:] == ["--outfile", "my model-{OUTTYPE}.gguf", "--outtype", "auto"]


def test_other_folders_say_what_to_name(tiny, tmp_path):
    (tmp_path / "models--org--tiny").mkdir()
    for folder, said in ((tiny.parent, str(tiny)), (tmp_path, "name a GGUF file"),
                         (tmp_path / "models--org--tiny", "hf:org/tiny")):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            resolve.check_spec(str(folder))
        assert said in caught.value.fix
    with pytest.raises(UsageError) as caught:
        resolve.check_spec("org/tiny:Q8_0")
    assert "hf:org/tiny:Q8_0" in caught.value.fix


@pytest.mark.parametrize(
    "spec", ["https://huggingface.co/org/tiny/blob/main/gguf/tiny-f16.gguf", "hf.co/org/tiny:F16"]
)
def test_an_address_of_the_hub_is_a_model(spec, tiny, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    files = {"gguf/tiny-f16.gguf": tiny.read_bytes(), "gguf/tiny-Q8_0.gguf": b"x"}
    with HubServer({"org/tiny": {"main": files}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        found = resolve.resolve(spec, Session(Store(), Silent()))
    assert found.sha256 == sha256_file(tiny) and found.base_model == "org/tiny"
    assert found.path.name == "tiny-f16.gguf"


def test_a_model_of_the_hub_is_named_by_its_commit(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    files = {"gguf/tiny-f16.gguf": tiny.read_bytes(), "README.md": b"x"}
    with HubServer({"org/tiny": {"main": files}}, card={"license": "cc0-1.0"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        found = resolve.resolve("hf:org/tiny", Session(Store(), Silent()))
        assert re.fullmatch(r"hf:org/tiny@[0-9a-f]{40}:gguf/tiny-f16\.gguf", found.origin)
        assert found.sha256 == sha256_file(tiny) and found.label == "tiny"
        assert found.base_model == "org/tiny"
        again = resolve.resolve(found.origin, Session(Store(), Silent()))
    assert again.path == found.path and again.origin == found.origin
