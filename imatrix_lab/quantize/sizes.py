"""Sizes of files as llama-quantize will make them, to the byte."""

from collections.abc import Collection, Iterable, Mapping

from imatrix_lab.core import paths
from imatrix_lab.imatrix import format
from imatrix_lab.models.gguf import TensorInfo, read_header
from imatrix_lab.quantize.metadata import Value, size_bytes
from imatrix_lab.types import ImatrixFacts, Model

_ALIGNMENT = 32
"""Of tensors in files that llama-quantize makes, whatever its input has."""
_SPLIT = ("split.no", "split.count", "split.tensors.count")
_BY_IMATRIX = "quantize.imatrix."


def padded(size_bytes: int) -> int:
    """Return the bytes that a tensor takes in a file."""
    return size_bytes + -size_bytes % _ALIGNMENT


def header_bytes(model: Model, imatrix: ImatrixFacts | None, metadata: Mapping[str, Value]) -> int:
    """Return the bytes before the tensors of a file that llama-quantize makes.

    ``llama_model_quantize_impl`` copies the pairs of the first file, and sets its own; dimensions
    of 1 at the end are not written (``gguf_write_to_buf``).
    """
    first = read_header(model.path)
    pairs = {key: n for key, n in first.pair_bytes.items() if key not in _SPLIT}
    for key in ("general.quantization_version", "general.file_type"):
        pairs[key] = _key_bytes(key) + 4
    for key, value in {**metadata, **(_of_imatrix(imatrix) if imatrix else {})}.items():
        pairs[key] = _key_bytes(key) + size_bytes(value)
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
        texts["dataset"] = paths.without_folders(datasets[0])
    return {_BY_IMATRIX + key: text for key, text in texts.items()}


def _key_bytes(key: str) -> int:
    """Return the bytes of a key, with its length and the type of its value."""
    return 8 + len(key.encode()) + 4


def _n_dims(shape: tuple[int, ...]) -> int:
    return max((i + 1 for i, n in enumerate(shape) if n > 1), default=1)
