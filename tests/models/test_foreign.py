"""Files that are no GGUF file of ours: what they are called, and that the remedy works."""

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from imatrix_lab.errors import BadModel
from imatrix_lab.models.foreign import require_gguf
from imatrix_lab.models.gguf import read_header

HEADS = {
    b"lmgg\0\0\0\0": "whisper",
    b"tjgg\1\0\0\0": "before GGUF",
    b"version https://git-lfs.github.com/spec/v1\n": "git-lfs",
    b"<!DOCTYPE html><html>": "web page",
    b"Entry not found": "refusal",
    b"PK\x03\x04": "PyTorch",
    b"\x1f\x8b\x08\0\0\0": "compressed",
    struct.pack("<Q", 1000) + b'{"__metadata__"': "safetensors",
    b'{"architectures": ': "JSON",
    bytes(64): "zeros",
    b"": "empty",
    b"GGUF\x01\0\0\0": "version 1",
    b"GGUF\x04\0\0\0": "versions up to 3",
    b"GGUF\0\0\0\x03": "big-endian",
}


@pytest.mark.parametrize("head", HEADS)
def test_what_it_is(head: bytes) -> None:
    with pytest.raises(BadModel) as caught:
        require_gguf(Path("m.gguf"), head)
    assert HEADS[head] in caught.value.what
    assert caught.value.fix and "damaged" not in caught.value.what


@pytest.mark.parametrize("name", ["m.gguf.part1of2", "m.Q4_K_M.gguf.part-a", "m.gguf-split-b"])
def test_a_piece_of_a_file(name: str) -> None:
    for head in (b"GGUF\x03\0\0\0", b"anything"):
        with pytest.raises(BadModel) as caught:
            require_gguf(Path(name), head)
        assert "piece" in caught.value.what and "cat " in str(caught.value.fix)


def test_a_big_endian_file_is_converted_by_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("a.weight", np.arange(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadModel) as caught:
        read_header(path)
    program, *arguments = str(caught.value.fix).partition(",")[0].split()
    argv = [str(Path(sys.executable).with_name(program)), *arguments]
    subprocess.run(argv, cwd=tmp_path, input=b"YES\n", check=True, capture_output=True)
    (tensor,) = read_header(path).tensors
    data = path.read_bytes()[tensor.offset : tensor.offset + tensor.size_bytes]
    assert np.frombuffer(data, "<f4").tolist() == [*range(32)]
