"""Every number of a study's results, against direct computation on its records."""

import dataclasses
import itertools
import json
import math
import random
import shutil

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadRecords
from imatrix_lab.imatrix import format
from imatrix_lab.report import results
from imatrix_lab.report.results import ALL_SAMPLES, Missing
from imatrix_lab.study.analyse.assemble import assemble
from imatrix_lab.study.analyse.secondary import FLIPS_MAX
from imatrix_lab.study.plan import power
from imatrix_lab.study.recipe import ComparisonSettings
from imatrix_lab.tasks import run
from imatrix_lab.types import ComputeOptions, TaskRequest
from tests.compare.made_up import TOOLCHAIN, Text
from tests.score.made import records
from tests.study import scored
from tests.tasks.fakes import Answerer

TYPES = ("Q4_K_M", "Q3_K_S")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def products(folder):
    """Texts and tasks, two samples of each calibration."""
    task = scored.exam(folder / "items" / "task")
    lost = Missing("imatrix ml", "no text", "a network", ("quant ml Q4_K_M",))
    return scored.products(
        recipe=scored.with_task(task, question="Does it help?", unknown=("which chat template",)),
        **scored.calibrations(folder / "imatrix"),
        predictions=scored.predictions(),
        token_records=scored.tokens(folder / "scores"),
        item_records=scored.items(folder / "items"),
        missing=(lost,),
    )


@pytest.fixture(scope="module")
def study(products):
    return assemble(products, Silent())


@pytest.fixture(scope="module")
def columns(folder):
    """A function: text, calibration, type, sample -> columns of the records."""

    def read(text, calibration, kind, sample=1):
        return records(folder / "scores" / f"{text}-{calibration}-{kind}-{sample}.parquet")

    return read


def the(rows, **wanted):
    """Return the one row that has these values."""
    group = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(group) == 1, (wanted, len(group))
    return group[0]


def documents(values, names):
    """Variance and degrees of freedom of a mean, without each document in turn (CV3)."""
    kinds = np.unique(names)
    left = np.array([values[names != n].mean() for n in kinds])
    g = len(kinds)
    return (g - 1) / g * ((left - values.mean()) ** 2).sum(), g - 1


def interval(estimate, parts):
    """95 % interval of independent (variance, df), by Satterthwaite."""
    variance = sum(v for v, _ in parts)
    df = variance**2 / sum(v**2 / d for v, d in parts)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    return pytest.approx((estimate, estimate - half, estimate + half), rel=1e-6)


def numbers(row):
    return row.estimate, row.low, row.high


# -- power


def test_what_was_planned(products, study):
    plan = [power.TextSize(t, (1,) * 14, True) for t in products.recipe.evaluation.texts]
    planned = [e.power for e in power.Planned(products.recipe, plan).effects()]
    assert [p.what for p in study.power] == [p.what for p in planned]
    assert all(p.detectable > 0 and "demo model" in p.assumed for p in study.power
               if "nats" in p.unit)  # fmt: skip


# -- scores


def test_a_samples_scores(study, columns):
    r = columns("nb", "en", "Q3_K_S", 2)
    place = {"text": "nb", "task": "", "calibration": "en", "type": "Q3_K_S", "sample": 2}
    kld = r["kld"].astype(float)
    row = the(study.scores, metric="kld_nats", **place)
    assert numbers(row) == interval(kld.mean(), [documents(kld, r["doc_id"])])
    assert (row.n, row.n_clusters, row.unit) == (len(kld), 14, "nats a token")
    nll = r["nll"].astype(float)
    row = the(study.scores, metric="perplexity", **place)
    assert row.estimate == pytest.approx(math.exp(nll.mean()))
    assert math.log(row.high / row.estimate) == pytest.approx(math.log(row.estimate / row.low))
    same = r["top1"] == r["top1_ref"]
    row = the(study.scores, metric="top1_agreement", **place)
    assert (row.estimate, row.unit) == (pytest.approx(100 * same.mean()), "%")
    row = the(study.scores, metric="bits_per_byte", **place)
    assert row.estimate == pytest.approx(nll.sum() / math.log(2) / r["n_bytes"].sum())
    assert (row.n, row.n_clusters) == (len(nll), 14)
    assert len(row.signatures) == 1


