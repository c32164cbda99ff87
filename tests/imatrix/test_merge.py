"""Mixtures, against llama-imatrix's own merging and against runs over all of the text."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from imatrix_lab.errors import BadImatrix, UsageError
from imatrix_lab.imatrix import align, format, merge
from imatrix_lab.imatrix.format import Imatrix
from imatrix_lab.imatrix.merge import MergeInput
from imatrix_lab.models.gguf import read_header
from tests.imatrix.conftest import WINDOW
from tests.imatrix.made_up import imatrix


def inputs(*paths):
    return [MergeInput(path, format.read(path)) for path in paths]


def both(one, other):
    return [MergeInput(Path("a"), one), MergeInput(Path("b"), other)]


def made_up(sums, counts, **rest):
    return imatrix(t=(sums, counts), **rest)


def shares(found, name="t"):
    means = found.entries[name].means()
    return means / means.sum()


@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("texts", ["ab", "abc"])
def test_by_tokens_is_what_llama_imatrix_does(made, llama_imatrix, tmp_path, kind, texts):
    paths = [made[kind][t] for t in texts]
    words = [word for path in paths for word in ("--in-file", path)]
    llama_imatrix("-m", "none", *words, "-o", tmp_path / "theirs.gguf")
    theirs, ours = format.read(tmp_path / "theirs.gguf"), merge.merge(inputs(*paths), "tokens")
    assert ours.entries.keys() == theirs.entries.keys()
    assert (ours.chunk_count, ours.chunk_size) == (theirs.chunk_count, theirs.chunk_size)
    assert ours.datasets == theirs.datasets
    for name, e in theirs.entries.items():
        assert np.array_equal(ours.entries[name].counts, e.counts)
        np.testing.assert_allclose(ours.entries[name].sums, e.sums, rtol=3e-7)
        if len(texts) == 2:
            assert np.array_equal(ours.entries[name].sums, e.sums)


def test_the_longer_text_counts_more_by_tokens_and_not_by_energy():
    long, short = made_up([800, 0], [800]), made_up([0, 5], [100])
    pair = both(long, short)
    assert shares(merge.merge(pair, "energy"))[0] == pytest.approx([0.5, 0.5])
    assert shares(merge.merge(pair, "tokens"))[0] == pytest.approx([800 / 805, 5 / 805])
    assert merge.merge(pair, "energy").n_tokens() == 900


def test_weights_are_shares_of_the_energy():
    one, other = made_up([3, 1], [700]), made_up([100, 300], [30])
    pair = [MergeInput(Path("a"), one, 3), MergeInput(Path("b"), other, 1)]
    expected = 0.75 * np.array([0.75, 0.25]) + 0.25 * np.array([0.25, 0.75])
    np.testing.assert_allclose(shares(merge.merge(pair, "energy"))[0], expected, rtol=1e-6)


def test_a_mixture_of_mixtures_is_the_mixture(made):
    a, b, c = (MergeInput(made["dense"][t], format.read(made["dense"][t])) for t in "abc")
    inner = MergeInput(Path("ab"), merge.merge([a, b], "energy"), 2)
    outer, whole = merge.merge([inner, c], "energy"), merge.merge([a, b, c], "energy")
    for name in whole.entries:
        np.testing.assert_allclose(shares(outer, name), shares(whole, name), rtol=1e-5)


def test_within_an_expert_files_count_by_tokens_and_over_the_tensor_by_weight():
    one = made_up([[10, 0], [90, 0]], [10, 90])
    other = made_up([[0, 30], [0, 10]], [30, 10])
    found = merge.merge(both(one, other), "energy").entries["t"]
    energy = found.sums.sum(axis=0)
    assert energy[0] == pytest.approx(energy[1], rel=0.02)  # counts are whole
    means = found.means()
    assert means[0, 1] / means[0, 0] == pytest.approx(30 / 40 / (10 / 100), rel=0.1)


def test_windows_of_different_length_and_a_dat(made, tmp_path):
    dat = tmp_path / "b.dat"
    format.write(dat, format.read(made["moe"]["b"]))
    mixed = merge.merge(inputs(made["moe"]["a"], dat), "energy")
    plain = merge.merge(inputs(made["moe"]["a"], made["moe"]["b"]), "energy")
    dense = [n for n, e in plain.entries.items() if e.counts.size == 1]
    for name in dense:
        np.testing.assert_allclose(shares(mixed, name), shares(plain, name), rtol=1e-5)
    assert {e.counts.size for e in mixed.entries.values()} == {1, 8}
    # the .dat has 3 windows, taken to be of 512 tokens: the most, so that its window is named
    assert mixed.chunk_size == format.LEGACY_WINDOW
    assert mixed.n_tokens() == 8 * WINDOW + 3 * format.LEGACY_WINDOW


def test_a_tensor_that_only_some_have():
    one, other = made_up([1, 3], [8]), made_up([2, 2], [8])
    extra = Imatrix({**other.entries, "output.weight": other.entries["t"]}, (), 1, 8)
    found = merge.merge(both(one, extra), "energy")
    assert shares(found, "output.weight").tolist() == [[0.5, 0.5]]


def test_what_went_in_is_recorded(tmp_path, made):
    nb, en = (Imatrix(format.read(made["dense"][t]).entries, (t,), 8, 128, t) for t in "ab")
    pair = [
        MergeInput(tmp_path / "nb.gguf", nb, 0.75, "f00"),
        MergeInput(tmp_path / "en.gguf", en, 0.25),
    ]
    format.write(tmp_path / "mix.gguf", merge.merge(pair, "energy"))
    back = format.read(tmp_path / "mix.gguf")
    assert (back.language, back.label) == ("", "a75-b25") and back.datasets == ("a", "b")
    record = json.loads(back.metadata[merge.KEY])
    assert record["by"] == "energy" and str(tmp_path) not in back.metadata[merge.KEY]
    assert [i["weight"] for i in record["inputs"]] == [0.75, 0.25]
    assert record["inputs"][0]["sha256"] == "f00" and record["inputs"][0]["n_tokens"] == 8 * WINDOW


UP, ROUTER = "blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_inp.weight"


@pytest.mark.parametrize("both", [False, True])
def test_what_a_dat_fills_in_for_an_expert_without_tokens_does_not_count(tmp_path, both):
    nb = imatrix(**{ROUTER: ([1, 2], [900]), UP: ([[0.1, 0.3], [0, 0]], [900, 0])})
    en = imatrix(**{ROUTER: ([1, 2], [900]), UP: ([[0.2, 0.2], [0.3, 0.1]], [500, 400])})
    found = []
    for suffix in ("gguf", "dat"):
        paths = [tmp_path / f"nb.{suffix}", tmp_path / f"en.{suffix if both else 'gguf'}"]
        for path, one in zip(paths, (nb, en), strict=True):
            format.write(path, one)
        found.append(merge.merge(inputs(*paths), "energy").entries[UP].means()[1])
    np.testing.assert_allclose(found[1] / found[1].sum(), [0.75, 0.25], rtol=1e-5)
    np.testing.assert_allclose(found[0] / found[0].sum(), [0.75, 0.25], rtol=1e-5)


def test_files_of_two_models_are_told_apart(tmp_path):
    one, same, other = (made_up([1, 2], [8], model=m) for m in ("a" * 64, "a" * 64, "b" * 64))
    assert align.note_on_models([one, same, made_up([1, 2], [8])]) == ""
    note = align.note_on_models([one, same, other])
    assert note.count("a" * 12) == note.count("b" * 12) == 1
    found = merge.merge(both(one, other), "energy")
    record = json.loads(found.metadata[merge.KEY])
    assert [i["model_sha256"] for i in record["inputs"]] == ["a" * 64, "b" * 64]
    assert format.MODEL not in found.metadata


def test_a_merged_file_keeps_the_model_and_the_toolchain_of_its_inputs(tmp_path):
    shared = {"imatrix_lab.toolchain.commit": "c" * 40, "imatrix_lab.model.sha256": "a" * 64}
    pair = []
    for name in ("nb", "en"):
        path = tmp_path / f"{name}.gguf"
        format.write(path, made_up([1, 2], [8], language=name), shared)
        pair.append(path)
    format.write(tmp_path / "mix.gguf", merge.merge(inputs(*pair), "energy"))
    back = format.read(tmp_path / "mix.gguf").metadata
    assert {key: back.get(key) for key in shared} == shared


def test_names_of_mixtures():
    def named(*weights, by="energy"):
        some = [
            MergeInput(Path(f"{name}.x.gguf"), made_up([1], [1], language=name), w)
            for name, w in zip(("nb", "en", "ml", "de"), weights, strict=False)
        ]
        return merge.label(some, by)

    assert named(1, 1) == "nb-en" and named(2, 2, by="tokens") == "nb-en-by-tokens"
    assert named(3, 1) == "nb75-en25" and named(0.2, 0.3, 0.5) == "nb20-en30-ml50"
    for close in ((0.754, 0.246), (0.999, 0.001), (2, 1)):
        assert named(*close).startswith("mix-of-2-")
    assert named(0.754, 0.246) != named(0.753, 0.247)
    many = [
        MergeInput(Path("a"), made_up([1], [1], language=f"language{i}"), i + 1) for i in range(9)
    ]
    assert merge.label(many, "energy").startswith("mix-of-9-")
    assert len({merge.label(many, by) for by in merge.BY}) == 2


def test_unknown_languages_stay_unknown(tmp_path):
    """As of a .dat, which does not say: the file's name is a label, and no language."""
    whole = MergeInput(Path("dat/whole.dat"), made_up([1, 2], [8]))
    nb = MergeInput(Path("nb.gguf"), made_up([1, 2], [8], language="nb"))
    named = {"whole": [whole], "whole-whole": [whole, whole], "nb-whole": [nb, whole]}
    for label, some in named.items():
        path = tmp_path / f"{label}.gguf"
        format.write(path, merge.merge(some, "energy"))
        metadata = read_header(path).metadata
        assert "imatrix_lab.language" not in metadata and metadata["imatrix_lab.label"] == label
    format.write(tmp_path / "old.gguf", made_up([1], [8]), {"imatrix_lab.language": "whole"})
    old = format.read(tmp_path / "old.gguf")  # of an earlier version
    assert (old.language, old.label) == ("", "whole")
    format.write(tmp_path / "new.gguf", merge.merge([nb, nb], "energy"))
    assert format.read(tmp_path / "new.gguf").language == "nb-nb"


