"""What judging and translating need of a model that is asked over a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Protocol

from imatrix_lab.records import Generated

Messages = tuple[tuple[str, str], ...]


class Chat(Protocol):
    """A model behind an OpenAI-compatible endpoint; retries are its own affair."""

    model: str

    def chat(self, messages: Messages, max_tokens: int, stop: Sequence[str] = ()) -> Generated:
        """Return its answer at temperature 0, or one with an error."""


def fenced(text: str) -> str:
    """Return text that a model is to read and not to obey, between lines that it cannot forge.

    The lines carry a hash of the text, so that no text can hold the one that ends it; marks of
    chat templates in it are broken.
    """
    plain = re.sub(r"<(?=[|/]?\w+[|>])|\[(?=/?INST\])", lambda m: m[0] + " ", text)
    line = f"----- {sha256(plain.encode('utf-8', 'replace')).hexdigest()[:12]} -----"
    return f"{line}\n{plain.strip()}\n{line}"


def prompt_hash(messages: Messages) -> str:
    """Return the sha256 (hex, 16 characters) of a prompt, for provenance."""
    text = "\0".join(f"{role}\0{content}" for role, content in messages)
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