def test_all_samples_together_take_the_sample_as_random(study, columns):
    both = [columns("nb", "en", "Q3_K_S", s)["kld"].astype(float) for s in (1, 2)]
    names = columns("nb", "en", "Q3_K_S")["doc_id"]
    means = [b.mean() for b in both]
    row = the(study.scores, metric="kld_nats", text="nb", calibration="en", type="Q3_K_S",
              sample=ALL_SAMPLES)  # fmt: skip
    parts = [documents(sum(both) / 2, names), (np.var(means, ddof=1) / 2, 1)]
    assert numbers(row) == interval(np.mean(means), parts)
    assert len(row.signatures) == 2


def test_what_has_no_samples_has_one_row(study, columns):
    rows = [s for s in study.scores if s.calibration == "no imatrix" and s.metric == "kld_nats"]
    assert len(rows) == 3 * len(TYPES)
    assert {s.sample for s in rows} == {ALL_SAMPLES}
    r = columns("ml", "none", "Q4_K_M")
    kld = r["kld"].astype(float)
    row = the(rows, text="ml", type="Q4_K_M")
    assert numbers(row) == interval(kld.mean(), [documents(kld, r["doc_id"])])


def test_the_originals_scores(study, columns):
    r = columns("ml", "nb", "Q4_K_M")
    nll = r["nll_ref"].astype(float)
    row = the(study.scores, text="ml", calibration="", metric="perplexity")
    assert (row.type, row.sample) == ("", ALL_SAMPLES)
    assert row.estimate == pytest.approx(math.exp(nll.mean()))
    assert len(row.signatures) == 14
    row = the(study.scores, text="ml", calibration="", metric="bits_per_byte")
    assert row.estimate == pytest.approx(nll.sum() / math.log(2) / r["n_bytes"].sum())


def test_scores_of_tasks(study, folder):
    place = {"task": "exam", "text": "nb", "calibration": "nb", "metric": "score"}
    both = [records(folder / "items" / f"exam.nb.nb-{s}.parquet") for s in (1, 2)]
    points = [100 * r["score"] for r in both]
    row = the(study.scores, sample=2, **place)
    assert numbers(row) == interval(points[1].mean(), [documents(points[1], both[1]["cluster_id"])])
    assert (row.unit, row.n, row.n_clusters) == ("%", 60, 30)
    row = the(study.scores, sample=ALL_SAMPLES, **place)
    assert row.estimate == pytest.approx(np.mean(points))


# -- comparisons


def test_the_baseline_is_never_a_and_each_pair_is_compared_once(study):
    assert study.baseline == "en"
    texts = [c for c in study.comparisons if not c.task]
    pairs = list(itertools.combinations(["en", "nb", "en25-nb75", "no imatrix"], 2))
    assert len(texts) == len(pairs) * 3 * len(TYPES) * 2
    assert {c.b for c in texts if "en" in (c.a, c.b)} == {"en"}
    assert {c.b for c in texts if "no imatrix" in (c.a, c.b) and "en" not in (c.a, c.b)} == {
        "no imatrix"
    }
    seen = [(c.text, c.task, c.type, c.metric, frozenset((c.a, c.b))) for c in study.comparisons]
    assert len(set(seen)) == len(seen)


def test_a_difference_is_a_minus_b_with_documents_and_samples(study, columns):
    def klds(calibration):
        return [columns("nb", calibration, "Q3_K_S", s)["kld"].astype(float) for s in (1, 2)]

    names = columns("nb", "en", "Q3_K_S")["doc_id"]
    nb, en = klds("nb"), klds("en")
    moved = sum(nb) / 2 - sum(en) / 2
    samples = [(np.var([x.mean() for x in both], ddof=1) / 2, 1) for both in (nb, en)]
    c = the(study.comparisons, text="nb", a="nb", b="en", type="Q3_K_S", metric="kld_nats")
    assert numbers(c) == interval(moved.mean(), [documents(moved, names), *samples])
    assert (c.verdict, c.lower_is_better, c.unit) == ("better", True, "nats a token")
    assert "nb Q3_K_S is better than en Q3_K_S" in c.plain
    assert (c.margin, c.n, c.n_clusters) == (0.002, len(moved), 14)
    assert c.p_value <= c.p_adjusted <= 0.05
    assert (c.adjust, c.n_family, len(c.signatures)) == ("holm", 36, 4)
    quants = [study.signatures[s]["quant"]["calibration"] for s in c.signatures]
    assert quants == ["nb", "nb", "en", "en"]


