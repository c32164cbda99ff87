"""What is collected against llama-imatrix on the same windows, killed or not."""

import ctypes
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadImatrix, BadText, DiskFull
from imatrix_lab.imatrix import collect, collector, format
from imatrix_lab.llamacpp import build
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.models.resolve import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from imatrix_lab.types import ComputeOptions, CorpusFacts, Request
from tests import tiny_families, tiny_model
from tests.core.test_store import fill

N_KILLS = int(os.environ.get("KILLS", "3"))
"""`KILLS=20 pytest -s -k killed` tries more."""
SAVES_OFTEN = [
    sys.executable, "-c",
    "from imatrix_lab.imatrix import collect; from imatrix_lab.cli.main import main;"
    "collect.SAVE_S = collect.SAVE_SHARE = 0.2; main()",
]  # fmt: skip


def request(model, text, **rest):
    settings = {"n_tokens": 10**6, "n_ctx": 128, "threads": 1} | rest
    names = {f.name for f in dataclasses.fields(ComputeOptions)} & settings.keys()
    compute = ComputeOptions("cpu", **{name: settings.pop(name) for name in names})
    return Request(str(text), (), str(model), out=Path(), compute=compute, **settings)


def plain_run(tools, model, text, out, *extra):
    """The whole text through llama-imatrix itself, with the same kernels."""
    argv = [tools.program("llama-imatrix"), "-m", model, "-f", text, "-o", out, "-t", "1"]
    settings = ["-c", "128", "-b", "128", "-fa", "off", "--no-repack", *extra]
    subprocess.run([*map(str, argv), *settings], check=True, capture_output=True)
    return format.read(out).entries


def same(ours, theirs):
    """Counts and shapes are equal, each column's sum to 1e-4 of itself (theirs are float32)."""
    assert ours.keys() == theirs.keys() and ours
    for name, e in theirs.items():
        assert np.array_equal(ours[name].counts, e.counts), name
        assert ours[name].sums.shape == e.sums.shape, name
        assert np.allclose(ours[name].sums, e.sums, rtol=1e-4, atol=0), name


def collected(model, text, out, *parts, **rest):
    """Bytes of an imatrix that is made in a store of its own, some parts of the shards first."""
    session = Session(Store(out.with_suffix(".store")), Silent())
    tools = build.get_toolchain("cpu", Session(Store(), Silent()))
    built = resolve(str(model), session)
    corpus = text_corpus(tools, built, text, rest.get("parse_special", False))
    compute = Compute(rest.pop("threads", 1), 128, rest.pop("n_batch", 128), 128, 0)
    options = collect.Options(compute, **rest)
    for part in parts:
        collect.collect_shards(tools, built, corpus, options, part, session)
    facts = collect.collect(tools, built, corpus, options, session)
    return facts.path.read_bytes()


def text_corpus(tools, model, text, parse_special=False):
    with Vocabulary(tools, model.path, parse_special) as vocabulary:
        n_tokens = vocabulary.count(text.read_text())
    facts = {"language": "nb", "language_name": "Bokmål", "licence": "", "source": "test"}
    numbers = dict.fromkeys(("n_documents", "n_heldout", "n_heldout_tokens"), 1)
    hashes = {"sha256": sha256_file(text), "heldout_sha256": ""}
    return CorpusFacts(
        calibration=text, heldout=text, n_tokens=n_tokens, **facts, **numbers, **hashes
    )


def a_model(family, path):
    """A model of `tiny_families`, or a Llama, or one with 4 experts."""
    if family in tiny_families.FAMILIES:
        return tiny_families.write(path, family)
    return tiny_model.write(path, experts=4 if family == "moe" else 0)


MATRICES = {
    "llama": "attn_q", "moe": "ffn_up_exps", "mamba": "ssm_dt", "lfm2": "shortconv.in_proj",
    "phi3": "attn_qkv",
}  # fmt: skip
"""A matrix that only this family has."""


