"""hub.py and hub_transfer.py, through a loopback server that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imatrix_lab.core import hub_http
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import (
    DiskFull,
    FetchFailed,
    ImatrixLabError,
    MissingTool,
    ToolFailed,
    UsageError,
)
from imatrix_lab.models import hub, hub_spec
from tests.fakes.hub_server import HubServer

REPO = "org/tiny-GGUF"
TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"


def content(n_bytes: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place, so that a wrong offset shows."""
    return bytes((i * 7 + (i >> 8) + seed) & 0xFF for i in range(n_bytes))


Q4, Q8 = content(5000, 1), content(9000, 2)


class Recorder(Silent):
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: dict[str, list[float]] = {}
        self.totals: dict[str, float] = {}

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Recorder._Task]:
        self.totals[name] = total
        yield self._Task(self.tasks.setdefault(name, []))

    class _Task:
        def __init__(self, updates: list[float]) -> None:
            self.updates = updates

        def update(self, done: float, note: str = "") -> None:
            self.updates.append(done)


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(hub_http, "RETRY_S", (0.0, 0.0))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], repo: str = REPO
) -> Iterator[HubServer]:
    with HubServer({repo: {"main": files}}, card={"license": "apache-2.0"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def names(requests: list) -> list[str]:
    return [r.path for r in requests]


def folder_of(paths: list[Path]) -> Path:
    """Where the Hub's cache keeps the repository of a file at the top of it."""
    return paths[0].parents[2]


def test_single_gguf(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    files = {
        "tiny-Q4_K_M.gguf": Q4,
        "mmproj-tiny-f16.gguf": Q8,
        "tiny.imatrix.gguf": Q8,
        "README.md": b"# Tiny",
    }
    progress = Recorder()
    with serving(monkeypatch, files) as server:
        first = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, progress), None)
        again = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, progress), None)
        downloads = [r for r in server.requests if r.path.startswith("/cdn/")]
        commit = server.commit(REPO)
    assert [p.name for p in first] == ["tiny-Q4_K_M.gguf"]
    assert first[0].read_bytes() == Q4
    assert again == first
    assert len(downloads) == 1
    assert first[0].parent.name == commit
    name = f"fetching {REPO}"
    assert progress.totals[name] == len(Q4) == progress.tasks[name][-1]
    assert "".join(capfd.readouterr()) == ""  # no bars of the library's own


SPLIT = {f"big/m-Q8_0-{i:05d}-of-00003.gguf": content(3000, i) for i in (1, 2, 3)}


@pytest.mark.parametrize(
    "wanted", ["", ":big/m-Q8_0-00002-of-00003.gguf", ":*Q8_0*", ":m-Q8_0-00003-of-00003.gguf"]
)
def test_split_model_is_fetched_whole(
    wanted: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, SPLIT):
        paths = hub.fetch(hub_spec.parse(f"hf:{REPO}{wanted}"), Session(store, Silent()), None)
    assert [p.name for p in paths] == [Path(n).name for n in SPLIT]
    assert [p.read_bytes() for p in paths] == list(SPLIT.values())


@pytest.mark.parametrize("wanted", ["", ":big/m-Q8_0-00002-of-00003.gguf", ":*Q8*"])
def test_missing_shard_is_named(wanted: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {n: c for n, c in SPLIT.items() if "00002-of" not in n}
    with serving(monkeypatch, files), pytest.raises(FetchFailed) as caught:
        hub.fetch(hub_spec.parse(f"hf:{REPO}{wanted}"), Session(store, Silent()), None)
    assert "big/m-Q8_0-00002-of-00003.gguf" in str(caught.value)


SEVERAL = {"tiny-Q4_K_M.gguf": Q4, "tiny-Q8_0.gguf": Q8, "old/tiny-Q8_0.gguf": Q4, **SPLIT}


def test_token_goes_to_the_hub_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        server.gate(REPO, TOKEN)
        paths = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert paths[0].read_bytes() == Q4
    sent = {r.host.partition(":")[0]: r.authorization for r in server.requests}
    assert sent == {"127.0.0.1": f"Bearer {TOKEN}", "localhost": None}


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error.__dict__)


