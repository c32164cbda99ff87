"""Both sides of the benchmark of studies, on a small model: what they count is what they did."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.corpus import cleaned, heldout
from imatrix_lab.imatrix import format
from imatrix_lab.pipeline.card.studies import of_study
from imatrix_lab.records import parquet
from imatrix_lab.report import results
from tests.corpus import made_up

TOOL = Path(__file__).parents[2] / "tools" / "bench_study.py"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOL.parent))
    spec = importlib.util.spec_from_file_location("bench_study", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_study"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bench_study"]
    sys.path.remove(str(TOOL.parent))


@pytest.fixture
def bench(tool, score_store, tiny, tmp_path, monkeypatch):
    data = tmp_path / "data"
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(data))
    monkeypatch.setattr(heldout, "HELDOUT_BYTES", 12_000)
    monkeypatch.setattr(cleaned, "BASIS_BYTES", 30_000)
    made_up.add(data, "qa", "Qaish")
    made_up.add(data, "qb", "Qbish")
    grid = tool.Grid(str(tiny), ("qa", "qb"), "Q3_K_S", 1024, 2)
    (tmp_path / "bench").mkdir()
    bench = tool.Bench(grid, tmp_path / "bench", score_store(tmp_path / "store"), Silent())
    bench.threads = 1
    return bench


def test_the_script(bench, tool):
    cost = bench.script()
    folder = bench.root / "script"
    counted = {
        p.name.split(".")[0]: format.read(p).n_tokens() for p in folder.glob("*.imatrix.gguf")
    }
    assert len(counted) == 8 and sum(counted.values()) == cost.imatrix_tokens
    assert counted["qa-1"] == 1024 and counted["mixture-2"] == counted["qb-pooled"] == 2048
    assert len(list(folder.glob("*.gguf"))) == 8 + 9
    # llama-perplexity's file: magic, sizes, tokens, and for each token scored its logits in 16 bits
    scored = sum(n for _, n in bench.tokens_of_study().values())
    assert scored <= cost.scored_tokens < scored + 2 * tool.SCORED
    n_vocab = bench.model.facts.n_vocab
    assert cost.scoring_bytes >= 2 * n_vocab * cost.scored_tokens
    assert cost.scoring_bytes < 2 * (n_vocab + 8) * cost.scored_tokens + 4 * cost.read_tokens + 99
    assert cost.read_tokens * tool.SCORED == cost.scored_tokens * tool.WINDOW
    quants = [p for p in folder.glob("*.gguf") if "imatrix" not in p.name]
    assert cost.peak_bytes >= cost.left_bytes > sum(p.stat().st_size for p in quants)
    assert cost.cpu_s > 0 and cost.wall_s > 0
    assert not (folder / "logits.bin").exists()


def test_the_study(bench, tool):
    cost = bench.study(0.0)
    out = bench.root / "study-0.0" / "study"
    study = results.read(out)
    assert not study.missing
    for_card = of_study(study, bench.model, "qa")  # real results are what the card expects
    assert {c["b"] for c in for_card["comparisons"]} >= {"qb", "no imatrix"}
    assert len(for_card["signed"]) == 2 and len(for_card["imatrix_sha256"]) == 2
    scored = {p: len(parquet.read(p, ["pos"])) for p in out.glob("scores/*.parquet")}
    assert len(scored) == 2 * 9
    assert sum(scored.values()) == 9 * cost.scored_tokens
    assert cost.scoring_bytes == sum(p.stat().st_size for p in scored)
    sums = [format.read(p) for p in out.glob("imatrix/*.gguf")]
    assert len(sums) == 8  # as many as the script's
    assert cost.imatrix_tokens == 4 * 1024
    assert cost.scored_tokens <= cost.read_tokens
    assert cost.peak_bytes >= cost.left_bytes > cost.scoring_bytes
    assert not list(out.rglob("*Q3_K_S*.gguf"))


def test_a_folder_is_measured_without_what_links_lead_to(tool, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "outside").write_bytes(b"x" * 100_000)
    (tmp_path / "a" / "one").write_bytes(b"x" * 50_000)
    os.link(tmp_path / "a" / "one", tmp_path / "a" / "two")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    disk = tool.Disk(tmp_path / "a")
    assert 50_000 <= disk.now() < 60_000
    with disk.watched(0.01):
        (tmp_path / "a" / "three").write_bytes(b"x" * 50_000)
    (tmp_path / "a" / "three").unlink()
    assert disk.peak_bytes >= 100_000 > disk.now()


def test_the_table(tool, capsys):
    study = tool.Cost(60.0, 90.0, 200, 10, 5, 1000, 500, 490)
    script = tool.Cost(120.0, 200.0, 400, 300, 5000, 3000, 1000, 498)
    tool.report(study, script, tool.Grid())
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-1] == "0.5000" and lines[5].split()[-1] == "0.0010"
    assert "imatrix runs: 4 and 8" in lines[-1] and "0.980 and 0.498" in lines[-1]
    assert "10 models" in lines[-1]
