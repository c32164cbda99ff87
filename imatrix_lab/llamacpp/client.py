"""A client of OpenAI-compatible servers; a request that fails is an answer with an error."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import functools
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2

from imatrix_lab.core.files import from_json
from imatrix_lab.core.format import size
from imatrix_lab.core.parallel import each
from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.types import Generated, GenerateItem, Sampling

ANSWER_BYTES_MAX = 16 << 20
WAIT_FIRST_S, WAIT_MAX_S = 0.5, 60.0
HOPELESS_MAX = 8
"""Hopeless failures in a row that end the run."""
_TOO_LONG = {"exceed_context_size_error", "context_length_exceeded"}
_TRY_AGAIN = {408, 409, 425, 429}
_PASS_VARIABLES = ("vllm", "sglang")
"""Servers, as they call themselves, that take `chat_template_kwargs`; others may refuse them."""
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class _Failed(Exception):
    """A request that failed.

    With `again` it may succeed later; after `wait_s`, if the server said when. `hopeless`: every
    other request will fail too, for lack of a connection or permission.
    """

    def __init__(self, why: str, again: bool = True, wait_s: float = 0.0, hopeless: bool = False):
        super().__init__(why)
        self.why, self.again, self.wait_s, self.hopeless = why, again, wait_s, hopeless


def check_url(url: str) -> None:
    """Raise UsageError for what is not an endpoint's address."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        shown = "this" if "@" in url else repr(url)  # which may have a password
        raise UsageError(f"{shown} is not an endpoint's address", fix="http://host:port/v1")


def _key(given: str) -> str:
    """Return a key without the end of a line; UsageError for what no header can carry."""
    key = given.strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("the endpoint's key has characters that no key has", fix="set it again")
    return key


