"""What a quantized file says of itself by GGUF's conventions: ``general.*`` in ggml's docs/gguf.md.

llama-quantize copies what the original says (name, licence, sampling), and can set texts and
numbers, but no lists: it is given a text of the same size in a list's place, which is then
overwritten. So the file is as it will be published before anybody scores it.
"""

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from gguf import Metadata

from imatrix_lab.corpus import mixture
from imatrix_lab.llamacpp.programs import OVERRIDE_BYTES_MAX
from imatrix_lab.models.gguf import GgufHeader, read_header
from imatrix_lab.types import ImatrixFacts, Model

Value = str | int | tuple[str, ...]
"""Of a pair of the metadata."""

_HUB = "https://huggingface.co/"
_STRING, _ARRAY = 8, 9
_PAIRS_AT = 24


def general_pairs(
    model: Model, imatrix: ImatrixFacts | None, quantized_by: str
) -> dict[str, Value]:
    """Return what is to be set: who quantized it, from what, its languages and tags.

    The original's parents, if it names any, stay; it is then the source instead. Lists are the
    original's, and what they lack; one that is too long for llama-quantize stays as it was.
    """
    header = read_header(model.path)
    values = dict[str, Value]({"general.quantized_by": quantized_by} if quantized_by else {})
    values |= _original(header, model.base_model) if model.base_model else {}
    if imatrix:
        languages = () if imatrix.unnamed else mixture.languages_of(imatrix.language)
        values |= _longer(header, "general.languages", languages)
        values |= _longer(header, "general.tags", ("imatrix",))
    return values


def _original(header: GgufHeader, repo: str) -> dict[str, Value]:
    url = _HUB + repo
    if len(url) > OVERRIDE_BYTES_MAX:
        return {}
    if "general.base_model.count" in header.metadata:
        return {"general.source.repo_url": url}
    organization, _, name = repo.partition("/")
    of_base = {"name": name, "organization": organization}
    titles = {key: Metadata.id_to_title(word) for key, word in of_base.items()}
    base = {
        f"general.base_model.0.{key}": text for key, text in {**titles, "repo_url": url}.items()
    }
    return {"general.base_model.count": 1, **base}


def _longer(header: GgufHeader, key: str, more: Iterable[str]) -> dict[str, Value]:
    """Return a list with what it lacks; nothing if it lacks nothing, or has no room."""
    own = header.metadata.get(key, [])
    if not isinstance(own, list) or not all(isinstance(word, str) for word in own):
        return {}
    words = tuple(dict.fromkeys((*own, *more)))
    fits = size_bytes(words) - 8 <= OVERRIDE_BYTES_MAX
    return {key: words} if len(words) > len(own) and fits else {}


def size_bytes(value: Value) -> int:
    """Return the bytes of a value in a file, without its key and type."""
    match value:
        case int():
            return 4
        case str():
            return 8 + min(len(value.encode()), OVERRIDE_BYTES_MAX)
    return 4 + 8 + sum(8 + len(word.encode()) for word in value)


def for_program(metadata: Mapping[str, Value]) -> dict[str, str | int]:
    """Return what llama-quantize is given: for a list, a text of its size."""
    return {
        key: "-" * (size_bytes(value) - 8) if isinstance(value, tuple) else value
        for key, value in metadata.items()
    }


def write_lists(path: Path, metadata: Mapping[str, Value]) -> None:
    """Write the lists of a file that llama-quantize has made over the texts in their place."""
    end = _PAIRS_AT
    with path.open("r+b") as file:
        for key, pair_bytes in read_header(path).pair_bytes.items():
            end += pair_bytes
            if isinstance(words := metadata.get(key), tuple):
                value = struct.pack("<IQ", _STRING, len(words))
                value += b"".join(
                    struct.pack("<Q", len(raw)) + raw for raw in map(str.encode, words)
                )
                file.seek(end - len(value) - 4)
                file.write(struct.pack("<I", _ARRAY) + value)