@pytest.mark.parametrize("family", MATRICES)
def test_sums_and_quants_are_those_of_llama_imatrix(tools, tmp_path, own_text, family):
    model = a_model(family, tmp_path / "m-f16.gguf")
    text = own_text(7 * 128 + 5)
    ours, theirs = tmp_path / "i.gguf", tmp_path / "plain.gguf"
    tune.imatrix(request(model, text, n_batch=256), ours, Session(Store(), Silent()))
    entries = format.read(ours).entries
    same(entries, plain_run(tools, model, text, theirs))
    assert f"blk.0.{MATRICES[family]}.weight" in entries
    assert any(e.counts.size == 4 for e in entries.values()) == (family == "moe")
    sizes = set()
    for imatrix in (ours, theirs):
        argv = [tools.program("llama-quantize"), "--imatrix", imatrix, model, tmp_path / "q"]
        subprocess.run([*map(str, argv), "Q4_K_M", "1"], check=True, capture_output=True)
        sizes.add(sum(t.n_bytes for t in gguf.GGUFReader(tmp_path / "q").tensors))
    assert len(sizes) == 1


def test_the_output_matrix_on_request(tools, tiny, tmp_path, own_text):
    text = own_text(4 * 128)
    build = request(tiny, text, process_output=True)
    made = tune.imatrix(build, tmp_path / "i.gguf", Session(Store(), Silent()))
    theirs = plain_run(tools, tiny, text, tmp_path / "plain.gguf", "--process-output")
    assert "output.weight" in theirs
    same(format.read(made).entries, theirs)


@pytest.mark.parametrize("experts", [0, 4])
def test_neither_threads_nor_windows_at_once_nor_pieces_change_a_bit(tmp_path, own_text, experts):
    model = tiny_model.write(tmp_path / "m.gguf", experts=experts)
    text = own_text(11 * 128)
    one = collected(model, text, tmp_path / "one")
    for threads, n_batch in [(2, 128), (1, 512), (2, 2048), (1, 64)]:
        several = collected(model, text, tmp_path / "n", threads=threads, n_batch=n_batch)
        assert several == one, (threads, n_batch)
        shutil.rmtree(tmp_path / "n.store")


