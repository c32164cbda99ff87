"""The client against a hostile server."""

import contextlib
import datetime
import email.utils
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imatrix_lab.errors import FetchFailed, UsageError
from imatrix_lab.llamacpp import client as endpoint
from imatrix_lab.llamacpp.client import Client
from imatrix_lab.types import Generated, GenerateItem
from tests.fakes.endpoint_server import Reply, good, serve

ASKED = [("user", "Er 2 + 2 = 4?")]
KEY = "secret-key-of-the-test"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(endpoint, "WAIT_FIRST_S", 0.01)


def ask(server, retries=2, timeout_s=20.0, **rest):
    with Client(server.url, api_key=KEY, timeout_s=timeout_s, retries=retries) as client:
        return client.chat(ASKED, 5, **rest)


# -- what is asked


def test_a_chat():
    with serve(good("ja, det er det", n_tokens=6)) as server:
        found = ask(server, stop=("\n",))
        assert found == Generated("", "ja, det er det", 6, "stop")
        assert server.bodies == [
            {
                "path": "/v1/chat/completions", "max_tokens": 5, "temperature": 0.0,
                "stop": ["\n"], "messages": [{"role": "user", "content": ASKED[0][1]}],
            }
        ]  # fmt: skip
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_plain_text():
    reply = Reply(b'{"choices": [{"text": " 4", "finish_reason": "length"}]}')
    with serve(reply) as server, Client(server.url + "/v1/", model="m") as client:
        found = client.chat([("", "en"), ("", "to")], 5)
        assert found == Generated("", " 4", 0, "length")
        (body,) = server.bodies
        assert (body["path"], body["prompt"]) == ("/v1/completions", "en\n\nto")
        assert body["model"] == "m"
        assert "authorization" not in server.headers[0]


def test_without_stop_strings_an_end_is_an_end_token():
    with serve(good()) as server:
        assert ask(server).finish == "eos"


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x", "http://", ""])
def test_addresses(url):
    with pytest.raises(UsageError):
        Client(url)


def test_a_wrong_address_with_a_password_is_not_repeated():
    with pytest.raises(UsageError) as caught:
        Client(f"htp://me:{KEY}@host/v1")
    assert KEY not in str(caught.value)


# -- what is tried again

BAD = {
    "500": Reply(b"oh no", 500),
    "503": Reply(b"", 503),
    "429": Reply(b"slow down", 429),
    "no JSON": Reply(b"<html>hello</html>"),
    "half of JSON": Reply(good().body[:30]),
    "nothing": Reply(b""),
    "a list": Reply(b"[]"),
    "no choices": Reply(b"{}"),
    "empty choices": Reply(b'{"choices": []}'),
    "choices of nothing": Reply(b'{"choices": [null]}'),
    "choices by name": Reply(b'{"choices": {"a": 1}}'),
    "text that is none": Reply(b'{"choices": [{"text": 7, "finish_reason": "stop"}]}'),
    "usage that is none": Reply(good().body.replace(b'"completion_tokens": 3', b'"a": 1, "b": "')),
    "a truncated answer": Reply(good().body, length=10_000),
    "not UTF-8": Reply(b'{"choices": [{"text": "\xff\xfe"}]}'),
}


@pytest.mark.parametrize("name", BAD)
def test_nonsense_is_tried_again(name):
    with serve(BAD[name], BAD[name], good("endelig")) as server:
        assert ask(server).text == "endelig"
        assert len(server.bodies) == 3


@pytest.mark.parametrize("name", BAD)
def test_what_stays_nonsense_is_a_failed_item(name):
    with serve(BAD[name]) as server:
        found = ask(server)
        assert len(server.bodies) == 3
    assert found.error.endswith(" (3 attempts)")
    assert (found.text, found.finish) == ("", "")
    assert KEY not in found.error
    assert len(found.error) < 400


def test_errors_say_what_was_wrong():
    with serve(Reply(b"out of memory", 500)) as server:
        assert ask(server, retries=0).error == "status 500 Internal Server Error: out of memory"
    with serve(BAD["empty choices"]) as server:
        assert ask(server, retries=0).error == 'the answer has no choice: {"choices": []}'


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_will_not_get_better_is_not_tried_again(status):
    with serve(Reply(b'{"error": {"message": "no", "type": "x"}}', status)) as server:
        assert ask(server).error.startswith(f"status {status} ")
        assert len(server.bodies) == 1


def test_an_answer_without_text_is_not_asked_again():
    null = Reply(b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}')
    with serve(null) as server:
        assert ask(server).error == "the answer has no text"
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "error",
    [
        {"code": "context_length_exceeded", "message": "too long"},
        {"type": "BadRequestError", "message": "This model's maximum context length is 8 tokens"},
        None,
    ],
    ids=["OpenAI", "vLLM", "older vLLM"],
)
def test_prompts_that_are_too_long_for_other_servers(error):
    body = {"error": error} if error else {"message": "the maximum context length is 8 tokens"}
    with serve(Reply(json.dumps(body).encode(), 400)) as server:
        assert ask(server).error.startswith("prompt longer than the context: ")


