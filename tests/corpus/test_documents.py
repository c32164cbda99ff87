"""Decoding, and gathering paragraphs."""

import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imatrix_lab.corpus import documents, opened
from imatrix_lab.errors import BadText


def test_encoding_errors_name_the_byte():
    with pytest.raises(BadText, match="byte 3"):
        documents.decode(b"abc\xff", "x.txt")
    assert documents.decode("\ufeffa\r\nb\rc".encode(), "x") == "a\nb\nc"


@given(st.binary(max_size=40) | st.text("aß€😀\n\ufeff").map(str.encode), st.integers(4, 9))
def test_lines_are_the_text_or_name_its_first_wrong_byte(tmp_path_factory, raw, bytes_max):
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_bytes(raw)
    assume(opened.is_as_it_is(path))  # neither packed nor UTF-16 by chance
    try:
        wanted = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError) as plain:
            raw.decode()
        with pytest.raises(BadText) as caught:
            list(documents.lines(path, bytes_max))
        assert f"byte {plain.value.start} (line" in caught.value.what
        return
    assert "".join(documents.lines(path, bytes_max)) == wanted
    assert list(filter(None, documents.lines(path))) == list(io.StringIO(wanted, newline="\n"))


def test_tidy_leaves_one_blank_line():
    assert documents.tidy("\n a \r\n\r\n \n\nb\r") == " a\n\nb"


@given(st.lists(st.text("ab", min_size=1, max_size=9), max_size=30), st.integers(1, 40))
def test_gathered_loses_nothing_and_ends_at_the_size(paragraphs, chars):
    found = list(documents.gathered(paragraphs, chars))
    assert [p for f in found for p in f.split(documents.JOINT)] == paragraphs
    assert all(len(f.replace(documents.JOINT, "")) >= chars for f in found[:-1])