@pytest.mark.parametrize("token", [None, TOKEN, TOKEN + "\x01", TOKEN + "é"])
def test_gated(
    token: str | None,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with serving(monkeypatch, {"a.gguf": Q4}) as server, pytest.raises(Exception) as caught:
        server.gate(REPO, "another")
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert isinstance(caught.value, FetchFailed)
    if token in (None, TOKEN):
        assert f"https://huggingface.co/{REPO}" in str(caught.value)
        assert "hf auth login" in str(caught.value)
        assert "HF_TOKEN" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert TOKEN not in everything_said(caught.value) + caplog.text


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf:org/other", ["org/other", "main"]),
        ("hf:org/other@v2", ["org/other", "v2"]),
        (f"hf:{REPO}@v9", [REPO, "v9"]),
    ],
)
def test_not_found(
    spec: str, said: list[str], token: str | None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with serving(monkeypatch, {"a.gguf": Q4}), pytest.raises(FetchFailed) as caught:
        hub.fetch(hub_spec.parse(spec), Session(store, Silent()), None)
    assert all(words in str(caught.value) for words in said)
    assert TOKEN not in everything_said(caught.value)


def test_resumes_by_itself_after_a_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "BLOCK_BYTES", 1000)
    big = content(50_000)
    with serving(monkeypatch, {"a.gguf": big}) as server:
        server.cut("a.gguf", 20_500)
        [path] = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
        ranges = [r.range for r in server.requests if r.path.startswith("/cdn/")]
    assert path.read_bytes() == big
    assert ranges == ["bytes=0-", "bytes=20000-"]


def test_resumes_in_the_next_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting(Recorder):
        class _Task(Recorder._Task):
            def update(self, done: float, note: str = "") -> None:
                if done >= 33_000:
                    raise KeyboardInterrupt

    monkeypatch.setattr(hub_http, "BLOCK_BYTES", 1000)
    files = {"a-00001-of-00002.gguf": content(20_000, 1), "a-00002-of-00002.gguf": content(30_000)}
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, files) as server:
        with pytest.raises(KeyboardInterrupt):
            hub.fetch(ref, Session(store, Interrupting()), None)
        server.requests.clear()
        paths = hub.fetch(ref, Session(store, Silent()), None)
        ranges = [(r.path[-21:], r.range) for r in server.requests if r.path.startswith("/cdn/")]
    assert [p.read_bytes() for p in paths] == list(files.values())
    assert ranges == [("a-00002-of-00002.gguf", "bytes=13000-")]
    assert not list(store.unfinished())


def test_gives_up_when_the_hub_stays_away_and_goes_on_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_http, "BLOCK_BYTES", 1000)
    big = content(50_000)
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": big}) as server:
        server.cut("a.gguf", 20_500)
        server.fail("a.gguf", 503)
        with pytest.raises(FetchFailed, match="cannot be reached") as caught:
            hub.fetch(ref, Session(store, Silent()), None)
        assert "run again" in str(caught.value)
        server.fail("a.gguf", None)
        [path] = hub.fetch(ref, Session(store, Silent()), None)
    assert path.read_bytes() == big


