"""Sizes of files: as they are asked for, and as llama-quantize will make them."""

import math
import re
from collections.abc import Collection, Iterable, Mapping

from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import programs
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.types import ImatrixFacts, Model

PREFIX = "size:"
"""Of a type that stands for the best types of a size: ``size:Q4_K_M``, ``size:3.5GiB``."""
_BITS = "bpw"
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SPELLED = {u: u.replace("I", "i") for u in _UNITS}
_ALIGNMENT = 32
"""Of tensors in files that llama-quantize makes, whatever its input has."""
_SPLIT = ("split.no", "split.count", "split.tensors.count")
_STRING_MAX = 127
_BY_IMATRIX = "quantize.imatrix."


def parse(text: str) -> str:
    """Return a size as a type, ``size:Q4_K_M``, ``size:3.5GiB`` or ``size:4.5bpw``.

    Raises UsageError: it is none.
    """
    word = text.strip().removeprefix(PREFIX)
    try:
        return PREFIX + programs.quant_types([word])[0]
    except KeyError:
        pass
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]+)", word, re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if not match or not float(match[1]) or unit not in (*_UNITS, _BITS.upper()):
        fix = "--size 3.5GiB, --size Q4_K_M (as large as that type), or --bits 4.5"
        raise UsageError(f"{text!r} is not a size", fix=fix)
    return f"{PREFIX}{float(match[1]):.12g}{_SPELLED.get(unit, _BITS)}"


def is_size(quant_type: str) -> bool:
    """Whether a type stands for the best types of a size."""
    return quant_type.startswith(PREFIX)


def standard(quant_type: str) -> str:
    """Return the standard type that a size is given by, or ""."""
    word = quant_type.removeprefix(PREFIX)
    return word if word in programs.QUANT_TYPES else ""


def in_name(quant_type: str, base: str) -> str:
    """Return what names of files have for a type; `base` is the standard type nearest to a size.

    >>> in_name("size:3.5GiB", "Q4_K_S"), in_name("size:Q4_K_M", ""), in_name("Q4_K_M", "")
    ('3.5GiB-as-Q4_K_S', 'as-Q4_K_M', 'Q4_K_M')
    """
    if not is_size(quant_type):
        return quant_type
    if name := standard(quant_type):
        return f"as-{name}"
    return f"{quant_type.removeprefix(PREFIX)}-as-{base}"


def n_bytes(quant_type: str, n_weights: int, header_bytes: int) -> int:
    """Return the most bytes that a file of a size may have; a standard type has none of its own.

    Bits per weight are over all tensors, as they are shown: the header is not in them.
    """
    match = re.fullmatch(r"([\d.]+)(\w+)", quant_type.removeprefix(PREFIX))
    assert match, quant_type
    if match[2] == _BITS:
        return header_bytes + math.floor(float(match[1]) * n_weights / 8)
    return math.floor(float(match[1]) * _UNITS[match[2].upper()])


def padded(size_bytes: int) -> int:
    """Return the bytes that a tensor takes in a file."""
    return size_bytes + -size_bytes % _ALIGNMENT


def header_bytes(model: Model, imatrix: ImatrixFacts | None, metadata: Mapping[str, str]) -> int:
    """Return the bytes before the tensors of a file that llama-quantize makes.

    ``llama_model_quantize_impl`` copies the pairs of the first file, and sets its own; dimensions
    of 1 at the end are not written (``gguf_write_to_buf``).
    """
    first = read_header(model.path)
    pairs = {key: n for key, n in first.pair_bytes.items() if key not in _SPLIT}
    for key in ("general.quantization_version", "general.file_type"):
        pairs[key] = _key_bytes(key) + 4
    texts = {**metadata, **(_of_imatrix(imatrix) if imatrix else {})}
    for key, text in texts.items():
        pairs[key] = _key_bytes(key) + 8 + min(len(text.encode()), _STRING_MAX)
    if imatrix:
        counts = ["entries_count"] + (["chunks_count"] if imatrix.n_chunks > 0 else [])
        pairs |= {(key := _BY_IMATRIX + name): _key_bytes(key) + 4 for name in counts}
    infos = sum(8 + len(t.name.encode()) + 16 + 8 * _n_dims(t.shape) for t in tensors(model))
    return padded(24 + sum(pairs.values()) + infos)


def fixed_bytes(model: Model, header_bytes: int, chosen: Collection[str]) -> int:
    """Return the bytes of a file without those of the chosen tensors; others stay as they are."""
    others = (padded(t.size_bytes) for t in tensors(model) if t.name not in chosen)
    return header_bytes + sum(others)


def tensors(model: Model) -> Iterable[TensorInfo]:
    """Yield the tensors of a model's files."""
    for path in model.shards:
        yield from read_header(path).tensors


def imatrix_name(imatrix: ImatrixFacts) -> str:
    """Return the name under which llama-quantize is given an imatrix, which the file records."""
    return f"{imatrix.language}.imatrix{'.dat' if imatrix.path.suffix == '.dat' else '.gguf'}"


def _of_imatrix(imatrix: ImatrixFacts) -> dict[str, str]:
    texts = {"file": imatrix_name(imatrix)}
    if datasets := format.read(imatrix.path).datasets:
        texts["dataset"] = datasets[0]
    return {_BY_IMATRIX + key: text for key, text in texts.items()}


def _key_bytes(key: str) -> int:
    """Return the bytes of a key, with its length and the type of its value."""
    return 8 + len(key.encode()) + 4


def _n_dims(shape: tuple[int, ...]) -> int:
    return max((i + 1 for i, n in enumerate(shape) if n > 1), default=1)
