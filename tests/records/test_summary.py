"""What scored records say, against direct computation; and noise beside effects."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from imatrix_lab.errors import BadRecords
from imatrix_lab.records import parquet, runs, summary
from tests.score import made

SIZES = [120, 90, 40, 64, 30, 100, 55, 80, 20, 70]


@pytest.fixture(scope="module")
def score(score_store, reference, quants, tmp_path_factory):
    """A function: name of a folder, settings -> files of records of two quants, really scored."""
    folder = tmp_path_factory.mktemp("scores")
    store = score_store(folder / "store")
    text = made.jsonl(folder / "nb.jsonl", made.documents(SIZES))

    def run(name, texts=None, kinds=("Q4_K_M", "Q2_K"), **rest):
        files = [quants[k] for k in kinds]
        documents = texts or {"nb": text}
        return made.score(
            store, reference, files, documents, folder / name, **{"n_ctx": 128, **rest}
        )

    return run


@pytest.fixture(scope="module")
def files(score):
    return score("plain")


@pytest.fixture(scope="module")
def summarized(files):
    """Q2_K's summary and records."""
    (one,) = summary.summaries([files[1]])
    return one, made.records(files[1])


def rewritten(path, target, change=lambda columns: columns, **signature):
    """Copy records with some columns or fields of the signature changed."""
    table = parquet.read(path)
    columns = change(dict(table.columns))
    parquet.write(target, columns, {**table.signature, **signature})
    return target


# -- one file


def test_numbers_are_those_of_a_direct_computation(summarized):
    one, r = summarized
    nll, nll_ref, kld = (r[n].astype(float) for n in ("nll", "nll_ref", "kld"))
    delta = r["p"].astype(float) - r["p_ref"]
    expected = {
        "ppl": math.exp(nll.mean()),
        "ppl_reference": math.exp(nll_ref.mean()),
        "ln_ppl_ratio": nll.mean() - nll_ref.mean(),
        "kld_mean": kld.mean(),
        "same_top": (r["top1"] == r["top1_ref"]).mean(),
        "rms_delta_p": math.sqrt((delta**2).mean()),
        "bits_per_byte": nll.sum() / math.log(2) / r["n_bytes"].sum(),
    }
    for name, value in expected.items():
        assert getattr(one, name).estimate == pytest.approx(value, rel=1e-9), name
    assert (one.n_tokens, one.n_documents, one.n_nonfinite) == (len(kld), len(SIZES), 0)
    assert (one.text, one.quant, one.type, one.divergence) == ("nb", "tiny-Q2_K", "Q2_K", "exact")
    assert one.calibration == "no imatrix" and 2 < one.bits_per_weight < 6


def test_quantiles_are_those_of_a_direct_computation(summarized):
    """The mean of the sample's quantiles in q ± sqrt(3 q (1-q) / n), on a fine grid."""
    one, r = summarized
    kld = r["kld"].astype(float)
    for name, q in (("kld_median", 0.5), ("kld_q99", 0.99)):
        half = math.sqrt(3 * q * (1 - q) / len(kld))
        shares = q + half * np.linspace(-1, 1, 20_001)
        expected = np.quantile(kld, shares, method="inverted_cdf").mean()
        assert getattr(one, name).estimate == pytest.approx(expected, rel=1e-4), name
    assert one.kld_q99.estimate < one.kld_q999.estimate <= kld.max()


