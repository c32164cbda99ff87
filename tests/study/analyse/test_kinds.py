"""Sizes and quantizers in a study's results, against direct computation on its records."""

import math

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.core.progress import Silent
from imatrix_lab.report.results import Prediction, Quant
from imatrix_lab.study.analyse import secondary
from imatrix_lab.study.analyse.assemble import assemble
from imatrix_lab.study.analyse.index import Index
from imatrix_lab.study.recipe import CalibrationSettings, ComparisonSettings, Evaluation
from tests.compare.made_up import Text, quant
from tests.score.made import records
from tests.study import scored

PLAIN, FED, SIZED = "Q3_K_S", "Q3_K_S+feedback", "size:Q3_K_S"
EFFECT = {PLAIN: (0.0, 0.1), FED: (-0.4, 0.1), SIZED: (-0.5, -0.5)}
"""By kind: of the text's own calibration, and of the other."""
SIZE_BYTES = {PLAIN: 1_000_000, FED: 1_000_000, SIZED: 900_000}


def signed(calib, kind, sample):
    """A quant as its file tells it: of feedback in the calibration's name, not in the type."""
    base, _, fed = kind.partition("+")
    named = f"{calib}-feedback" if fed else calib
    imatrix = {"imatrix_sha256": f"imatrix-{calib}-{sample}"}
    return {**quant(named, base, sample, SIZE_BYTES[kind]), **imatrix}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def products(folder):
    grid = [(c, k, s) for c in ("en", "nb") for k in EFFECT for s in "12"]
    paths = []
    for lang in ("nb", "en"):
        text = Text(lang, 14, 30)
        for calib, kind, sample in grid:
            own, other = EFFECT[kind]
            effect = (own if calib == lang else other) + 0.02 * int(sample)
            path = folder / f"{lang}-{calib}-{kind.replace(':', '-')}-{sample}.parquet"
            facts = signed(calib, kind, sample)
            paths.append(text.write(path, calib, kind, effect, sample, quant=facts))
    quants = tuple(
        Quant("demo", c, int(s), k, f"demo-{c}-{k}-{s}", signed(c, k, s)["sha256"], SIZE_BYTES[k],
              3.5, 0, "feedback" if k == FED else "imatrix")
        for c, k, s in grid
    )  # fmt: skip
    recipe = scored.recipe(
        types=(PLAIN, SIZED), quantizers=("imatrix", "feedback"),
        calibration=CalibrationSettings(("en", "nb"), samples=2),
        evaluation=Evaluation(("nb", "en")),
        comparison=ComparisonSettings(metrics=("kld_nats",), resamples=300, baseline="en"),
    )  # fmt: skip
    predictions = tuple(
        Prediction("demo", c, int(s), k, lang, 0.1, math.nan, sum(EFFECT[k]) + (c != lang))
        for c, k, s in grid for lang in ("nb", "en") if k != FED
    )  # fmt: skip
    return scored.products(
        recipe=recipe, quants=quants, token_records=tuple(paths), predictions=predictions
    )


@pytest.fixture(scope="module")
def study(products):
    return assemble(products, Silent())


def kld(folder, lang, calib, kind):
    paths = sorted(folder.glob(f"{lang}-{calib}-{kind.replace(':', '-')}-?.parquet"))
    assert len(paths) == 2
    return np.mean([records(path)["kld"].astype(float).mean() for path in paths])


def test_quantizers_are_told_apart_by_type(study):
    assert study.types == (PLAIN, FED, SIZED, f"{SIZED}+feedback")
    assert {(c.a, c.b, c.type) for c in study.comparisons} == {("nb", "en", t) for t in EFFECT}
    assert {s.calibration for s in study.scores} == {"", "en", "nb"}
    assert {s.type for s in study.scores} == {"", *EFFECT}


def test_contrasts_are_of_one_size(study, folder):
    assert {(c.a, c.b, c.calibration, c.text) for c in study.contrasts} == {
        (FED, PLAIN, calib, lang) for calib in ("nb", "en") for lang in ("nb", "en")
    }  # fmt: skip
    assert len(study.refused) == 2 and all(SIZED in words for words in study.refused)
    for c in study.contrasts:
        fed, plain = (kld(folder, c.text, c.calibration, kind) for kind in (FED, PLAIN))
        assert c.estimate == pytest.approx(fed - plain)
        assert (c.type, c.model, len(c.signatures)) == (FED, "demo", 4)
    own = [c for c in study.contrasts if c.calibration == c.text]
    assert {c.verdict for c in own} == {"better"}


def test_the_interaction_and_the_noise_beside_it(study, folder):
    means = {(x.type_a, x.type_b): x for x in study.type_interactions if not x.text}
    change = {k: kld(folder, "nb", "nb", k) - kld(folder, "nb", "en", k) for k in (FED, PLAIN)}
    assert means[FED, ""].estimate == pytest.approx(change[FED])
    x = means[FED, PLAIN]
    assert x.estimate == pytest.approx(change[FED] - change[PLAIN]) and x.high < 0
    assert (x.n_texts, x.reference, x.unit) == (1, "en", "nats a token")
    assert 0 < x.noise < abs(x.estimate)
    each = {(y.text, y.calibration) for y in study.type_interactions if y.text}
    assert each == {("nb", "nb"), ("en", "nb")}


def test_the_answer_says_both(study):
    text = " ".join(study.answer)
    assert "with one calibration, feedback is better in 2 of 2 cases beside plain types" in text
    assert f"% of that of {PLAIN}" in text
    assert "helps with feedback more than with imatrix, 0." in text
    assert f"at {PLAIN}." in text


def test_predicted_divergences_rank_all_files(study, products, folder):
    known = [p for p in study.predictions if p.language == "nb"]
    ranked = sorted(known, key=lambda p: p.predicted_kld_nats)
    assert ranked[0].type == SIZED
    (agreement,) = [a for a in study.agreements if (a.type, a.language) == ("", "nb")]
    klds = [[p.predicted_kld_nats for p in known], [p.measured_kld_nats for p in known]]
    assert agreement.n == 8
    assert agreement.spearman == pytest.approx(stats.spearmanr(*klds).statistic)
    assert agreement.spearman > 0.8


def test_activations_of_each_language(tmp_path):
    products = scored.products(**scored.calibrations(tmp_path))
    rows = secondary.activations(products, Index(products))
    assert [(a.calibration, a.role) for a in rows] == [("en", "ffn_up"), ("nb", "ffn_up")]
    (entry,) = [
        e for name, e in secondary.format.read(products.imatrices["imatrix-nb-1"]).entries.items()
        if name == "blk.1.ffn_up.weight"
    ]  # fmt: skip
    rms = np.sqrt(entry.means()[0])
    nb = rows[1]
    assert (nb.median[1], nb.largest[1]) == pytest.approx((np.median(rms), rms.max()))
    assert nb.median[1] <= nb.high[1] <= nb.largest[1] and len(nb.high) == 2
