"""Differences of differences, and samples as a random effect."""

import numpy as np
import pytest

from imatrix_lab.stats import clustered, interaction
from imatrix_lab.stats.interaction import Cell

DOCUMENTS = np.array([f"d{i}" for i in range(20)])


def cell(weight, totals, sizes=None, names=DOCUMENTS, group="", sample="1"):
    return Cell(
        weight, group, sample, np.asarray(totals, float),
        np.ones(len(totals)) if sizes is None else np.asarray(sizes, float), names[: len(totals)],
    )  # fmt: skip


def test_shared_documents_are_paired():
    rng = np.random.default_rng(1)
    sizes = rng.integers(20, 90, 20)
    shared = rng.normal(0, 5, 20) * sizes
    a, b = (shared + rng.normal(0, 1, 20) * sizes for _ in range(2))
    contrast = interaction.contrast([cell(1, a, sizes), cell(-1, b, sizes)])
    expected = clustered.mean(a - b, sizes)
    assert contrast.estimate == pytest.approx(expected.estimate)
    assert contrast.std_error == pytest.approx(expected.std_error)
    assert (contrast.df, contrast.n_clusters) == (19, 20)
    np.testing.assert_allclose((contrast.low, contrast.high), (expected.low, expected.high))


def test_four_cells_on_two_texts_add_their_variances():
    rng = np.random.default_rng(2)
    nb, en = rng.normal(size=(2, 20)), rng.normal(0, 2, size=(2, 12))
    other = np.array([f"x{i}" for i in range(12)])
    contrast = interaction.contrast([
        cell(1, nb[0]), cell(-1, nb[1]), cell(-1, en[0], names=other), cell(1, en[1], names=other)
    ])  # fmt: skip
    parts = [clustered.mean(x[0] - x[1], np.ones(x.shape[1])) for x in (nb, en)]
    variances = np.array([p.std_error**2 for p in parts])
    assert contrast.estimate == pytest.approx(parts[0].estimate - parts[1].estimate)
    assert contrast.std_error == pytest.approx(variances.sum() ** 0.5)
    assert contrast.df == pytest.approx(variances.sum() ** 2 / (variances**2 / [19, 11]).sum())


def test_one_sample_cannot_speak_for_its_language():
    rng = np.random.default_rng(3)
    contrast = interaction.contrast(
        [cell(1, rng.normal(size=20), group="nb"), cell(-1, rng.normal(size=20), group="en")]
    )
    assert not contrast.separable
    assert np.isnan(contrast.se_samples)
    assert contrast.n_samples == {"nb": 1, "en": 1}


def test_samples_are_the_error_term_of_a_language():
    """Documents agree perfectly, samples do not: only they are left as error."""
    means = {("nb", "1"): 1.0, ("nb", "2"): 3.0, ("en", "1"): 0.5, ("en", "2"): 0.7}
    cells = [
        cell((1 if g == "nb" else -1) / 2, np.full(20, m), group=g, sample=s)
        for (g, s), m in means.items()
    ]
    contrast = interaction.contrast(cells)
    variances = np.array([np.var([1, 3], ddof=1) / 2, np.var([0.5, 0.7], ddof=1) / 2])
    assert contrast.separable
    assert contrast.se_documents == pytest.approx(0)
    assert contrast.se_samples == pytest.approx(variances.sum() ** 0.5)
    assert contrast.df == pytest.approx(variances.sum() ** 2 / (variances**2).sum())


def test_no_imatrix_is_fixed():
    cells = [cell(0.5, np.arange(20.0), group="nb", sample=s) for s in "12"]
    contrast = interaction.contrast([*cells, cell(-1, np.zeros(20))])
    assert contrast.separable
    assert contrast.n_samples == {"nb": 2}


def test_languages_drawn_from_one_bag_differ_at_the_nominal_rate():
    """Each language has 3 samples that differ by chance; by documents alone it looks real."""
    rng = np.random.default_rng(4)
    wrong = by_documents = covered = 0
    for _ in range(500):
        cells = []
        for group, sign in (("nb", 1), ("en", -1)):
            for k in range(3):
                own = rng.normal(0, 0.3)
                cells.append(
                    cell(sign / 3, own + rng.normal(0, 0.3, 20), group=group, sample=str(k))
                )
        contrast = interaction.contrast(cells)
        wrong += contrast.p_value <= 0.05
        covered += contrast.low <= 0 <= contrast.high
        by_documents += abs(contrast.estimate) > 2.09 * contrast.se_documents
    assert wrong / 500 <= 0.07
    assert covered == 500 - wrong
    assert by_documents / 500 > 0.3


def test_bad_contrasts_are_refused():
    with pytest.raises(ValueError, match="sum to 0"):
        interaction.contrast([cell(1, np.ones(20)), cell(1, np.ones(20))])
    with pytest.raises(ValueError, match="no values"):
        interaction.contrast([cell(1, np.ones(5), np.zeros(5)), cell(-1, np.ones(5))])


def test_one_document_has_no_interval():
    contrast = interaction.contrast([cell(1, [1.0]), cell(-1, [3.0])])
    assert contrast.estimate == -2
    assert np.isnan([contrast.std_error, contrast.low, contrast.p_value]).all()
