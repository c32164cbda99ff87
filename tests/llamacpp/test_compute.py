"""Settings that suit a machine, and none that llama-imatrix would miscount with."""

import sys

import pytest

from imatrix_lab.llamacpp import compute
from imatrix_lab.types import ComputeOptions, ModelFacts

FACTS = ModelFacts("llama", "x", "", 1, 2, 256, 32_000, 2048, 0, "F16", 1, 16.0, {}, ())


@pytest.mark.parametrize("n_ctx", [32, 128, 500, 512, 513, 520, 768, 1000, 2048, 4096, 4099])
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_no_micro_batch_is_smaller_than_what_is_counted(n_ctx, backend):
    found = compute.compute_for(FACTS, ComputeOptions(backend, n_ctx=n_ctx))
    assert found.n_batch % n_ctx == 0
    if found.n_batch > n_ctx:
        assert found.n_ubatch == found.n_batch
    else:
        rest = n_ctx % found.n_ubatch
        assert found.n_ubatch <= 512 and (rest == 0 or rest >= 16)


def test_on_cpu_one_window_at_once_and_nothing_offloaded():
    found = compute.compute_for(FACTS, ComputeOptions("cpu"))
    assert (found.n_batch, found.n_ubatch, found.gpu_layers) == (512, 512, 0)


def test_on_a_gpu_several_windows_and_offload_left_to_llama_cpp():
    found = compute.compute_for(FACTS, ComputeOptions("cuda"))
    assert (found.n_batch, found.gpu_layers) == (2048, None)
    assert compute.compute_for(FACTS, ComputeOptions("cuda", gpu_layers=0)).n_batch == 512


def test_nor_with_a_batch_that_splits_a_window():
    found = compute.compute_for(FACTS, ComputeOptions("cpu", n_ctx=1570, n_batch=1050))
    rests = [1050 % found.n_ubatch, 520 % found.n_ubatch]
    assert all(rest == 0 or rest >= 16 for rest in rests)


def test_a_container_has_less_memory_than_the_machine(tmp_path):
    groups = tmp_path / "cgroup"
    for name, limit in (("memory/a/b", 7 << 30), ("memory/a", 5 << 30)):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (tmp_path / "user.slice").mkdir()
    (tmp_path / "user.slice" / "memory.max").write_text("max\n")
    groups.write_text("9:cpu:/a\n4:memory:/a/b\n")
    assert min(compute._group_limits(groups, tmp_path)) == 5 << 30
    groups.write_text("0::/user.slice\n")
    assert min(compute._group_limits(groups, tmp_path)) == sys.maxsize
    (tmp_path / "user.slice" / "memory.max").write_text(f"{3 << 30}\n")
    assert min(compute._group_limits(groups, tmp_path)) == 3 << 30
    assert min(compute._group_limits(tmp_path / "missing", tmp_path)) == sys.maxsize
