"""Distances between moments by hand, and in `distance` on files."""

import numpy as np
import pytest

from imatrix_lab.imatrix import distance, format, moment_distance, moments
from tests.imatrix.made_up import write_moments

NAME = "blk.0.ffn_down.weight"


@pytest.fixture
def compare(tmp_path):
    """A function: rows (tokens, columns) of several files -> each measure between them."""

    def measure(*by_file, blocks=()):
        files = []
        for i, by_matrix in enumerate(by_file):
            path = tmp_path / f"{i}.gguf"
            rows = by_matrix if isinstance(by_matrix, list) else [by_matrix]
            write_moments(path, {NAME: rows}, blocks[i] if blocks else 256)
            files.append((path, format.read(path)))
        sources = [moments.read(path) for path, _ in files]
        counts = np.stack([i.entries[NAME].counts for _, i in files]).astype(float)
        return moment_distance.between(sources, NAME, counts)

    return measure


def rows(seed, n=500, n_columns=300, mean=0.0):
    together = np.random.default_rng([seed, n_columns]).normal(0, 1, (4, n_columns))
    return np.random.default_rng([seed, n]).normal(mean, 1, (n, 4)) @ together


def test_by_hand(compare):
    x, y = np.array([[3.0, 4.0], [3.0, -4.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    values = compare(x, y, x[:1])
    assert values["mean"][0, 1] == pytest.approx(np.hypot(3 / 5, 1))
    assert values["mean"][0, 2] == pytest.approx(4 / 5)
    # neither of the first two has two columns that go together
    assert np.isnan(values["products"][0, 1]) and values["products"][2, 2] == 0


def test_alike_whatever_the_scale_and_the_tokens(compare):
    x = rows(0, mean=1)
    values = compare(x, np.concatenate([3 * x, 3 * x]), -x)
    assert values["mean"][0, 1] == pytest.approx(0, abs=1e-6)
    assert values["products"][0, 1] == pytest.approx(0, abs=1e-6)
    # the signs of x are in its mean, not in its products
    assert values["mean"][0, 2] > 0.5 and values["products"][0, 2] == pytest.approx(0, abs=1e-6)


def test_products_see_what_squares_do_not(compare):
    """The columns' sizes are the same, but others go together."""
    x = rows(1)
    columns = np.random.default_rng(0).permutation(x.shape[1])
    y = x[:, columns] * np.sqrt((x**2).mean(0) / (x[:, columns] ** 2).mean(0))
    values = compare(x, y, rows(1, n=2000))
    assert 0.3 < values["products"][0, 1] < 1.1
    assert np.allclose(values["products"], values["products"].T)
    assert (np.diagonal(values["products"]) < 1e-6).all()


def test_experts_count_by_their_tokens(compare):
    x, y, z = (rows(i, n_columns=40) for i in range(3))
    values = compare([x[:300], y[:100]], [x[:300], z[:10]])
    alone = compare(y[:100], z[:10])["products"][0, 1]
    assert values["products"][0, 1] == pytest.approx(10 / 310 * alone, rel=1e-4)
    nothing = compare([x, y[:0]], [x[:0], y])
    assert np.isnan(nothing["mean"][0, 1]) and np.isnan(nothing["products"][0, 1])


def test_other_blocks_have_their_means_compared(compare):
    values = compare(rows(0), rows(1), blocks=(256, 300))
    assert values["mean"][0, 1] > 0 and np.isnan(values["products"][0, 1])


def test_a_comparison_has_them_where_all_files_do(tmp_path):
    def file(name, seed, n=500):
        path = write_moments(tmp_path / name, {NAME: [rows(seed, n, mean=seed)]})
        return path, format.read(path)

    one, other = file("a.gguf", 1), file("b.gguf", 2)
    distances = distance.compare([one, other], "ab")
    floor = distance.noise_floor([[file("c.gguf", 1, 80), one]], distances.tensors)
    summary = distance.summary(distances, floor)
    (role,) = summary["roles"]
    assert role["products"] > role["noise"]["products"] > 0
    assert role["mean"] > role["noise"]["mean"]
    plain = format.read(one[0])
    format.write(tmp_path / "plain.gguf", format.Imatrix(plain.entries, ("x",), 1, 512))
    mixed = distance.compare([other, (tmp_path / "plain.gguf", plain)], "ab")
    assert mixed.values.keys() == set(distance.MEASURES)
