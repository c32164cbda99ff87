"""Sizes as they are asked for, and the names of files."""

import pytest

from imatrix_lab.errors import UsageError
from imatrix_lab.llamacpp import programs, size_types


@pytest.mark.parametrize(
    ("text", "label", "name"),
    [
        ("3.5GiB", "size:3.5GiB", "3.5GiB-as-Q4_K_S"),
        ("3.50 gib", "size:3.5GiB", "3.5GiB-as-Q4_K_S"),
        ("4GB", "size:4GB", "4GB-as-Q4_K_S"),
        ("123456789B", "size:123456789B", "123456789B-as-Q4_K_S"),
        ("4.5bpw", "size:4.5bpw", "4.5bpw-as-Q4_K_S"),
        ("Q4_K", "size:Q4_K_M", "as-Q4_K_M"),
        ("size:q3_k_s", "size:Q3_K_S", "as-Q3_K_S"),
    ],
)
def test_a_size_is_named_in_one_way(text, label, name):
    assert size_types.parse(text) == label == size_types.parse(label) and size_types.is_size(label)
    assert size_types.in_name(label, "Q4_K_S") == name
    # what the Hub and others take for the type of a file is its last word
    assert programs.quant_types([name.rpartition("-")[2]])


@pytest.mark.parametrize("text", ["", "3.5", "0GiB", "GiB", "-1GB", "1e9B", "Q4_K_X", "4.5.1GiB"])
def test_what_is_no_size_is_told(text):
    with pytest.raises(UsageError) as error:
        size_types.parse(text)
    assert "--size" in error.value.fix


def test_bytes_of_a_size():
    assert size_types.n_bytes("size:3.5GiB", 1, 1) == 3.5 * 2**30
    assert size_types.n_bytes("size:4GB", 1, 1) == 4 * 10**9
    assert size_types.n_bytes("size:4.5bpw", 1000, 77) == 77 + 562
    assert size_types.n_bytes("size:1234567890123B", 1, 1) == 1234567890123
