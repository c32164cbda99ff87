"""What may not reach the quantizer, what it does there, and what can be repaired."""

import dataclasses

import gguf
import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadImatrix, ToolFailed
from imatrix_lab.imatrix import expected, findings, format, repair, validate
from imatrix_lab.imatrix.expected import ModelTensors
from imatrix_lab.imatrix.format import Entry, Imatrix
from imatrix_lab.models import resolve as model_files
from imatrix_lab.models.gguf import TensorInfo
from imatrix_lab.types import Model
from tests.imatrix.made_up import entry

QUERY, UP = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
NAN, BLOCK = float("nan"), validate.BLOCK


def matrix(**entries):
    return Imatrix(entries, ("x",), 2, 4)


def model(required, **shapes):
    """A model of these tensors: name -> columns, or columns and matrices."""
    infos = {n: TensorInfo(n, (s[0], 4, *s[1:]), "Q8_0", 0, 0) for n, s in shapes.items()}
    return ModelTensors(frozenset(required), {n: (None, info) for n, info in infos.items()})


def kinds(report, severity):
    return {f.kind for f in report.of(severity)}


GOOD = {"a": entry([1, 2], [8]), "b": entry([1, 2], [8])}
MODEL = model({"a", "b"}, a=(2,), b=(2,), bad=(2,), experts=(2, 3))


def test_a_good_one_passes():
    assert validate.check(matrix(**GOOD), MODEL, 8).of(findings.ERROR) == []


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("not-finite", entry([1, NAN], [8])),
        ("not-finite", entry([1, np.inf], [8])),
        ("bad-counts", entry([1, 1], [NAN])),
        ("bad-counts", entry([1, 1], [1e30])),
        ("zero", entry([0, 0], [8])),
        ("zero", entry([1, 1, 0, 0], [4, 4])),
        ("no-tokens", entry([0, 0], [0])),
        ("negative", entry([1, -1], [8])),
        ("bad-counts", entry([1, 1], [-8])),
    ],
)
def test_a_bad_tensor_is_an_error_that_names_it(kind, bad):
    (error,) = validate.check(matrix(**GOOD, bad=bad)).of(findings.ERROR)
    assert error.kind == kind and error.tensors == ("bad",) and "bad" in error.what
    assert error.effect and error.remedy


def test_errors_keep_it_from_the_quantizer_and_force_lets_it_pass():
    class Recorder(Silent):
        def say(self, message):
            messages.append(message)

    messages = []
    bad = validate.check(matrix(**GOOD, bad=entry([1, NAN], [8])))
    with pytest.raises(BadImatrix, match="bad") as error:
        bad.require_sound("x", "command", Silent())
    assert (error.value.where, error.value.fix) == ("x", "command")
    assert "bad" in bad.require_sound("x", "", Recorder(), force=True)
    assert any("--force" in message for message in messages)
    assert validate.check(matrix(**GOOD)).require_sound("x", "", Silent(), force=True) == ""


def test_missing_tensors_are_counted_and_named():
    (error,) = validate.check(
        matrix(**GOOD), model({"a", "b", "c", "d"}, a=(2,), b=(2,), c=(2,), d=(2,))
    ).of(findings.ERROR)
    assert error.kind == "missing" and "2 of 4" in error.what and error.tensors == ("c", "d")


def test_few_missing_tensors_are_a_warning():
    known = {f"t{i}": entry([1, 2], [8]) for i in range(100)}
    whole = model(known, **dict.fromkeys(known, (2,)))
    for n_missing, severity in ((4, findings.WARNING), (5, findings.ERROR)):
        short = matrix(**dict(list(known.items())[n_missing:]))
        assert "missing" in kinds(validate.check(short, whole), severity)


def test_a_matrix_of_zeros_under_one_count_is_found_beside_the_model():
    heads = matrix(**GOOD, experts=entry([[1, 1, 0, 0, 1, 1]], [8]))
    assert validate.check(heads).of(findings.ERROR) == []
    (error,) = validate.check(heads, MODEL).of(findings.ERROR)
    assert error.kind == "zero" and error.tensors == ("experts",)