@pytest.mark.parametrize("experts", [0, 4])
def test_shards_summed_apart_change_no_bit(tmp_path, own_text, monkeypatch, experts):
    """Whatever their number, and whichever of them were; none is read twice, or kept."""
    monkeypatch.setattr(collector, "SHARD", 4)
    monkeypatch.setattr(collect, "SHARD", 4)
    n_read, read = [], collect._Context.read

    def counting(self, some, report=None):
        n_read.append(len(some))
        read(self, some, report)

    monkeypatch.setattr(collect._Context, "read", counting)
    model = tiny_model.write(tmp_path / "m.gguf", experts=experts)
    text = own_text(18 * 128)
    one = collected(model, text, tmp_path / "one")
    for i, (parts, n_batch) in enumerate(
        [(((0, 2), (1, 2)), 512), (((2, 3), (0, 3)), 384), (((0, 2), (0, 2), (3, 4)), 128)]
    ):
        n_read.clear()
        out = tmp_path / f"n{i}"
        assert collected(model, text, out, *parts, n_batch=n_batch) == one, parts
        assert sum(n_read) == 18 and max(n_read) == min(4, n_batch // 128)
        assert not [*out.with_suffix(".store").glob("sums/*")]


def test_a_shard_goes_on_after_a_kill_and_a_broken_one_is_read_again(
    tiny, tmp_path, own_text, monkeypatch
):
    monkeypatch.setattr(collector, "SHARD", 4)
    monkeypatch.setattr(collect, "SHARD", 4)
    monkeypatch.setattr(collect, "SAVE_S", 0.0)
    monkeypatch.setattr(collect, "SAVE_SHARE", 1.0)
    text, read, n_read = own_text(10 * 128), collect._Context.read, []
    one = collected(tiny, text, tmp_path / "one")

    def dies(self, some, report=None):
        n_read.append(len(some))
        if len(n_read) == 3:
            raise KeyboardInterrupt
        read(self, some, report)

    monkeypatch.setattr(collect._Context, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        collected(tiny, text, tmp_path / "two", (1, 2))
    assert saved_windows(tmp_path / "two.store") == 2
    find = Store.find

    def broken(store, kind, inputs):
        found = find(store, kind, inputs)
        if kind == "sums" and found and inputs["shard"] == 0:
            sums = bytearray((found.path / collect.SAVED).read_bytes())
            (found.path / collect.SAVED).write_bytes(sums[:-8])
        return found

    monkeypatch.setattr(Store, "find", broken)
    assert collected(tiny, text, tmp_path / "two", (1, 2), (0, 2)) == one
    assert len(n_read) == 11 + 4  # the one that died, and those of the broken shard


def test_sums_keep_their_digits_over_ten_million_tokens(tools, tiny, own_text, tmp_path):
    """Windows read once, their sums saved as if they had been read 8,000 times before."""
    session = Session(Store(), Silent())
    model, flag = resolve(str(tiny), session), ctypes.c_int32(0)
    corpus = text_corpus(tools, model, own_text(10 * 128))
    options = collect.Options(Compute(1, 128, 128, 128, 0))
    read_windows = collect._windows(tools, model, corpus, options, session)

    def read(sums, times):
        run = Interruptible()
        with collect._Context(tools, model, sums, options, run) as context:
            for window in read_windows:
                context.read([window])
        return {n: e.sums.astype(float) for n, e in sums.entries().items()}

    settings = collector.Settings(1)
    with collector.Collector(tools, settings, flag, session) as sums:
        once = read(sums, 1)
        sums.end_shard()
        for source in sums.inputs():
            squares = sums.sums(source, 0).squares
            squares *= 8000  # 10,240,000 tokens
        before = {s.index: sums.sums(s, 0).squares.copy() for s in sums.inputs()}
        read(sums, 1)
        sums.end_shard()
        added = {s.index: sums.sums(s, 0).squares - before[s.index] for s in sums.inputs()}
        index = sums.matrices()
    for name, values in once.items():
        assert np.allclose(added[index[name]], values.ravel(), rtol=1e-6), name


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


@pytest.mark.parametrize("more", [(), ("--moments",)], ids=["squares", "moments"])
def test_killed_runs_end_with_the_same_file(tools, tiny, tmp_path, own_text, subprocess_env, more):
    """Killed at random moments, from the loading of the model on."""
    text, rng = own_text(N_KILLS * 150 * 128), random.Random(f"{N_KILLS} {more}")
    argv = [*SAVES_OFTEN, "imatrix", "build", "--model", str(tiny), "--corpus", str(text)]
    argv += ["--ctx", "128", "--threads", "1", "--tokens", str(N_KILLS * 150 * 128), *more]
    calm, rough = (subprocess_env(tmp_path / name, tools) for name in ("calm", "rough"))
    out, n_killed, done = tmp_path / "rough.gguf", 0, [0]
    subprocess.run([*argv, "--out", str(tmp_path / "calm.gguf")], check=True, env=calm)
    undisturbed = (tmp_path / "calm.gguf").read_bytes()
    while n_killed < N_KILLS:
        process = subprocess.Popen([*argv, "--out", str(out)], env=rough)
        before = saved_windows(tmp_path / "rough")
        is_late = n_killed % 2  # every other one as soon as there is more to lose
        while is_late and process.poll() is None and saved_windows(tmp_path / "rough") == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3 if is_late else 3))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # too late: from the beginning
            assert out.read_bytes() == undisturbed
            shutil.rmtree(tmp_path / "rough" / "imatrix")
            out.unlink()
            done.append(0)
            continue
        n_killed += 1
        done.append(saved_windows(tmp_path / "rough"))
    print(f"\nkilled {n_killed} times, with so many windows saved: {done}")
    assert len({*done}) >= 2  # runs went on from where one before was killed
    subprocess.run([*argv, "--out", str(out)], check=True, env=rough)
    assert out.read_bytes() == undisturbed


