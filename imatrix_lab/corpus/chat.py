"""Chats as calibration text, in the words of the model's own chat template.

The template comes out of a GGUF file that a stranger made, and is a program. It runs in
Jinja's sandbox, in a process of its own with limits on time and memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab import proc
from imatrix_lab.corpus.text import json_lines
from imatrix_lab.errors import BadModel, BadText, ToolFailed
from imatrix_lab.gguf_file import read_header
from imatrix_lab.records import Document, Model

TIME_LIMIT_S = 20.0
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_BYTES = 16 << 20
_ROLES = ("user", "assistant")

Chat = Sequence[Mapping[str, str]]
"""Messages in order, each with ``role`` (system, user or assistant) and ``content``."""


def read(path: Path) -> Iterator[tuple[str, Chat]]:
    """Yield (id, messages) of a file with one chat a line: ``{"id": …, "messages": […]}``.

    Raises
    ------
    BadText : a line that is no chat, or roles that do not take turns.
    """
    for i, entry in json_lines(path):
        try:
            messages = [{k: str(m[k]) for k in ("role", "content")} for m in entry["messages"]]
        except (KeyError, TypeError) as error:
            raise BadText(f"line {i} is no chat: {error}", where=path) from error
        turns = [m["role"] for m in messages if m["role"] != "system"]
        if not turns or turns != [_ROLES[j % 2] for j in range(len(turns))]:
            raise BadText(f"line {i}: user and assistant do not take turns", where=path)
        yield str(entry.get("id") or f"{path.stem}/{i:06d}"), messages


def template_of(model: Model) -> str:
    """Return a model's chat template.

    Raises
    ------
    BadModel : it has none.
    """
    template = read_header(model.path).text("tokenizer.chat_template")
    if not template:
        raise BadModel("this model has no chat template", where=model.path, fix="leave out --chat")
    return template


def documents(
    model: Model, chats: Sequence[tuple[str, Chat]], source: str, licence: str, scratch: Path
) -> list[Document]:
    """Return each chat as a document, with the marks that the model was trained to see.

    No BOS is written: llama-imatrix puts it where a window begins.

    Raises
    ------
    BadModel : no template, one that fails, takes too long or writes too much.
    """
    wanted, made = scratch / "chats.json", scratch / "rendered.json"
    job = {"template": template_of(model), "chats": [list(chat) for _, chat in chats]}
    wanted.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    argv: list[str | Path] = [sys.executable, "-P", "-m", "imatrix_lab.corpus.chat", wanted, made]
    try:
        proc.run(argv, timeout_s=TIME_LIMIT_S)
        texts = json.loads(made.read_text(encoding="utf-8"))
    except (ToolFailed, OSError, ValueError) as error:
        why = error.what if isinstance(error, ToolFailed) else str(error)
        raise BadModel(
            f"its chat template cannot be used: {why}", where=model.path, fix="leave out --chat"
        ) from error
    return [
        Document(name, text.strip(), source, licence)
        for (name, _), text in zip(chats, texts, strict=True)
    ]


def render(template: str, chat: Chat) -> str:
    """Return a chat as the template writes it; the sandbox of Jinja, without BOS and EOS.

    The names that templates expect are those of Hugging Face's transformers.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

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
    text = environment.from_string(template).render(
        messages=list(chat), bos_token="", eos_token="", add_generation_prompt=False
    )
    if len(text.encode()) > OUTPUT_LIMIT_BYTES:
        raise TemplateError(f"it writes more than {OUTPUT_LIMIT_BYTES >> 20} MiB")
    return text


def _child(wanted: str, made: str) -> int:
    """Render in this process, which may hang or be killed; return its exit status."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES * 4, OUTPUT_LIMIT_BYTES * 4))
    job: dict[str, Any] = json.loads(Path(wanted).read_text(encoding="utf-8"))
    try:
        texts = [render(job["template"], chat) for chat in job["chats"]]
    except Exception as error:  # a stranger's program: whatever it raises
        sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        return 1
    Path(made).write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(_child(*sys.argv[1:]))
