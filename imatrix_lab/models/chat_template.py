"""A model's own chat template.

The template comes out of a GGUF file that a stranger made, and is a program. It runs in
Jinja's sandbox, in a process of its own with limits on time and memory.
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

TIME_LIMIT_S = 20.0
"""For so many chats:"""
CHATS_A_BLOCK = 500
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_BYTES = 16 << 20

_MARK = re.compile(
    r"<(?=[|｜]|/?(?:s|bos|eos|pad|unk|im_\w+|(?:start|end)_of_\w+)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])"
)

Chat = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` (system, user or assistant) and ``content``."""


def of(model: Model) -> str:
    """Return a model's chat template; nothing if it has none, as base models do."""
    return read_header(model.path).text("tokenizer.chat_template")


@dataclass(frozen=True)
class Rendered:
    """A chat as text, or why the template refused it."""

    text: str
    error: str = ""


def unmarked(text: str) -> str:
    """Return a text in which marks of templates are broken: it is read and not obeyed."""
    return _MARK.sub(lambda found: found[0] + " ", text)


def render(
    model: Model, chats: Sequence[Chat], scratch: Path, answer: bool = False
) -> list[Rendered]:
    """Return each chat as the model's template writes it, without BOS and EOS.

    Parameters
    ----------
    scratch : folder for what passes between the processes.
    answer : end with what opens the assistant's answer.

    Raises
    ------
    BadModel : there is no template, it is not one, or it takes too long or too much.
    """
    if not (template := of(model)):
        raise BadModel("this model has no chat template", where=model.path)
    found: list[Rendered] = []
    for start in range(0, len(chats), CHATS_A_BLOCK):
        block = [list(chat) for chat in chats[start : start + CHATS_A_BLOCK]]
        job = {"template": template, "chats": block, "answer": answer}
        try:
            found += _block(job, scratch)
        except (ToolFailed, OSError, ValueError) as error:
            why = error.what if isinstance(error, ToolFailed) else str(error)
            raise BadModel(f"its chat template cannot be used: {why}", where=model.path) from error
    return found


def _block(job: Mapping[str, Any], scratch: Path) -> list[Rendered]:
    wanted, made = scratch / "chats.json", scratch / "rendered.json"
    wanted.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    argv: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "imatrix_lab.models.chat_template",
        wanted,
        made,
    ]
    process.run(argv, timeout_s=TIME_LIMIT_S)
    return [Rendered(*one) for one in json.loads(made.read_text(encoding="utf-8"))]


def compiled(template: str) -> Callable[[Chat, bool], str]:
    """Return what writes a chat as the template does, in the sandbox of Jinja.

    The names that templates expect are those of Hugging Face's transformers.
    """

    class Generation(Extension):  # marks what to train on, and writes nothing of its own
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


def _child(wanted: str, made: str) -> int:
    """Render in this process, which may hang or be killed; return its exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES * 4, OUTPUT_LIMIT_BYTES * 4))
    job: dict[str, Any] = json.loads(Path(wanted).read_text(encoding="utf-8"))
    try:
        write = compiled(job["template"])
    except Exception as error:  # a stranger's program: whatever it raises
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        return 1
    found = []
    for chat in job["chats"]:
        try:
            found.append((write(chat, job["answer"]), ""))
        except Exception as error:
            found.append(("", f"{type(error).__name__}: {error}"))
    Path(made).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(_child(*sys.argv[1:]))
