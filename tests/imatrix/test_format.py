"""Both formats, against the files of llama-imatrix itself; and whatever else arrives."""

import contextlib
import dataclasses
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imatrix_lab.errors import BadImatrix, DiskFull
from imatrix_lab.imatrix import align, format, statistics, validate
from imatrix_lab.imatrix.format import Imatrix
from tests.imatrix.made_up import entry

SMALL = Imatrix({"a": entry([1, 2], [8]), "b": entry([1, 0, 0, 3], [8, 0])}, ("x",), 2, 4)


@pytest.fixture(params=["dense", "moe"])
def source(request, made):
    return made[request.param]["b"]


def converted(llama_imatrix, source, target):
    form = ("--output-format", target.suffix[1:])
    llama_imatrix("-m", "none", "--in-file", source, "-o", target, *form)
    return target.read_bytes()


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_what_we_write_is_llama_imatrix_byte_for_byte(source, llama_imatrix, tmp_path, suffix):
    theirs = converted(llama_imatrix, source, tmp_path / f"theirs.{suffix}")
    format.write(tmp_path / f"ours.{suffix}", format.read(source))
    assert (tmp_path / f"ours.{suffix}").read_bytes() == theirs


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_a_dat_is_read_as_llama_imatrix_reads_it(source, llama_imatrix, tmp_path, suffix):
    """It takes windows of ``-c`` tokens, here as long as `format.LEGACY_WINDOW`."""
    dat = tmp_path / "a.dat"
    format.write(dat, format.read(source))
    wide = ("-c", format.LEGACY_WINDOW, "-b", format.LEGACY_WINDOW)
    theirs = tmp_path / f"theirs.{suffix}"
    llama_imatrix("-m", "none", "--in-file", dat, "-o", theirs, "--output-format", suffix, *wide)
    format.write(tmp_path / f"ours.{suffix}", format.read(dat))
    assert (tmp_path / f"ours.{suffix}").read_bytes() == theirs.read_bytes()


def test_experts_have_counts_of_their_own(made):
    found = format.read(made["moe"]["b"]).entries["blk.0.ffn_up_exps.weight"]
    assert found.sums.shape == (8, 256) and found.counts.shape == (8,)
    assert found.counts.sum() == 2 * 3 * 128  # two experts a token


def test_a_dat_keeps_the_means_and_forgets_who_was_not_hit(tmp_path):
    format.write(tmp_path / "x.dat", SMALL)
    back = format.read(tmp_path / "x.dat")
    assert back.legacy and back.datasets == ("x",) and back.chunk_count == 2
    assert np.allclose(back.entries["a"].means(), SMALL.entries["a"].means(), rtol=1e-6)
    split = back.entries["b"].split(2)
    assert np.allclose(split.means()[0], [1 / 8, 0], rtol=1e-6)
    assert (back.entries["b"].means()[0, 2:] == 1).all()  # as llama-quantize takes them
    assert split.counts.tolist() == [2 * format.LEGACY_WINDOW, 0] and not split.sums[1].any()


def test_a_dat_of_an_old_version_ends_after_its_entries(tmp_path):
    path = tmp_path / "x.dat"
    format.write(path, SMALL)
    path.write_bytes(path.read_bytes()[: -4 - 4 - 1])
    assert format.read(path).chunk_count == 2 and format.read(path).datasets == ()


def test_metadata_come_back_and_no_dataset_is_still_a_key(tmp_path):
    path = tmp_path / "i.gguf"
    format.write(path, Imatrix(SMALL.entries, (), 2, 4), {"imatrix_lab.language": "nb"})
    back = format.read(path)
    assert back.language == "nb" and back.metadata == {"imatrix_lab.language": "nb"}
    assert back.complete and back.datasets == ()
    for name, e in SMALL.entries.items():
        assert np.array_equal(back.entries[name].sums, e.sums)
        assert np.array_equal(back.entries[name].counts, e.counts)


