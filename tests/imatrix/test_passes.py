"""How often a model larger than memory is read, with how much memory, and how long that takes."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import UsageError
from imatrix_lab.imatrix import collect, collector, expected, passes, speed
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.models.resolve import resolve, unhashed
from imatrix_lab.pipeline import tune
from tests import tiny_model
from tests.imatrix.test_collect import collected, request

NEED = passes.Need(sums=100, window=10, logits=30, matrix=50)


@pytest.mark.parametrize("memory", [1, 160, 200, 350, 500, 1500])
def test_memory_is_used_and_not_exceeded(monkeypatch, memory):
    monkeypatch.setattr(passes, "OWN_BYTES", 0)
    plan = passes.plan(1000, NEED, 80, memory)
    if memory >= 1000 + NEED.total(1) - NEED.matrix:
        assert (plan.n_passes, plan.read_bytes) == (0, 1000)
        return
    n_passes = {n: -(-64 // n) + -(-16 // n) for n in range(1, 65)}  # no decode in two shards
    fitting = [n for n in n_passes if NEED.total(n) <= memory] or [1]
    assert plan.n_passes == n_passes[plan.n_at_once] == min(n_passes[n] for n in fitting)
    assert plan.read_bytes == 1000 * (1 + plan.n_passes)
    assert plan.used_bytes <= memory or plan.n_at_once == 1


def test_sums_are_as_large_as_is_said(tools, tiny, own_text):
    """Each distinct input once, with its moments; one matrix whole."""
    session, run = Session(Store(), Silent()), Interruptible()
    model = resolve(str(tiny), session)
    whole = ("blk.0.ffn_down.weight",)
    settings = collector.Settings(1, collector.BLOCK, whole)
    options = collect.Options(Compute(1, 128, 128, 128, 0), moments=True)
    with collector.Collector(tools, settings, run.flag, session) as sums:
        with collect._Context(tools, model, sums, options, run) as context:
            context.read([np.arange(3, 131, dtype=np.int32)])
        arrays = [
            array
            for source in sums.inputs()
            for matrix in range(source.n_matrices)
            for s in [sums.sums(source, matrix)]
            for array in (s.squares, s.shard, s.total, s.products)
        ]
        n_bytes = sum(a.nbytes for a in arrays)
    need = passes.need_of(tools, model, expected.of(model), settings, options.compute)
    assert need.sums == n_bytes


def test_windows_cost_what_llama_cpp_lays_out(tools, tmp_path):
    """Twice the channels: twice the activations and the cache; attention stays."""
    needs = []
    for channels in (256, 512):
        path = tmp_path / f"{channels}.gguf"
        model = unhashed(str(tiny_model.write(path, channels=channels, feed_forward=4 * channels)))
        settings, compute = collector.Settings(1), Compute(1, 512, 512, 512, 0)
        needs.append(passes.need_of(tools, model, expected.of(model), settings, compute))
    assert 1.6 < needs[1].window / needs[0].window < 2.1
    least = 512 * 4 * (3 * 1024 + 2 * 256)  # gate, up and their product; a residual and a norm
    assert least < needs[0].window < 3 * least


PEAK = """
import sys, numpy as np
from pathlib import Path
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.imatrix import collect, collector
from imatrix_lab.llamacpp import build
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.models.resolve import unhashed

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")][0]

session, run = Session(Store(), Silent()), Interruptible()
tools, model = build.get_toolchain("cpu", session), unhashed(sys.argv[1])
options = collect.Options(Compute(1, 128, 16 * 128, 128, 0))
with collector.Collector(tools, collector.Settings(1), run.flag, session) as sums:
    before = anonymous()
    with collect._Context(tools, model, sums, options, run) as context:
        context.read(np.full((16, 128), 3, np.int32))
        print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is given back on Linux alone")
