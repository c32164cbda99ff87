"""What a plan promises."""

import math

import pytest

from imatrix_lab.compare.power import PowerRequest, plan_comparisons, task_design
from imatrix_lab.errors import BadRecords, UsageError
from imatrix_lab.stats import power
from tests.compare.made_up import Text


def test_mixeval_by_discordance():
    metric, rows = plan_comparisons(PowerRequest("mixeval", 1.5, ("en", "nb")))
    assert metric.key == "score"
    assert [r.question.split(",")[0] for r in rows] == [
        "one language", "interaction of two"
    ] * 3  # fmt: skip
    assert {r.alpha for r in rows} == {0.05 / 3}
    one, both = rows[:2]
    assert (one.n, one.n_clusters) == (3996, 2984)
    assert both.detectable == pytest.approx(one.detectable * 2**0.5, rel=0.05)
    assert one.detectable < rows[2].detectable < rows[4].detectable
    assert one.power_superiority > 0.8
    assert one.n_superiority < one.n
    assert math.isnan(one.hours)


def test_needs_are_enough():
    _, (row,) = plan_comparisons(
        PowerRequest(
            "mixeval-free-form", 2.0, ("nb",), discordance=0.06, icc=0.5, units_per_second=4.0
        )
    )
    design = task_design("mixeval-free-form", 0.06, 0.5)
    assert power.design_power(design, row.clusters_superiority, 0.02) >= 0.8
    assert power.design_power(design, row.clusters_superiority - 1, 0.02) < 0.8
    assert power.design_power(design, row.clusters_equivalence, 0.0, margin=0.02) >= 0.8
    assert row.hours == pytest.approx(2000 * 2 / 4 / 3600)


def test_a_pilot_replaces_assumptions(tmp_path):
    text = Text("nb")
    pilot = tuple(text.write(tmp_path / f"{c}.parquet", c, "Q3_K_S") for c in ("nb", "en"))
    metric, (row,) = plan_comparisons(PowerRequest("", 0.005, ("nb",), pilot=pilot))
    assert metric.key == "kld_nats"
    assert row.n_clusters == 30
    assert row.n == pytest.approx(len(text.codes), abs=1)
    _, (more,) = plan_comparisons(PowerRequest("", 0.005, ("nb",), pilot=pilot, n_clusters=300))
    assert more.detectable < row.detectable
    with pytest.raises(UsageError, match="two runs"):
        plan_comparisons(PowerRequest("", 0.005, ("nb",), pilot=pilot[:1]))
    with pytest.raises(BadRecords, match="do not differ"):
        plan_comparisons(PowerRequest("", 0.005, ("nb",), pilot=(pilot[0], pilot[0])))


def test_what_cannot_be_planned():
    with pytest.raises(UsageError, match="'xx' needs a pilot"):
        plan_comparisons(PowerRequest("xx", 1.0, ("nb",)))
    with pytest.raises(UsageError, match="must be positive"):
        plan_comparisons(PowerRequest("mixeval", 0.0, ("nb",)))
    with pytest.raises(UsageError) as error:
        plan_comparisons(PowerRequest("mixeval", 1e-12, ("nb",)))
    assert error.value.fix == "a larger --margin"


def test_votes_of_so_many_people():
    metric, rows = plan_comparisons(PowerRequest("votes", 15.0, ("nb", "ml")))
    assert metric.unit == "points"
    assert [r.question for r in rows] == [
        "1 person", "3 people", "5 people", "10 people", "20 people"
    ]  # fmt: skip
    assert {(r.n, r.alpha) for r in rows} == {(150, 0.025)}
    assert rows[1].n_superiority == 0  # three people differ too much
    assert rows[-1].n_superiority < rows[-1].n_equivalence
    assert rows[1].detectable > rows[2].detectable > rows[3].detectable > rows[4].detectable
    _, (row,) = plan_comparisons(
        PowerRequest("votes", 15.0, ("nb",), people=20, units_per_second=1 / 30)
    )
    assert row.hours == pytest.approx(150 * 20 * 30 / 3600)
    with pytest.raises(UsageError, match="decided"):
        plan_comparisons(PowerRequest("votes", 80.0, ("nb",)))


def test_needed_items_are_never_a_handful():
    """Of 5 items at 2 % discordance a tenth of an answer differs: nothing can be found."""
    for margin in (1.5, 1.9):
        _, (row,) = plan_comparisons(PowerRequest("mixeval", margin, ("nb",), discordance=0.02))
        assert row.n_superiority * 0.02 > 10
        assert row.power_superiority > 0.8
    few = PowerRequest("mixeval", 1.5, ("nb",), discordance=0.02, n_clusters=5)
    _, (row,) = plan_comparisons(few)
    assert (row.power_superiority < 0.001, row.detectable) == (True, math.inf)


def test_a_margin_beyond_the_answers_that_differ():
    with pytest.raises(UsageError, match="none can be that large"):
        plan_comparisons(PowerRequest("mixeval", 3.0, ("nb",), discordance=0.02))
    with pytest.raises(UsageError, match="10 % of answers differ"):
        plan_comparisons(PowerRequest("mixeval", 10.0, ("nb",)))
    _, rows = plan_comparisons(PowerRequest("mixeval", 3.0, ("nb",)))
    assert [r.sd**2 for r in rows] == pytest.approx([0.05, 0.1])
    for margin in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="must be positive") as error:
            plan_comparisons(PowerRequest("mixeval", margin, ("nb",)))
        assert error.value.fix.startswith("--margin 0.005")