def test_the_noise_is_that_between_samples(study, columns):
    moved = [
        np.subtract(*(columns("nb", c, "Q3_K_S", s)["kld"].astype(float).mean() for s in (1, 2)))
        for c in ("en", "nb")  # and not of the mixture, which is not compared
    ]
    c = the(study.comparisons, text="nb", a="nb", b="en", type="Q3_K_S", metric="kld_nats")
    assert c.noise == pytest.approx(np.sqrt(np.mean(np.square(moved))))
    assert c.noise_multiple == pytest.approx(abs(c.estimate) / c.noise)


def test_shares_are_in_points(study, columns):
    a, b = (
        np.mean([(r["top1"] == r["top1_ref"]).mean() for r in group])
        for group in (
            [columns("en", c, "Q4_K_M", s) for s in range(1, n + 1)]
            for c, n in (("nb", 2), ("none", 1))
        )
    )
    c = the(study.comparisons, text="en", a="nb", b="no imatrix", type="Q4_K_M",
            metric="top1_agreement")  # fmt: skip
    assert (c.unit, c.lower_is_better) == ("points", False)
    assert c.estimate == pytest.approx(100 * (a - b))
    assert c.low < c.estimate < c.high
    assert math.isnan(c.margin)
    noise = the(study.controls, name="two samples of nb", text="en", type="Q4_K_M",
                metric="top1_agreement")  # fmt: skip
    one, other = (columns("en", "nb", "Q4_K_M", s) for s in (1, 2))
    same = [(r["top1"] == r["top1_ref"]).mean() for r in (one, other)]
    assert noise.estimate == pytest.approx(100 * (same[0] - same[1]))


def test_tasks_in_points_by_language(study, folder):
    def points(calibration):
        return [100 * records(folder / "items" / f"exam.en.{calibration}-{s}.parquet")["score"]
                for s in (1, 2)]  # fmt: skip

    names = records(folder / "items" / "exam.en.en-1.parquet")["cluster_id"]
    nb, en = points("nb"), points("en")
    moved = sum(nb) / 2 - sum(en) / 2
    samples = [(np.var([x.mean() for x in both], ddof=1) / 2, 1) for both in (nb, en)]
    c = the(study.comparisons, task="exam", text="en", a="nb", b="en")
    assert (c.metric, c.unit, c.type, c.margin) == ("score", "points", "Q4_K_M", 5.0)
    assert numbers(c) == interval(moved.mean(), [documents(moved, names), *samples])
    assert c.estimate < -10
    assert len(c.signatures) == 4


def test_interactions(study, columns):
    def kld(text, calibration):
        return np.mean([columns(text, calibration, "Q4_K_M", s)["kld"].astype(float).mean()
                        for s in (1, 2)])  # fmt: skip

    x = the(study.interactions, task="", type="Q4_K_M", metric="kld_nats")
    gained = kld("nb", "nb") - kld("nb", "en") - (kld("en", "nb") - kld("en", "en"))
    assert x.estimate == pytest.approx(gained)
    assert {x.a, x.b} == {"nb", "en"}
    x = the(study.interactions, task="exam")
    assert (x.metric, x.unit) == ("score", "points")
    assert x.estimate > 10


def test_controls(study, columns):
    row = the(study.controls, name="no imatrix against nb", text="nb", task="", type="Q4_K_M",
              metric="kld_nats")  # fmt: skip
    tuned = np.mean([columns("nb", "nb", "Q4_K_M", s)["kld"].astype(float) for s in (1, 2)], axis=0)
    none = columns("nb", "none", "Q4_K_M")["kld"].astype(float)
    names = columns("nb", "none", "Q4_K_M")["doc_id"]
    assert numbers(row) == interval((none - tuned).mean(), [documents(none - tuned, names)])
    assert row.low > 0
    assert {r.text for r in study.controls if r.task} == {"nb", "en"}


# -- what stands beside


