"""Distances by hand, against scipy, and on real files; their pictures."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix import distance, format, plots, statistics
from imatrix_lab.imatrix.format import Imatrix
from tests.imatrix.made_up import imatrix


def two(one, other):
    return distance.compare([(Path("a"), one), (Path("b"), other)], ["a", "b"])


def value(found, measure, tensor=0):
    return found.values[measure][tensor, 0, 1]


def test_by_hand():
    found = two(imatrix(t=([1, 3, 0, 0], [1])), imatrix(t=([10, 0, 0, 30], [2])))
    assert value(found, "tv") == pytest.approx(0.75)
    assert value(found, "cosine") == pytest.approx(1 * 10 / (10**0.5 * 1000**0.5))
    assert value(found, "top") == 0
    # the third column has no energy in either, and says nothing
    assert value(found, "rank") == pytest.approx(spearmanr([1, 3, 0], [10, 0, 30]).statistic)


def test_a_common_factor_changes_nothing():
    rng = np.random.default_rng(0)
    sums = rng.lognormal(size=300)
    found = two(imatrix(t=(sums, [5])), imatrix(t=(sums * 7, [9])))
    assert value(found, "tv") == pytest.approx(0, abs=1e-6)
    for measure in ("cosine", "rank", "top"):
        assert value(found, measure) == pytest.approx(1)


def test_top_columns_and_ranks():
    rng = np.random.default_rng(1)
    one, other = rng.lognormal(size=(2, 400)).astype(np.float32)
    found = two(imatrix(t=(one, [1])), imatrix(t=(other, [1])))
    tops = [set(np.argsort(-x)[:4]) for x in (one, other)]
    assert value(found, "top") == len(tops[0] & tops[1]) / 4
    assert value(found, "rank") == pytest.approx(spearmanr(one, other).statistic)


def test_experts_that_both_reached_weigh_by_the_fewer_tokens():
    one = imatrix(t=([1, 0, 1, 0, 1, 0], [10, 4, 9]))
    other = imatrix(t=([0, 1, 1, 0, 5, 5], [2, 6, 0]))
    assert value(two(one, other), "tv") == pytest.approx((2 * 1 + 4 * 0) / 6)
    never = two(imatrix(t=([1, 0, 0, 0], [3, 0])), imatrix(t=([0, 0, 1, 0], [0, 3])))
    assert np.isnan(value(never, "tv"))


def test_groups_come_with_those_that_differ_most_first_and_their_noise():
    names = {f"blk.{i}.{r}.weight": i + (r == "up") for i in range(3) for r in ("q", "up")}
    flat = imatrix(**{n: ([8, 8], [1]) for n in names})
    tilted = imatrix(**{n: ([8 + by, 8 - by], [1]) for n, by in names.items()})
    found = two(flat, tilted)
    samples = [(Path("c"), flat), (Path("d"), imatrix(**{n: ([9, 7], [1]) for n in names}))]
    floor = distance.noise_floor([samples], found.tensors)
    result = distance.summary(found, floor)
    assert [g["name"] for g in result["layers"]] == [2, 1, 0]
    assert [g["name"] for g in result["roles"]] == ["up", "q"]
    assert result["layers"][0]["tv"] == pytest.approx(2.5 / 16)
    assert result["overall"]["noise"]["tv"] == pytest.approx(1 / 16)
    assert result["overall"]["above_noise"] == 3 and result["overall"]["tensors"] == 6
    assert result["overall"]["above_by_chance"] == 3  # of 6, beside one pair


def test_above_the_noise_is_above_every_pair_of_samples():
    names = [f"blk.{i}.q.weight" for i in range(400)]
    rng = np.random.default_rng(0)

    def sample():
        return imatrix(**{n: (rng.lognormal(size=20), [1]) for n in names})

    pairs = [[(Path("a"), sample()), (Path("b"), sample())] for _ in range(4)]
    found = two(sample(), sample())
    floor = distance.noise_floor(pairs[:3], found.tensors)
    overall = distance.summary(found, floor)["overall"]
    assert overall["above_by_chance"] == 100 and 70 < overall["above_noise"] < 130


def test_noise_that_one_pair_cannot_tell_the_others_do():
    never = imatrix(t=([1, 0, 0, 0], [3, 0])), imatrix(t=([0, 0, 1, 0], [0, 3]))
    known = imatrix(t=([1, 0, 0, 0], [3, 0])), imatrix(t=([1, 1, 0, 0], [3, 0]))
    samples = [[(Path("a"), one), (Path("b"), other)] for one, other in (never, known)]
    assert distance.noise_floor(samples, ["t"]).by_tensor["tv"].tolist() == [0.5]


def test_what_a_dat_fills_in_is_no_difference(tmp_path):
    name = "blk.0.ffn_up_exps.weight"
    format.write(tmp_path / "a.dat", imatrix(**{name: ([0.1, 0.3, 0, 0], [900, 0])}))
    other = imatrix(**{name: ([0.1, 0.3, 5, 0], [800, 100])})
    assert value(two(format.read(tmp_path / "a.dat"), other), "tv") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [imatrix(u=([1], [1])), imatrix(t=([1, 1, 1], [1])), imatrix(t=([1, float("nan")], [1]))],
    ids=["no tensor in common", "shapes", "NaN"],
)
def test_what_cannot_be_compared(other):
    with pytest.raises(BadImatrix) as error:
        two(imatrix(t=([1, 1], [1])), other)
    assert "b" in error.value.where and error.value.fix


def test_a_dat_and_its_gguf_are_the_same(made, tmp_path):
    whole = format.read(made["moe"]["a"])
    format.write(tmp_path / "a.dat", whole)
    found = two(whole, format.read(tmp_path / "a.dat"))
    assert np.nanmax(found.values["tv"]) < 1e-6


# -- statistics


def printed_statistics(done):
    """Layer -> the cells of its line, of the lines that are whole."""
    found = {}
    for line in (done.stdout + done.stderr).splitlines():
        cells = [c.strip(" %") for c in line.split("\t")]
        layer = cells[0].split()[-1:]  # after the time
        if len(cells) == 13 and layer[0].isdigit():
            found[int(layer[0])] = cells
    return found


def test_statistics_are_those_of_llama_imatrix(made, llama_imatrix, tmp_path):
    """It may exit before all is printed, so it runs until each tensor was printed once."""
    real = [e for kind in made.values() for e in sorted(format.read(kind["a"]).entries.items())]
    many = {f"blk.{i}.t{i}.weight": real[i % len(real)][1] for i in range(1500)}
    format.write(tmp_path / "many.gguf", Imatrix(many, ("x",), 8, 128))
    ours = {t.layer: t for t in statistics.of(format.read(tmp_path / "many.gguf"))}
    printed = {}
    for _ in range(20):
        done = llama_imatrix("-m", "none", "--show-statistics", "--in-file", tmp_path / "many.gguf")
        printed |= printed_statistics(done)
        if len({layer % len(real) for layer in printed}) == len(real):
            break
    assert len({layer % len(real) for layer in printed}) == len(real)
    for layer, cells in printed.items():
        t = ours[layer]
        found = [
            t.energy, t.minimum, t.maximum, t.mean, t.std_dev, 100 * t.active, t.n_values,
            t.entropy_bits, 100 * t.entropy_share, 100 * t.high_share,
        ]  # fmt: skip
        theirs = [float(c) for c in cells[2:12]]
        np.testing.assert_allclose(found, theirs, rtol=2e-4, atol=0.006, err_msg=str(cells))


# -- pictures


@pytest.fixture(scope="module")
def real(made):
    files = [(made["dense"][t], format.read(made["dense"][t])) for t in "abc"]
    found = distance.compare(files, "abc")
    return found, distance.noise_floor([files[:2]], found.tensors)


def words_of(svg):
    return set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


@pytest.mark.parametrize("with_floor", [True, False])
def test_a_picture_names_files_roles_and_noise(real, tmp_path, with_floor):
    found, floor = real
    plots.draw(tmp_path / "p.svg", found, floor if with_floor else None)
    words = words_of((tmp_path / "p.svg").read_text())
    assert {"a", "b", "c", "attn_output", "attn_k, attn_q, attn_v", "ffn_gate, ffn_up"} <= words
    assert ("noise: two samples of one language" in words) == with_floor
    assert f"{found.matrix('tv')[0, 1]:.2f}" in words


def test_two_files_need_no_heat_map_and_a_picture_repeats_to_the_byte(real, tmp_path):
    found, _ = real
    few = dataclasses.replace(
        found, labels=("a", "b"), values={m: v[:, :2, :2] for m, v in found.values.items()}
    )
    for name in ("one.svg", "two.svg"):
        plots.draw(tmp_path / name, few, None)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert not any("every two files" in w for w in words_of((tmp_path / "one.svg").read_text()))
    plots.draw(tmp_path / "p.png", few, None)
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_another_suffix_is_refused(real, tmp_path):
    with pytest.raises(UsageError):
        plots.draw(tmp_path / "p.pdf", *real)