def test_a_file_of_ours_has_a_checksum(tmp_path):
    whole = tmp_path / "i.gguf"
    format.write(whole, SMALL, {"imatrix_lab.language": "nb"})
    raw, read = whole.read_bytes(), format.read(whole)
    key = raw.index(format.CRC32.encode())
    assert raw.count(format.CRC32.encode()) == 1 and format.CRC32 not in read.metadata
    changed = tmp_path / "changed.gguf"
    for at in set(range(len(raw))) - set(range(key, key + len(format.CRC32))):
        changed.write_bytes(raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1 :])
        with pytest.raises(BadImatrix):
            format.read(changed)
    format.write(changed, read)
    assert changed.read_bytes() == raw


def test_a_file_is_read_whole_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "a.gguf", []
    format.write(path, SMALL, {"imatrix_lab.language": "nb"})
    of_file = format._crc32
    monkeypatch.setattr(format, "_crc32", lambda header: read.append(1) or of_file(header))
    for n in (1, 2):  # its time is of now
        format.read(path)
        assert len(read) == n
    os.utime(path, (1e9, 1e9))
    format.read(path)
    format.read(path)
    assert len(read) == 3
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadImatrix, match="checksum"):
        format.read(path)


def test_who_changes_metadata_is_told_how_to_go_on(tmp_path):
    ours, edited, mended = (tmp_path / f"{name}.gguf" for name in ("ours", "e d", "NEW"))
    format.write(ours, SMALL, {"imatrix_lab.language": "nb"})
    program = Path(sys.executable).with_name("gguf-new-metadata")
    change = [program, "--general-description", "x", ours, edited]
    subprocess.run(change, check=True, capture_output=True)
    with pytest.raises(BadImatrix) as error:
        format.read(edited)
    remedy = shlex.split(error.value.fix.partition(": ")[2])
    argv = [program, *remedy[1:]]
    subprocess.run(argv, input=b"YES\n", check=True, capture_output=True, cwd=tmp_path)
    assert format.read(mended).language == "nb"


def test_not_an_imatrix(tiny, tmp_path):
    (tmp_path / "text").write_text("some text, of some length, that is no imatrix at all")
    for path in (tiny, tmp_path / "text", tmp_path / "nothing", tmp_path):
        with pytest.raises(BadImatrix) as error:
            format.read(path)
        assert error.value.where == str(path)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(0, 2**31 - 1), (4, 2**31 - 1), (13, 2**31 - 1), (9, 0), (9, -3)],
    ids=["entries", "name length", "values", "no calls", "negative calls"],
)
def test_an_impossible_number_is_refused_before_memory_is_taken(tmp_path, offset, value):
    path = tmp_path / "x.dat"
    format.write(path, SMALL)
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(raw)
    with pytest.raises(BadImatrix) as error:
        format.read(path)
    assert error.value.where == str(path)


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_every_truncation_is_refused(tmp_path, suffix):
    whole = tmp_path / f"x.{suffix}"
    format.write(whole, SMALL)
    raw = whole.read_bytes()
    torn = tmp_path / "torn"
    no_trailer = len(raw) - 4 - 4 - 1  # a whole .dat of an old version
    for length in range(len(raw)):
        torn.write_bytes(raw[:length])
        if (suffix == "dat" and length == no_trailer) or _only_padding(raw, length, suffix):
            assert format.read(torn).entries.keys() == SMALL.entries.keys()
            continue
        with pytest.raises(BadImatrix):
            format.read(torn)


def _only_padding(raw: bytes, length: int, suffix: str) -> bool:
    """The last tensor of the GGUF, two float32, is padded to 32 bytes."""
    return suffix == "gguf" and length >= len(raw) - 32 + 8


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_bits_and_bytes_give_a_clear_error_or_a_file(tmp_path, suffix, data):
    whole = tmp_path / f"x.{suffix}"
    if not whole.exists():
        format.write(whole, SMALL)
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    bad = tmp_path / "bad"
    bad.write_bytes(raw)
    try:
        found = format.read(bad)
    except BadImatrix:
        return
    for e in found.entries.values():
        assert e.sums.shape[0] == e.counts.size
    validate.check(found)  # whatever the values
    statistics.of(found)
    for name in ("again.gguf", "again.dat"):
        with contextlib.suppress(BadImatrix):
            format.write(tmp_path / name, found)
            format.read(tmp_path / name)


