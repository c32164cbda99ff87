"""Plans of studies on the small model: what is there, what it takes, what is doubted."""

import json
import random
import re
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
from imatrix_lab.quantize import probes
from imatrix_lab.study import graph, steps
from imatrix_lab.study.context import prepare
from imatrix_lab.study.folder import Folder
from imatrix_lab.study.graph import StepRecord, Turn
from imatrix_lab.study.plan import benchmark, plan
from imatrix_lab.study.recipe import (
    CalibrationSettings,
    ComparisonSettings,
    Evaluation,
    Limits,
    Recipe,
    Task,
)
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
    """Where rates are kept between these tests."""
    return score_store(tmp_path_factory.mktemp("measured")).root


@pytest.fixture
def store(store_at, measured: Path, tmp_path: Path) -> Store:
    """A store with nothing in it but llama.cpp, kernels and rates."""
    store = store_at(tmp_path / "store")
    for name in ("loss", "rate"):
        (measured / name).mkdir(exist_ok=True)
        (store.root / name).symlink_to(measured / name)
    return store


@pytest.fixture
def recipe(languages_of_ours: None, tiny: Path) -> Recipe:
    return Recipe(
        1, "x", ("Q4_K_M", "Q3_K_S"), CalibrationSettings(("qaa", "qab", "none"), 2048, 2),
        Evaluation(("qaa",), documents=7), models=(str(tiny),), keep="scores",
        comparison=ComparisonSettings(baseline="none", margins={"kld_nats": 0.02}),
        limits=Limits(backend="cpu"),
    )  # fmt: skip


@pytest.fixture
def unmeasured(store: Store, monkeypatch) -> None:
    """Rates that nobody measured, where they do not matter."""
    (store.root / "rate").unlink()
    for name in ("_imatrix", "_score", "_quantize", "_quant_error"):
        monkeypatch.setattr(benchmark, name, lambda *_: 10.0)


def tree(folder: Path) -> set[str]:
    """What is in a store, without what is to be forgotten."""
    passing = ("rate", "locks", "work", "kernel", "loss", "toolchain", "sources", "sha256.json")
    paths = {p.relative_to(folder) for p in folder.rglob("*")}
    return {str(p) for p in paths if p.parts[0] not in passing}


def test_a_new_study(recipe: Recipe, store: Store, tmp_path: Path, capsys) -> None:
    folder, before = Folder(tmp_path / "studies" / "x"), tree(store.root)
    planned = plan.plan(recipe, folder, Session(store, Silent()))
    assert tree(store.root) == before and not folder.path.exists()
    shared = prepare(recipe, folder, Session(store, Silent()))
    assert [row.id for row in planned.rows] == [step.id for step in steps.steps(shared)]
    assert not any(row.is_done for row in planned.rows)
    of = {
        kind: [r for r in planned.rows if r.kind == kind] for kind in ("imatrix", "quant", "score")
    }
    rate = planned.rates["imatrix tiny"]
    assert [r.seconds for r in of["imatrix"]] == [2048 / rate.per_second] * 4
    weights = shared.models[0].facts.n_parameters
    for row in of["quant"]:
        kind = row.id.rpartition(".")[2]
        assert row.disk_bytes == shared.sizes[shared.models[0].label, kind]
        assert row.seconds == weights / planned.rates[f"quantize {kind}"].per_second
    score = planned.rates["score tiny"].per_second
    assert [r.seconds for r in of["score"]] == [7 * 350 * (1 + 10) / score]
    assert planned.seconds == pytest.approx(sum(r.seconds for r in planned.rows))
    quants = sum(r.disk_bytes for r in of["quant"])
    small = sum(r.disk_bytes for r in planned.rows) - quants
    assert (planned.disk_final_bytes, planned.disk_peak_bytes) == (small, small + quants)
    assert planned.disk_free_bytes > 0
    assert planned.memory_bytes == max(r.memory_bytes for r in planned.rows)
    study.show(planned)
    printed = "".join(capsys.readouterr())
    assert all(
        text in printed
        for text in (*(r.what for r in planned.rows if r.kind != "tidy"), *planned.warnings)
    )
    assert all(name in printed for name in planned.rates)
    kept = plan.plan(replace(recipe, keep="all"), folder, Session(store, Silent()))
    assert kept.rates == planned.rates
    assert kept.disk_final_bytes == kept.disk_peak_bytes == small + quants


def test_what_is_there_already(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "study")
    shared = prepare(recipe, folder, Session(store, Silent()))
    every = steps.steps(shared)
    results: dict[str, dict] = {}
    for step in every:
        if step.kind in ("corpus", "imatrix") and "qaa" in step.id:
            results[step.id] = dict(step.run(Turn(1, Silent(), results)))
    planned = plan.plan(recipe, Folder(tmp_path / "new"), Session(store, Silent()))
    assert {row.id for row in planned.rows if row.is_done} == set(results)
    (score,) = [row for row in planned.rows if row.kind == "score"]
    assert "assumed" not in planned.effects[0].power.assumed.split(";")[-1]
    text = Path(results["tiny.corpus.qaa.1"]["corpus"]["heldout"]).read_text().splitlines()[:7]
    assert planned.effects[0].clusters == len(text) == 7
    size = format.read(Path(results["tiny.imatrix.qaa.1"]["imatrix"]["path"]))
    columns = sum(e.sums.size for e in size.entries.values())
    (row, *_) = [row for row in planned.rows if row.kind == "imatrix"]
    assert 4 * columns <= row.disk_bytes <= 6 * columns
    assert score.seconds > 0
    # and once every step has its record, nothing is left to do
    for step, key in graph.keys(every).items():
        uses = next(s.uses for s in every if s.id == step)
        folder.write_record(step, StepRecord(key, uses, {}, 1.0))
    done = plan.plan(recipe, folder, Session(store, Silent()))
    assert {row.kind for row in done.rows if not row.is_done} == {"tidy"}
    assert done.seconds == 0