class Client:
    """Sends requests to an OpenAI-compatible endpoint; a context manager, for any thread.

    Time-outs, lost connections, 408, 409, 425, 429, 5xx and malformed answers are tried again,
    with exponential back-off and jitter, or when the endpoint says (``Retry-After``). A request
    that still fails gives an answer with an error; `HOPELESS_MAX` hopeless ones in a row end it
    with `FetchFailed`.

    The URL may end in ``/v1`` or not. The key appears in no error and no log. The time-out is for
    a whole answer; connecting may take at most 10 s of it.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        api_key: str = "",
        timeout_s: float = 600.0,
        retries: int = 4,
        parallel: int = 1,
    ):
        check_url(url)
        parts = urlsplit(url)
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.host = parts.netloc.rpartition("@")[2]
        self.model, self.identity, self.parallel = model, self.host, parallel
        self._retries, self._timeout_s = retries, timeout_s
        self._hopeless = 0
        self._closed = threading.Event()
        self._key = _key(api_key)
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            limits=httpx2.Limits(max_connections=None),
            trust_env=parts.hostname not in _LOOPBACK,  # no proxy on the way to ourselves
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._http.close()

    def chat(
        self,
        messages: Sequence[tuple[str, str]],
        max_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        thinking: bool = False,
    ) -> Generated:
        """Return the answer to a chat; if all roles are "", the continuation of the text.

        A server that passes variables to chat templates is told whether the model may think first.
        Its thoughts are in the text, before the answer: see `thoughts`. The endpoint does not tell
        a stop string from an end token: with stop strings, `finish` is ``stop`` for both.
        """
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0}
        body |= {"temperature": sampling.temperature, "seed": sampling.seed} if sampling else {}
        body |= {"model": self.model} if self.model else {}
        body |= {"stop": list(stop)} if stop else {}
        if any(role for role, _ in messages):
            path = "/chat/completions"
            body["messages"] = [{"role": role, "content": content} for role, content in messages]
            if self.has_switch:
                body["chat_template_kwargs"] = thoughts.variables(thinking)
        else:
            path = "/completions"
            body["prompt"] = "\n\n".join(content for _, content in messages)
        for attempt in range(self._retries + 1):
            try:
                answer = _answer(self._post(path, body), bool(stop))
                self._hopeless = 0
                return answer
            except _Failed as failed:
                error = failed
            if not error.again or attempt == self._retries:
                break
            back_off_s = min(WAIT_FIRST_S * 2**attempt, WAIT_MAX_S) * random.uniform(0.5, 1.5)
            if self._closed.wait(min(error.wait_s, WAIT_MAX_S) or back_off_s):
                break
        self._hopeless = self._hopeless + 1 if error.hopeless else 0
        if self._hopeless >= HOPELESS_MAX:
            what = f"{self._hopeless} requests in a row failed: {error.why}"
            fix = "check the address and the key, then run again: finished answers are kept"
            raise FetchFailed(what, where=self.host, fix=fix)
        tries = f" ({attempt + 1} attempts)" if attempt else ""
        return Generated("", "", 0, "", error.why + tries)

    def generate(self, items: Iterable[GenerateItem]) -> Iterator[Generated]:
        """Yield the answers to items as they come."""

        def ask(item: GenerateItem) -> Generated:
            most = item.max_tokens + item.thought_tokens
            stop = () if item.thought_tokens else item.stop  # which would end thoughts
            answer = self.chat(item.messages, most, stop, item.sampling, item.thinking)
            text = thoughts.before_stop(answer.text, item.stop)
            finish = answer.finish if text == answer.text else "stop"
            return dataclasses.replace(answer, id=item.id, text=text, finish=finish)

        return each(ask, items, self.parallel)

    @functools.cached_property
    def has_switch(self) -> bool:
        """Whether the server is known to tell its model's template if the model may think."""
        if self.template:
            return thoughts.has_switch(self.template)
        return self.about().get("model_owned_by") in _PASS_VARIABLES

    @functools.cached_property
    def template(self) -> str:
        """The model's chat template, which llama-server gives; "" for other servers."""
        template = (self._get("/props") or {}).get("chat_template")
        return template if isinstance(template, str) else ""

    def is_ready(self) -> bool:
        """Return whether a llama-server has its model loaded."""
        return self._get("/health") is not None

    def about(self) -> dict[str, Any]:
        """Return what the server says about its model and itself.

        ``/v1/models`` is every server's; ``/props`` is llama-server's, with its build.
        """
        props = self._get("/props") or {}
        names = ("model_path", "build_info")
        about: dict[str, Any] = {name: props[name] for name in names if name in props}
        data = (self._get("/v1/models") or {}).get("data")
        models = [m for m in data if isinstance(m, dict)] if isinstance(data, list) else []
        for model in models:
            if model.get("id") == self.model or len(models) == 1:
                keys = ("id", "owned_by", "root", "max_model_len", "meta")
                about |= {f"model_{key}": model[key] for key in keys if key in model}
        return about

    def _get(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object at an address of the server, or None."""
        try:
            response, raw = self._ask("GET", self.url.removesuffix("/v1") + path)
            content = self._content(raw) if response.status_code == 200 else None
        except (_Failed, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON object that the endpoint answers."""
        response, raw = self._ask("POST", self.url + path, json=body)
        if response.status_code != 200:
            raise _refused(response, raw)
        with contextlib.suppress(ValueError):
            if isinstance(content := self._content(raw), dict):
                return content
        raise _Failed(f"the answer is not a JSON object: {_shown(raw)}")

    def _ask(self, method: str, url: str, **body: Any) -> tuple[httpx2.Response, bytes]:
        """Return an answer and its content, in which the key is blotted out: some repeat it."""
        until = time.monotonic() + self._timeout_s
        raw = bytearray()
        try:
            with self._http.stream(method, url, **body) as response:
                for piece in response.iter_bytes():
                    raw += piece
                    if len(raw) > ANSWER_BYTES_MAX:
                        raise _Failed(f"an answer of more than {size(ANSWER_BYTES_MAX)}")
                    if time.monotonic() > until:
                        raise _Failed(f"no complete answer within {self._timeout_s:g} s")
        except httpx2.TimeoutException as error:
            raise _Failed(f"no answer within {self._timeout_s:g} s") from error
        except (httpx2.HTTPError, RuntimeError) as error:  # the latter: closed meanwhile
            hopeless = isinstance(error, httpx2.ConnectError)
            why = self._without_key(f"{type(error).__name__}: {error}".encode())
            raise _Failed(why.decode(), hopeless=hopeless) from None  # its cause may have the key
        return response, self._without_key(bytes(raw))

    def _content(self, raw: bytes) -> Any:
        """Return the value of JSON, in which the key may be spelt in other ways too."""
        content = from_json(raw)
        try:
            text, key = json.dumps(content), json.dumps(self._key)[1:-1]
        except RecursionError as error:  # it was read with a frame less on the stack
            raise ValueError("nested too deeply") from error
        return from_json(text.replace(key, "…")) if key and key in text else content

    def _without_key(self, raw: bytes) -> bytes:
        return raw.replace(self._key.encode(), "…".encode()) if self._key else raw


def _refused(response: httpx2.Response, raw: bytes) -> _Failed:
    """Return what an error status means."""
    status = response.status_code
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        content = from_json(raw)
        error = content.get("error", content)  # older vLLM has no such level
        names = {error.get("type"), error.get("code")}
        if names & _TOO_LONG or "maximum context length" in str(error.get("message")):
            return _Failed(f"prompt longer than the context: {error.get('message')}", again=False)
    again = status in _TRY_AGAIN or status >= 500
    why = f"status {status} {httpx2.codes.get_reason_phrase(status)}: {_shown(raw)}"
    wait_s = retry_after_s(response.headers.get("retry-after", ""))
    return _Failed(why, again, wait_s, hopeless=status in (401, 403))


def retry_after_s(value: str) -> float:
    """Return the seconds of a ``Retry-After`` header: a number or a date, else 0."""
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=datetime.UTC)
    return max(0.0, (then - datetime.datetime.now(datetime.UTC)).total_seconds())