@pytest.mark.parametrize("known", [None, MODEL])
def test_experts_of_a_dat_say_nothing_of_the_tokens(tmp_path, known):
    name = "blk.0.ffn_up_exps.weight"
    dat = matrix(**GOOD, **{name: entry([1, 2, 1, 1, 1, 3], [700, 900, 500])})
    format.write(tmp_path / "x.dat", dat)
    assert "counts" not in kinds(validate.check(format.read(tmp_path / "x.dat"), known), "warning")


def test_the_tokens_of_a_dat_are_a_guess_and_said_to_be(tmp_path):
    format.write(tmp_path / "x.dat", matrix(**GOOD))
    (few,) = [
        f for f in validate.check(format.read(tmp_path / "x.dat")).all if f.kind == "few-tokens"
    ]
    assert "512" in few.what


def test_counts_that_are_not_whole_matter_where_they_round_to_none():
    report = validate.check(matrix(**GOOD, experts=entry([1] * 6, [40.4, 0.4, 90])), MODEL)
    (lost,) = [f for f in report.all if f.kind == "lost-counts"]
    assert lost.severity == findings.WARNING and lost.mendable
    report = validate.check(matrix(**GOOD, experts=entry([1] * 6, [40.4, 0.5, 90])), MODEL)
    (odd,) = [f for f in report.all if f.kind == "fractions"]
    assert odd.severity == findings.NOTE and odd.mendable and "lost-counts" not in str(report)


def test_what_does_not_fit_the_model():
    other = matrix(**GOOD, bad=entry([1, 1, 1], [8]), stranger=entry([1, 1], [8]))
    report = validate.check(other, MODEL)
    assert kinds(report, findings.ERROR) == {"shape"}
    assert report.of(findings.ERROR)[0].tensors == ("bad",)
    (foreign,) = [f for f in report.all if f.kind == "foreign"]
    assert foreign.tensors == ("stranger",) and foreign.severity == findings.WARNING


def test_counts_that_disagree_are_an_error_in_a_run_of_ours():
    torn = matrix(**GOOD, bad=entry([1, 1], [4]))
    known = model({"a", "b", "bad"}, a=(2,), b=(2,), bad=(2,))
    (error,) = validate.check(torn, known, 8).of(findings.ERROR)
    assert error.kind == "counts" and error.tensors == ("bad",)
    assert "4" in error.what and "8" in error.what
    assert "counts" in kinds(validate.check(torn, known), findings.WARNING)


def test_a_weight_used_twice_a_token_counts_twice():
    known = model({"a", "b"}, a=(2,), b=(2,), twice=(2,), router=(2,))
    for other in ({"twice": entry([1, 1], [16])}, {"router": entry([1, 1], [3])}):
        assert validate.check(matrix(**GOOD, **other), known, 8).of(findings.ERROR) == []


def test_unhit_and_rarely_hit_experts_are_named():
    experts = entry([1, 1, 0, 0, 1, 1], [3, 0, 500])
    report = validate.check(matrix(**GOOD, experts=experts), MODEL, 8)
    assert report.of(findings.ERROR) == [] and report.n_without_tokens == 1
    assert {"unhit-experts", "rare-experts"} <= kinds(report, findings.WARNING)
    (without,) = [f for f in report.all if f.kind == "unhit-experts"]
    assert without.tensors == ("experts",) and "experts 1" in without.what


def test_an_expert_that_a_dat_says_nothing_of_is_found_beside_the_model(tmp_path):
    experts = entry([1, 2, 0, 0, 1, 3], [64, 0, 500])
    format.write(tmp_path / "x.dat", matrix(experts=experts))
    back = format.read(tmp_path / "x.dat")
    assert (
        validate.check(back).n_without_tokens == 0
        and validate.check(back, MODEL).n_without_tokens == 1
    )