def test_sizes_and_quantizers_take_time_and_disk(
    recipe: Recipe, store: Store, unmeasured: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(benchmark, "_feedback", lambda *_: 5.0)
    comparison = replace(recipe.comparison, baseline="qaa")
    types, quantizers = ("Q4_K_M", "size:Q4_K_M"), ("imatrix", "feedback")
    sized = replace(recipe, types=types, quantizers=quantizers, comparison=comparison)
    planned = plan.plan(sized, Folder(tmp_path / "x"), Session(store, Silent()))
    shared = prepare(sized, Folder(tmp_path / "x"), Session(store, Silent()))
    (model,) = shared.models
    rows = {row.id: row for row in planned.rows}
    n_weights = model.facts.n_parameters
    for end, seconds in (("", n_weights / 10), ("+feedback", n_weights / 10 + n_weights / 5)):
        for base in ("Q4_K_M", "size-Q4_K_M"):
            row = rows[f"{model.label}.quant.qaa.1.{base}{end}"]
            assert row.seconds == pytest.approx(seconds)
            assert row.disk_bytes == shared.sizes[model.label, "Q4_K_M"]
    n_tokens = (1 + probes.n_probes(model)) * 8 * 96
    row = rows[f"{model.label}.sensitivity.qab.2"]
    assert row.seconds == pytest.approx(n_tokens / 10 + 2 * n_weights / 10)
    assert row.disk_bytes == 4 * 8 * 96 * model.facts.n_vocab
    assert rows[f"{model.label}.errors.qab.2"].seconds > 0
    # the logits of a sensitivity are gone when it is there
    kept = sum(r.disk_bytes for r in planned.rows if r.kind not in ("sensitivity", "quant"))
    assert planned.disk_final_bytes == kept


def test_the_speed_of_feedback_is_measured(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    shared = prepare(recipe, Folder(tmp_path / "x"), Session(store, Silent()))
    speed = benchmark.Benchmark(shared, Silent()).speed("feedback", "Q3_K_S")
    assert speed.per_second > 1e5 and speed.unit == "weights"


@pytest.fixture
def warned(recipe: Recipe, store: Store, unmeasured: None, tmp_path: Path):
    """A function: changes of the recipe -> the warnings of its plan, as one text."""

    def warnings(**change: object) -> str:
        folder = Folder(tmp_path / "x")
        planned = plan.plan(replace(recipe, **change), folder, Session(store, Silent()))
        return "\n".join(planned.warnings)

    return warnings


def test_two_samples_and_a_margin_that_is_too_small(warned, golden) -> None:
    golden("warnings", re.sub(r"\d[\d.,]* (to \d[\d.,]* )?(?=nats|documents)", "N ", warned()))


def test_too_little_of_everything(warned) -> None:
    few = CalibrationSettings(("qaa", "none"), 1_000_000, 1)
    text = warned(types=("Q2_K_S",), calibration=few, evaluation=Evaluation(("qaa",), 3))
    for part in ("calibration.samples = 3", "Q2_K_S requires an imatrix", "qaa: 3 documents"):
        assert part in text
    limits = Limits(backend="cpu", memory_gib=0.001)
    text = warned(comparison=ComparisonSettings(), limits=limits)
    assert "comparison.margins" in text and "limit is 1.02 MiB" in text


def test_tasks_whose_items_cannot_be_fetched(warned) -> None:
    tasks = (Task("xnli", ("en",), 20), Task("language-confusion", ("en",)))
    text = warned(tasks=tasks)
    assert "facebook/xnli" in text and "language-confusion" in text and "git clone" in text
    assert "xnli en: differences" not in text  # no margin of its score
    assert "no margin is declared in points" in text


def test_text_that_is_short(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    calibration = CalibrationSettings(("qaa", "none"), 1_000_000, 1)
    long = replace(recipe, calibration=calibration, types=("Q4_K_M",))
    folder = Folder(tmp_path / "x")
    shared = prepare(long, folder, Session(store, Silent()))
    next(s for s in steps.steps(shared) if s.kind == "corpus").run(Turn(1, Silent(), {}))
    planned = plan.plan(long, folder, Session(store, Silent()))
    assert any("of 1,000,000 tokens" in warning for warning in planned.warnings)


def test_without_model_or_llama_cpp(recipe: Recipe, store: Store, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "x")
    planned = plan.plan(recipe, folder, Session(Store(tmp_path / "empty"), Silent()))
    assert not planned.rows and planned.effects
    assert "try: imatrix-lab toolchain build" in planned.warnings[0]
    far = replace(recipe, models=("hf:org/repo@main:a.gguf",))
    planned = plan.plan(far, folder, Session(store, Silent()))
    assert not planned.rows and "hf:org/repo@main:a.gguf" in planned.warnings[0]


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
