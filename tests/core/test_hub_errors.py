"""Proxies, certificates and answers that are not the Hub's: what is said of them."""

import http.server
import importlib.metadata
import os
import shlex
import socket
import ssl
import subprocess
import sys
import threading

import pytest
from huggingface_hub.utils import close_session

from imatrix_lab.core import hub_errors, hub_http
from imatrix_lab.core.hub_errors import Unreachable
from imatrix_lab.errors import FetchFailed
from tests.fakes.hub_server import HubServer

MODEL_SHOW = "from imatrix_lab.cli.main import main; main()"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*PROXIES, *map(str.lower, PROXIES), *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    close_session()  # the library reads the environment once for all its requests
    yield
    close_session()


@pytest.fixture
def server(monkeypatch):
    with HubServer({"org/data": {"main": {"a.parquet": b"x"}}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def failure():
    with pytest.raises(FetchFailed) as caught:
        hub_http.dataset_commit("org/data", "main", 5)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_without_its_package(name, scheme, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv(name, f"{scheme}://me:secret@127.0.0.1:1080")
    error = failure()
    assert isinstance(error, Unreachable) and not error.may_pass
    assert name in error.what and "SOCKS" in error.what and "secret" not in str(error)
    words = shlex.split(error.fix)
    assert words[:3] == ["env", "-u", name] and words[3:6] == [sys.executable, "-m", "pip"]
    library, _, extra = words[7].partition("[")
    assert extra == "socks]"
    assert "socks" in (importlib.metadata.metadata(library).get_all("Provides-Extra") or ())


@pytest.mark.parametrize(
    "address", ["foo://proxy", "http://127.0.0.1:port", "socks4://127.0.0.1:1", "127.0.0.1:x"]
)
def test_an_address_that_is_no_proxy(address, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", address)
    error = failure()
    assert "HTTPS_PROXY is not" in error.what and "unset HTTPS_PROXY" in error.fix


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        port = free.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        error = failure()
    assert "through the proxy in HTTPS_PROXY" in error.what and "secret" not in str(error)
    assert error.may_pass


def test_a_proxy_that_refuses(monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_error(407, "Proxy Authentication Required")

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_address[1]}")
        error = failure()
        proxy.shutdown()
    assert "the proxy in HTTPS_PROXY refuses" in error.what and "407" in error.what


@pytest.fixture
def intercepted(server, tmp_path, monkeypatch):
    """The Hub behind a certificate that nobody knows; its file."""
    certificate, key = tmp_path / "own ca.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    try:
        subprocess.run(["openssl", "req", "-x509", *options, *subject], check=True,
                       capture_output=True)  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no openssl program")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.encrypt(context)
    monkeypatch.setenv("HF_ENDPOINT", f"https://localhost:{server.port}")
    return certificate


def test_a_certificate_that_is_not_trusted(intercepted):
    error = failure()
    assert "is not trusted" in error.what and "SSL_CERT_FILE=" in error.fix


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_users_own_certificates_are_trusted(name, intercepted, server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "")  # so that it is restored
    monkeypatch.setenv(name, str(intercepted))
    assert hub_http.dataset_commit("org/data", "main", 5) == server.commit("org/data")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read(content, server, tmp_path, monkeypatch):
    if content:
        (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert "SSL_CERT_FILE" in failure().what


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>Log in</html>", "wants a login"),
        (200, {"Content-Type": "application/json"}, b"", "wants a login"),
        (429, {"Retry-After": "60"}, b"", "wait for 60 s"),
        (502, {}, b"<html>Bad gateway</html>", "HTTP 502"),
        (503, {}, b"", "HTTP 503"),
        (401, {}, b"", "hf auth login"),
        (403, {"X-Error-Code": "GatedRepo"}, b"", "https://huggingface.co/datasets/org/data"),
        (404, {"X-Error-Code": "RepoNotFound"}, b"", "check the spelling"),
        (418, {}, b"", "HTTP 418"),
    ],
)
def test_answers_that_are_not_what_was_asked_for(status, headers, body, said, server):
    server.trouble("/api/", status, headers, body)
    assert said in str(failure())


def test_no_answer_in_time(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"no answer in 0\.3 s|Timeout"):
            hub_http.dataset_commit("org/data", "main", 0.3)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_asks_nothing(name, server, monkeypatch):
    monkeypatch.setenv(name, "yes")
    assert f"unset {name}" in failure().fix
    assert server.requests == [] and name in os.environ


@pytest.mark.parametrize("error", [RuntimeError(""), AttributeError("x"), ImportError("no y")])
def test_what_nobody_foresaw_is_a_failed_fetch(error):
    def call():
        raise error

    with pytest.raises(FetchFailed, match=type(error).__name__):
        hub_http.ask("org/x", "main", call)


def test_causes_that_form_a_ring():
    error = RuntimeError("a")
    error.__cause__ = RuntimeError("b")
    error.__cause__.__cause__ = error
    assert isinstance(hub_errors.explained(error, "org/x", "main"), FetchFailed)


def test_a_token_that_is_none(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_æ")
    assert "HF_TOKEN" in failure().fix


def test_settings_that_the_library_cannot_read(server, tmp_path, monkeypatch):
    """In processes of their own: it reads them once."""
    file = tmp_path / "file"
    file.touch()
    for name, value in (("HF_HOME", str(file)), ("HF_HUB_ETAG_TIMEOUT", "soon")):
        argv = [sys.executable, "-c", MODEL_SHOW, "model", "show", "hf:org/data"]
        environment = {**os.environ, name: value}
        shown = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
        assert shown.returncode == 1, shown.stderr
        assert "HF_" in shown.stderr.partition("try: ")[2]


def test_an_error_of_the_disk_stays_one():
    def call():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        hub_http.ask("org/x", "main", call)
