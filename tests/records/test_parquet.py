"""Records keep their signature, their bytes, and their words."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from imatrix_lab.errors import BadRecords
from imatrix_lab.records import parquet

COLUMNS = {
    "doc_id": parquet.Coded(np.array([0, 0, 1], np.int32), ("a/1", "b/2")),
    "kld": np.array([0.5, np.nan, 0.25], np.float32),
    "parsed": np.array([True, False, True]),
}


def test_round_trip_is_exact_and_signed(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write(path, COLUMNS, {"quant": {"sha256": "ab"}})
    records = parquet.read(path)
    assert len(records) == 3
    assert records.signature == {"quant": {"sha256": "ab"}}
    assert records.words("doc_id").names == ("a/1", "b/2")
    assert records.words("doc_id").codes.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(records.array("kld"), COLUMNS["kld"])
    assert records.array("parsed").tolist() == [True, False, True]


def test_same_records_same_bytes(tmp_path):
    for name in "ab":
        parquet.write(tmp_path / name, COLUMNS, {"z": 1, "a": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_some_columns(tmp_path):
    parquet.write(tmp_path / "x", COLUMNS, {})
    assert list(parquet.read(tmp_path / "x", ["kld"]).columns) == ["kld"]
    with pytest.raises(BadRecords) as caught:
        parquet.read(tmp_path / "x", ["kld", "nll"])
    assert "nll" in caught.value.what and caught.value.where == str(tmp_path / "x")


def test_plain_strings_are_words_too(tmp_path):
    table = pyarrow.table({"task": ["b", "a", "b"]}).replace_schema_metadata({"imatrix_lab": "{}"})
    pyarrow.parquet.write_table(table, tmp_path / "x")
    words = parquet.read(tmp_path / "x").words("task")
    assert [words.names[c] for c in words.codes] == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("missing", "no such file"), ("not parquet", "cannot be read"), ("cut", "cannot be read"),
        ("a model", "but a GGUF file"), ("a text", "but a file that is no Parquet"),
        ("unsigned", "no signature: imatrix-lab did not write it"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(tmp_path, what, said):
    path = tmp_path / "x.parquet"
    parquet.write(path, COLUMNS, {})
    if what == "missing":
        path.unlink()
    elif what == "not parquet":
        path.write_bytes(b"PAR1 and so on")
    elif what == "a model":
        path.write_bytes(b"GGUF and so on")
    elif what == "a text":
        path.write_text("a b c")
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"kld": [1.0]}), path)
    with pytest.raises(BadRecords) as error:
        parquet.read(path)
    assert said in error.value.what
    assert error.value.where == str(path)
    assert error.value.fix


def test_no_changed_byte_gives_other_numbers(tmp_path):
    rng, path, changed = np.random.default_rng(1), tmp_path / "x", tmp_path / "y"
    kld = rng.standard_normal(300).astype(np.float32)
    parquet.write(path, {"kld": kld, "pos": np.arange(300)}, {"quant": {"sha256": "ab"}})
    raw = path.read_bytes()
    refused = 0
    for place in rng.choice(len(raw), 300, replace=False):
        data = bytearray(raw)
        data[place] ^= 1 << rng.integers(8)
        changed.write_bytes(data)
        try:
            records = parquet.read(changed)
        except BadRecords:
            refused += 1
            continue
        np.testing.assert_array_equal(records.array("kld"), kld)
        np.testing.assert_array_equal(records.array("pos"), np.arange(300))
        assert records.signature == {"quant": {"sha256": "ab"}}
    assert refused > 250


def test_a_column_of_another_kind_is_said(tmp_path):
    words = parquet.Coded(np.array([0], np.int32), ("x",))
    parquet.write(tmp_path / "x", {"kld": words, "doc_id": np.array([0.5])}, {})
    table = parquet.read(tmp_path / "x")
    for read, name in ((table.array, "kld"), (table.words, "doc_id"), (table.words, "absent")):
        with pytest.raises(BadRecords, match=name):
            read(name)


@pytest.mark.parametrize("signature", ["[]", "7", "[" * 100_000, "null"])
def test_a_signature_that_is_no_table(tmp_path, signature):
    table = pyarrow.table({"kld": [1.0]}).replace_schema_metadata({"imatrix_lab": signature})
    pyarrow.parquet.write_table(table, tmp_path / "x")
    with pytest.raises(BadRecords):
        parquet.read(tmp_path / "x")
