"""Files in, judgements out."""

import dataclasses
import json

import numpy as np
import pytest

from imatrix_lab.compare.compare import compare_runs, report_as_json
from imatrix_lab.compare.controls import RANDOM
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.records.runs import blocks, find
from imatrix_lab.stats import clustered, paired, sign_flips
from tests.compare.made_up import TOOLCHAIN, Text, items

GRID = ("calib", "lang", "type")


def compared(paths, plan=None, metrics=("kld_nats",)):
    plan = dataclasses.replace(plan or ComparisonPlan(), n_resamples=500)
    return compare_runs([*paths], plan, metrics, Silent())


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two languages, calibrated on themselves and each other, in two samples; and controls."""
    folder = tmp_path_factory.mktemp("grid")
    for lang in ("nb", "en"):
        text = Text(lang, n_documents=25, tokens=40)
        for calib in ("", RANDOM, "nb", "en"):
            known = {"": 0.3, RANDOM: 0.2}
            effect = known.get(calib, 0.0 if calib == lang else 0.1)
            for sample in "12" if calib in ("nb", "en") else "1":
                text.write(
                    folder / f"{lang}-{calib}-{sample}.parquet", calib, "Q3_K_S", effect, sample
                )
        text.write(
            folder / f"{lang}-self.parquet", "", "F16", -1.0,
            quant={"sha256": "reference", "type": "F16", "calibration": ""},
        )  # fmt: skip
    return folder


def test_two_runs(tmp_path):
    text = Text("nb")
    paths = [text.write(tmp_path / f"{c}.parquet", c, "Q3_K_S", e)
             for c, e in (("nb", 0.0), ("en", 0.2))]  # fmt: skip
    report = compared(paths, ComparisonPlan({"kld_nats": 0.0001}), ())
    kld, nll = report.comparisons
    assert kld.verdict() == "better"
    assert (kld.n_clusters, kld.n) == (30, len(text.codes))
    a, b = (blocks({0: find(path)[0]}, ("kld_nats",))[0] for path in paths)
    differences = a.values[0]["kld_nats"] - b.values[0]["kld_nats"]
    expected = clustered.mean(np.bincount(a.codes, differences), np.bincount(a.codes))
    assert (kld.estimate, kld.std_error) == pytest.approx((expected.estimate, expected.std_error))
    flips = sign_flips.interval(np.bincount(a.codes, differences), np.bincount(a.codes), 0.95)
    assert (kld.low, kld.high) == pytest.approx(flips)
    assert nll.question.metric.key == "nll_nats"
    assert not kld.samples.separable
    assert report.interactions == ()


def test_more_than_two_need_a_plan(grid, tmp_path):
    files = sorted(grid.glob("nb-*.parquet"))
    with pytest.raises(UsageError, match="needs a plan"):
        compared(files[:3])
    with pytest.raises(UsageError, match="at least two"):
        compared(files[:1], ComparisonPlan(family=GRID))
    with pytest.raises(UsageError, match="in one folder"):
        compared([grid, Text("nb").write(tmp_path / "other.parquet", "ml", "Q3_K_S")])


def test_texts_in_common_are_needed(grid):
    with pytest.raises(BadRecords, match="text: on nb nb Q3_K_S; on en nb Q3_K_S") as error:
        compared([grid / "nb-nb-1.parquet", grid / "en-nb-1.parquet"])
    assert "family" not in str(error.value)


def test_a_family_without_pairs_says_what_its_runs_are(tmp_path):
    text = Text("nb", n_documents=10)
    paths = [text.write(tmp_path / f"{t}.parquet", c, t)
             for c, t in (("nb", "Q3_K_S"), ("en", "Q4_K_M"))]  # fmt: skip
    with pytest.raises(
        BadRecords, match="differ in calib alone: on nb nb Q3_K_S, en Q4_K_M"
    ) as error:
        compared(paths, ComparisonPlan(family=("calib",)))
    assert "another --family" in error.value.fix


def test_items_asked_otherwise_are_not_compared(tmp_path):
    rows = [("exam", "nb", str(i), str(i), 1.0) for i in range(8)]
    facts = {"name": "exam", "language": "nb"}
    paths = [
        items(tmp_path / f"{n}.parquet", rows, c, task={**facts, "shots": n})
        for n, c in enumerate(("nb", "en"))
    ]
    with pytest.raises(BadRecords, match=r"task\.shots is 0 in .* and 1 in "):
        compared(paths, ComparisonPlan(), ())
    items(paths[1], rows, "en", task={"name": "other", "language": "nb"})
    with pytest.raises(BadRecords, match="on exam nb nb Q4_K_M; on other nb en Q4_K_M"):
        compared(paths, ComparisonPlan(), ())


def test_a_run_is_not_compared_with_itself(tmp_path):
    path = Text("nb", n_documents=10).write(tmp_path / "a.parquet", "nb", "Q3_K_S")
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(path.read_bytes())
    for other in (path, copy):
        with pytest.raises(UsageError, match="are one run: nb Q3_K_S on nb") as error:
            compared([path, other])
        assert error.value.where == str(other)


def test_twin_labels_become_file_names(tmp_path):
    text = Text("nb", n_documents=15)
    paths = [text.write(tmp_path / f"take{s}.parquet", "nb", "Q3_K_S", sample=s) for s in "12"]
    (result,) = compared(paths).comparisons
    assert (result.question.a, result.question.b) == ("take1", "take2")


def test_a_grid_with_samples_controls_and_interaction(grid):
    plan = ComparisonPlan({"kld_nats": 0.002}, GRID)
    report = compared([grid], plan)
    by_pair = {(c.question.text, c.question.a, c.question.b): c for c in report.comparisons}
    assert len(by_pair) == 12
    own = by_pair["nb", "en Q3_K_S", "nb Q3_K_S"]
    assert own.method == "samples"
    assert own.samples.n_samples == {"en": 2, "nb": 2}
    assert own.verdict() == "worse"
    assert own.noise_multiple > 1
    assert own.p_value <= own.p_holm <= 1
    assert np.isnan(own.p_max_t)
    assert by_pair["nb", "no imatrix Q3_K_S", f"{RANDOM} Q3_K_S"].samples.n_samples == {RANDOM: 1}
    (crossed,) = report.interactions
    assert {crossed.a, crossed.b} == {"nb", "en"}
    assert crossed.contrast.estimate < 0
    assert crossed.contrast.p_value < 0.05
    assert crossed.contrast.separable
    controls = {(c.name, c.text): c for c in report.controls}
    assert controls["reference against itself", "nb"].estimate == pytest.approx(0, abs=1e-9)
    assert controls["no imatrix against nb", "nb"].low > 0
    assert controls[f"{RANDOM} against en", "en"].noise_multiple > 3
    noise = controls["two samples of nb", "nb"]
    assert noise.low <= 0 <= noise.high


def test_single_samples_get_max_t_beside_holm(grid):
    files = [grid / f"{t}-{c}-1.parquet" for t in ("nb", "en") for c in ("nb", "en", RANDOM)]
    report = compared(files, ComparisonPlan(family=GRID, adjust="max-t"))
    for c in report.comparisons:
        assert c.n_family == 6
        assert c.p_adjusted() == c.p_max_t
        assert c.p_max_t >= 1 / 501
        assert c.p_holm >= c.p_value
    split = compared(files, ComparisonPlan(family=("calib",)))
    assert {c.n_family for c in split.comparisons} == {3}
    assert {c.family for c in split.comparisons} == {"calib nb Q3_K_S", "calib en Q3_K_S"}


def test_one_quant_twice_is_no_second_sample(tmp_path, grid):
    copy = tmp_path / "again.parquet"
    copy.write_bytes((grid / "nb-nb-1.parquet").read_bytes())
    with pytest.raises(UsageError, match="same quant twice on nb"):
        compared([grid, copy], ComparisonPlan(family=GRID))


def test_adding_a_run_changes_no_other_numbers(grid):
    names = ["nb-nb-1", "nb-en-1", f"nb-{RANDOM}-1"]
    plan = ComparisonPlan(family=GRID, adjust="none")
    few, more = (
        compared([grid / f"{n}.parquet" for n in some], plan).comparisons
        for some in (names[:2], names)
    )
    twin = next(c for c in more if c.question == few[0].question)
    assert twin.paired == few[0].paired


def test_not_finite_is_excluded_in_pairs_and_counted(tmp_path):
    text = Text("nb")
    bad = text.shared.astype(np.float32).copy()
    bad[[3, 500]] = np.nan, np.inf
    a = text.write(tmp_path / "a.parquet", "nb", "Q3_K_S", columns={"kld": bad})
    b = text.write(tmp_path / "b.parquet", "en", "Q3_K_S")
    (result,) = compared([a, b]).comparisons
    assert result.n_excluded == 2
    assert result.n == len(text.codes) - 2


def test_one_long_document_is_resampled_by_its_windows(tmp_path):
    text = Text("nb", n_documents=1, tokens=4000)
    paths = [text.write(tmp_path / f"{c}.parquet", c, "Q3_K_S") for c in ("nb", "en")]
    (result,) = compared(paths).comparisons
    assert result.method == paired.BLOCKS
    assert (result.n_clusters, result.paired.largest_share) == (1, 1)
    short = Text("nb", n_documents=1, tokens=100)
    paths = [short.write(tmp_path / f"s{c}.parquet", c, "Q3_K_S") for c in ("nb", "en")]
    with pytest.raises(BadRecords, match="20 needed"):
        compared(paths)


def test_few_documents_are_permuted_exactly(tmp_path):
    text = Text("nb", n_documents=7)
    paths = [text.write(tmp_path / f"{c}.parquet", c, "Q3_K_S", e)
             for c, e in (("nb", 0.0), ("en", 0.5))]  # fmt: skip
    (result,) = compared(paths, ComparisonPlan({"kld_nats": 0.1})).comparisons
    assert result.method == "permutation"
    assert result.p_value == 2 / 2**7
    assert result.paired.exact


def test_two_toolchains_are_a_control_not_a_comparison(tmp_path):
    text = Text("nb")
    paths = [text.write(tmp_path / f"{c}.parquet", c, "Q3_K_S") for c in ("nb", "en")]
    elsewhere = text.write(
        tmp_path / "nb-cuda.parquet", "nb", "Q3_K_S", seed=9,
        toolchain={**TOOLCHAIN, "backend": "cuda"},
    )  # fmt: skip
    report = compared([*paths, elsewhere], ComparisonPlan(family=GRID))
    assert len(report.comparisons) == 1
    (row,) = report.controls
    assert row.name == "two toolchains (backend)"
    assert row.low <= 0 <= row.high
    with pytest.raises(BadRecords, match=r"toolchain\.backend"):
        compared([paths[1], elsewhere])
    stranger = text.write(
        tmp_path / "ml-cuda.parquet", "ml", "Q3_K_S",
        toolchain={**TOOLCHAIN, "backend": "cuda"},
    )  # fmt: skip
    with pytest.raises(BadRecords, match=r"toolchain\.backend"):
        compared([*paths, stranger], ComparisonPlan(family=GRID))


def answers(path, calibration, seed, shift=None):
    rng = np.random.default_rng(seed)
    ease = np.random.default_rng(1).normal(0.5, 1, 150)
    rows = []
    for language in ("nb", "en"):
        for i in range(300):
            level = ease[i // 2] + (shift or {}).get(language, 0.0)
            right = float(rng.logistic() < level)
            rows.append(("qa" if i % 3 else "mc", language, str(i), f"g{i // 2}", right))
    return items(path, rows, calibration)


def test_items_by_language_with_tasks_and_interaction(tmp_path):
    paths = [
        answers(tmp_path / "nb.parquet", "nb", 1, {"nb": 1.5}),
        answers(tmp_path / "en.parquet", "en", 2, {"en": 1.5}),
    ]
    report = compared(paths, ComparisonPlan({"score": 0.03}, GRID), ())
    nb, en = report.comparisons
    assert (nb.question.text, nb.verdict(), en.verdict()) == ("mixeval nb", "better", "worse")
    assert nb.items.mcnemar.p_exact < 0.01
    assert 0 < nb.items.newcombe_low < nb.estimate < nb.items.newcombe_high
    assert nb.method == "permutation"
    assert nb.n_clusters == 150
    (crossed,) = report.interactions
    assert crossed.contrast.low > 0
    assert crossed.contrast.n_clusters == 150


def test_partial_scores_have_no_table(tmp_path):
    rows = [("qa", "nb", str(i), f"g{i}", i % 4 / 3) for i in range(40)]
    paths = [items(tmp_path / f"{c}.parquet", rows, c) for c in ("nb", "en")]
    (result,) = compared(paths, metrics=()).comparisons
    assert result.items is None
    assert result.verdict() == "undecided"


def test_kinds_do_not_mix(tmp_path):
    token = Text("nb", 12).write(tmp_path / "a.parquet", "nb", "Q3_K_S")
    item = items(tmp_path / "b.parquet", [("qa", "nb", "1", "g", 1.0)])
    with pytest.raises(BadRecords, match="token records and item records"):
        compared([token, item])


def test_json_is_json_and_says_all(grid):
    report = compared([grid], ComparisonPlan({"kld_nats": 0.002}, GRID), ("kld_nats", "nll_nats"))
    result = json.loads(json.dumps(report_as_json(report)))
    first = result["comparisons"][0]
    for key in ("estimate", "std_error", "ci95_low", "ci95_high", "p_value", "p_holm", "p_max_t",
                "q_bh", "p_equivalence", "detectable", "n", "n_clusters", "verdict", "plain",
                "formal", "margin", "family", "method"):  # fmt: skip
        assert key in first, key
    ratios = [c["perplexity_ratio"] for c in result["comparisons"] if c["metric"] == "nll_nats"]
    assert all(0.5 < r < 2 for r in ratios)
    assert len(result["signatures"]) == len(list(grid.glob("*.parquet")))
    assert result["interactions"][0]["plain"]
    assert len(result["controls"]) > 4
