"""The real llama-server, started, asked and ended."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import ToolFailed
from imatrix_lab.llamacpp import server
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.score import generate
from imatrix_lab.types import GenerateItem
from tests import tiny_model
from tests.score import items, made

ASKED = [("user", "Er 2 + 2 = 4?")]


@pytest.fixture(scope="module")
def real(tools, tmp_path_factory):
    """A tiny model with a template, llama-server on it, and its log."""
    folder = tmp_path_factory.mktemp("server")
    template = "{% for m in messages %}<|chat|>{{ m['content'] }}{% endfor %}"
    model = tiny_model.write(folder / "m-f16.gguf", output_scale=0.25, chat_template=template)
    with server.serve(tools, model, 4, 200, threads=1, log=folder / "log") as client:
        yield model, client, folder / "log"


def printable(text):
    return text.replace("\ufffd", "")


def test_llama_server_answers_as_we_do(real, tools, kernel, own_store):
    """Up to bytes that are no text, which the two drop differently."""
    path, client, _ = real
    model, setup = made.load(path, own_store), items.setup(kernel, n_ctx=200)
    asked = [GenerateItem(f"{i}", (("", made.prose(20 + 5 * i, i)),), 20) for i in range(8)]
    asked += [GenerateItem("chat", (("user", "en to tre"),), 20)]
    ours = {g.id: g for g in generate.generate(tools, model, asked, setup, Silent())}
    theirs = {g.id: g for g in client.generate(asked)}
    same = [printable(ours[i].text) == printable(theirs[i].text) for i in ours]
    assert sum(same) >= 8  # one near tie may part
    assert [theirs[i].n_tokens for i in ours] == [ours[i].n_tokens for i in ours]


def test_llama_server_lets_think_as_we_do(tools, kernel, own_store, tmp_path):
    template = (
        "{% for m in messages %}<|chat|>{{ m['content'] }}{% endfor %}{% if enable_thinking is"
        " defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    )
    path = tiny_model.write(tmp_path / "t-f16.gguf", output_scale=0.25, chat_template=template)
    model, setup = made.load(path, own_store), items.setup(kernel, n_ctx=200)
    asked = [GenerateItem("off", (("user", "en to tre"),), 20)]
    asked += [dataclasses.replace(asked[0], id="on", thinking=True)]
    with server.serve(tools, path, 1, 200, threads=1) as client:
        assert client.has_switch
        for item in asked:
            (ours,) = generate.generate(tools, model, [item], setup, Silent())
            (theirs,) = client.generate([item])
            assert printable(ours.text) == printable(theirs.text)


def test_llama_server_says_that_a_prompt_is_too_long(real):
    _, client, _ = real
    found = client.chat([("", made.prose(900))], 5)
    assert found.error.startswith("prompt longer than the context: ")


def test_llama_server_wants_the_key(real):
    _, client, log = real
    with Client(client.url, api_key="guess", retries=0) as other:
        assert other.chat(ASKED, 5).error.startswith("status 401 ")
    assert "model loaded" in log.read_text()
    key = client._http.headers["Authorization"].removeprefix("Bearer ")
    assert len(key) == 32
    assert key not in log.read_text()


def test_llama_server_is_on_loopback_only(real):
    _, client, _ = real
    port = int(client.url.rsplit(":", 1)[1].removesuffix("/v1"))
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # would be taken if it listened everywhere


def test_a_server_that_does_not_start(tools, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and then nothing")
    with (
        pytest.raises(ToolFailed, match=r"llama-server ended \(exit 1\)"),
        server.serve(tools, broken, 1, 100, threads=1),
    ):
        pass


def listening(url):
    host, port = url.removesuffix("/v1").removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_server_ends_with_the_block(tools, tiny):
    with pytest.raises(ZeroDivisionError), server.serve(tools, tiny, 1, 100, threads=1) as client:
        assert listening(client.url)
        _ = 1 / 0
    assert not listening(client.url)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_us(tools, tiny, tmp_path, how):
    told = tmp_path / "url"
    code = f"""
    import time
    from pathlib import Path
    from imatrix_lab.llamacpp import server
    from imatrix_lab.llamacpp.toolchain import Toolchain
    from pathlib import PosixPath
    with server.serve({tools!r}, Path({str(tiny)!r}), 1, 100, threads=1) as client:
        Path({str(told)!r}).write_text(client.url + "\\n")
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=-3) as us:
        until = time.monotonic() + 60
        while not (told.exists() and told.read_text().endswith("\n")):
            assert time.monotonic() < until and us.poll() is None
            time.sleep(0.02)
        url = told.read_text().strip()
        assert listening(url)
        os.kill(us.pid, how)
    until = time.monotonic() + 20
    while listening(url):
        assert time.monotonic() < until
        time.sleep(0.05)