def test_corrupt_bytes_then_recovery(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        server.corrupt("a.gguf")
        with pytest.raises(FetchFailed, match="sha256"):
            hub.fetch(ref, Session(store, Silent()), None)
        assert not list(store.artifacts())
        server.corrupt("a.gguf", False)
        [path] = hub.fetch(ref, Session(store, Silent()), None)
    assert path.read_bytes() == Q4


def test_disk_room_is_checked_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imatrix_lab.core.files.free_bytes", lambda path: 64 << 20)
    with serving(monkeypatch, {"a.gguf": Q4}) as server, pytest.raises(DiskFull):
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert len(server.requests) == 1


def test_large_files_take_the_librarys_way(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hub_http, "LARGEST_HTTP_BYTES", 1000)
    with serving(monkeypatch, {"sub/a.gguf": Q4}):
        [path] = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert path.read_bytes() == Q4
    assert "".join(capfd.readouterr()) == ""


def test_a_file_at_a_pinned_commit_needs_no_network(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, SEVERAL) as server:
        commit = server.commit(REPO)
        ref = hub_spec.parse(f"hf:{REPO}@{commit}:tiny-Q4_K_M.gguf")
        first = hub.fetch(ref, Session(store, Silent()), None)
        server.requests.clear()
        assert hub.fetch(ref, Session(store, Silent()), None) == first
        assert server.requests == []
        other = hub_spec.parse(f"hf:{REPO}@{commit}:tiny-Q8_0.gguf")
        assert hub.fetch(other, Session(store, Silent()), None)[0].read_bytes() == Q8
    glob = hub_spec.parse(f"hf:{REPO}@{commit}:*Q4_K*")
    assert hub.fetch(glob, Session(store, Silent()), None) == first  # the server is gone


def test_moved_branch_is_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        hub.fetch(ref, Session(store, Silent()), None)
        server.push(REPO, "main", {"a.gguf": Q8})
        assert hub.fetch(ref, Session(store, Silent()), None)[0].read_bytes() == Q8


@pytest.mark.parametrize("endpoint", ["http://[", "http://127.0.0.1:p", "ftp://x", "127.0.0.1:1"])
def test_odd_endpoint(endpoint: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(FetchFailed):
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)


@pytest.mark.parametrize("how", ["flag", "gone", "broken"])
def test_offline_uses_the_last_fetched_commit(
    how: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hub_spec.parse(f"hf:{REPO}:*Q4*")
    progress = Recorder()
    with serving(monkeypatch, SEVERAL) as server:
        first = hub.fetch(ref, Session(store, Silent()), None)
        commit = server.commit(REPO)
        if how == "flag":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            server.requests.clear()
            assert hub.fetch(ref, Session(store, progress), None) == first
            assert server.requests == []
    if how != "flag":
        if how == "broken":
            monkeypatch.setenv("HF_ENDPOINT", "hub.invalid")  # the scheme was forgotten
        assert hub.fetch(ref, Session(store, progress), None) == first
    [said] = progress.said
    assert commit in said
    assert "last fetched commit" in said
    for spec in (f"hf:{REPO}:*Q8*", f"hf:{REPO}@v2:*Q4*", "hf:org/other"):
        with pytest.raises(FetchFailed) as caught:
            hub.fetch(hub_spec.parse(spec), Session(store, progress), None)
        assert caught.value.fix


def test_offline_knows_a_branch_that_was_first_asked_for_by_its_commit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, SEVERAL) as server:
        pinned = f"hf:{REPO}@{server.commit(REPO)}:*Q4_K*"
        old = hub.fetch(hub_spec.parse(pinned), Session(store, Silent()), None)
        for revision in ("main", "v2"):
            server.push(REPO, revision, SEVERAL)
            hub.fetch(
                hub_spec.parse(f"hf:{REPO}@{revision}:*Q4_K*"), Session(store, Silent()), None
            )
        server.push(REPO, "main", {"tiny-Q8_0.gguf": Q4})
        new = hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert new != old
    for spec, expected in ((":*Q4_K*", old), ("@v2:*Q4_K*", old), (":tiny-Q8*", new)):
        assert (
            hub.fetch(hub_spec.parse(f"hf:{REPO}{spec}"), Session(store, Silent()), None)
            == expected
        )
    with pytest.raises(FetchFailed, match="nothing fetched earlier"):
        hub.fetch(hub_spec.parse(f"hf:{REPO}@v2:tiny-Q8_0.gguf"), Session(store, Silent()), None)


def test_offline_without_anything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE") as caught:
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert "unset HF_HUB_OFFLINE" in str(caught.value)


SAFETENSORS = {
    "config.json": b"{}",
    "model.safetensors": content(4000),
    "tokenizer.json": b"{}",
    "original/model.safetensors": content(10),
    "consolidated.safetensors": content(10),
    "README.md": b"# T",
    "LICENSE": b"free",
    "evil.py": b"raise SystemExit",
}


def fake_converter(tmp_path: Path, body: str) -> hub.Converter:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import os, sys\nfrom pathlib import Path\nfolder, out = sys.argv[1], sys.argv[3]\n" + body,
        encoding="utf-8",
    )
    return hub.Converter("test", script)