def test_leaving_one_out(made):
    three = inputs(*(made["dense"][t] for t in "abc"))
    _, without_b, _ = merge.without_each(three, "energy")
    expected = merge.merge([three[0], three[2]], "energy")
    for name, e in expected.entries.items():
        assert np.array_equal(without_b.entries[name].sums, e.sums)
    with pytest.raises(UsageError):
        merge.without_each(three[:2], "energy")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_none(weight):
    with pytest.raises(UsageError, match=f"{weight}"):
        merge.merge([MergeInput(Path("a"), made_up([1], [1]), weight)], "energy")


@pytest.mark.parametrize(
    ("sums", "counts"),
    [([1, 1, 1], [8]), ([1, 1, 1, 1], [8, 8]), ([1, float("nan")], [8]), ([1, -1], [8])],
    ids=["columns", "matrices", "NaN", "negative"],
)
def test_what_must_not_be_merged(sums, counts):
    pair = both(made_up([1, 1], [8]), made_up(sums, counts))
    with pytest.raises(BadImatrix) as error:
        merge.merge(pair, "energy")
    assert error.value.what.startswith("t ") and "b" in error.value.where


# -- merged files against one run over all of the text


@pytest.fixture(scope="module")
def joined(models, llama_imatrix, own_text, tmp_path_factory):
    """Model, imatrix merged of two texts, and imatrix of both texts in one run.

    The first text fills its windows, BOS included. What stands between is one token; it begins a
    window, so that llama-imatrix puts BOS in its place: the windows of both runs are the same.
    """
    folder = tmp_path_factory.mktemp("joined")
    texts = {name: own_text(n * WINDOW).read_text() for name, n in (("a", 6), ("b", 4))}
    texts["whole"] = f"{texts['a']}\n {texts['b']}"
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, newline="")
        out = ("-o", folder / f"{name}.gguf")
        llama_imatrix("-m", models["dense"], "-f", folder / f"{name}.txt", *out)
    merged = merge.merge(inputs(folder / "a.gguf", folder / "b.gguf"), "tokens")
    format.write(folder / "merged.gguf", merged)
    return models["dense"], folder / "merged.gguf", folder / "whole.gguf"