def test_flips_are_counted_against_the_baseline_and_shown(study, folder):
    one, other = (records(folder / "items" / f"exam.nb.{c}-1.parquet") for c in ("nb", "en"))
    count = the(study.flip_counts, language="nb", a="nb", b="en")
    assert count.n_gained == ((one["score"] == 1) & (other["score"] == 0)).sum() > 0
    assert count.n_lost == ((one["score"] == 0) & (other["score"] == 1)).sum() > 0
    assert (count.n_items, count.type, count.task) == (60, "Q4_K_M", "exam")
    flips = [f for f in study.flips if (f.language, f.a, f.b) == ("nb", "nb", "en")]
    assert len(flips) == count.n_gained + count.n_lost <= FLIPS_MAX
    for f in flips:
        (i,) = np.flatnonzero(one["item_id"] == f.item_id)
        assert (f.score_a, f.score_b) == (one["score"][i], other["score"][i])
        assert (f.output_a, f.output_b) == (one["prediction"][i], other["prediction"][i])
        assert f"Question {f.item_id}?" in f.prompt
        assert f.gold == "B"
    assert {c.b for c in study.flip_counts} == {"en"}


def test_few_flips_keep_their_text_and_all_are_counted(products, monkeypatch):
    monkeypatch.setattr("imatrix_lab.study.analyse.secondary.FLIPS_MAX", 3)
    study = assemble(dataclasses.replace(products, token_records=()), Silent())
    assert {
        len(list(g)) for _, g in itertools.groupby(study.flips, lambda f: (f.language, f.a))
    } == {3}
    assert max(c.n_gained + c.n_lost for c in study.flip_counts) > 3
    assert any("the first 3 are kept" in n for n in study.notes)


def test_flips_show_what_a_model_wrote(tmp_path):
    hostile = "<script>alert(x)</script>\u202e\x00"
    quiz = {str(i): {"problem_type": "free-form", "context": None, "prompt": f"{i} + 1?",
                     "target": [str(i + 1)], "benchmark_name": "x"} for i in range(20)}  # fmt: skip
    (tmp_path / "quiz.json").write_text(json.dumps(quiz))
    request = TaskRequest(("mixeval",), ("en",), ("x",), tmp_path,
                        ComputeOptions("cpu"),
                        data=tmp_path / "quiz.json", keep_text=True)  # fmt: skip

    def right(item_id):
        return str(int(item_id.rpartition("/")[2]) + 1)

    students = [Answerer("en", generate=lambda item: f"It is {right(item.id)}."),
                Answerer("nb", generate=lambda item: hostile)]  # fmt: skip
    paths = run.run(request, students, Silent())
    products = scored.products(
        item_records=tuple(paths),
        quants=tuple(
            scored.Quant("demo", x, 1, "Q4_K_M", x, f"sha-{x}", 1, 4.5, 0) for x in ("nb", "en")
        ),
    )
    study = assemble(products, Silent())
    (count,) = study.flip_counts
    assert (count.a, count.b, count.n_gained, count.n_lost) == ("nb", "en", 0, count.n_items)
    assert len(study.flips) == count.n_items > 0
    for f in study.flips:
        assert f.output_a == hostile
        assert f.output_b == f"It is {right(f.item_id)}."
        assert (f.score_a, f.score_b, f.gold) == (0.0, 1.0, right(f.item_id))
    results.write(tmp_path / "results.json", study)
    assert results.read(tmp_path / "results.json").flips == study.flips


def test_predictions_stand_beside_what_was_measured(study, columns):
    row = the(study.predictions, calibration="nb", sample=2, type="Q4_K_M", language="nb")
    assert row.measured_kld_nats == pytest.approx(
        columns("nb", "nb", "Q4_K_M", 2)["kld"].astype(float).mean()
    )
    assert row.predicted_loss == scored.effect("nb", "nb", 2, "Q4_K_M")
    row = the(study.predictions, calibration="no imatrix", type="Q4_K_M", language="en")
    assert row.measured_kld_nats == pytest.approx(
        columns("en", "none", "Q4_K_M")["kld"].astype(float).mean()
    )
    for a in study.agreements:
        assert a.spearman == pytest.approx(1.0 if a.language == "nb" else -1.0)
        assert a.n == 4
    assert len(study.agreements) == 2 * len(TYPES)