@pytest.fixture
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("_packages")
def test_safetensors_are_converted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    converter = fake_converter(
        tmp_path,
        """
print("Writing:  40%|####", flush=True)
seen = " ".join(sorted(os.listdir(folder))) + os.environ["HF_TOKEN"]
Path(out.format(OUTTYPE="BF16")).write_text(seen)
""",
    )
    ref = hub_spec.parse(f"hf:{REPO}")
    progress = Recorder()
    with serving(monkeypatch, SAFETENSORS) as server:
        [path] = hub.fetch(ref, Session(store, progress), converter)
        inputs = json.loads((path.parent / "manifest.json").read_text())["inputs"]
        commit = server.commit(REPO)
    assert path.name == "tiny-GGUF-BF16.gguf"
    assert path.read_text() == "LICENSE README.md config.json model.safetensors tokenizer.json"
    assert (inputs["commit"], inputs["toolchain"], inputs["outtype"]) == (commit, "test", "auto")
    assert progress.tasks["converting tiny-GGUF"] == [40]
    assert not list(store.unfinished())  # the weights are gone
    newer = hub.Converter("newer", converter.script)  # the server is gone
    assert hub.fetch(ref, Session(store, progress), newer)[0].parent != path.parent
    assert hub.fetch(ref, Session(store, progress), converter) == [path]
    shutil.rmtree(tmp_path / "hf" / "hub" / "models--org--tiny-GGUF" / "blobs")
    assert hub.fetch(ref, Session(store, progress), converter) == [path]


@pytest.mark.usefixtures("_packages")
def test_failing_converter(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converter = fake_converter(tmp_path, "sys.exit('ERROR: Model OddForCausalLM is not supported')")
    with serving(monkeypatch, SAFETENSORS), pytest.raises(ToolFailed) as caught:
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), converter)
    assert "OddForCausalLM is not supported" in str(caught.value)
    assert "architecture" in str(caught.value)
    assert caught.value.log
    assert caught.value.log.exists()


def test_packages_are_checked_before_the_download(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    for converter in (fake_converter(tmp_path, ""), None):
        with serving(monkeypatch, SAFETENSORS) as server, pytest.raises(MissingTool) as caught:
            hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), converter)
        assert len(server.requests) == 1
        if converter:
            assert "pip install 'imatrix_lab[convert]'" in str(caught.value)


@pytest.fixture
def converter(tools) -> hub.Converter:
    """llama.cpp's own, from the toolchain."""
    for package in ("torch", "transformers", "sentencepiece"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[convert]'")
    return hub.Converter(tools.commit, tools.convert_script)


def save_tiny_llama(folder: Path) -> None:
    """Save a random Llama of two layers, with a sentencepiece tokenizer made on the spot."""
    import random

    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = random.Random(1)
    text = [
        " ".join(
            "".join(words.choices("abcdefghijklmnoprstuvyæøå", k=words.randint(2, 7)))
            for _ in range(12)
        )
        for _ in range(400)
    ]
    with (folder / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=file,
            vocab_size=512,
            model_type="bpe",
            byte_fallback=True,
            num_threads=1,
            minloglevel=2,
        )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)