def test_intervals_are_over_documents(summarized):
    """Delete-one-document jackknife (CV3) with t of G - 1 degrees of freedom, done directly."""
    one, r = summarized
    kld, names = r["kld"].astype(float), r["doc_id"]
    kinds = np.unique(names)
    left_out = np.array([kld[names != name].mean() for name in kinds])
    g = len(kinds)
    std_error = math.sqrt((g - 1) / g * ((left_out - kld.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, g - 1) * std_error
    assert one.kld_mean.std_error == pytest.approx(std_error, rel=1e-9)
    assert one.kld_mean.low == pytest.approx(kld.mean() - half, rel=1e-9)
    assert one.kld_mean.high == pytest.approx(kld.mean() + half, rel=1e-9)
    assert one.kld_mean.n_clusters == len(SIZES)


def test_perplexitys_interval_is_that_of_its_logarithm(summarized):
    one, r = summarized
    nll, names = r["nll"].astype(float), r["doc_id"]
    left_out = np.array([nll[names != name].mean() for name in np.unique(names)])
    g = len(left_out)
    std_error = math.sqrt((g - 1) / g * ((left_out - nll.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, g - 1) * std_error
    assert one.ppl.low == pytest.approx(math.exp(nll.mean() - half), rel=1e-9)
    assert one.ppl.high == pytest.approx(math.exp(nll.mean() + half), rel=1e-9)
    assert one.ppl.std_error == pytest.approx(math.exp(nll.mean()) * std_error, rel=1e-4)


def test_every_interval_holds_its_estimate(summarized):
    intervals = [v for v in vars(summarized[0]).values() if isinstance(v, summary.Interval)]
    assert len(intervals) == 10
    for interval in intervals:
        assert interval.low <= interval.estimate <= interval.high
        assert interval.low < interval.high and interval.level == 0.95


def test_one_document_has_no_interval(score, tmp_path):
    text = made.jsonl(tmp_path / "one.jsonl", made.documents([200]))
    (one,) = summary.summaries(score("one", {"nb": text}, kinds=["Q2_K"]))
    for name in ("ppl", "kld_mean", "kld_median", "kld_q99", "same_top", "rms_delta_p"):
        interval = getattr(one, name)
        assert math.isfinite(interval.estimate), name
        assert math.isnan(interval.low) and math.isnan(interval.high), name
    assert one.n_documents == 1


def test_what_is_not_finite_is_counted_and_in_no_figure(files, tmp_path):
    def spoil(columns):
        spoilt = {n: columns[n].copy() for n in ("nll", "kld", "nll_ref", "p", "p_ref")}
        spoilt["kld"][5], spoilt["nll"][17], spoilt["nll_ref"][3] = np.nan, np.inf, -np.inf
        spoilt["p"][8], spoilt["p_ref"][9] = np.nan, np.inf
        return {**columns, **spoilt}

    path = rewritten(files[1], tmp_path / "x.parquet", spoil)
    (one,) = summary.summaries([path])
    r = made.records(files[1])
    keep = ~np.isin(np.arange(len(r["kld"])), [3, 5, 8, 9, 17])
    assert (one.n_nonfinite, one.n_tokens) == (5, keep.sum())
    assert one.kld_mean.estimate == pytest.approx(r["kld"][keep].mean(dtype=float), rel=1e-9)
    bits = r["nll"][keep].sum(dtype=float) / math.log(2) / r["n_bytes"][keep].sum()
    assert one.bits_per_byte.estimate == pytest.approx(bits, rel=1e-9)


def test_nothing_finite_is_an_error(files, tmp_path):
    path = rewritten(
        files[1], tmp_path / "x.parquet", lambda c: {**c, "kld": np.full_like(c["kld"], np.nan)}
    )
    with pytest.raises(BadRecords) as caught:
        summary.summaries([path])
    assert "finite" in caught.value.what and caught.value.where == str(path)


@pytest.mark.parametrize("n_bytes", [-1, 0])
def test_tokens_without_bytes(files, tmp_path, n_bytes):
    path = rewritten(
        files[1],
        tmp_path / "x.parquet",
        lambda c: {**c, "n_bytes": np.full(len(c["kld"]), n_bytes)},
    )
    with pytest.raises(BadRecords) as caught:
        summary.summaries([path])
    assert caught.value.where == str(path)


def test_a_folder_and_its_order(score, tmp_path):
    texts = {
        name: made.jsonl(tmp_path / f"{name}.jsonl", made.documents([50, 60], seed=seed))
        for seed, name in enumerate(("nb", "en"), 3)
    }
    files = score("both", texts)
    summarized = summary.summaries([files[0].parent])
    assert [(s.text, s.type) for s in summarized] == [
        ("en", "Q2_K"), ("en", "Q4_K_M"), ("nb", "Q2_K"), ("nb", "Q4_K_M"),
    ]  # fmt: skip


def test_no_records(tmp_path):
    with pytest.raises(BadRecords):
        summary.summaries([tmp_path])
    with pytest.raises(BadRecords) as caught:
        summary.summaries([tmp_path / "absent"])
    assert caught.value.where == str(tmp_path / "absent")


# -- two runs


def rows_of(rows, what):
    return [r for r in rows if r.what.startswith(what)]


def test_a_run_agrees_with_itself(files):
    rows, fields = summary.agree(files[0].parent, files[0].parent)
    assert fields == []
    assert len(rows) == 8 and {r.quant for r in rows} == {"tiny-Q4_K_M", "tiny-Q2_K"}
    for row in rows_of(rows, "noise"):
        assert (row.ln_ppl_ratio.estimate, row.rms_delta_p.estimate) == (0.0, 0.0)
        assert row.same_top.estimate == 1.0
        assert row.kld_mean is None


def test_the_effect_is_the_summarys(files):
    rows, _ = summary.agree(files[0].parent, files[0].parent)
    by_quant = {s.quant: s for s in summary.summaries(files)}
    effects = rows_of(rows, "quantization")
    assert len(effects) == 4
    for row in effects:
        one = by_quant[row.quant]
        for name in ("ln_ppl_ratio", "rms_delta_p", "same_top", "kld_mean"):
            assert getattr(row, name) == getattr(one, name), name


def test_noise_between_two_settings(score, files):
    """Rows of logits a decode change llama.cpp's sums, on some processors."""
    other = score("rows", n_rows=3)
    rows, fields = summary.agree(files[0].parent, other[0].parent)
    assert fields == ["compute.n_rows"]
    noise, effect = rows_of(rows, "noise"), rows_of(rows, "quantization")
    assert len(noise) == len(effect) == 4
    for kind, file, twin in zip(("Q4_K_M", "Q2_K"), files, other, strict=True):
        a, b = made.records(file), made.records(twin)
        expected = math.sqrt(((b["p"].astype(float) - a["p"]) ** 2).mean())
        (row,) = (r for r in noise if r.what.endswith("quant") and r.quant == f"tiny-{kind}")
        assert row.rms_delta_p.estimate == pytest.approx(expected, rel=1e-9, abs=1e-15)
        shift = (b["nll"].astype(float) - a["nll"]).mean()
        assert row.ln_ppl_ratio.estimate == pytest.approx(shift, rel=1e-6, abs=1e-12)
        if not np.array_equal(a["nll"], b["nll"]):
            assert row.rms_delta_p.estimate > 0
    worst = max(r.rms_delta_p.estimate for r in noise)
    assert worst < min(r.rms_delta_p.estimate for r in effect)


def test_noise_that_is_known(files, tmp_path):
    """A second run whose quant's NLL is 0.01 higher, and one top token in four another."""

    def shifted(columns):
        top = columns["top1"].copy()
        top[::4] += 1
        nll = columns["nll"] + np.float32(0.01)
        return {**columns, "nll": nll, "p": np.exp(-nll), "top1": top}

    compute = {**parquet.read(files[1]).signature["compute"], "n_rows": 7}
    other = rewritten(files[1], tmp_path / "x.parquet", shifted, compute=compute)
    rows, fields = summary.agree(files[1], other)
    assert fields == ["compute.n_rows"]
    (reference,) = rows_of(rows, "noise, reference")
    (quant,) = rows_of(rows, "noise, quant")
    assert (reference.rms_delta_p.estimate, reference.same_top.estimate) == (0.0, 1.0)
    assert quant.ln_ppl_ratio.estimate == pytest.approx(0.01, rel=1e-3)
    n = len(parquet.read(files[1]))
    assert quant.same_top.estimate == pytest.approx(1 - len(range(0, n, 4)) / n)


def test_what_is_finite_in_both_is_compared(files, tmp_path):
    def spoil(columns):
        nll = columns["nll"].copy()
        nll[::3] = np.nan
        return {**columns, "nll": nll}

    other = rewritten(files[1], tmp_path / "x.parquet", spoil)
    n = len(parquet.read(files[1]))
    for pair in ((files[1], other), (other, files[1])):
        rows, _ = summary.agree(*pair)
        assert {r.rms_delta_p.n for r in rows} == {n - len(range(0, n, 3))}
        assert all(r.rms_delta_p.estimate == 0 for r in rows_of(rows, "noise"))


def test_another_build_may_differ_and_is_named(files, tmp_path):
    tools = {**parquet.read(files[1]).signature["toolchain"], "backend": "cuda", "commit": "x"}
    other = rewritten(files[1], tmp_path / "x.parquet", toolchain=tools)
    assert summary.agree(files[1], other)[1] == ["toolchain.backend", "toolchain.commit"]


@pytest.mark.parametrize("field", ["text", "protocol", "reference", "metrics_version"])
def test_runs_of_something_else_are_refused(files, tmp_path, field):
    value = parquet.read(files[1]).signature[field]
    changed = {
        "text": lambda: {**value, "sha256": "other"},
        "protocol": lambda: {**value, "n_ctx": 64},
        "reference": lambda: {**value, "sha256": "other"},
        "metrics_version": lambda: value + 1,
    }[field]()
    other = rewritten(files[1], tmp_path / "x.parquet", **{field: changed})
    with pytest.raises(BadRecords) as caught:
        summary.agree(files[1], other)
    assert caught.value.what.endswith(f": {field}") or f": {field}." in caught.value.what
    assert caught.value.where == str(other)


def test_runs_without_anything_in_common_are_refused(files, score, tmp_path):
    with pytest.raises(BadRecords) as caught:
        summary.agree(files[0], files[1])
    assert all(f"{f} has {runs.find(f)[0].signature['quant']['name']} on " in caught.value.what
               for f in files[:2])  # fmt: skip
    assert caught.value.where == str(files[1])
    text = made.jsonl(tmp_path / "nb.jsonl", made.documents([30, 40], seed=5))
    other = score("other text", {"nb": text})
    with pytest.raises(BadRecords) as caught:
        summary.agree(files[0].parent, other[0].parent)
    assert "text.n_documents" in caught.value.what


def test_runs_of_other_tokens_are_refused(files, tmp_path):
    """A signature that lies, or a file that was cut by other hands."""

    def shorter(columns):
        return {
            n: parquet.Coded(c.codes[:-1], c.names) if isinstance(c, parquet.Coded) else c[:-1]
            for n, c in columns.items()
        }

    other = rewritten(files[1], tmp_path / "x.parquet", shorter)
    with pytest.raises(BadRecords) as caught:
        summary.agree(files[1], other)
    assert "tokens" in caught.value.what and caught.value.where == str(other)


def test_a_delta_method_by_hand():
    interval = summary.Interval(2.0, 0.1, 1.8, 2.2, 10, 5, 4)
    mapped = summary._mapped(interval, math.exp)
    assert mapped.estimate == math.exp(2)
    assert (mapped.low, mapped.high) == (math.exp(1.8), math.exp(2.2))
    assert mapped.std_error == pytest.approx(0.1 * math.exp(2), rel=1e-5)
    one = summary._mapped(dataclasses.replace(interval, low=math.nan, high=math.nan), math.exp)
    assert math.isnan(one.low) and math.isnan(one.high)