def _shown(raw: bytes) -> str:
    return raw[:200].decode("utf-8", "replace").strip() or "nothing"


def _answer(content: dict[str, Any], has_stop: bool) -> Generated:
    try:
        choice = content["choices"][0]
        message = choice.get("message")
        text = choice["text"] if message is None else _text(message, choice.get("finish_reason"))
        finish = str(choice.get("finish_reason"))
        n_tokens = (content.get("usage") or {}).get("completion_tokens", 0)
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = _shown(json.dumps(content).encode())
        raise _Failed(f"the answer has no choice: {shown}") from error
    if text is None:  # a refusal: greedy, it would be the same again
        raise _Failed("the answer has no text", again=False)
    if not isinstance(text, str):
        raise _Failed("the answer has no text")
    if type(n_tokens) is not int or not 0 <= n_tokens <= ANSWER_BYTES_MAX:
        raise _Failed("the answer is said to have an impossible number of tokens")
    if finish not in {"stop", "length"}:
        raise _Failed(f"the answer was ended by {finish[:40]!r}", again=False)
    return Generated("", text, n_tokens, "eos" if finish == "stop" and not has_stop else finish)


def _text(message: dict[str, Any], finish: str | None) -> Any:
    """Return a message's thoughts, from whichever field they are in, and its content."""
    thinking = message.get("reasoning_content") or message.get("reasoning") or ""
    content = message.get("content") if thinking else message["content"]
    if isinstance(content, list):  # of parts, as Mistral's
        thinking = thinking or _spoken(content, ("thinking", "reasoning"))
        content = _spoken(content, ("text", "output_text"))
    if content is None and (thinking or finish == "length"):
        content = ""
    if not isinstance(content, str) or not isinstance(thinking, str):
        return content
    return thoughts.joined(thinking, content, finish == "length")


def _spoken(parts: list[Any], kinds: tuple[str, ...]) -> str:
    """Return the texts of some kinds of parts, joined; a part of thoughts has parts of its own."""
    chosen = [part for part in parts if part.get("type") in kinds]
    texts = [part[part["type"] if part["type"] in part else "text"] for part in chosen]
    return "".join(t if isinstance(t, str) else _spoken(t, ("text",)) for t in texts)