def test_merged_equals_one_run_over_all_of_the_text(joined):
    merged, whole = (format.read(path) for path in joined[1:])
    assert merged.chunk_count == whole.chunk_count == 10
    for name, e in whole.entries.items():
        assert np.array_equal(merged.entries[name].counts, e.counts)
        np.testing.assert_allclose(merged.entries[name].sums, e.sums, rtol=1e-5)


@pytest.mark.parametrize("quant_type", ["Q4_K_M", "Q2_K"])
def test_quants_of_merged_and_of_one_run_agree(joined, quantized, quant_type):
    """The last bits of the sums turn some choices of a scale, between two that are as good.

    Tolerance, for each tensor: the two differ by less than 2 % of what quantizing costs in squared
    error, and what the quantizer minimizes differs by less than 0.1 %.
    """
    model, *imatrices = joined
    readers = [gguf.GGUFReader(quantized(model, quant_type, path)) for path in imatrices]
    made = [{t.name: t for t in reader.tensors} for reader in readers]
    entries = format.read(imatrices[1]).entries
    for tensor in gguf.GGUFReader(model).tensors:
        if tensor.name not in entries:
            continue
        true, energy = np.asarray(tensor.data, np.float64), entries[tensor.name].means()[0]
        one, other = (
            gguf.quants.dequantize(m[tensor.name].data, m[tensor.name].tensor_type) for m in made
        )
        costs = [(energy * (quant - true) ** 2).sum() for quant in (one, other)]
        assert ((one - other) ** 2).sum() < 0.02 * ((one - true) ** 2).sum(), tensor.name
        assert costs[0] == pytest.approx(costs[1], rel=1e-3), tensor.name
