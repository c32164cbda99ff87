"""A loopback server that answers as badly as an endpoint can."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes
    ----------
    length : the Content-Length that is claimed; None for the true one.
    wait : set before the answer is sent; None answers at once.
    """

    body: bytes
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    wait: threading.Event | None = None


def good(text: str = "ja", finish: str = "stop", n_tokens: int = 3) -> Reply:
    """Return an answer as it should be."""
    found = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"completion_tokens": n_tokens},
    }
    return Reply(json.dumps(found).encode())


@dataclass
class Endpoint:
    """A running server.

    Attributes
    ----------
    answer : what is answered to a request's body, and its number from 0.
    bodies, headers : what was asked, in order.
    most_at_once : requests that were under way together.
    """

    url: str
    answer: Callable[[dict[str, Any], int], Reply]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        reply = self.answer(body, number)
        if reply.wait:
            reply.wait.wait(20)
        with self._lock:
            self._now -= 1
        return reply


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        endpoint = cast(_Server, self.server).endpoint
        body = {"path": self.path, **json.loads(raw)}
        reply = endpoint.respond(body, {k.lower(): v for k, v in self.headers.items()})
        with contextlib.suppress(OSError):  # a client that has gone
            self.send_response(reply.status)
            for name, value in reply.headers:
                self.send_header(name, value)
            length = len(reply.body) if reply.length is None else reply.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(reply.body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    endpoint: Endpoint
    daemon_threads = True


@contextlib.contextmanager
def serve(*replies: Reply) -> Iterator[Endpoint]:
    """Run a server that gives these answers in order, the last one for ever."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        server.endpoint = Endpoint(url, lambda _, n: replies[min(n, len(replies) - 1)])
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.endpoint
        finally:
            server.shutdown()
            thread.join()