@pytest.mark.convert
def test_real_conversion(
    converter: hub.Converter, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    folder = tmp_path / "tiny"
    folder.mkdir()
    save_tiny_llama(folder)
    progress = Recorder()
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    with serving(monkeypatch, files, "org/tiny-llama"):
        [path] = hub.fetch(hub_spec.parse("hf:org/tiny-llama"), Session(store, progress), converter)
    assert progress.tasks["converting tiny-llama"][-1] == 100
    assert path.name == "tiny-llama-BF16.gguf"
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.block_count"].contents() == 2
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 512
    shapes = {t.name: [int(n) for n in t.shape] for t in reader.tensors}
    assert shapes["token_embd.weight"] == [256, 512]
    assert shapes["blk.1.ffn_down.weight"] == [512, 256]


# -- the Hub's own cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "shared cache"))
    return tmp_path / "shared cache"


def by_the_library(server: HubServer, name: str, cache: Path) -> Path:
    """Fetch as transformers or `hf download` would."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(REPO, name, cache_dir=cache, endpoint=server.endpoint))


@pytest.mark.parametrize("offline", [True, False])
def test_what_others_fetched_is_used_where_it_lies(
    offline: bool, cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, SEVERAL) as server:
        theirs = by_the_library(server, "tiny-Q8_0.gguf", cache)
        server.requests.clear()
        if offline:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        for pattern in ("tiny-Q8_0.gguf", "tiny-Q8_0"):
            ref = hub_spec.parse(f"hf:{REPO}:{pattern}")
            [ours] = hub.fetch(ref, Session(store, Silent()), None)
            assert ours == theirs and ours.read_bytes() == Q8
        assert not [r for r in server.requests if r.path.startswith("/cdn/")]
    assert not list(store.artifacts())


def test_what_we_fetch_is_there_for_others(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import scan_cache_dir

    with serving(monkeypatch, SEVERAL) as server:
        [ours] = hub.fetch(hub_spec.parse(f"hf:{REPO}:Q4_K_M"), Session(store, Silent()), None)
        server.requests.clear()
        assert by_the_library(server, "tiny-Q4_K_M.gguf", cache) == ours
        assert not [r for r in server.requests if r.path.startswith("/cdn/")]
    [repo] = scan_cache_dir(cache).repos
    assert (repo.repo_id, repo.size_on_disk, list(repo.refs)) == (REPO, len(Q4), ["main"])
    assert not scan_cache_dir(cache).warnings
    store.collect_garbage(0)
    assert ours.read_bytes() == Q4


def test_a_new_commit_with_the_same_file_fetches_nothing(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        [old] = hub.fetch(ref, Session(store, Silent()), None)
        server.push(REPO, "main", {"a.gguf": Q4, "README.md": b"new"})
        server.requests.clear()
        [new] = hub.fetch(ref, Session(store, Silent()), None)
        assert len(server.requests) == 1
    assert new != old and new.samefile(old)


def test_a_cache_on_a_disk_without_links(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    progress = Recorder()
    ref = hub_spec.parse(f"hf:{REPO}:Q8_0")
    with serving(monkeypatch, SPLIT) as server:
        paths = hub.fetch(ref, Session(store, progress), None)
        server.requests.clear()
        assert hub.fetch(ref, Session(store, progress), None) == paths
        assert by_the_library(server, next(iter(SPLIT)), cache) == paths[0]
        assert not [r for r in server.requests if r.path.startswith("/cdn/")]
    assert [p.read_bytes() for p in paths] == list(SPLIT.values())
    assert not any(p.is_symlink() for p in paths)
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < 2 * 9000
    [said] = progress.said
    assert "no links" in said


def test_a_cache_that_cannot_be_written_is_used_all_the_same(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(monkeypatch, SEVERAL) as server:
        theirs = by_the_library(server, "tiny-Q8_0.gguf", cache)

        def refuse(path: Path, *args: object, **options: object) -> None:
            raise OSError(30, "Read-only file system", str(path))

        monkeypatch.setattr(Path, "touch", refuse)
        [ours] = hub.fetch(hub_spec.parse(f"hf:{REPO}:tiny-Q8_0"), Session(store, Silent()), None)
        assert ours == theirs
        with pytest.raises(ImatrixLabError, match="cannot write") as caught:
            hub.fetch(hub_spec.parse(f"hf:{REPO}:Q4_K_M"), Session(store, Silent()), None)
    assert "HF_HUB_CACHE" in str(caught.value)


def test_a_damaged_cache_is_told_with_what_to_delete(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hub_spec.parse(f"hf:{REPO}:tiny-Q8_0")
    with serving(monkeypatch, SEVERAL) as server:
        blob = by_the_library(server, "tiny-Q8_0.gguf", cache).resolve()
        blob.write_bytes(Q8[:-1])
        with pytest.raises(FetchFailed, match="8999 bytes") as caught:
            hub.fetch(ref, Session(store, Silent()), None)
        assert f"rm '{blob}'" in str(caught.value)
        blob.write_bytes(Q8[:-1] + b"?")
        [path] = hub.fetch(ref, Session(store, Silent()), None)
        with pytest.raises(FetchFailed, match="damaged") as caught:
            hub.sha256_of(path, Session(store, Silent()))
        subprocess.run(caught.value.fix.partition(",")[0], shell=True, check=True)
        [path] = hub.fetch(ref, Session(store, Silent()), None)
        assert hub.sha256_of(path, Session(store, Silent())) == hashlib.sha256(Q8).hexdigest()


def test_blobs_that_are_links_into_a_shared_store(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's library keeps what comes over Xet by another hash, of as many digits."""
    ref = hub_spec.parse(f"hf:{REPO}:tiny-Q8_0")
    with serving(monkeypatch, SEVERAL) as server:
        blob = by_the_library(server, "tiny-Q8_0.gguf", cache).resolve()
        blob.rename(cache / ("e" * 64))
        blob.symlink_to(cache / ("e" * 64))
        [path] = hub.fetch(ref, Session(store, Silent()), None)
    assert hub.sha256_of(path, Session(store, Silent())) == hashlib.sha256(Q8).hexdigest()


def test_a_shard_that_is_missing_in_the_cache_is_fetched(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hub_spec.parse(f"hf:{REPO}:Q8_0")
    with serving(monkeypatch, SPLIT) as server:
        by_the_library(server, list(SPLIT)[1], cache)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FetchFailed, match="lacks 2 of 3") as caught:
            hub.fetch(ref, Session(store, Silent()), None)
        assert "unset HF_HUB_OFFLINE" in str(caught.value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        server.requests.clear()
        assert len(hub.fetch(ref, Session(store, Silent()), None)) == 3
        assert len([r for r in server.requests if r.path.startswith("/cdn/")]) == 2


def test_an_imatrix_of_the_hub(cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**SEVERAL, "imatrix.dat": b"dat", "sub/m.imatrix": b"other"}
    with serving(monkeypatch, files):
        for spec, expected in (
            (f"hf:{REPO}/imatrix.dat", b"dat"),
            (f"https://huggingface.co/{REPO}/blob/main/sub/m.imatrix", b"other"),
        ):
            path = hub.fetch_imatrix(hub_spec.parse(spec), Session(store, Silent()))
            assert path.read_bytes() == expected and cache in path.parents


def test_a_repository_that_refuses_leaves_what_the_cache_has(
    cache: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}):
        hub.fetch(ref, Session(store, Silent()), None)
    with serving(monkeypatch, {"a.gguf": Q4}, "org/renamed"):
        with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE=1"):
            hub.fetch(ref, Session(store, Silent()), None)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert hub.fetch(ref, Session(store, Silent()), None)[0].read_bytes() == Q4


def test_a_wrong_name_is_told_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with serving(monkeypatch, SEVERAL) as server:
        server.push("org/st", "main", SAFETENSORS)
        hub.check(hub_spec.parse(f"hf:{REPO}:Q8_0"), store)
        for spec in ("org/other", f"{REPO}@v9", f"{REPO}:Q2_K", f"{REPO}:no.gguf", "org/st"):
            with pytest.raises(ImatrixLabError):
                hub.check(hub_spec.parse(f"hf:{spec}"), store)
        assert not [r for r in server.requests if not r.path.startswith("/api/")]
    hub.check(hub_spec.parse("hf:org/other"), store)  # the server is gone


# -- what may come in place of a file


def test_a_page_in_place_of_a_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"Content-Type": "text/html; charset=utf-8"}
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        for path in ("/api/", "/cdn/"):
            server.trouble(path, 200, page, b"<html>Please log in</html>")
            with pytest.raises(FetchFailed, match="wants a login"):
                hub.fetch(ref, Session(store, Silent()), None)
        assert hub.fetch(ref, Session(store, Silent()), None)[0].read_bytes() == Q4


