"""Chats as calibration text, in the model's own chat template."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imatrix_lab.corpus.documents import json_lines
from imatrix_lab.errors import BadModel, BadText
from imatrix_lab.models import chat_template
from imatrix_lab.models.chat_template import Chat
from imatrix_lab.types import Document, Model

VERSION = 2
"""2: templates that take messages in parts get them so, and leave none empty."""
_ROLES = ("user", "assistant")


def read(path: Path) -> Iterator[tuple[str, Chat]]:
    """Yield (id, messages) of a file with one chat on each line: ``{"id": …, "messages": […]}``."""
    for i, entry in json_lines(path):
        try:
            messages = [
                {"role": str(m["role"]), "content": _text(m["content"])} for m in entry["messages"]
            ]
        except (KeyError, TypeError) as error:
            raise BadText(f"line {i} is not a chat: {error}", where=path) from error
        turns = [m["role"] for m in messages if m["role"] != "system"]
        if not turns or turns != [_ROLES[j % 2] for j in range(len(turns))]:
            raise BadText(f"line {i}: user and assistant do not take turns", where=path)
        yield str(entry.get("id") or f"{path.stem}/{i:06d}"), messages


def _text(content: Any) -> str:
    """Return a message's text, which may be in parts, as those of models that see."""
    if not isinstance(content, list):
        return str(content)
    return "".join(part["text"] for part in content if part["type"] == "text")


def documents(
    model: Model, chats: Sequence[tuple[str, Chat]], source: str, licence: str, scratch: Path
) -> list[Document]:
    """Return each chat as a document, with the special tokens that the model was trained on.

    BOS is left out: llama-imatrix puts it where a window begins.
    """
    try:
        rendered = chat_template.render(model, [c for _, c in chats], scratch)
        if error := next((r.error for r in rendered if r.error), ""):
            raise BadModel(f"its chat template cannot be used: {error}", where=model.path)
    except BadModel as failure:
        failure.fix = "leave out --chat"
        raise
    return [
        Document(chat_id, text.text.strip(), source, licence)
        for (chat_id, _), text in zip(chats, rendered, strict=True)
    ]
