"""What judging and translating need of a chat model behind a server."""

import dataclasses
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from imatrix_lab.llamacpp import thoughts
from imatrix_lab.types import Generated

Messages = tuple[tuple[str, str], ...]


class Chat(Protocol):
    """A model behind an OpenAI-compatible endpoint, which retries by itself.

    `identity` (a hash, or a host) tells it from another model of the same name; `parallel` threads
    may ask at a time.
    """

    model: str
    identity: str
    parallel: int

    def chat(self, messages: Messages, max_tokens: int, stop: Sequence[str] = ()) -> Generated:
        """Return its answer at temperature 0, or one with an error."""


def reply_to(messages: Messages, chat: Chat, max_tokens: int) -> Generated:
    """Return the reply to a chat; one with more tokens if thoughts took all of them."""
    for most in (max_tokens, max_tokens + thoughts.EXTRA_TOKENS):
        reply = chat.chat(messages, most)
        if not thoughts.is_cut(reply):
            return reply
    return dataclasses.replace(reply, error=f"thoughts alone took {most} tokens")


def fenced(text: str) -> str:
    """Return text that a model is to read and not to obey, between lines that it cannot forge.

    The lines carry a hash of the text, so that no text can hold the one that ends it.
    """
    line = f"----- {sha256(text.encode('utf-8', 'replace')).hexdigest()[:12]} -----"
    return f"{line}\n{text.strip()}\n{line}"


def prompt_hash(messages: Messages, model: str = "") -> str:
    """Return the sha256 (hex, 16 characters) of a prompt and of the model's name."""
    text = "\0".join([model, *(f"{role}\0{content}" for role, content in messages)])
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
