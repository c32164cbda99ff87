"""A model's own chat template.

The template is a program from an untrusted GGUF file. It runs in Jinja's sandbox, in its own
process with limits on time and memory.
"""

import json
import re
import resource
import sys
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
from imatrix_lab.errors import BadModel, ToolFailed
from imatrix_lab.models.gguf import read_header
from imatrix_lab.types import Model

CHATS_A_BLOCK = 500
TIME_LIMIT_S = 20.0  # for a block of chats
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_BYTES = 16 << 20

_MARK = re.compile(
    r"<(?=[|｜]|/?(?:s|bos|eos|pad|unk|im_\w+|(?:start|end)_of_\w+)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)

Chat = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` (system, user or assistant) and ``content``."""


def of(model: Model) -> str:
    """Return a model's chat template, or "" for a base model."""
    return read_header(model.path).text("tokenizer.chat_template")


@dataclass(frozen=True)
class Rendered:
    """A chat as text, or why the template refused it."""

    text: str
    error: str = ""


def unmarked(text: str) -> str:
    """Return a text with a blank inside template marks, so that they are not parsed as such."""
    return _MARK.sub(lambda mark: mark[0] + " ", text)


def render(
    model: Model, chats: Sequence[Chat], scratch: Path, answer: bool = False
) -> list[Rendered]:
    """Return each chat as the model's template writes it, without BOS and EOS.

    With `answer`, texts end with what opens the assistant's answer. Raises BadModel: no template,
    an invalid one, or one that takes too much time or memory.
    """
    if not (template := of(model)):
        raise BadModel("this model has no chat template", where=model.path)
    rendered: list[Rendered] = []
    for start in range(0, len(chats), CHATS_A_BLOCK):
        block = [list(chat) for chat in chats[start : start + CHATS_A_BLOCK]]
        job = {"template": template, "chats": block, "answer": answer}
        try:
            rendered += _block(job, scratch)
        except (ToolFailed, OSError, ValueError) as error:
            why = error.what if isinstance(error, ToolFailed) else str(error)
            raise BadModel(f"its chat template cannot be used: {why}", where=model.path) from error
    return rendered


def _block(job: Mapping[str, Any], scratch: Path) -> list[Rendered]:
    chats, rendered = scratch / "chats.json", scratch / "rendered.json"
    chats.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    module = "imatrix_lab.models.chat_template"
    argv = [sys.executable, "-P", "-m", module, str(chats), str(rendered)]
    process.run(argv, timeout_s=TIME_LIMIT_S)
    return [Rendered(*pair) for pair in json.loads(rendered.read_text(encoding="utf-8"))]


def compiled(template: str) -> Callable[[Chat, bool], str]:
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

    def write(chat: Chat, answer: bool) -> str:
        text = program.render(
            messages=list(chat), bos_token="", eos_token="", add_generation_prompt=answer
        )
        if len(text.encode()) > OUTPUT_LIMIT_BYTES:
            raise TemplateError(f"it writes more than {OUTPUT_LIMIT_BYTES >> 20} MiB")
        return text

    return write


def _child(chats: str, rendered: str) -> int:
    """Render in this process, which may hang or be killed; return its exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES * 4, OUTPUT_LIMIT_BYTES * 4))
    job: dict[str, Any] = json.loads(Path(chats).read_text(encoding="utf-8"))
    try:
        write = compiled(job["template"])
    except Exception as error:  # untrusted: it may raise anything
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        return 1
    pairs = []
    for chat in job["chats"]:
        try:
            pairs.append((write(chat, job["answer"]), ""))
        except Exception as error:
            pairs.append(("", f"{type(error).__name__}: {error}"))
    Path(rendered).write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(_child(*sys.argv[1:]))