def test_a_refused_key_ends_the_run():
    items = [GenerateItem(str(i), (("user", "x"),), 3) for i in range(99)]
    with serve(Reply(b"no", 401)) as server, Client(server.url, retries=0) as client:
        with pytest.raises(FetchFailed, match="8 requests in a row failed: status 401"):
            list(client.generate(items))
        assert len(server.bodies) == 8


def test_what_a_server_tells_of_its_model(monkeypatch):
    told = {
        "/v1/models": {"data": [{"id": "big", "owned_by": "us", "created": 5}, {"id": "other"}]},
        "/props": {"model_path": "big.gguf", "build_info": "b1", "chat_template": "…"},
    }
    monkeypatch.setattr(Client, "_get", lambda _, path: told.get(path))
    with Client("http://key@there:81/v1", "big") as client:
        assert client.host == "there:81"
        assert client.about() == {
            "model_path": "big.gguf", "build_info": "b1", "model_id": "big", "model_owned_by": "us",
        }  # fmt: skip
        told.clear()
        assert client.about() == {}


# -- thoughts


def thinking(message, finish="stop"):
    return Reply(json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode())


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "A?"}]},
    {"type": "text", "text": "B"},
]
RESPONSES = [{"type": "reasoning", "text": "A?"}, {"type": "output_text", "text": "B"}]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "B", "reasoning_content": "A?"}, "<think>\nA?\n</think>\n\nB"),
        ({"content": "B", "reasoning": "A?"}, "<think>\nA?\n</think>\n\nB"),
        ({"content": PARTS}, "<think>\nA?\n</think>\n\nB"),
        ({"content": RESPONSES}, "<think>\nA?\n</think>\n\nB"),
        ({"content": "<think>A?</think>B", "reasoning_content": "A?"}, "<think>A?</think>B"),
        ({"content": "B", "reasoning_content": None, "reasoning": ""}, "B"),
        ({"content": [{"type": "text", "text": "B"}]}, "B"),
        ({"content": None, "reasoning_content": "A?"}, "<think>\nA?\n</think>\n\n"),
        ({"reasoning": "A?"}, "<think>\nA?\n</think>\n\n"),
    ],
)
def test_thoughts_in_a_field_of_their_own(message, text):
    with serve(thinking(message)) as server:
        assert ask(server) == Generated("", text, 0, "eos")


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_thoughts_in_a_field_that_are_cut_off(content):
    with serve(thinking({"content": content, "reasoning_content": "A?"}, "length")) as server:
        assert ask(server) == Generated("", "<think>\nA?", 0, "length")
    with serve(thinking({"content": content}, "length")) as server:
        assert ask(server).text.strip() == ""  # hidden thoughts: unread, not failed


@pytest.mark.parametrize(
    ("told", "sent"),
    [
        ({"/props": {"chat_template": "{% if enable_thinking %}{% endif %}"}}, True),
        ({"/props": {"chat_template": "{{ messages }}"}}, False),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}, True),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "openai"}]}}, False),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": ["vllm"]}]}}, False),
        ({}, False),
    ],
    ids=[
        "llama-server",
        "its template has no switch",
        "vLLM",
        "one that may refuse it",
        "nonsense",
        "unknown",
    ],
)
def test_who_is_told_whether_to_think(told, sent, monkeypatch):
    monkeypatch.setattr(Client, "_get", lambda _, path: told.get(path))
    with serve(good("B")) as server, Client(server.url, "m") as client:
        client.chat(ASKED, 5)
        asked = GenerateItem("a", tuple(ASKED), 5, ("\n",), True, 70)
        assert [g.text for g in client.generate([asked])] == ["B"]
    first, second = server.bodies
    kwargs = (
        [{"enable_thinking": on, "thinking": on} for on in (False, True)] if sent else [None] * 2
    )
    assert [first.get("chat_template_kwargs"), second.get("chat_template_kwargs")] == kwargs
    assert (first["max_tokens"], second["max_tokens"]) == (5, 75)
    assert "stop" not in second  # it would end the thoughts


def test_a_stop_string_after_thoughts():
    text = "<think>\nA?\n</think>\n\nB\nC"
    asked = GenerateItem("a", tuple(ASKED), 5, ("\n",), True, 70)
    with serve(good(text)) as server, Client(server.url) as client:
        (answer,) = client.generate([asked])
    assert (answer.text, answer.finish) == ("<think>\nA?\n</think>\n\nB", "stop")


def test_a_content_filter_is_no_answer():
    with serve(good(finish="content_filter")) as server:
        assert ask(server).error == "the answer was ended by 'content_filter'"
        assert len(server.bodies) == 1


def test_an_answer_without_end(monkeypatch):
    monkeypatch.setattr(endpoint, "ANSWER_BYTES_MAX", 1 << 20)
    with serve(Reply(b"x" * (2 << 20))) as server:
        assert "more than 1.00 MiB" in ask(server, retries=0).error