def test_logits_that_nobody_reads_take_no_memory(tools, tmp_path, subprocess_env):
    pieces = [*tiny_model.PIECES, *(f"word{i}" for i in range(40_000))]
    model = tiny_model.write(tmp_path / "m.gguf", pieces=pieces)
    argv = [sys.executable, "-c", PEAK, str(model)]
    env = subprocess_env(tmp_path / "store", tools)
    used = int(subprocess.run(argv, check=True, env=env, capture_output=True).stdout)
    assert used < 4 * 16 * 128 * len(pieces) / 4  # which is 328 MB


def test_the_file_is_the_same_as_with_memory_enough(tools, tmp_path, own_text, monkeypatch):
    path = tiny_model.write(tmp_path / "m.gguf", channels=1024, feed_forward=1024)
    text = own_text(11 * 128)
    whole = collected(path, text, tmp_path / "whole")
    monkeypatch.setattr(passes, "OWN_BYTES", 0)
    model, compute = unhashed(str(path)), Compute(1, 128, 128, 128, 0)
    need = passes.need_of(tools, model, expected.of(model), collector.Settings(1), compute)
    memory = need.total(3)
    assert model.facts.size_bytes > memory
    shapes = []
    real = collect._Context.read
    monkeypatch.setattr(
        collect._Context, "read", lambda self, w, *more: (shapes.append(len(w)), real(self, w))[1]
    )
    assert collected(path, text, tmp_path / "passes", memory_bytes=memory) == whole
    assert shapes[-4:] == [3, 3, 3, 2]


def test_a_dry_run_says_what_it_takes_and_makes_nothing(tools, tiny, own_store, tmp_path):
    session = Session(own_store, Silent())
    asked = request(tiny, "nb", n_tokens=128 * 50, memory_bytes=400 << 20)
    estimate = tune.imatrix_estimate(asked, None, session)
    facts = estimate.facts()
    assert facts["n_windows"] == 50
    assert facts["used_bytes"] <= facts["memory_bytes"] == 400 << 20
    assert facts["read_bytes"] == tiny.stat().st_size  # memory keeps it
    assert facts["compute_s"] > 0 and facts["disk_bytes_per_s"] > 0
    assert not own_store.find("imatrix", {}) and not (own_store.root / "imatrix").exists()
    more = tune.imatrix_estimate(
        request(tiny, "nb", n_tokens=128 * 50, moments=True), None, session
    )
    assert more.plan.need.sums > 50 * estimate.plan.need.sums
    assert json.dumps(facts) and len(estimate.lines()) == 2


def test_memory_that_is_too_little_says_how_much_is_needed(tools, tiny):
    session = Session(Store(), Silent())
    with pytest.raises(UsageError, match="too little") as error:
        tune.imatrix_estimate(request(tiny, "nb", memory_bytes=10 << 20), None, session)
    enough = int(re.search(r"--memory (\d+)MiB", error.value.fix)[1]) << 20
    assert tune.imatrix_estimate(request(tiny, "nb", memory_bytes=enough), None, session)


def test_memory_and_a_batch_contradict_each_other(tiny):
    session = Session(Store(), Silent())
    both = request(tiny, "nb", memory_bytes=1 << 30, n_batch=256)
    for run in (tune.imatrix_estimate, tune.imatrix):
        with pytest.raises(UsageError, match="batch"):
            run(both, None, session)


def test_a_disk_is_measured_on_files_of_any_size(tmp_path):
    for n_bytes in (1, 5000, 40 << 20):
        path = tmp_path / str(n_bytes)
        path.write_bytes(bytes(n_bytes))
        assert speed.disk(path).bytes_per_s > 0


def test_of_experts_only_those_that_are_used_are_computed(tmp_path):
    dense, moe = (
        expected.of(unhashed(str(tiny_model.write(tmp_path / f"{n}.gguf", experts=n))))
        for n in (0, 8)
    )
    one = speed.active_weights(dense, 0)
    assert one < speed.active_weights(moe, 2 / 8) < speed.active_weights(moe, 1)
