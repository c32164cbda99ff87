"""A model's own chat template.

The template comes out of a GGUF file that a stranger made, and is a program. It runs in
Jinja's sandbox, in a process of its own with limits on time and memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab import proc
from imatrix_lab.errors import BadModel, ToolFailed
from imatrix_lab.gguf_file import read_header
from imatrix_lab.records import Model

TIME_LIMIT_S = 20.0
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_BYTES = 16 << 20

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
    BadModel : there is no template, or it takes too long or too much.
    """
    if not (template := of(model)):
        raise BadModel("this model has no chat template", where=model.path)
    wanted, made = scratch / "chats.json", scratch / "rendered.json"
    job = {"template": template, "chats": [list(chat) for chat in chats], "answer": answer}
    wanted.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    argv: list[str | Path] = [sys.executable, "-m", "imatrix_lab.chat_template", wanted, made]
    try:
        proc.run(argv, timeout_s=TIME_LIMIT_S)
        return [Rendered(*found) for found in json.loads(made.read_text(encoding="utf-8"))]
    except (ToolFailed, OSError, ValueError) as error:
        why = error.what if isinstance(error, ToolFailed) else str(error)
        raise BadModel(f"its chat template cannot be used: {why}", where=model.path) from error


def _rendered(template: str, chat: Chat, answer: bool) -> str:
    """Return a chat as the template writes it, in the sandbox of Jinja.

    The names that templates expect are those of Hugging Face's transformers.
    """
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda _: "2026-01-01"  # the same bytes on every day
    text = environment.from_string(template).render(
        messages=list(chat), bos_token="", eos_token="", add_generation_prompt=answer
    )
    if len(text.encode()) > OUTPUT_LIMIT_BYTES:
        raise TemplateError(f"it writes more than {OUTPUT_LIMIT_BYTES >> 20} MiB")
    return text


def _child(wanted: str, made: str) -> None:
    """Render in this process, which may hang or be killed."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES * 4, OUTPUT_LIMIT_BYTES * 4))
    job: dict[str, Any] = json.loads(Path(wanted).read_text(encoding="utf-8"))
    found = []
    for chat in job["chats"]:
        try:
            found.append((_rendered(job["template"], chat, job["answer"]), ""))
        except Exception as error:  # a stranger's program: whatever it raises
            found.append(("", f"{type(error).__name__}: {error}"))
    Path(made).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    _child(*sys.argv[1:])
