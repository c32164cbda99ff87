"""Plans of studies on the small model: what is there, what it takes, what is doubted."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from imatrix_lab.cli import study
from imatrix_lab.core import paths
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus.sources import files
from imatrix_lab.imatrix import format
from imatrix_lab.study import graph, steps
from imatrix_lab.study.context import prepare
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import Record, Turn
from imatrix_lab.study.plan import benchmark, plan
from imatrix_lab.study.recipe import Calibration, Comparison, Evaluation, Limits, Recipe, Task
from tests.corpus.made_up import LANGUAGE, prose


@pytest.fixture
def languages_of_ours(tmp_path: Path) -> None:
    """Two languages, and text of one's own in them."""
    folder = paths.user_dir()
    folder.mkdir(parents=True, exist_ok=True)
    for code in ("qaa", "qab"):
        (folder / f"{code}.toml").write_text(LANGUAGE.format(code=code, name=f"Language {code}"))
        rng = random.Random(code)
        lines = [json.dumps({"id": f"{i:04d}", "text": prose(rng)}) for i in range(120)]
        path = tmp_path / f"{code}.jsonl"
        path.write_text("\n".join(lines))
        files.add((path,), code, "own", "CC0-1.0", "text")


@pytest.fixture(scope="session")
def measured(score_store, tmp_path_factory) -> Path:
    """Where rates and kernels are kept between these tests."""
    return score_store(tmp_path_factory.mktemp("measured")).root


@pytest.fixture
def store(store_at, measured: Path, tmp_path: Path) -> Store:
    """A store with nothing in it but llama.cpp, kernels and rates."""
    found = store_at(tmp_path / "store")
    for name in ("kernel", "loss", "rate"):
        (measured / name).mkdir(exist_ok=True)
        (found.root / name).symlink_to(measured / name)
    return found


@pytest.fixture
def recipe(languages_of_ours: None, tiny: Path) -> Recipe:
    return Recipe(
        1, "x", ("Q4_K_M", "Q3_K_S"), Calibration(("qaa", "qab", "none"), 2048, 2),
        Evaluation(("qaa",), documents=7), models=(str(tiny),), keep="scores",
        comparison=Comparison(baseline="none", margins={"kld_nats": 0.02}),
        limits=Limits(backend="cpu"),
    )  # fmt: skip


@pytest.fixture
def unmeasured(store: Store, monkeypatch) -> None:
    """Rates that nobody measured, where they do not matter."""
    (store.root / "rate").unlink()
    for name in ("_imatrix", "_scoring", "_quantizing", "_summing"):
        monkeypatch.setattr(benchmark, name, lambda *_: 10.0)


def tree(folder: Path) -> set[str]:
    """What is in a store, without what is to be forgotten."""
    passing = ("rate", "locks", "work", "kernel", "loss", "toolchain", "sources", "sha256.json")
    found = {p.relative_to(folder) for p in folder.rglob("*")}
    return {str(p) for p in found if p.parts[0] not in passing}


def test_a_new_study(recipe: Recipe, store: Store, tmp_path: Path, capsys) -> None:
    folder, before = Folder(tmp_path / "studies" / "x"), tree(store.root)
    found = plan.plan(recipe, folder, Session(store, Silent()))
    assert tree(store.root) == before and not folder.path.exists()
    shared = prepare(recipe, folder, Session(store, Silent()))
    assert [row.id for row in found.rows] == [step.id for step in steps.steps(shared)]
    assert not any(row.is_done for row in found.rows)
    of = {kind: [r for r in found.rows if r.kind == kind] for kind in ("imatrix", "quant", "score")}
    rate = found.rates["imatrix tiny"]
    assert [r.seconds for r in of["imatrix"]] == [2048 / rate.per_second] * 4
    weights = shared.models[0].facts.n_parameters
    for row in of["quant"]:
        kind = row.id.rpartition(".")[2]
        assert row.disk_bytes == shared.sizes[shared.models[0].label, kind]
        assert row.seconds == weights / found.rates[f"quantize {kind}"].per_second
    score = found.rates["score tiny"].per_second
    assert [r.seconds for r in of["score"]] == [7 * 350 * (1 + 10) / score]
    assert found.seconds == pytest.approx(sum(r.seconds for r in found.rows))
    quants = sum(r.disk_bytes for r in of["quant"])
    small = sum(r.disk_bytes for r in found.rows) - quants
    assert (found.disk_final_bytes, found.disk_peak_bytes) == (small, small + quants)
    assert found.disk_free_bytes > 0
    assert found.memory_bytes == max(r.memory_bytes for r in found.rows)
    study.show(found)
    printed = "".join(capsys.readouterr())
    assert all(
        text in printed
        for text in (*(r.what for r in found.rows if r.kind != "tidy"), *found.warnings)
    )
    assert all(name in printed for name in found.rates)
    kept = plan.plan(replace(recipe, keep="all"), folder, Session(store, Silent()))
    assert kept.rates == found.rates
    assert kept.disk_final_bytes == kept.disk_peak_bytes == small + quants