def test_similarity_of_first_samples_beside_the_noise(study, products):
    def shares(calibration, sample):
        path = products.imatrices[f"imatrix-{calibration}-{sample}"]
        return [e.sums.ravel() / e.sums.sum() for e in format.read(path).entries.values()]

    def apart(one, other):
        return np.mean([np.abs(a - b).sum() / 2 for a, b in zip(one, other, strict=True)])

    row = the(study.similarities, a="en", b="nb")
    assert row.total_variation == pytest.approx(apart(shares("en", 1), shares("nb", 1)))
    noise = np.mean([apart(shares(c, 1), shares(c, 2)) for c in ("en", "nb")])
    assert row.noise == pytest.approx(noise)
    assert len(study.similarities) == 3


def test_facts_go_along(study, products):
    nb = the(study.calibrations, label="nb", sample=2)
    assert (nb.imatrix_sha256, nb.corpus_sha256, nb.n_tokens) == ("imatrix-nb-2", "text-nb-2", 642)
    mixed = the(study.calibrations, label="en25-nb75", sample=1)
    assert mixed.shares == {"en": 0.25, "nb": 0.75}
    assert mixed.merged_from == ("imatrix-en-1", "imatrix-nb-1")
    assert [c.label for c in study.calibrations][::2] == ["en", "nb", "en25-nb75", "no imatrix"]
    assert len(study.quants) == 14
    assert study.quants[0].size_bytes == 1006
    assert study.languages["ml"]["script"] == "Mlym"
    assert {v["direction"] for v in study.languages.values()} == {"ltr"}
    assert study.models["demo"]["sha256"] == "reference"
    assert study.missing[0].left_out == ("quant ml Q4_K_M",)
    assert study.recipe["comparison"]["margins"] == {"kld_nats": 0.002, "score": 5.0}
    assert (study.question, study.unknown) == ("Does it help?", ("which chat template",))
    assert {x.what for x in study.licences} == {
        "model demo", "calibration text en", "calibration text nb", "held-out text nb",
        "held-out text en", "held-out text ml", "task exam",
    }  # fmt: skip
    assert the(study.licences, what="task exam").licence == "CC0-1.0"
    assert "exam.json" in the(study.licences, what="task exam").source
    assert study.times == products.times
    used = {s for rows in (study.scores, study.comparisons) for r in rows for s in r.signatures}
    assert used == set(study.signatures)


def test_an_arabic_text_runs_from_right_to_left(tmp_path):
    paths = scored.tokens(tmp_path, ("ar",), 12)
    assert assemble(scored.products(token_records=paths), Silent()).languages["ar"] == {
        "name": "Arabic", "native_name": "العربية", "script": "Arab", "direction": "rtl",
    }  # fmt: skip


# -- the same again