def test_noise_is_no_dat(tmp_path):
    rng = random.Random(3)
    for _ in range(300):
        path = tmp_path / "noise"
        path.write_bytes(rng.randbytes(rng.randint(0, 200)))
        with pytest.raises(BadImatrix):
            format.read(path)


def test_a_full_disk_leaves_the_old_file(small_disk):
    path = small_disk / "i.gguf"
    format.write(path, SMALL)
    before = path.read_bytes()
    large = Imatrix({"a": entry(np.ones(2_000_000), [1])}, ("x",), 1, 1)
    with pytest.raises(DiskFull):
        format.write(path, large)
    assert path.read_bytes() == before and [p.name for p in small_disk.iterdir()] == ["i.gguf"]


def test_counts_that_llama_cpp_would_round_are_rounded_with_their_sums():
    found = entry([3, 6, 1, 1], [2.5, 0.2]).whole()
    assert found.counts.tolist() == [3, 1]
    assert np.allclose(found.means(), [[1.2, 2.4], [5, 5]])
    assert SMALL.entries["b"].whole() is SMALL.entries["b"]


def test_names_tell_files_apart(tmp_path):
    plain, nb = Imatrix({}, (), 0, 0), Imatrix({}, (), 0, 0, "nb")
    one, other = tmp_path / "x" / "a.gguf", tmp_path / "y" / "a.gguf"
    assert align.labels([(one, nb), (tmp_path / "b.gguf", plain)]) == ["a", "b"]
    assert align.labels([(one, nb), (other, Imatrix({}, (), 0, 0, "en"))]) == ["nb", "en"]
    assert align.labels([(one, nb), (other, nb)]) == [str(one), str(other)]


def written_with_sizes(path, add):
    """Write SMALL by gguf-py, its two sizes as another program would have them."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", [f"text {i}" for i in range(100)])
    add(writer, "imatrix.chunk_count", 2)
    add(writer, "imatrix.chunk_size", 4)
    for name, e in SMALL.entries.items():
        writer.add_tensor(f"{name}.in_sum2", e.sums)
        writer.add_tensor(f"{name}.counts", e.counts[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return format.read(path)


def test_sizes_of_a_type_at_which_llama_quantize_aborts_are_no_sizes(tmp_path):
    writer = gguf.GGUFWriter
    for add in (writer.add_int32, writer.add_uint64):
        found = written_with_sizes(tmp_path / "i.gguf", add)
        assert not found.complete and found.chunk_count == 0
        assert "metadata" in {f.kind for f in validate.check(found).of("error")}
    found = written_with_sizes(tmp_path / "i.gguf", writer.add_uint32)
    assert found.complete and (found.chunk_count, found.chunk_size) == (2, 4)


def test_many_datasets_come_back(tmp_path):
    found = written_with_sizes(tmp_path / "i.gguf", gguf.GGUFWriter.add_uint32)
    format.write(tmp_path / "again.gguf", found)
    again = format.read(tmp_path / "again.gguf")
    assert again.datasets == found.datasets == tuple(f"text {i}" for i in range(100))


def test_numbers_beyond_a_format_are_cut_or_refused(tmp_path):
    format.write(tmp_path / "x.gguf", dataclasses.replace(SMALL, chunk_count=2**40))
    assert format.read(tmp_path / "x.gguf").chunk_count == 2**32 - 1
    for count in (1e30, np.nan, np.inf):
        odd = dataclasses.replace(SMALL, entries={"a": entry([1, 2], [count])})
        with pytest.raises(BadImatrix, match=r"^a "):
            format.write(tmp_path / "x.dat", odd)
    assert not (tmp_path / "x.dat").exists()