def test_what_is_there_already(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "study")
    shared = prepare(recipe, folder, Session(store, Silent()))
    every = steps.steps(shared)
    results: dict[str, dict] = {}
    for step in every:
        if step.kind in ("corpus", "imatrix") and "qaa" in step.id:
            results[step.id] = dict(step.run(Turn(1, Silent(), results)))
    found = plan.plan(recipe, Folder(tmp_path / "new"), Session(store, Silent()))
    assert {row.id for row in found.rows if row.is_done} == set(results)
    (score,) = [row for row in found.rows if row.kind == "score"]
    assert "assumed" not in found.effects[0].power.assumed.split(";")[-1]
    text = Path(results["tiny.corpus.qaa.1"]["corpus"]["heldout"]).read_text().splitlines()[:7]
    assert found.effects[0].clusters == len(text) == 7
    size = format.read(Path(results["tiny.imatrix.qaa.1"]["imatrix"]["path"]))
    columns = sum(e.sums.size for e in size.entries.values())
    (row, *_) = [row for row in found.rows if row.kind == "imatrix"]
    assert 4 * columns <= row.disk_bytes <= 6 * columns
    assert score.seconds > 0
    # and once every step has its record, nothing is left to do
    for step, key in graph.keys(every).items():
        uses = next(s.uses for s in every if s.id == step)
        folder.keep(step, Record(key, uses, {}, 1.0))
    done = plan.plan(recipe, folder, Session(store, Silent()))
    assert {row.kind for row in done.rows if not row.is_done} == {"tidy"}
    assert done.seconds == 0


def test_doubts(recipe: Recipe, store: Store, unmeasured: None, tmp_path: Path) -> None:
    def warnings(**change: object) -> str:
        other = replace(recipe, **change)
        return "\n".join(
            plan.plan(other, Folder(tmp_path / "x"), Session(store, Silent())).warnings
        )

    said = warnings()
    assert "2 samples leave a language's noise 1 degree of freedom" in said
    assert "Q4_K_M on qaa: differences below" in said and "the margin is 0.02" in said
    assert "cannot be made" not in said and "of disk" not in said
    few = Calibration(("qaa", "none"), 1_000_000, 1)
    said = warnings(types=("Q2_K_S",), calibration=few, evaluation=Evaluation(("qaa",), 3))
    assert "one sample of each language" in said
    assert "Q2_K_S of tiny cannot be made without an imatrix" in said
    assert "qaa: 3 documents are too few" in said
    said = warnings(comparison=Comparison(), limits=Limits(backend="cpu", memory_gib=0.001))
    assert "nothing can come out as equivalent" in said
    assert "of memory, and it may take 1.02 MiB" in said
    tasks = (Task("xnli", ("en",), 20), Task("language-confusion", ("en",)))
    said = warnings(tasks=tasks)
    assert "no items of facebook/xnli" in said
    assert "language-confusion is not on the Hub: git clone" in said
    assert "in xnli en: differences" not in said  # no margin of its score
    assert "no margin is declared for what is measured in points" in said


def test_text_that_is_short(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    calibration = Calibration(("qaa", "none"), 1_000_000, 1)
    long = replace(recipe, calibration=calibration, types=("Q4_K_M",))
    folder = Folder(tmp_path / "x")
    shared = prepare(long, folder, Session(store, Silent()))
    next(s for s in steps.steps(shared) if s.kind == "corpus").run(Turn(1, Silent(), {}))
    found = plan.plan(long, folder, Session(store, Silent()))
    assert any("1,000,000 are asked for" in warning for warning in found.warnings)


def test_without_model_or_llama_cpp(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "x")
    found = plan.plan(recipe, folder, Session(Store(tmp_path / "empty"), Silent()))
    assert not found.rows and found.effects
    assert "llama.cpp is not built yet; try: imatrix-lab toolchain build" in found.warnings[0]
    far = replace(recipe, models=("hf:org/repo@main:a.gguf",))
    found = plan.plan(far, folder, Session(store, Silent()))
    assert not found.rows and "time and disk are not known" in found.warnings[0]


def test_what_was_measured_while_busy_is_measured_again(
    recipe, store, unmeasured, tmp_path, monkeypatch
):
    folder = Folder(tmp_path / "x")
    small = replace(recipe, types=("Q4_K_M",))
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    busy = plan.plan(small, folder, Session(store, Silent()))
    assert all(rate.was_busy for rate in busy.rates.values())
    assert any("the machine was busy" in warning for warning in busy.warnings)
    assert plan.plan(small, folder, Session(store, Silent())).rates == busy.rates
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    calm = plan.plan(small, folder, Session(store, Silent()))
    assert not any(rate.was_busy for rate in calm.rates.values())
    assert not any("the machine was busy" in warning for warning in calm.warnings)