def test_windows_and_text():
    short = dataclasses.replace(matrix(**GOOD), chunk_size=8, chunk_count=5, complete=False)
    report = validate.check(short)
    assert kinds(report, findings.ERROR) == {"metadata"}
    assert kinds(report, findings.WARNING) == {"few-tokens", "window"}
    assert "chunks" in kinds(report, findings.NOTE)


# -- what llama-quantize makes of it


def model_at(path):
    return Model(path.stem, path, (path,), "", model_files.facts((path,)), "")


@pytest.fixture(scope="module")
def dense(models, made):
    """The small model and its imatrix."""
    return model_at(models["dense"]), made["dense"]["a"]


@pytest.fixture(scope="module")
def relative_error(models, made, quantized, tmp_path_factory):
    """A function: type, change to one tensor's entry -> its squared errors, and the findings."""
    folder = tmp_path_factory.mktemp("effects")
    sound = format.read(made["dense"]["a"])

    def read(path):
        (tensor,) = [t for t in gguf.GGUFReader(path).tensors if t.name == QUERY]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)

    true = read(models["dense"])

    def run(quant_type, sums=None, counts=None):
        old = sound.entries[QUERY]
        new = Entry(old.sums if sums is None else sums, old.counts if counts is None else counts)
        changed = dataclasses.replace(sound, entries={**sound.entries, QUERY: new})
        path = folder / f"{len(list(folder.iterdir()))}.gguf"
        format.write(path, changed)
        return (read(quantized(models["dense"], quant_type, path)) - true) ** 2 / (
            true**2
        ).sum(), validate.check(changed)

    return run


@pytest.fixture(scope="module")
def columns(made):
    """A function: columns, value -> the sums of the tensor with that value there."""

    def change(which, value):
        sums = format.read(made["dense"]["a"]).entries[QUERY].sums.copy()
        sums[:, which] = value
        return sums

    return change


def test_a_tensor_of_zeros_loses_all_its_weights(relative_error, columns):
    error, report = relative_error("Q4_K_M", columns(slice(None), 0))
    assert error.sum() == pytest.approx(1, rel=1e-6)
    assert kinds(report, findings.ERROR) == {"zero"}
    assert relative_error("Q4_K_M")[0].sum() < 0.01


def test_a_block_of_zeros_loses_its_weights_in_some_types(relative_error, columns, dense):
    error, _ = relative_error("Q4_0", columns(slice(BLOCK), 0))
    assert error[:, :BLOCK].sum() == pytest.approx(BLOCK / 256, rel=0.05)
    sound = format.read(dense[1])
    ill = {**sound.entries, QUERY: Entry(columns(slice(BLOCK), 0), sound.entries[QUERY].counts)}
    report = validate.check(dataclasses.replace(sound, entries=ill), expected.of(dense[0]))
    assert [f.tensors for f in report.all if f.kind == "zero-blocks"] == [(QUERY,)]


def test_one_column_of_zero_costs_that_column(relative_error, columns):
    good, bad = (relative_error("Q2_K", s)[0] for s in (None, columns(40, 0)))
    assert bad[:, 40].sum() > 1.2 * good[:, 40].sum()


def test_nan_stops_llama_quantize(relative_error, columns):
    with pytest.raises(ToolFailed):
        relative_error("Q4_K_M", columns(40, NAN))


def test_without_a_count_every_column_weighs_the_same(relative_error):
    never, report = relative_error("Q3_K_S", counts=np.zeros(1, np.float32))
    assert kinds(report, findings.ERROR) == {"no-tokens"}
    even, _ = relative_error("Q3_K_S", np.full((1, 256), 7, np.float32), np.full(1, 7, np.float32))
    assert np.array_equal(never, even)
    assert not np.array_equal(never, relative_error("Q3_K_S")[0])
    for count in (-8, NAN, np.inf, 1e30):
        bad, report = relative_error("Q3_K_S", counts=np.array([count], np.float32))
        assert np.array_equal(bad, even) and kinds(report, findings.ERROR) == {"bad-counts"}
    lost, report = relative_error("Q3_K_S", counts=np.array([0.4], np.float32))
    assert np.array_equal(lost, even) and "lost-counts" in kinds(report, findings.WARNING)