def test_the_hub_asks_to_wait(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub_http.time, "sleep", waits.append)
    ref = hub_spec.parse(f"hf:{REPO}")
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        server.trouble("/cdn/", 429, {"Retry-After": "7"})
        server.trouble("/cdn/", 503)
        assert hub.fetch(ref, Session(store, Silent()), None)[0].read_bytes() == Q4
        assert waits == [7.0, 0.0]
        server.push(REPO, "main", {"a.gguf": Q8})
        server.trouble("/cdn/", 429, {"Retry-After": "3600"})
        with pytest.raises(FetchFailed, match="wait for 3600 s"):
            hub.fetch(ref, Session(store, Silent()), None)
        server.trouble("/api/", 429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
        with pytest.raises(FetchFailed, match="too many requests"):
            hub.fetch(hub_spec.parse(f"hf:{REPO}@v2"), Session(store, Silent()), None)


# -- a hostile Hub

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("bad", ["../../../../escape", "/escape", "", None, 7, "A" * 40])
@pytest.mark.parametrize("field", ["sha", "sha256", "blobId"])
def test_hashes_that_would_lead_elsewhere_are_refused(
    field: str, bad: object, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry: dict = {"rfilename": "x.gguf", "size": 4, "blobId": "d" * 40}
    if field == "sha256":
        entry["lfs"] = {"sha256": bad, "size": 4, "pointerSize": 134}
    elif field == "blobId":
        entry["blobId"] = bad
    answer = {"id": REPO, "sha": bad if field == "sha" else "c" * 40, "siblings": [entry]}
    with serving(monkeypatch, {"x.gguf": Q4}) as server:
        server.trouble("/api/", 200, JSON, json.dumps(answer).encode())
        with pytest.raises(FetchFailed):
            hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert not [p for p in tmp_path.rglob("*") if "escape" in p.name or "AAA" in p.name]


@pytest.mark.parametrize("size", [-1, "4", None, 1.5])
def test_sizes_that_are_none(size: object, monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = [{"rfilename": "x.gguf", "size": size, "blobId": "d" * 40}]
    answer = {"id": REPO, "sha": "c" * 40, "siblings": siblings}
    with serving(monkeypatch, {"x.gguf": Q4}) as server, pytest.raises(FetchFailed):
        server.trouble("/api/", 200, JSON, json.dumps(answer).encode())
        hub_http.list_files(REPO, "main")


@pytest.mark.parametrize("body", [b"[" * 100_000, b"7", b'{"siblings": 3, "id": "a/b"}'])
def test_answers_that_are_nonsense(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch, {"x.gguf": Q4}) as server, pytest.raises(FetchFailed):
        server.trouble("/api/", 200, JSON, body)
        hub_http.list_files(REPO, "main")


def test_a_file_that_does_not_end_is_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_http, "BLOCK_BYTES", 1000)
    written = []
    check = hub_http._check
    monkeypatch.setattr(
        hub_http,
        "_check",
        lambda n, e, part: (written.append(part.stat().st_size), check(n, e, part)),
    )
    with serving(monkeypatch, {"a.gguf": Q4}) as server:
        server.trouble("/cdn/", 200, {}, bytes(8 << 20))
        with pytest.raises(FetchFailed, match="bytes, and the Hub lists"):
            hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert written and written[0] <= len(Q4) + 1000


def test_a_small_file_with_other_bytes_is_fetched_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of Git LFS a file is known by the hash that Git gives it."""
    with serving(monkeypatch, {"a.imatrix": b"of an imatrix"}) as server:
        server.corrupt("a.imatrix")
        ref = hub_spec.parse(f"hf:{REPO}/a.imatrix")
        with pytest.raises(FetchFailed, match="has the hash"):
            hub.fetch_imatrix(ref, Session(store, Silent()))
        server.corrupt("a.imatrix", False)
        path = hub.fetch_imatrix(ref, Session(store, Silent()))
    assert path.read_bytes() == b"of an imatrix"


def test_a_fetched_file_is_on_the_disk_before_it_has_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(hub_http, "flush", lambda path: flushed.append(path.read_bytes()))
    with serving(monkeypatch, {"a.gguf": Q4}):
        hub.fetch(hub_spec.parse(f"hf:{REPO}"), Session(store, Silent()), None)
    assert flushed == [Q4]


@pytest.mark.parametrize("revision", ["../../x", "a/../../b"])
def test_revisions_that_lead_elsewhere(revision: str) -> None:
    with pytest.raises(UsageError):
        hub_spec.parse(f"hf:{REPO}@{revision}:x.gguf")
