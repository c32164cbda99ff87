"""Token and item records: Parquet files whose metadata says what was measured, with what.

The metadata is one JSON object, the signature. Numbers cannot be written without it. Pages have
checksums; for what these do not cover (the file's footer says which page is what) there are digests
of the columns as they are read.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from imatrix_lab.core.files import canonical_json, from_json
from imatrix_lab.errors import BadRecords

_UNSIGNED = "this file has no signature: imatrix-lab did not write it"
_LEAVE_OUT = "leave this file out, or put it in another folder"
_AGAIN = "score again, or fetch this file again"
_KEY, _DIGESTS = b"imatrix_lab", b"imatrix_lab.digests"


@dataclass(frozen=True)
class Coded:
    """A column of few distinct words: row i is ``names[codes[i]]``; codes are int32 (n,)."""

    codes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The records of a file: equally long columns by name (words are `Coded`), and the signature.

    The signature has models, text, protocol, toolchain and versions.
    """

    columns: Mapping[str, np.ndarray | Coded]
    signature: dict[str, Any]

    def __len__(self) -> int:
        first = next(iter(self.columns.values()), np.empty(0))
        return len(first.codes if isinstance(first, Coded) else first)

    def array(self, name: str) -> np.ndarray:
        """Return a column of numbers; BadRecords: there is none of this name."""
        column = self.columns.get(name)
        if column is None or isinstance(column, Coded) or column.dtype.kind not in "biuf":
            raise BadRecords(f"these records have no numbers {name!r}")
        return column

    def words(self, name: str) -> Coded:
        """Return a column of words; BadRecords: there is none of this name."""
        column = self.columns.get(name)
        if not isinstance(column, Coded):
            raise BadRecords(f"these records have no words {name!r}")
        return column


def write(
    path: Path, columns: Mapping[str, np.ndarray | Coded], signature: Mapping[str, Any]
) -> None:
    """Write equally long columns; the same records give the same bytes."""
    arrays = {
        name: pyarrow.DictionaryArray.from_arrays(column.codes, list(column.names))
        if isinstance(column, Coded)
        else pyarrow.array(column)
        for name, column in columns.items()
    }
    signed = canonical_json(dict(signature)).encode()
    digests = canonical_json(_digests(signed, columns)).encode()
    table = pyarrow.table(arrays, metadata={_KEY: signed, _DIGESTS: digests})
    # floats have no repeats worth a dictionary; ids do, or are nearly sorted
    floats = {f.name for f in table.schema if pyarrow.types.is_floating(f.type)}
    pyarrow.parquet.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=[name for name in arrays if name not in floats],
        use_byte_stream_split=sorted(floats),
        write_page_checksum=True,
    )


def read(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Return the records of a file, or only some columns; BadRecords: it does not have them."""
    try:
        if missing := set(columns or ()) - set(pyarrow.parquet.read_schema(path).names):
            raise BadRecords(f"these records have no {', '.join(sorted(missing))}", where=path)
        table = pyarrow.parquet.read_table(
            path,
            columns=None if columns is None else list(columns),
            memory_map=True,
            page_checksum_verification=True,
        )
        metadata = table.schema.metadata or {}
        signature = from_json(metadata[_KEY])
        read_columns = {name: _column(table.column(name)) for name in table.column_names}
        if _DIGESTS in metadata:  # not in files of earlier versions
            written = from_json(metadata[_DIGESTS])
            if not _digests(metadata[_KEY], read_columns).items() <= written.items():
                raise BadRecords(
                    "these records are damaged: not as they were written", where=path, fix=_AGAIN
                )
    except FileNotFoundError as error:
        raise BadRecords("no such file", where=path, fix="check the path") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if other := _other_than_parquet(path):
            fix = "name the *.parquet that score run or task run wrote"
            raise BadRecords(f"not a file of records, but {other}", where=path, fix=fix) from error
        what = f"these records cannot be read: {error}"
        raise BadRecords(what, where=path, fix=_AGAIN) from error
    except KeyError as error:
        raise BadRecords(_UNSIGNED, where=path, fix=_LEAVE_OUT) from error
    except AttributeError as error:
        raise BadRecords(
            "these records are damaged: their digests are none", where=path, fix=_AGAIN
        ) from error
    if not isinstance(signature, dict):
        raise BadRecords(_UNSIGNED, where=path, fix=_LEAVE_OUT)
    return Table(read_columns, signature)


def _other_than_parquet(path: Path) -> str:
    """Return what a file is that does not begin like Parquet; "" if it does, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return ""
    if start == b"PAR1":
        return ""
    return "a GGUF file, a model or an imatrix" if start == b"GGUF" else "a file that is no Parquet"


def _digests(signed: bytes, columns: Mapping[str, np.ndarray | Coded]) -> dict[str, int]:
    """Return checksums of the signature (under "") and of each column's type and values."""
    digests = {"": zlib.crc32(signed)}
    for name, column in columns.items():
        values = column.codes if isinstance(column, Coded) else np.asarray(column)
        names = json.dumps(column.names if isinstance(column, Coded) else str(values.dtype))
        digests[name] = zlib.crc32(names.encode(), zlib.crc32(np.ascontiguousarray(values).data))
    return digests


def _column(chunks: Any) -> np.ndarray | Coded:
    column = chunks.combine_chunks()
    if pyarrow.types.is_string(column.type):
        column = column.dictionary_encode()
    if not pyarrow.types.is_dictionary(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return Coded(codes, tuple(column.dictionary.to_pylist()))


def export_csv(path: Path, out: IO[bytes]) -> None:
    """Write records as CSV, UTF-8, with a header; floats with all of their digits."""
    read(path)  # raises on files that are not records, and on damaged ones
    with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        options = pyarrow.csv.WriteOptions(quoting_style="needed")
        with pyarrow.csv.CSVWriter(out, _plain(file.schema_arrow), write_options=options) as writer:
            for batch in file.iter_batches():
                writer.write_batch(batch.cast(_plain(batch.schema)))


def _plain(schema: Any) -> Any:
    """Return a schema with words in place of codes."""
    return pyarrow.schema(
        (f.name, f.type.value_type if pyarrow.types.is_dictionary(f.type) else f.type)
        for f in schema
    )
