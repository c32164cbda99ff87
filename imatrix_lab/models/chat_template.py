"""A model's own chat template.

The template is a program from an untrusted GGUF file. It runs in Jinja's sandbox, in its own
process with limits on time and memory.
"""

import contextlib
import dataclasses
import functools
import json
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from imatrix_lab.core import process
from imatrix_lab.core.files import from_json
from imatrix_lab.errors import BadModel, ToolFailed
from imatrix_lab.llamacpp import thoughts
from imatrix_lab.models.gguf import read_header
from imatrix_lab.types import Model

CHATS_A_BLOCK = 500
TIME_LIMIT_S = 20.0  # for a block of chats
PROCESSOR_LIMIT_S = 8  # a busy machine does not make a template slow
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_BYTES = 16 << 20
LEFT_OUT = "the chat template leaves out the text of a message"

_MARK = re.compile(
    r"<(?=[|｜]|/?(?:s|bos|eos|pad|unk|im_\w+|(?:start|end)_of_\w+|(?:seed:)?think)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|THINK)\])"
)

Chat = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` (system, user or assistant) and ``content``."""


def of(model: Model) -> str:
    """Return a model's chat template, or "" for a base model."""
    return read_header(model.path).text("tokenizer.chat_template")


@dataclass(frozen=True)
class Rendered:
    """A chat as text, or why there is none; `opened` are the thoughts that the text ends with."""

    text: str
    error: str = ""
    opened: str = ""


def unmarked(text: str) -> str:
    """Return a text with a blank inside template marks, so that they are not parsed as such."""
    return _MARK.sub(lambda mark: mark[0] + " ", text)


def render(
    model: Model,
    chats: Sequence[Chat],
    scratch: Path,
    answer: bool = False,
    thinking: bool | None = None,
) -> list[Rendered]:
    """Return each chat as the model's template writes it, without BOS and EOS.

    With `answer`, texts end with what opens the assistant's answer. The template is told whether
    the model may think first (`thinking`); None leaves it to the template. Raises BadModel: no
    template, an invalid one, one that takes too much time or memory, or that leaves out the
    messages of every chat.
    """
    if not (template := of(model)):
        raise BadModel("this model has no chat template", where=model.path)
    rendered: list[Rendered] = []
    told = {} if thinking is None else thoughts.variables(thinking)
    for start in range(0, len(chats), CHATS_A_BLOCK):
        block = [list(chat) for chat in chats[start : start + CHATS_A_BLOCK]]
        job = {"template": template, "chats": block, "answer": answer, "variables": told}
        try:
            rendered += _block(job, scratch)
        except (ToolFailed, OSError, ValueError) as error:
            why = error.what if isinstance(error, ToolFailed) else str(error)
            raise BadModel(f"its chat template cannot be used: {why}", where=model.path) from error
    if rendered and all(chat.error == LEFT_OUT for chat in rendered):
        fix = f"llama-server -m {model.path} --chat-template-file FILE, and ask it with --endpoint"
        raise BadModel(f"{LEFT_OUT}, whichever it is", where=model.path, fix=fix)
    return rendered


def thoughts_opened(template: str) -> str:
    """Return the thoughts that a template begins though the model may not think, or ""."""
    if not thoughts.has_marks(template):
        return ""
    job = {"template": template, "chats": [[{"role": "user", "content": "?"}]], "answer": True}
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(ToolFailed, ValueError):
        return _block({**job, "variables": thoughts.variables(False)}, Path(scratch))[0].opened
    return ""


def _block(job: Mapping[str, Any], scratch: Path) -> list[Rendered]:
    chats, rendered = scratch / "chats.json", scratch / "rendered.json"
    chats.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    module = "imatrix_lab.models.chat_template"
    argv = [sys.executable, "-P", "-m", module, str(chats), str(rendered)]
    process.run(argv, timeout_s=TIME_LIMIT_S)
    return [Rendered(*fields) for fields in from_json(rendered.read_bytes())]


def compiled(
    template: str, variables: Mapping[str, bool] | None = None
) -> Callable[[Sequence[Mapping[str, Any]], bool], str]:
    """Return a function that writes a chat by the template, with transformers' names, sandboxed."""

    class Generation(Extension):  # marks what to train on, and writes nothing itself
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _: "2026-01-01"  # the same bytes on every day
    program = environment.from_string(template)

    def write(chat: Sequence[Mapping[str, Any]], answer: bool) -> str:
        names = {"bos_token": "", "eos_token": "", "add_generation_prompt": answer}
        text = program.render(messages=list(chat), **names, **(variables or {}))
        if len(text.encode()) > OUTPUT_LIMIT_BYTES:
            raise TemplateError(f"it writes more than {OUTPUT_LIMIT_BYTES >> 20} MiB")
        return text

    return write


class _Writer:
    """Writes chats by a template, and sees to it that their messages are in what it writes.

    Contents are strings, or for roles whose strings the template leaves out, as those of vision
    models do, lists of parts.
    """

    def __init__(self, template: str, variables: Mapping[str, bool], answer: bool):
        self._write, self._answer = compiled(template, variables), answer
        self._typed = functools.cache(self._typed_roles)

    def rendered(self, chat: Chat) -> Rendered:
        typed = self._typed(tuple(message["role"] for message in chat))
        try:
            text = self._write(_with_parts(chat, typed or frozenset()), self._answer)
        except Exception as error:  # untrusted: it may raise anything
            return Rendered("", f"{type(error).__name__}: {error}")
        if typed is None or not all(_is_in(text, message) for message in chat):
            return Rendered("", LEFT_OUT)
        end = text.rpartition(chat[-1]["content"].strip())[2] if chat and self._answer else ""
        return Rendered(text, opened=thoughts.opened(end))

    def _typed_roles(self, roles: tuple[str, ...]) -> frozenset[str] | None:
        """Return the roles whose messages get into the text as parts alone; None: some never do."""
        plain = self._left_out(roles, frozenset())
        parts = self._left_out(roles, frozenset(roles) if plain is None else plain)
        if parts is None:  # it refuses either
            return None if plain else frozenset()
        typed = (frozenset(roles) if plain is None else plain) - parts
        return None if parts - {"system"} else typed

    def _left_out(self, roles: tuple[str, ...], typed: frozenset[str]) -> frozenset[str] | None:
        """Return the roles whose messages are not in the text, or only as a list's notation.

        None: the template refuses such messages.
        """
        words = [f"Probe{i}of{len(roles)}" for i in range(len(roles))]
        chat = [{"role": r, "content": word} for r, word in zip(roles, words, strict=True)]
        try:
            text = self._write(_with_parts(chat, typed), self._answer)
        except Exception:
            return None
        spoken = re.sub(r"""['"]text['"]\s*:\s*['"]\w+""", "", text)
        return frozenset(r for r, word in zip(roles, words, strict=True) if word not in spoken)


def _with_parts(chat: Chat, typed: frozenset[str]) -> list[dict[str, Any]]:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]} if m["role"] in typed else {**m}
        for m in chat
    ]


def _is_in(text: str, message: Mapping[str, str]) -> bool:
    """Return whether a text has a message, whatever its spaces.

    A template may leave out a system's message, and an assistant's thoughts.
    """
    role, content = message["role"], message["content"]
    content = thoughts.answer(content) if role == "assistant" else content
    return role == "system" or "".join(content.split()) in "".join(text.split())


def _child(chats: str, rendered: str) -> int:
    """Render in this process, which may hang or be killed; return its exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_LIMIT_S, PROCESSOR_LIMIT_S + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES * 4, OUTPUT_LIMIT_BYTES * 4))
    job: dict[str, Any] = json.loads(Path(chats).read_text(encoding="utf-8"))
    try:
        writer = _Writer(job["template"], job["variables"], job["answer"])
    except Exception as error:  # untrusted: it may raise anything
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        return 1
    results = [dataclasses.astuple(writer.rendered(chat)) for chat in job["chats"]]
    Path(rendered).write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(_child(*sys.argv[1:]))
