"""Keys and tokens: a canary in each, searched for in everything that commands print and write."""

import base64
import json

import pytest

from imatrix_lab.cli.main import run
from imatrix_lab.core import hub_http
from imatrix_lab.llamacpp import client
from tests.fakes.endpoint_server import Reply, good, serve
from tests.fakes.hub_server import HubServer

KEY, TOKEN = "canary-key-0123456789", "canary-token-9876543210"
CANARIES = [c for word in (KEY, TOKEN) for c in (word.encode(), base64.b64encode(word.encode()))]
ITEMS = [
    {"id": str(i), "problem_type": "free-form", "context": None, "prompt": f"{i}?",
     "target": ["x"], "benchmark_name": "x"}
    for i in range(12)
]  # fmt: skip


@pytest.fixture(autouse=True)
def secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("IMATRIX_LAB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(client, "WAIT_FIRST_S", 0.001)
    monkeypatch.setattr(hub_http, "RETRY_S", (0.0,))
    (tmp_path / "mixeval.json").write_text(json.dumps(ITEMS))


@pytest.fixture
def found(tmp_path, capfd):
    """A function: where a canary is, of what was printed and of all files."""

    def search():
        printed = "".join(capfd.readouterr()).encode(errors="replace")
        places = ["printed"] if any(c in printed for c in CANARIES) else []
        files = [p for p in tmp_path.rglob("*") if p.is_file() and "toolchain" not in p.parts]
        assert len(files) > 1
        return places + [str(p) for p in files if any(c in p.read_bytes() for c in CANARIES)]

    return search


def task(tmp_path, url):
    return ["task", "run", "mixeval", "--langs", "en", "--data", str(tmp_path / "mixeval.json"),
            "--quant", "m", "--endpoint", url, "--out", str(tmp_path / "out"), "--keep-text",
            "--parallel", "2"]  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [
        Reply(json.dumps({"error": f"bad key {KEY}"}).encode(), 401),
        Reply(f"Bearer {KEY}".encode(), 500),
        Reply(f"[{KEY}".encode()),
        good(f"{KEY} x {KEY}"),
        good(finish=KEY),
        Reply(good("@").body.replace(b"@", b"\\u0063" + KEY[1:].encode())),
    ],
    ids=["refused", "broken", "no JSON", "answered", "ended", "spelt in another way"],
)
def test_an_endpoint_that_repeats_the_key(tmp_path, found, reply):
    with serve(reply) as server:
        run(task(tmp_path, server.url))
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert found() == []


def test_judge_and_translator_that_repeat_the_key(tmp_path, found):
    with serve(good(f"x {KEY}")) as server:
        assert run(task(tmp_path, server.url)) == 0
        (records,) = (tmp_path / "out").glob("*.parquet")
        run(["task", "judge", str(records), "--endpoint", server.url, "--model", "j"])
        data = str(tmp_path / "mixeval.json")
        out = ["--out", str(tmp_path / "translated")]
        run(["task", "translate", "mixeval", "--to", "nb", "--data", data, *out,
             "--endpoint", server.url, "--model", "j"])  # fmt: skip
        assert len(server.bodies) > len(ITEMS)
    assert found() == []


def test_an_endpoint_that_is_not_there_and_a_bug(tmp_path, found, monkeypatch):
    run(task(tmp_path, "http://127.0.0.1:9"))

    def broken(*args, **rest):
        raise RuntimeError("something of ours")

    monkeypatch.setattr(client.Client, "generate", broken)
    assert run(task(tmp_path, "http://127.0.0.1:9")) == 3
    assert list((tmp_path / "user").rglob("crash.log"))
    assert found() == []


def test_a_hub_that_repeats_the_token(tmp_path, found, monkeypatch):
    with HubServer({"org/repo": {"main": {"x.gguf": b"GGUF" + bytes(60)}}}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        server.gate("org/repo", "another")  # the refusal has the header in it
        for trouble in (None, ("/api/", 500), ("/resolve/", 502)):
            if trouble:
                server.trouble(*trouble, {}, f"Bearer {TOKEN}".encode())
            assert run(["model", "fetch", "hf:org/repo:x.gguf"]) == 1
        assert any(r.authorization == f"Bearer {TOKEN}" for r in server.requests)
    assert found() == []