def test_a_server_that_does_not_answer():
    never = threading.Event()
    with serve(Reply(b"", wait=never), good("nå")) as server:
        assert ask(server, timeout_s=0.3).text == "nå"
        never.set()
    with serve(Reply(b"", wait=(again := threading.Event()))) as server:
        assert ask(server, timeout_s=0.3, retries=1).error == "no answer within 0.3 s (2 attempts)"
        again.set()


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(url, retries=1) as client:
            assert "ConnectError" in client.chat(ASKED, 5).error


def test_retry_after(monkeypatch):
    waits = []
    wait = threading.Event.wait

    def watch(self, timeout=None):
        waits.append(timeout)
        return wait(self, min(timeout, 0.01) if timeout else timeout)

    later = Reply(b"", 429, (("Retry-After", "7"),))
    with serve(later, good()) as server, Client(server.url) as client:
        monkeypatch.setattr(client._closed, "wait", watch.__get__(client._closed))
        assert client.chat(ASKED, 5).text == "ja"
    assert waits == [7.0]


def test_retry_after_is_a_number_or_a_date():
    then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert 80 < endpoint.retry_after_s(email.utils.format_datetime(then, usegmt=True)) <= 90
    assert endpoint.retry_after_s("12") == 12
    for value in ("", "soon", "-4", "Wed, 21 Oct 2015 07:28:00 GMT", "१२"):
        assert endpoint.retry_after_s(value) == 0


def test_waits_grow_and_differ(monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint, "WAIT_FIRST_S", 1.0)
    with serve(BAD["500"]) as server, Client(server.url, retries=9) as client:
        monkeypatch.setattr(client._closed, "wait", waits.append)
        client.chat(ASKED, 5)
    assert len(waits) == 9
    for i, seconds in enumerate(waits):
        assert 0.5 <= seconds / min(2**i, endpoint.WAIT_MAX_S) <= 1.5
    assert len(set(waits)) == 9


# -- many items


def many(n):
    return [GenerateItem(f"{i}", (("user", f"{i}"),), 5) for i in range(n)]


def test_a_failed_item_does_not_end_the_run():
    """Four requests are under way at any time, or the barrier breaks."""
    together = threading.Barrier(4, timeout=20)

    def answer(body, _):
        together.wait()
        return BAD["500"] if body["messages"][0]["content"] in {"3", "8"} else good()

    with serve() as server, Client(server.url, retries=0, parallel=4) as client:
        server.answer = answer
        found = {g.id: g for g in client.generate(many(20))}
    assert set(found) == {f"{i}" for i in range(20)}
    assert {i for i, g in found.items() if g.error} == {"3", "8"}
    assert not together.broken
    assert server.most_at_once == 4


def test_leaving_early_asks_for_no_more():
    with serve(good()) as server, Client(server.url, parallel=2) as client:
        answers = client.generate(many(500))
        next(answers)
        answers.close()
        time.sleep(0.2)
        assert len(server.bodies) < 100


def test_an_error_of_the_items_is_passed_on():
    def broken():
        yield from many(2)
        raise ZeroDivisionError

    with (
        serve(good()) as server, Client(server.url) as client, pytest.raises(ZeroDivisionError)
    ):  # fmt: skip
        list(client.generate(broken()))


# -- what a hostile one does


def test_a_key_that_the_server_repeats_is_in_no_error_and_no_answer():
    echo = json.dumps({"error": f"wrong key: {KEY}"}).encode()
    with serve(Reply(echo, 401), good(f"ja, {KEY}")) as server:
        assert (refused := ask(server)).error.startswith("status 401 Unauthorized: ")
        assert (answered := ask(server)).text == "ja, …"
    assert KEY not in f"{refused}{answered}"


@pytest.mark.parametrize("key", ["a\nb", "a\x01", "nøkkel"])
def test_a_key_that_no_header_carries_is_told_and_not_shown(key):
    with pytest.raises(UsageError) as caught:
        Client("http://127.0.0.1:9", api_key=key)
    assert key not in str(caught.value)
    with serve(good()) as server, Client(server.url, api_key=f" {KEY}\n") as client:
        client.chat(ASKED, 5)
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"


DEEP = b"[" * 100_000
HOSTILE = {
    "nested too deeply": Reply(DEEP),
    "an error nested too deeply": Reply(DEEP, 400),
    "an end that is a list": Reply(good().body.replace(b'"stop"', b'["stop"]')),
    "less than no tokens": Reply(good(n_tokens=-1).body),
    "more tokens than a number holds": Reply(good(n_tokens=10**30).body),
    "tokens that are a truth": Reply(good().body.replace(b": 3}", b": true}")),
    "not a number": Reply(b'{"choices": NaN}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_failed_items(name):
    with serve(HOSTILE[name]) as server:
        found = ask(server, retries=0)
    assert found.error and not found.text and len(found.error) < 400


def test_what_a_server_says_of_itself_has_an_end(monkeypatch):
    monkeypatch.setattr(endpoint, "ANSWER_BYTES_MAX", 1 << 20)

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(64):
                    self.wfile.write(b" " * (1 << 20))
                self.wfile.write(b'{"chat_template": "x"}')

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_address[1]}") as client:
            assert client.about() == {} and client.template == ""
        server.shutdown()
