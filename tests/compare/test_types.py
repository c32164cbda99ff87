"""Types beside each other: at one size only, and whether a calibration changes one more."""

import numpy as np
import pytest

from imatrix_lab.compare.compare import compare_runs
from imatrix_lab.compare.design import ComparisonPlan
from imatrix_lab.core.progress import Silent
from imatrix_lab.records.runs import find
from tests.compare.made_up import Text, quant
from tests.score.made import records

FED, PLAIN, LARGE = "Q3_K_S+feedback", "Q3_K_S", "Q4_K_M"
EFFECTS = {FED: (-0.3, 0.1), PLAIN: (0.0, 0.1), LARGE: (-0.8, -0.7)}
"""By type: of a text's own calibration, and of another."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two languages, each calibrated on itself and on the other, two samples; and no imatrix."""
    folder = tmp_path_factory.mktemp("types")
    for lang in ("nb", "en"):
        text = Text(lang, n_documents=25, tokens=40)
        for kind, (own, other) in EFFECTS.items():
            for calib, sample in (("nb", 1), ("nb", 2), ("en", 1), ("en", 2), ("", 1)):
                effect = (own if calib == lang else other) + 0.05 * sample
                size_bytes = 10**9 + 2_000_000 * (kind == FED) + 10**8 * (kind == LARGE)
                path = folder / f"{lang}-{calib}-{kind}-{sample}.parquet"
                signed = quant(calib, kind, str(sample), size_bytes)
                text.write(path, calib, kind, effect, str(sample), quant=signed)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    types = ((FED, PLAIN), (LARGE, PLAIN))
    family = ("calib", "lang", "type")
    plan = ComparisonPlan({}, family, "en", n_resamples=300, types=types, reference="en")
    return compare_runs(list(find(folder)), plan, ("kld_nats",), Silent())


def kld(folder, lang, calib, kind):
    """The divergence of every token, mean over samples."""
    paths = sorted(folder.glob(f"{lang}-{calib}-{kind}-*.parquet"))
    return np.mean([records(path)["kld"].astype(float) for path in paths], axis=0)


def test_types_of_one_size_are_compared_with_each_calibration(report, folder):
    pairs = {(c.question.a, c.question.b, c.question.text) for c in report.contrasts}
    assert pairs == {
        (f"{calib} {FED}", f"{calib} {PLAIN}", lang)
        for calib in ("nb", "en", "no imatrix") for lang in ("nb", "en")
    }  # fmt: skip
    assert {c.family for c in report.contrasts} == {"type×calib×lang"}
    assert {c.n_family for c in report.contrasts} == {len(report.contrasts)}
    assert {c.family for c in report.comparisons} == {"calib×lang×type"}
    place = (f"nb {FED}", "nb")
    c = next(c for c in report.contrasts if (c.question.a, c.question.text) == place)
    moved = kld(folder, "nb", "nb", FED) - kld(folder, "nb", "nb", PLAIN)
    assert c.estimate == pytest.approx(moved.mean())
    assert c.verdict() == "better"


def test_other_sizes_are_left_out_and_told(report):
    gaps = {(gap.a, gap.b) for gap in report.refused}
    assert gaps == {(f"{c} {LARGE}", f"{c} {PLAIN}") for c in ("nb", "en", "no imatrix")}
    assert all(LARGE not in (x.type_a, x.type_b) for x in report.type_interactions)


def test_whether_the_calibration_changes_one_type_more(report, folder):
    means = {(x.type_a, x.type_b): x for x in report.type_interactions if not x.text}
    assert means.keys() == {(PLAIN, ""), (FED, ""), (FED, PLAIN)}
    change = {
        kind: (kld(folder, "nb", "nb", kind) - kld(folder, "nb", "en", kind)).mean()
        for kind in (FED, PLAIN)
    }
    for kind, changed in change.items():
        assert means[kind, ""].contrast.estimate == pytest.approx(changed)
        assert means[kind, ""].n_texts == 1  # English is what the change is from
    both = means[FED, PLAIN]
    assert both.contrast.estimate == pytest.approx(change[FED] - change[PLAIN])
    assert both.contrast.high < 0 and both.p_holm < 0.05
    # what a sample does to both types cancels
    assert both.contrast.n_samples == {"nb": 2, "en": 2}
    assert both.contrast.se_samples < means[FED, ""].contrast.se_samples
    (each,) = [x for x in report.type_interactions if x.text == "nb"]
    assert (each.calib, each.contrast.estimate) == ("nb", pytest.approx(both.contrast.estimate))
    (foreign,) = [x for x in report.type_interactions if x.text == "en"]
    assert foreign.calib == "nb" and foreign.contrast.estimate > 0  # it costs English more


def test_without_planned_types_nothing_changes(folder):
    plan = ComparisonPlan({}, ("calib", "lang", "type"), "en", n_resamples=300)
    report = compare_runs([folder], plan, ("kld_nats",), Silent())
    assert not (report.contrasts or report.refused or report.type_interactions)


def test_families_run_over_what_the_plan_says(folder):
    types = ((FED, PLAIN),)
    plan = ComparisonPlan({}, ("calib",), "en", n_resamples=300, types=types, reference="en")
    report = compare_runs([folder], plan, ("kld_nats",), Silent())
    assert {(c.family, c.n_family) for c in report.contrasts} == {
        (f"type×calib {lang} {FED} against {PLAIN}", 3) for lang in ("nb", "en")
    }  # fmt: skip
