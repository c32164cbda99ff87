"""An answerer with given answers, and a chat server on loopback."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from imatrix_lab.types import ChoiceScores, Generated

Reply = Callable[[str], Any]


class Answerer:
    """Answers by two functions; keeps the ids of the items."""

    is_chat, has_switch, opened = True, False, ""

    def __init__(self, label, choose=None, generate=None, commit="c0ffee"):
        self.label, self._choose, self._generate, self._commit = label, choose, generate, commit
        self.ids: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def __call__(self):
        return self

    def quant(self):
        return {"sha256": f"sha-{self.label}", "name": self.label, "type": "Q4_K_M",
                "calibration": self.label, "imatrix_sha256": f"im-{self.label}"}  # fmt: skip

    def instrument(self):
        return {"toolchain": {"commit": self._commit}, "protocol": {"name": "fake"}}

    def choose(self, items):
        for item in items:
            self.ids.append(item.id)
            values = self._choose(item)
            if isinstance(values, str):
                yield ChoiceScores(item.id, (), (), (), values)
                continue
            sizes = tuple(len(o.split()) for o in item.options)
            n_bytes = tuple(len(o.encode()) for o in item.options)
            yield ChoiceScores(item.id, tuple(values), sizes, n_bytes)

    def generate(self, items):
        for item in reversed(items):  # any order
            self.ids.append(item.id)
            text = self._generate(item)
            if isinstance(text, Exception):
                yield Generated(item.id, "", 0, "", str(text))
            else:
                yield Generated(item.id, text, 1, "length" if text.endswith("…") else "eos")


@contextmanager
def chat_server(
    reply: Reply, bodies: list[dict[str, Any]] | None = None, props: dict[str, Any] | None = None
) -> Iterator[str]:
    """Serve chat completions: `reply` makes the answer, a status, or raw bytes, of a prompt.

    Requests are added to `bodies`; `props` is what llama-server says of itself.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            raw = json.dumps(props or {}).encode()
            self.send_response(200 if self.path == "/props" and props else 404)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if bodies is not None:
                bodies.append(body)
            content = reply(body["messages"][-1]["content"])
            status = content if isinstance(content, int) else 200
            if isinstance(content, str):
                content = json.dumps({
                    "choices": [{"message": {"content": content}, "finish_reason": "stop"}],
                    "usage": {"completion_tokens": 3},
                }).encode()  # fmt: skip
            raw = b"{}" if isinstance(content, int) else content
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