def test_a_full_disk_costs_what_was_not_saved(
    tools, tiny, own_text, tmp_path, small_disk, monkeypatch
):
    monkeypatch.setattr(collect, "SAVE_S", 0.0)
    monkeypatch.setattr(collect, "SAVE_SHARE", 1.0)
    text, real = own_text(12 * 128), collector.Collector.save
    whole = collected(tiny, text, tmp_path / "whole")

    def save(sums, path, n_windows):
        if n_windows == 5:
            fill(small_disk)
        real(sums, path, n_windows)

    monkeypatch.setattr(collector.Collector, "save", save)
    with pytest.raises(DiskFull) as error:
        collected(tiny, text, small_disk / "full")
    assert "imatrix-lab store gc" in error.value.fix
    assert saved_windows(small_disk) == 4
    (small_disk / "filler").unlink()
    monkeypatch.setattr(collector.Collector, "save", real)
    assert collected(tiny, text, small_disk / "full") == whole


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
    argv = [*SAVES_OFTEN, "imatrix", "build", "--model", str(tiny), "--corpus", str(text)]
    argv += ["--ctx", "128", "--threads", "1"]
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


def saved_windows(store):
    """How many windows the saved sums in a store have seen; 0 without any."""
    for path in store.rglob(collect.SAVED):
        return json.loads(path.open("rb").readline())["n_windows"]
    return 0


def test_saved_sums_that_are_torn_are_not_used(tools, tiny, tmp_path, own_text, monkeypatch):
    monkeypatch.setattr(collect, "SAVE_S", 0.0)
    monkeypatch.setattr(collect, "SAVE_SHARE", 1.0)
    text = own_text(12 * 128)
    whole = collected(tiny, text, tmp_path / "whole")
    saved = []

    def stopped(sums, path, n_windows):
        real(sums, path, n_windows)
        saved.append(path)
        if n_windows == 5:
            raise KeyboardInterrupt

    real = collector.Collector.save
    monkeypatch.setattr(collector.Collector, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        collected(tiny, text, tmp_path / "stopped")
    monkeypatch.setattr(collector.Collector, "save", real)
    sums = saved[-1].read_bytes()
    for torn in (sums[:-8], sums[:100], b"", sums + b"x", b"{}\n"):
        saved[-1].parent.mkdir(parents=True, exist_ok=True)
        saved[-1].write_bytes(torn)
        assert collected(tiny, text, tmp_path / "stopped") == whole
        for kind in ("imatrix", "kernel"):
            shutil.rmtree(tmp_path / "stopped.store" / kind, ignore_errors=True)


def test_activations_that_are_not_finite_name_the_matrix_and_the_window(
    tools, tiny, tmp_path, own_text
):
    text = own_text(4 * 128)
    with Vocabulary(tools, tiny) as vocabulary:
        (token,) = vocabulary.tokens("e", add_special=False)[-1:]
    model = tiny_model.write(tmp_path / "nan.gguf", nan_token=token)
    with pytest.raises(BadImatrix, match=r"blk\.0\.attn_[qkv]\.weight.*windows from 0 on"):
        collected(model, text, tmp_path / "i")


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


def test_one_window_is_enough(tiny, own_text, tmp_path):
    build = request(tiny, own_text(130))
    made = format.read(tune.imatrix(build, tmp_path / "i.gguf", Session(Store(), Silent())))
    assert made.chunk_count == 1


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
    assert (second.label, second.datasets) == ("മലയാളം", ("മലയാളം മലയാളം.txt",))
    assert first.label == text.stem
    assert first.language == second.language == ""  # of a file that is not known
    same(second.entries, first.entries)