def test_a_count_rounded_up_or_down_changes_nothing(relative_error, dense):
    counts = format.read(dense[1]).entries[QUERY].counts
    good, odd = (relative_error("Q4_K_M", counts=counts + by)[0] for by in (0, np.float32(0.3)))
    assert np.array_equal(good, odd)


def test_negative_sums_come_out_as_noise_or_crash(relative_error, dense, columns):
    sums = format.read(dense[1]).entries[QUERY].sums.copy()
    sums[:, ::2] *= -1
    error, report = relative_error("Q4_K_M", sums)
    assert error.sum() > 100 * relative_error("Q4_K_M")[0].sum()
    assert kinds(report, findings.ERROR) == {"negative"}
    with pytest.raises(ToolFailed):
        relative_error("IQ2_XXS", sums)


# -- repairs


def test_unhit_experts_take_the_mean_over_the_others():
    experts = entry([10, 20, 0, 0, 30, 0], [4, 0, 16])
    fixed, done = repair.repair(matrix(**GOOD, experts=experts), MODEL)
    filled = fixed.entries["experts"]
    assert filled.counts.tolist() == [4, 1, 16]
    assert filled.sums[1].tolist() == [2.0, 1.0]
    assert np.array_equal(filled.sums[[0, 2]], experts.sums[[0, 2]])
    assert "experts" in done[0] and done[0] in fixed.metadata[format.REPAIRED]
    again = validate.check(dataclasses.replace(fixed, entries={"experts": filled}), MODEL)
    assert again.n_without_tokens == 0
    (rare,) = [f for f in again.all if f.kind == "rare-experts"]
    assert "2 experts" in rare.what  # those with 4 and 16 tokens, not the fixed one


def test_everything_mendable_is_fixed_and_recorded():
    ill = matrix(**GOOD, stranger=entry([1, 1], [8]), experts=entry([5, 5] * 3, [2.5, 900, 900]))
    ill = dataclasses.replace(ill, complete=False, chunk_size=0, chunk_count=0)
    before = {f.kind for f in validate.check(ill, MODEL).all if f.mendable}
    assert before == {"foreign", "fractions", "metadata"}
    fixed, done = repair.repair(ill, MODEL)
    assert len(done) == 3 and not any(f.mendable for f in validate.check(fixed, MODEL).all)
    assert fixed.entries["experts"].means() == pytest.approx(ill.entries["experts"].means())
    again, nothing = repair.repair(fixed, MODEL)
    assert again is fixed and nothing == ()


def test_what_has_no_sound_remedy_stays():
    ill = matrix(**GOOD, bad=entry([1, NAN], [8]))
    assert repair.repair(ill, MODEL) == (ill, ())


def test_a_repaired_file_of_the_real_program_is_used_by_llama_quantize(
    models, made, quantized, tmp_path
):
    moe = model_at(models["moe"])
    imatrix = format.read(made["moe"]["b"])
    known = expected.of(moe)
    entries = dict(imatrix.entries)
    counts = entries[UP].counts.copy()
    counts[3] = 0
    entries[UP] = Entry(entries[UP].sums * (counts > 0)[:, None].astype(np.float32), counts)
    ill = dataclasses.replace(imatrix, entries=entries)
    assert validate.check(ill, known).n_without_tokens >= 1
    fixed, _ = repair.repair(ill, known)
    format.write(tmp_path / "i.gguf", fixed)
    assert validate.check(format.read(tmp_path / "i.gguf"), known).n_without_tokens == 0
    assert quantized(moe.path, "Q3_K_S", tmp_path / "i.gguf").exists()
