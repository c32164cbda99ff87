"""Segments against one plain run of llama-imatrix, killed or not."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, BadText
from imatrix_lab.imatrix import collect, format
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, Request
from tests import tiny_model

COMMAND = [str(Path(sys.executable).parent / "imatrix-lab"), "imatrix", "build"]


def request(model, text, **rest):
    settings = {"n_tokens": 10**6, "n_ctx": 128, "threads": 1} | rest
    names = {f.name for f in dataclasses.fields(ComputeOptions)} & settings.keys()
    compute = ComputeOptions("cpu", **{name: settings.pop(name) for name in names})
    return Request(str(text), (), str(model), out=Path(), compute=compute, **settings)


def plain_run(tools, model, text, out, *extra):
    """The whole text through llama-imatrix itself, in one go."""
    argv = [tools.program("llama-imatrix"), "-m", model, "-f", text, "-o", out, "-t", "1"]
    subprocess.run(
        [*map(str, argv), "-c", "128", "-b", "128", *extra], check=True, capture_output=True
    )
    return format.read(out).entries


def same(ours, theirs):
    assert ours.keys() == theirs.keys() and ours
    for name, e in theirs.items():
        assert np.array_equal(ours[name].sums, e.sums), name
        assert np.array_equal(ours[name].counts, e.counts), name


@pytest.mark.parametrize("experts", [0, 4])
def test_segments_equal_one_run_bit_for_bit(tools, tmp_path, own_text, monkeypatch, experts):
    monkeypatch.setattr(collect, "SEGMENT_WINDOWS", 4)
    model = tiny_model.write(tmp_path / "m.gguf", experts=experts)
    text = own_text(11 * 128 + 5)
    made = tune.imatrix(request(model, text), tmp_path / "i.gguf", Session(Store(), Silent()))
    same(format.read(made).entries, plain_run(tools, model, text, tmp_path / "plain.gguf"))
    if experts:
        assert any(e.counts.size == experts for e in format.read(made).entries.values())


@pytest.mark.parametrize("n_ctx", [144, 520])
def test_windows_of_odd_length_are_counted_whole(tools, tiny, tmp_path, own_text, n_ctx):
    build = request(tiny, own_text(3 * n_ctx), n_ctx=n_ctx)
    found = format.read(tune.imatrix(build, tmp_path / "i.gguf", Session(Store(), Silent())))
    assert {e.counts[0] for e in found.entries.values()} == {3 * n_ctx}


def test_several_windows_at_once(tools, tiny, tmp_path, own_text):
    build = request(tiny, own_text(11 * 128), n_batch=512)
    found = format.read(tune.imatrix(build, tmp_path / "i.gguf", Session(Store(), Silent())))
    assert {e.counts[0] for e in found.entries.values()} == {11 * 128}


def test_a_relative_path_and_one_with_a_space_and_a_comma(
    tools, tiny, tmp_path, own_text, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my, models").mkdir()
    (tmp_path / "my, models" / "a b-f16.gguf").write_bytes(tiny.read_bytes())
    build = request("my, models/a b-f16.gguf", own_text(3 * 128))
    made = tune.imatrix(build, Path("out, here.gguf"), Session(Store(), Silent()))
    assert len(format.read(made).entries) == 14


def test_parse_special_counts_chat_tokens(tools, tiny, tmp_path, own_text):
    text = own_text(3 * 128)
    text.write_text("<|chat|>" * 40 + text.read_text())
    build = request(tiny, text, parse_special=True)
    made = tune.imatrix(build, tmp_path / "i.gguf", Session(Store(), Silent()))
    theirs = plain_run(tools, tiny, text, tmp_path / "plain.gguf", "--parse-special")
    same(format.read(made).entries, theirs)
    as_text = tune.imatrix(request(tiny, text), tmp_path / "t.gguf", Session(Store(), Silent()))
    assert format.read(as_text).chunk_count > format.read(made).chunk_count


def test_killed_runs_end_with_the_same_file(tools, tiny, tmp_path, own_text, subprocess_env):
    text = own_text(200 * 128)
    argv = [*COMMAND, "--model", str(tiny), "--corpus", str(text), "--ctx", "128"]
    argv += ["--threads", "1"]
    calm = subprocess_env(tmp_path / "calm", tools)
    began = time.monotonic()
    subprocess.run([*argv, "--out", str(tmp_path / "calm.gguf")], check=True, env=calm)
    seconds = time.monotonic() - began
    rough, out = subprocess_env(tmp_path / "rough", tools), tmp_path / "rough.gguf"
    rng, killed = random.Random(5), 0
    for _ in range(6):
        process = subprocess.Popen([*argv, "--out", str(out)], env=rough)
        time.sleep(rng.uniform(0.3, 0.6) * seconds)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed >= 2
    assert not out.exists() or out.read_bytes() == (tmp_path / "calm.gguf").read_bytes()
    subprocess.run([*argv, "--out", str(out)], check=True, env=rough)
    assert out.read_bytes() == (tmp_path / "calm.gguf").read_bytes()


HOSTILE = {
    "LLAMA_ARG_CACHE_TYPE_K": "q4_0",
    "LLAMA_ARG_CACHE_TYPE_V": "q4_0",
    "LLAMA_ARG_FLASH_ATTN": "on",
    "LLAMA_ARG_THREADS": "2",
    "LLAMA_ARG_N_PREDICT": "7",
    "LLAMA_ARG_ROPE_SCALE": "4",
    "GGML_NO_REPACK": "0",
    "OMP_NUM_THREADS": "3",
}


def test_the_environment_reaches_no_bit(tools, tiny, tmp_path, own_text, subprocess_env):
    text = own_text(6 * 128)
    argv = [*COMMAND, "--model", str(tiny), "--corpus", str(text), "--ctx", "128", "--threads", "1"]
    results = []
    for name, more in (("clean", {}), ("hostile", HOSTILE)):
        out = tmp_path / f"{name}.gguf"
        env = subprocess_env(tmp_path / name, tools) | more  # two stores: nothing is taken over
        subprocess.run([*argv, "--out", str(out)], check=True, env=env)
        results.append(out.read_bytes())
    assert results[0] == results[1]
    # the same settings do change what the program itself collects
    direct = {}
    for name, more in (("plain", {}), ("bent", HOSTILE)):
        out = tmp_path / f"{name}.gguf"
        alone = [tools.program("llama-imatrix"), "-m", tiny, "-f", text, "-o", out, "-t", "1"]
        alone += ["-c", "128", "-b", "128"]
        subprocess.run([*map(str, alone)], check=True, env=os.environ | more, capture_output=True)
        direct[name] = format.read(out).entries
    sums = [direct[name]["blk.1.ffn_down.weight"].sums for name in ("plain", "bent")]
    assert not np.array_equal(*sums)
    same(format.read(tmp_path / "hostile.gguf").entries, direct["plain"])


def test_a_torn_segment_is_not_taken_for_whole(tiny, tmp_path, own_text, monkeypatch):
    monkeypatch.setattr(collect, "SEGMENT_WINDOWS", 4)
    text = own_text(12 * 128)
    good = tune.imatrix(request(tiny, text), tmp_path / "a.gguf", Session(Store(), Silent()))
    segment = good.read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "windows-000004.gguf").write_bytes(segment[: len(segment) // 2])
    (scratch / "windows-000010.gguf").write_bytes(segment)  # whole, but 2 windows from the end
    assert collect._done(scratch, 12) == (0, None)
    assert not list(scratch.iterdir())
    (scratch / "windows-000004.gguf").write_bytes(segment)
    (scratch / "part.gguf").write_bytes(segment[:-40])
    with pytest.raises(BadImatrix) as error:
        collect._keep(scratch / "part.gguf", scratch / "windows-000008.gguf")
    assert error.value.where == str(scratch / "part.gguf")
    assert collect._done(scratch, 12) == (4, scratch / "windows-000004.gguf")


def test_a_corpus_folder_keeps_its_language_and_a_code_beats_a_file(
    tools, tiny, own_store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sw").write_text("not Swahili")
    build = request(tiny, "sw", n_tokens=1000)
    corpus = tune.corpus_of(
        build, *tune.prepare(build, Session(own_store, Silent())), Session(own_store, Silent())
    )
    assert corpus.language_name == "Swahili"
    folder = request(tiny, corpus.calibration.parent, n_tokens=1000)
    made = tune.imatrix(folder, tmp_path / "i.gguf", Session(own_store, Silent()))
    assert format.read(made).language == "sw"


def test_too_little_text_is_refused_before_anything_runs(tiny, own_text, tmp_path):
    with pytest.raises(BadText) as error:
        tune.imatrix(request(tiny, own_text(100)), tmp_path / "i.gguf", Session(Store(), Silent()))
    assert "--tokens" in error.value.fix and "--ctx" in error.value.fix


def test_wrong_encoding_names_the_byte(tiny, tmp_path):
    text = tmp_path / "latin1.txt"
    text.write_bytes("blåbær".encode("latin-1") * 100)
    with pytest.raises(BadText, match="byte 2"):
        tune.imatrix(request(tiny, text), tmp_path / "i.gguf", Session(Store(), Silent()))


def test_a_second_name_for_the_same_text_is_in_the_file(tools, tiny, own_text, tmp_path):
    text, session = own_text(3 * 128), Session(Store(), Silent())
    other = tmp_path / "മലയാളം.txt"
    other.write_bytes(text.read_bytes())
    odd = tmp_path / os.fsdecode(b"caf\xe9-f16.gguf")
    odd.write_bytes(tiny.read_bytes())
    first = format.read(tune.imatrix(request(tiny, text), tmp_path / "a.gguf", session))
    second = format.read(tune.imatrix(request(odd, other), tmp_path / "b.gguf", session))
    assert (second.language, second.datasets) == ("മലയാളം", ("മലയാളം മലയാളം.txt",))
    assert first.language == text.stem
    same(second.entries, first.entries)
