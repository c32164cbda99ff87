"""gguf_file.py: what gguf-py writes is read back; what is damaged costs one clear error."""

import json
import random
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imatrix_lab.errors import BadModel
from imatrix_lab.models.gguf import ArraySummary, GgufHeader, read_header, shard_paths

U32, U64, STRING, ARRAY = 4, 10, 8, 9
SLOWEST_S = 2.0


def write(path: Path, **writer_options: Any) -> Path:
    """A small valid file with every type of value and several types of tensor."""
    writer = gguf.GGUFWriter(path, "toy", **writer_options)
    writer.add_uint8("n.uint8", 255)
    writer.add_int8("n.int8", -128)
    writer.add_uint16("n.uint16", 65_535)
    writer.add_int16("n.int16", -32_768)
    writer.add_uint32("n.uint32", 2**32 - 1)
    writer.add_int32("n.int32", -(2**31))
    writer.add_float32("n.float32", 0.5)
    writer.add_uint64("n.uint64", 2**64 - 1)
    writer.add_int64("n.int64", -(2**63))
    writer.add_float64("n.float64", 1e300)
    writer.add_bool("n.bool", True)
    writer.add_string("s.text", "blåbærsyltetøy, ബ്ലൂബെറി")
    writer.add_array("a.short", [1, 2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_array("a.words", ["én", "to"])
    writer.add_array("a.long", list(range(100)))
    writer.add_array("a.vocabulary", [f"token {i}" for i in range(100)])
    writer.add_tensor("f32.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("f16.bias", np.ones(7, np.float16))
    writer.add_tensor(
        "q8.weight", np.zeros((3, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "valid.gguf").read_bytes()


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, code: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", code) + value


def tensor(
    name: str, shape: tuple[int, ...] = (32,), code: int = 0, offset: int = 0, n_dims: int = -1
) -> bytes:
    n_dims = len(shape) if n_dims < 0 else n_dims
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", n_dims) + dims + struct.pack("<IQ", code, offset)


def blob(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    n_pairs: int = -1,
    n_tensors: int = -1,
    data: int = 4096,
) -> bytes:
    """A file made by hand, with counts that may lie."""
    n_pairs = len(pairs) if n_pairs < 0 else n_pairs
    n_tensors = len(tensors) if n_tensors < 0 else n_tensors
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs)
    return head + b"".join(pairs) + b"".join(tensors) + bytes(data)


ALIGNMENT = "general.alignment"


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", U32, 0)


# name -> the file, and words its error must have
HOSTILE: dict[str, tuple[bytes, str]] = {
    "tensor count 2**63": (blob(n_tensors=2**63), "do not fit"),
    "tensor count just too many": (blob(n_tensors=129), "do not fit"),
    "more pairs than any model has": (blob(n_pairs=1 << 17) + bytes(13 << 17), "do not fit"),
    "pair count 2**60": (blob(n_pairs=2**60), "do not fit"),
    "key length 2**63": (blob((struct.pack("<Q", 2**63),)), "at most"),
    "string length 2**63": (blob((pair("k", STRING, struct.pack("<Q", 2**63)),)), "k"),
    "string longer than the file": (blob((pair("k", STRING, struct.pack("<Q", 5000)),)), "k needs"),
    "array length 2**62": (blob((pair("k", ARRAY, struct.pack("<IQ", U32, 2**62)),)), "elements"),
    "byte array length 2**64 - 1": (
        blob((pair("k", ARRAY, struct.pack("<IQ", 0, 2**64 - 1)),)),
        "elements",
    ),
    "string array length 2**61": (
        blob((pair("k", ARRAY, struct.pack("<IQ", STRING, 2**61)),)),
        "elements",
    ),
    "string array, an element of 2**63": (
        blob((pair("k", ARRAY, struct.pack("<IQQ", STRING, 100, 2**63)),)),
        "k ends in the middle",
    ),
    "arrays 10 000 deep": (blob((pair("k", ARRAY, nested(10_000)),)), "impossible type"),
    "array of an unknown type": (
        blob((pair("k", ARRAY, struct.pack("<IQ", 99, 1)),)),
        "impossible type 99",
    ),
    "empty array of an unknown type": (
        blob((pair("k", ARRAY, struct.pack("<IQ", 99, 0)),)),
        "impossible type 99",
    ),
    "value of an unknown type": (blob((pair("k", 13, bytes(8)),)), "impossible type 13"),
    "value of type 2**32 - 1": (blob((pair("k", 2**32 - 1, bytes(8)),)), "impossible type"),
    "dimensions overflow 64 bits": (
        blob(tensors=(tensor("t", (2**62, 2**62, 2**62, 2**62)),)),
        "truncated",
    ),
    "dimensions whose 64-bit product is 0": (
        blob(tensors=(tensor("t", (2**32, 2**32)),)),
        "truncated",
    ),
    "a dimension of 0": (blob(tensors=(tensor("t", (32, 0)),)), "impossible shape"),
    "no dimensions": (blob(tensors=(tensor("t", ()),)), "0 dimensions"),
    "2**32 - 1 dimensions": (blob(tensors=(tensor("t", (1,), n_dims=2**32 - 1),)), "dimensions"),
    "half a block": (blob(tensors=(tensor("t", (48,), code=8),)), "impossible shape"),
    "alignment 0": (blob((pair(ALIGNMENT, U32, bytes(4)),), (tensor("t"),)), "power of two"),
    "alignment 3": (
        blob((pair(ALIGNMENT, U32, struct.pack("<I", 3)),), (tensor("t"),)),
        "power of two",
    ),
    "alignment 2**31": (
        blob((pair(ALIGNMENT, U32, struct.pack("<I", 2**31)),), (tensor("t"),)),
        "alignment",
    ),
    "alignment is a string": (blob((pair(ALIGNMENT, STRING, text("32")),)), "alignment"),
    "alignment is a truth value": (blob((pair(ALIGNMENT, 7, b"\x01"),)), "alignment"),
    "alignment is an array": (
        blob((pair(ALIGNMENT, ARRAY, struct.pack("<IQI", U32, 1, 32)),)),
        "alignment",
    ),
    "key without a name": (blob((pair("", U32, bytes(4)),)), "empty"),
    "tensor without a name": (blob(tensors=(tensor(""),)), "empty"),
    "tensor of an impossible type": (blob(tensors=(tensor("t", code=2**31),)), "impossible type"),
    "tensor of an unknown type beyond the end": (
        blob(tensors=(tensor("t", offset=2**40, code=153),)),
        "impossible type",
    ),
    "key twice": (blob((pair("k", 0, b"\0"), pair("k", 0, b"\0"))), "'k' occurs twice"),
    "tensor twice": (blob(tensors=(tensor("t"), tensor("t", offset=128))), "'t' occurs twice"),
    "offset beyond the end": (blob(tensors=(tensor("t", offset=2**40),)), "truncated"),
    "offset and size wrap": (blob(tensors=(tensor("t", offset=2**64 - 128),)), "truncated"),
    "offset off the alignment": (blob(tensors=(tensor("t", offset=8),)), "alignment"),
    "tensors overlap": (blob(tensors=(tensor("t"), tensor("u", offset=96))), "overlap"),
    "tensors in one place": (blob(tensors=(tensor("t"), tensor("u"))), "overlap"),
    "tensors overlap, last first": (
        blob(tensors=(tensor("t", offset=64), tensor("u", offset=0))),
        "overlap",
    ),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "version 2**32 - 1": (b"GGUF" + struct.pack("<IQQ", 2**32 - 1, 0, 0), "not exist"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "another format": (b"PK\x03\x04" + bytes(100), "PyTorch"),
    "empty": (b"", "empty"),
    "no more than a magic": (b"GGUF\x03\0\0\0", "truncated"),
}


def outcome(path: Path) -> GgufHeader | BadModel:
    """The header or the error; whatever else is raised fails the test. Never slow."""
    began = time.monotonic()
    try:
        found: GgufHeader | BadModel = read_header(path)
    except BadModel as error:
        found = error
    took_s = time.monotonic() - began
    assert took_s < SLOWEST_S, f"{took_s:.1f} s for {found}"
    if isinstance(found, BadModel):
        assert len(str(found)) < 2000
    else:
        size_bytes = path.stat().st_size
        assert all(t.offset + t.size_bytes <= size_bytes for t in found.tensors)
    return found


def test_metadata_of_every_type(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "model.gguf"))
    scalars = {k: v for k, v in header.metadata.items() if k.startswith("n.")}
    assert scalars == {
        "n.uint8": 255,
        "n.int8": -128,
        "n.uint16": 65_535,
        "n.int16": -32_768,
        "n.uint32": 2**32 - 1,
        "n.int32": -(2**31),
        "n.float32": 0.5,
        "n.uint64": 2**64 - 1,
        "n.int64": -(2**63),
        "n.float64": 1e300,
        "n.bool": True,
    }
    assert header.metadata["n.bool"] is True
    assert header.text("general.architecture") == "toy"
    assert header.text("s.text") == "blåbærsyltetøy, ബ്ലൂബെറി"
    assert header.text("n.uint8", "none") == "none"
    assert header.integer("n.int16") == -32_768
    assert header.integer("n.bool", 7) == 7
    assert header.integer("absent", 7) == 7
    codes = [header.types[k][0] for k in scalars]
    assert codes == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 7]


def test_short_arrays_are_kept_and_long_ones_summarised(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    header = read_header(path)
    assert header.metadata["a.short"] == [1, 2, 3]
    assert header.metadata["a.floats"] == [0.5, -0.25]
    assert header.metadata["a.words"] == ["én", "to"]
    assert header.metadata["a.long"] == ArraySummary(5, 100)
    assert header.metadata["a.vocabulary"] == ArraySummary(STRING, 100)
    assert header.types["a.short"] == (ARRAY, 5)
    assert header.types["a.vocabulary"] == (ARRAY, STRING)
    kept = read_header(path, keep_arrays=True)
    assert kept.metadata["a.long"] == list(range(100))
    assert kept.metadata["a.vocabulary"] == [f"token {i}" for i in range(100)]
    assert kept.types == header.types


def test_tensors_as_gguf_py_reads_them(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    theirs = {
        t.name: (tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in gguf.GGUFReader(path).tensors
    }
    ours = {
        t.name: (t.shape, t.type_name, t.offset, t.size_bytes) for t in read_header(path).tensors
    }
    assert ours == theirs
    assert ours["f32.weight"][:2] == ((32, 2), "F32")
    assert ours["q8.weight"][:2] == ((32, 3), "Q8_0")
    assert {t.name: t.n_elements for t in read_header(path).tensors}["q8.weight"] == 96


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "toy")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = read_header(path).tensors
    assert first.offset % 256 == 0
    assert second.offset == first.offset + 256
    raw = path.read_bytes()[second.offset : second.offset + second.size_bytes]
    assert np.frombuffer(raw, np.float32).tolist() == [0, 1, 2]


def test_a_valid_file_made_by_hand_is_accepted(tmp_path: Path) -> None:
    """Else the hostile ones might be refused for another reason than theirs."""
    path = tmp_path / "model.gguf"
    pairs = (pair("k", U64, bytes(8)), pair(ALIGNMENT, U32, struct.pack("<I", 64)))
    path.write_bytes(blob(pairs, (tensor("t"), tensor("u", offset=128))))
    assert [t.name for t in read_header(path).tensors] == ["t", "u"]


def test_a_split_model(tmp_path: Path) -> None:
    write(tmp_path / "toy.gguf", split_max_tensors=1)
    names = [f"toy-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    wanted = tuple(tmp_path / n for n in names)
    assert all(shard_paths(path) == wanted for path in wanted)
    headers = [read_header(path) for path in wanted]
    assert [h.integer("split.count") for h in headers] == [3, 3, 3]
    assert [t.name for h in headers for t in h.tensors] == ["f32.weight", "f16.bias", "q8.weight"]
    wanted[1].unlink()
    with pytest.raises(BadModel, match=r"1 of 3 parts.*toy-00002-of-00003"):
        shard_paths(wanted[2])


def test_a_model_that_is_not_split(tmp_path: Path) -> None:
    path = tmp_path / "model-1-of-3.gguf"
    assert shard_paths(path) == (path,)


def test_types_that_are_not_known_here_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "ik.gguf"
    parts = (tensor("last", (64, 4), 153, 288), tensor("b"), tensor("a", (64,), 4, 128))
    path.write_bytes(blob(tensors=parts, data=4096))
    header = read_header(path)
    assert {t.name: t.type_name for t in header.tensors} == {
        "last": "type 153", "b": "F32", "a": "type 4"
    }  # fmt: skip
    sizes = {t.name: t.size_bytes for t in header.tensors}
    assert sizes["a"] == 288 - 128
    last = next(t for t in header.tensors if t.name == "last")
    assert last.offset + last.size_bytes == path.stat().st_size


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    raw, words = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw)
    found = outcome(path)
    assert isinstance(found, BadModel), f"accepted: {found}"
    assert words in found.what
    assert str(path) in str(found)


def test_truncated(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    lengths = random.Random(1).sample(range(200, len(valid)), 50)
    for length in [*range(200), *lengths]:
        path.write_bytes(valid[:length])
        found = outcome(path)
        padding = len(valid) - length < 32  # after the last tensor
        assert isinstance(found, BadModel) or padding, f"accepted at {length} of {len(valid)} bytes"


def test_flipped_bytes(valid: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flipped.gguf"
    outcomes = []
    for at in range(300):
        for mask in (0x01, 0x80, 0xFF):
            raw = bytearray(valid)
            raw[at] ^= mask
            path.write_bytes(raw)
            outcomes.append(type(outcome(path)))
    assert {GgufHeader, BadModel} == set(outcomes)
    assert outcomes[: 3 * 4] == [BadModel] * 12  # the magic


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    tail=st.binary(max_size=300),
    keep=st.integers(0, 700),
    n_pairs=st.integers(0, 30),
    n_tensors=st.integers(0, 5),
)
def test_anything_after_a_valid_beginning(
    valid: bytes, tmp_path: Path, tail: bytes, keep: int, n_pairs: int, n_tensors: int
) -> None:
    path = tmp_path / "random.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs)
    path.write_bytes(head + valid[24 : 24 + keep] + tail + bytes(200))
    outcome(path)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(blob((pair("\x1b[2J\x1b]0;owned\x07", 99, b""),)))
    found = outcome(path)
    assert isinstance(found, BadModel)
    assert "\x1b" not in str(found)
    assert "\x07" not in str(found)


def test_an_endless_name_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(blob((pair("k" * 60_000, 99, b""),), data=100_000))
    assert isinstance(outcome(path), BadModel)  # outcome() bounds the message


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file.gguf"
    file.write_bytes(b"x")
    loop = tmp_path / "loop.gguf"
    loop.symlink_to(loop)
    for path, words in {
        tmp_path / "absent.gguf": "no such file",
        tmp_path: "cannot be read",
        file / "inside.gguf": "cannot be read",
        loop: "cannot be read",
        tmp_path / ("x" * 300): "cannot be read",
    }.items():
        with pytest.raises(BadModel, match=words):
            read_header(path)


_BOUNDED = textwrap.dedent(
    """
    import json, resource, sys, time
    from pathlib import Path
    import gguf.constants
    from imatrix_lab.errors import BadModel
    from imatrix_lab.models.gguf import read_header
    resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)
    for name in sys.argv[1:]:
        began = time.monotonic()
        try:
            read_header(Path(name))
            found = "accepted"
        except BadModel as error:
            found = "BadModel"
        except BaseException as error:
            found = repr(error)
        print(json.dumps([Path(name).name, found, time.monotonic() - began]), flush=True)
    """
)


def sparse(path: Path, head: bytes, size_bytes: int) -> Path:
    """A large file of zeros after its head, as a preallocated download leaves one."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size_bytes)
    return path


def test_memory_and_time_are_bounded(tmp_path: Path) -> None:
    """Absurd counts, and large files that would hold what they claim, in 1.5 GB."""
    paths = []
    for i, (raw, _) in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(raw)
    large = 900 << 20
    claims = {
        "string": pair("k", STRING, struct.pack("<Q", 600 << 20)),
        "strings": pair("k", ARRAY, struct.pack("<IQ", STRING, 100 << 20)),
        "arrays": pair("k", ARRAY, struct.pack("<IQ", ARRAY, 70 << 20)),
        "pairs": b"",
    }
    for name, raw in claims.items():
        n_pairs = 60 << 20 if name == "pairs" else -1
        head = blob((raw,), n_pairs=n_pairs, data=0)
        paths.append(sparse(tmp_path / f"{name}.gguf", head, large))
    paths.append(
        sparse(tmp_path / "tensors.gguf", blob(n_pairs=0, n_tensors=25 << 20, data=0), large)
    )
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(paths)
    assert [f for f in found if f[1] != "BadModel" or f[2] >= SLOWEST_S] == []
