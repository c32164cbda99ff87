"""A model's tokenizer, through llama.cpp's bindings."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp import programs, thoughts
from imatrix_lab.llamacpp.toolchain import Toolchain

_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_NORMAL = 4  # LLAMA_TOKEN_ATTR_NORMAL
_CONTROL = 8  # LLAMA_TOKEN_ATTR_CONTROL
_errors: deque[str] = deque(maxlen=100)
_listeners: list[list[str]] = []


class Vocabulary:
    """Tokenizes as llama-imatrix does: with BOS where the model adds it.

    On first use it loads the vocabulary, without the weights; BadModel if llama.cpp cannot. With
    `parse_special` it takes chat tokens as such, as ``llama-imatrix --parse-special``.
    """

    def __init__(self, toolchain: Toolchain, model: Path, parse_special: bool = False):
        self._toolchain, self._path, self.parse_special = toolchain, model, parse_special
        self._model: Any = None

    def __enter__(self) -> Vocabulary:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._model:
            self._llama.llama_model_free(self._model)

    @functools.cached_property
    def _llama(self) -> Any:
        llama = self._toolchain.bindings()
        silence(llama)
        return llama

    @functools.cached_property
    def _vocab(self) -> Any:
        params = self._llama.llama_model_default_params()
        params.vocab_only = True
        forget_log()
        self._model = self._llama.llama_model_load_from_file(os.fsencode(self._path), params)
        if not self._model:
            what = f"llama.cpp cannot load this model's vocabulary: {reason()}"
            fix = "imatrix-lab model fetch hf:ORG/REPO, the original on the Hub: it is converted"
            raise BadModel(what, where=self._path, fix=fix)
        return self._llama.llama_model_get_vocab(self._model)

    def tokens(
        self, text: str, add_special: bool = True, parse_special: bool | None = None
    ) -> list[int]:
        """Return the token ids of a text, with BOS if `add_special` and the model adds it, no EOS.

        `parse_special` is by default what the vocabulary was opened with.
        """
        special = self.parse_special if parse_special is None else parse_special
        raw = text.encode()
        room = len(raw) + 8
        n = -1
        while n < 0:  # the room it needs, negated, if that was too little
            buffer = (self._llama.llama_token * room)()
            n = self._llama.llama_tokenize(
                self._vocab, raw, len(raw), buffer, room, add_special, special
            )
            room = -n
        tokens = list(buffer[:n])
        if add_special and self._adds_end and tokens:
            tokens.pop()
        return tokens

    @functools.cached_property
    def _adds_end(self) -> bool:
        """Whether llama.cpp ends every text with an end token: the programs are told not to."""
        return bool(self._llama.llama_vocab_get_add_eos(self._vocab))

    def bos(self) -> int | None:
        """Return the token that begins every text, or None if the model adds none."""
        adds = self._llama.llama_vocab_get_add_bos(self._vocab)
        bos = int(self._llama.llama_vocab_bos(self._vocab))
        return bos if adds and bos >= 0 else None

    def size_bytes(self, token: int) -> int:
        """Return the length of a token's text in bytes of UTF-8."""
        # without a buffer it returns the length, negated
        return -int(self._llama.llama_token_to_piece(self._vocab, token, None, 0, 0, True))

    def n_tokens(self) -> int:
        """Return the size of the vocabulary."""
        return int(self._llama.llama_vocab_n_tokens(self._vocab))

    def word(self, token: int) -> str:
        """Return a token's text, or "" for control tokens, unused ones and parts of characters."""
        if self._llama.llama_vocab_get_attr(self._vocab, token) != _NORMAL:
            return ""
        try:
            return self.piece(token).decode()
        except UnicodeDecodeError:
            return ""

    def piece(self, token: int) -> bytes:
        """Return the bytes a token adds to an answer (perhaps part of a character).

        Special tokens add none, but for the marks of thoughts.
        """
        plain = self._piece(token, special=False)
        if plain or not self.is_control(token):
            return plain
        mark = self._piece(token, special=True)
        return mark if thoughts.is_mark(mark.decode("utf-8", "replace")) else b""

    def _piece(self, token: int, special: bool) -> bytes:
        room = max(1, self.size_bytes(token))
        buffer = ctypes.create_string_buffer(room)
        n = self._llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
        return buffer.raw[: max(0, n)]

    def is_control(self, token: int) -> bool:
        """Return whether a token is a special one, which stands for no text."""
        return bool(self._llama.llama_vocab_get_attr(self._vocab, token) & _CONTROL)

    def is_end(self, token: int) -> bool:
        """Return whether a token ends a text, a turn or a message."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def count(self, text: str) -> int:
        """Return the number of tokens that llama-imatrix will read."""
        return len(self.tokens(text))


_one_at_a_time = threading.Lock()


def silence(llama: Any) -> None:
    """Keep llama.cpp's log from our output; its latest errors are remembered."""
    with _one_at_a_time:
        _silenced(llama)


@functools.cache
def _silenced(llama: Any) -> Any:
    """Return a new log callback; cached, since the library calls it as long as we live."""

    def keep(level: int, text: bytes, data: object) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR:
            _errors.append(line)
        for lines in _listeners:
            lines.append(line)

    callback = llama.llama_log_callback(keep)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    return callback


def forget_log() -> None:
    """Forget what llama.cpp logged, before a call whose reasons matter."""
    _errors.clear()


@contextmanager
def log_lines(llama: Any) -> Iterator[list[str]]:
    """Collect what llama.cpp logs meanwhile."""
    silence(llama)
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners.remove(lines)


def reason() -> str:
    """Return why llama.cpp failed, in its own words."""
    return programs.reason(_errors) or "no reason given"