def test_the_same_records_give_the_same_bytes(study, products, tmp_path):
    results.write(tmp_path / "a.json", study)
    rng = random.Random(5)

    def moved(path, name):
        copy = tmp_path / "elsewhere" / f"{name}-{path.parent.name}.parquet"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
        return copy

    def mixed(rows):
        return tuple(rng.sample(rows, len(rows)))

    def files(paths):
        return mixed([moved(p, i) for i, p in enumerate(rng.sample(paths, len(paths)))])

    again = dataclasses.replace(
        products, token_records=files(products.token_records),
        item_records=files(products.item_records),
        calibrations=mixed(products.calibrations), quants=mixed(products.quants),
        predictions=mixed(products.predictions),
    )  # fmt: skip
    results.write(tmp_path / "b.json", assemble(again, Silent()))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert str(tmp_path.parent.name) not in (tmp_path / "a.json").read_text()
    results.write(tmp_path / "d.json", results.read(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "d.json").read_bytes()


# -- what is not there


def test_a_planned_baseline_compares_with_it_alone(products):
    planned = ComparisonSettings(baseline="none", metrics=("kld_nats",), resamples=200)
    recipe = scored.recipe(comparison=planned)
    paths = [p for p in products.token_records if not p.name.startswith("ml-none")]
    study = assemble(scored.products(recipe=recipe, token_records=tuple(paths)), Silent())
    assert study.baseline == "no imatrix"
    assert {(c.b, c.text) for c in study.comparisons} == {("no imatrix", x) for x in ("nb", "en")}
    assert {c.n_family for c in study.comparisons} == {12}
    (lost,) = study.missing
    assert (lost.step, lost.why) == ("compare demo ml", "no imatrix was not scored on it")
    assert any(s.text == "ml" for s in study.scores)


def test_a_text_that_says_nothing_takes_no_other_with_it(products, tmp_path):
    short = scored.tokens(tmp_path, ("sw",), 1)
    mine = [p for p in products.token_records if p.name.startswith("nb-")]
    study = assemble(scored.products(token_records=(*mine, *short)), Silent())
    assert {c.text for c in study.comparisons} == {"nb"}
    (lost,) = study.missing
    assert lost.step == "compare demo sw"
    assert "20 needed" in lost.why
    row = the(study.scores, text="sw", calibration="en", type="Q4_K_M", metric="kld_nats",
              sample=ALL_SAMPLES)  # fmt: skip
    assert math.isfinite(row.estimate)
    assert math.isnan(row.low)


def test_one_calibration_has_nothing_to_be_compared_with(products):
    mine = [p for p in products.token_records if "-nb-Q" in p.name and p.name.startswith("nb")]
    study = assemble(scored.products(token_records=tuple(mine)), Silent())
    assert study.comparisons == ()
    assert "nothing to compare" in study.missing[0].why
    assert study.scores
    assert "no answer" in study.answer[0]


def test_nothing_at_all_is_a_result_too(products):
    study = assemble(scored.products(quants=()), Silent())
    assert (study.scores, study.comparisons, study.similarities) == ((), (), ())
    assert len(study.answer) == 3


def test_one_sample_says_so(products):
    mine = tuple(p for p in products.token_records if p.name.endswith("-1.parquet"))
    calibration = dataclasses.replace(scored.recipe().calibration, samples=1)
    study = assemble(
        scored.products(recipe=scored.recipe(calibration=calibration), token_records=mine), Silent()
    )
    c = the(study.comparisons, text="nb", a="nb", b="en", type="Q4_K_M", metric="kld_nats")
    assert math.isnan(c.noise) and math.isnan(c.noise_multiple)
    assert "cannot be separated" in c.formal
    assert study.notes[0].startswith("One calibration text a language")


def test_not_finite_tokens_are_left_out(tmp_path):
    text = Text("nb", 12, 30)
    bad = text.shared.astype(np.float32).copy()
    bad[[3, 50]] = np.nan, np.inf
    paths = [text.write(tmp_path / f"{c}.parquet", c, "Q4_K_M", sample="1", columns=changed)
             for c, changed in (("nb", {"kld": bad}), ("en", {}))]  # fmt: skip
    study = assemble(scored.products(token_records=tuple(paths)), Silent())
    row = the(study.scores, calibration="nb", sample=1, metric="kld_nats")
    assert row.n == len(bad) - 2
    assert row.estimate == pytest.approx(bad[np.isfinite(bad)].mean(dtype=float))
    bad[:] = np.nan
    paths[0] = text.write(tmp_path / "nb.parquet", "nb", "Q4_K_M", columns={"kld": bad})
    study = assemble(scored.products(token_records=tuple(paths)), Silent())
    row = the(study.scores, calibration="nb", sample=1, metric="kld_nats")
    assert (row.n, row.n_clusters) == (0, 0)
    assert math.isnan(row.estimate)
    assert "no value is finite" in study.missing[0].why


def test_records_that_are_not_the_studys_are_refused(products, tmp_path):
    stranger = Text("nb").write(tmp_path / "stranger.parquet", "sw", "Q4_K_M")
    with pytest.raises(BadRecords, match="sw Q4_K_M"):
        assemble(dataclasses.replace(products, token_records=(stranger,)), Silent())
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(products.token_records[0].read_bytes()[:500])
    with pytest.raises(BadRecords, match="cannot be read"):
        assemble(dataclasses.replace(products, token_records=(damaged,)), Silent())
    mine = [p for p in products.token_records if p.name.startswith("nb-en-Q4")][:1]
    other = Text("nb", 14, 30).write(tmp_path / "x.parquet", "nb", "Q4_K_M",
                                     toolchain={**TOOLCHAIN, "commit": "beef"})  # fmt: skip
    with pytest.raises(BadRecords, match=r"toolchain\.commit"):
        assemble(dataclasses.replace(products, token_records=(*mine, other)), Silent())
