"""Cached base logits: a lower bound whose gap is what it says, and one pass for all quants."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imatrix_lab.core.format import size
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.errors import DiskFull
from imatrix_lab.score import base_logits, run
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.windows import Protocol
from tests import tiny_model
from tests.score import made

PROTOCOL = Protocol("document", 128, 32)
SIZES = [300, 90, 40, 7, 64, 64, 30, 120]


def two(rng, n_vocab, spread, noise):
    """Log-probabilities of two distributions in float64, (5, vocabulary)."""
    z = rng.normal(0, spread, (5, n_vocab))
    return made.log_softmax(z), made.log_softmax(z + rng.normal(0, noise, z.shape))


def largest(logp, k):
    return np.argsort(-logp, axis=1, kind="stable")[:, :k]


def kld(p, q):
    return (np.exp(p) * (p - q)).sum(1)


# -- the bound


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(2, 400), st.floats(0, 8), st.floats(0, 6), st.floats(0, 1)
)
def test_the_bound_is_never_above(seed, n_vocab, spread, noise, share):
    """With float32 kept of the reference, and float64 of the quant."""
    p, q = two(np.random.default_rng(seed), n_vocab, spread, noise)
    k = max(1, round(share * n_vocab))
    ids = largest(p, k)
    kept = np.take_along_axis(p, ids, 1).astype(np.float32)
    bound, exact = base_logits.lower_bound(kept, np.take_along_axis(q, ids, 1)), kld(p, q)
    assert (bound <= exact + 1e-6 * (1 + exact)).all()
    assert (bound >= -1e-6).all()
    if k == n_vocab:
        np.testing.assert_allclose(bound, exact, rtol=1e-5, atol=2e-6)


def test_the_bound_of_a_quant_far_sharper_than_its_reference(kernel):
    """The reference leaves 4 % outside its top 64, and the quant a ten-millionth."""
    z = np.random.default_rng(0).normal(0, 1.5, (200, 5000)).astype(np.float32)
    z[:, :64] += 8
    sharp = z.copy()
    sharp[:, :64] += np.linspace(5, 14, len(z), dtype=np.float32)[:, None]
    rows, quant_rows, ids = kernel.rows(z), kernel.rows(sharp), kernel.top(z, 64)
    logp = (base_logits._at(z, ids) - rows.log_sum[:, None]).astype(np.float32)
    bound = base_logits.lower_bound(logp, base_logits._at(sharp, ids) - quant_rows.log_sum[:, None])
    exact = kld(made.log_softmax(z), made.log_softmax(sharp))
    assert (bound <= exact + 1e-5).all()


def test_the_bound_rises_with_k():
    p, q = two(np.random.default_rng(1), 1000, 3, 1)
    bounds = []
    for k in (1, 4, 16, 64, 256, 1000):
        ids = largest(p, k)
        bounds.append(
            base_logits.lower_bound(np.take_along_axis(p, ids, 1), np.take_along_axis(q, ids, 1))
        )
    assert all((b >= a - 1e-7).all() for a, b in itertools.pairwise(bounds))
    np.testing.assert_allclose(bounds[-1], kld(p, q), rtol=1e-6)


def test_the_bound_in_closed_form():
    """p = (0.5, 0.25, 0.25), q = (0.25, 0.5, 0.25), top 1: 0.5 ln 2 + 0.5 ln (0.5 / 0.75)."""
    bound = base_logits.lower_bound(np.log([[0.5]]), np.log([[0.25]]))
    assert bound[0] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75), abs=2e-6)


def test_nan_in_the_quant_is_nan():
    logp = np.log(np.full((2, 4), 0.2))
    logq = logp.copy()
    logq[1, 2] = np.nan
    assert np.isnan(base_logits.lower_bound(logp, logq)).tolist() == [False, True]


@pytest.mark.parametrize("n_vocab", [200, 3000])
def test_k_is_the_smallest_power_of_two(n_vocab):
    p, _ = two(np.random.default_rng(3), n_vocab, 2, 1)
    logp = np.take_along_axis(p, np.sort(largest(p, n_vocab), 1), 1).astype(np.float32)
    mass = np.cumsum(np.sort(np.exp(p), axis=1)[:, ::-1], axis=1).mean(0)
    ks = []
    for share in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-6):
        k = base_logits._smallest_k(logp, share)
        assert k == n_vocab or (k >= base_logits.K_MIN and k & (k - 1) == 0)
        assert 1 - mass[k - 1] <= share or k == n_vocab
        assert k in (base_logits.K_MIN, n_vocab) or 1 - mass[k // 2 - 1] > share
        ks.append(k)
    assert ks == sorted(ks) and len(set(ks)) > 1


def test_the_sample():
    for n_scored, n_vocab in ((10, 302), (70_000, 302), (70_000, 262_144), (5, 10**9)):
        sampled = base_logits.sample(n_scored, n_vocab)
        assert len(sampled) == min(n_scored, max(1, base_logits.SAMPLE_BYTES // (4 * n_vocab)))
        assert (np.diff(sampled) > 0).all() and sampled[0] >= 0 and sampled[-1] < n_scored
        np.testing.assert_array_equal(sampled, base_logits.sample(n_scored, n_vocab))


# -- on a model


@pytest.fixture(scope="module")
def flat(tools, tmp_path_factory):
    """A reference with a long tail, so that K matters, and two quants that are other models."""
    folder = tmp_path_factory.mktemp("flat")
    pieces = [*tiny_model.PIECES, *(f"x{i}" for i in range(700))]
    return [
        tiny_model.write(folder / f"{i}-f16.gguf", seed=i, pieces=pieces, output_scale=0.15)
        for i in range(3)
    ]


@pytest.fixture(scope="module")
def asked(tools, kernel, score_store, flat, tmp_path_factory):
    """A job on eight documents, and the models."""
    store = score_store(tmp_path_factory.mktemp("asked"))
    models = [made.load(path, store) for path in flat]
    return made.job(tools, kernel, models[0], made.documents(SIZES), PROTOCOL), models


@pytest.fixture(scope="module")
def exact(asked, tmp_path_factory):
    """The quants' rows, scored live."""
    job, models = asked
    partials = []
    for i in (1, 2):
        partials.append(Checkpoint(tmp_path_factory.mktemp(f"live{i}"), job.plan.sizes()))
    run.decode_together(job, models[1:], partials, Silent())
    return [p.all() for p in partials]


def cached(job, models, store, rest_share=0.01, progress=None):
    artifacts = run.cached(job, models, rest_share, Session(store, progress or Silent()))
    return artifacts, [made.records(a.path / run.RECORDS) for a in artifacts]


def test_cached_is_live_but_for_the_divergence(asked, exact, store):
    job, models = asked
    _, scored = cached(job, models[1:], store)
    for one, other in zip(scored, exact, strict=True):
        for name in ("nll", "nll_ref", "top1", "top1_ref"):
            np.testing.assert_array_equal(one[name], other[name])
        assert (one["kld"] <= other["kld"] + 1e-6).all()
        np.testing.assert_allclose(one["p"], np.exp(-other["nll"].astype(float)), rtol=1e-6)


def test_the_gap_reported_is_the_gap(asked, exact, store):
    """Every token is in the sample here: its mean is the mean."""
    job, models = asked
    artifacts, scored = cached(job, models[1:], store, rest_share=0.1)
    for artifact, one, other in zip(artifacts, scored, exact, strict=True):
        missed = (other["kld"].astype(float) - one["kld"]).mean()
        gap = artifact.facts["gap"]
        assert gap["n_sampled"] == len(other)
        assert gap["gap_nats"] == pytest.approx(missed, rel=1e-3)
        assert gap["gap_share"] == pytest.approx(missed / other["kld"].mean(dtype=float), rel=1e-3)
        assert 1e-4 < gap["gap_share"] < 0.5
        assert artifact.facts["divergence"] == f"lower bound, top {k_of(store)}"


def k_of(store):
    (base,) = (a for a in store.artifacts() if a.manifest["kind"] == "teacher")
    return base.facts["k"]


def test_a_smaller_rest_takes_a_larger_k_and_misses_less(asked, score_store, tmp_path):
    job, models = asked
    ks, gaps, rests = [], [], []
    for share in (0.4, 0.15, 0.001):
        store = score_store(tmp_path / str(share))
        (artifact,), _ = cached(job, models[1:2], store, share)
        ks.append(k_of(store))
        gaps.append(artifact.facts["gap"]["gap_share"])
        (kept,) = (a for a in store.artifacts() if a.manifest["kind"] == "teacher")
        rests.append(kept.facts["rest_share"])
    assert ks == sorted(set(ks)) and gaps == sorted(gaps, reverse=True)
    assert all(rest <= 1.2 * share for rest, share in zip(rests, (0.4, 0.15, 0.001), strict=True))


def test_a_small_sample(asked, exact, store, monkeypatch):
    """Six tokens' rows, so that most batches keep none; the gap is theirs."""
    job, models = asked
    monkeypatch.setattr(base_logits, "SAMPLE_BYTES", 6 * 4 * job.reference.facts.n_vocab)
    chosen = base_logits.sample(sum(job.plan.sizes()), job.reference.facts.n_vocab)
    assert len(chosen) == 6 and 0 in [len(s) for s in base_logits.sample_by_batch(job)]
    artifacts, scored = cached(job, models[1:], store)
    for artifact, one, other in zip(artifacts, scored, exact, strict=True):
        missed = other["kld"][chosen].astype(float) - one["kld"][chosen]
        assert artifact.facts["gap"]["n_sampled"] == 6
        assert artifact.facts["gap"]["gap_nats"] == pytest.approx(missed.mean(), rel=1e-3)


def test_the_reference_is_decoded_once_for_all(asked, store, monkeypatch):
    job, models = asked
    seen = made.count_decodes(monkeypatch)
    cached(job, models[1:], store)
    once = [s.tokens.tobytes() for b in range(len(job.plan.batches)) for s in job.steps(b)]
    for model in models:
        assert [tokens for label, tokens in seen if label == model.label] == once
    cached(job, models[1:], store)
    assert len(seen) == 3 * len(once)


def test_disk_is_announced(asked, store):
    """At first what it may come to, and what it will as soon as K is known."""
    job, models = asked
    progress = made.Recorder()
    cached(job, models[1:2], store, progress=progress)
    most, chosen = (s for s in progress.said if " on disk" in s)
    k, n_vocab = k_of(store), job.reference.facts.n_vocab
    n_scored = sum(job.plan.sizes())
    assert f"at most {size(base_logits.size_bytes(n_scored, n_vocab, n_vocab))}" in most
    assert f"the top {k} of {n_vocab:,} tokens" in chosen
    told = base_logits.size_bytes(n_scored, n_vocab, k)
    assert size(told) in chosen
    (kept,) = (a for a in store.artifacts() if a.manifest["kind"] == "teacher")
    headers = 1024 * len(job.plan.batches)
    assert told <= kept.size_bytes() <= told + headers


def test_too_small_a_disk_is_said_before_the_pass(asked, store, monkeypatch):
    job, models = asked
    monkeypatch.setattr(base_logits, "size_bytes", lambda *_: 1 << 60)
    seen = made.count_decodes(monkeypatch)
    with pytest.raises(DiskFull, match="the reference's distributions needs 1,073,741,824"):
        cached(job, models[1:2], store)
    assert len({tokens for _, tokens in seen}) <= len(list(job.steps(0)))


def test_self_divergence_is_below_the_floor(asked, store):
    """Its true tail against its own: the bound is exact, to float32 log-probabilities."""
    job, models = asked
    _, (rows,) = cached(job, models[:1], store)
    assert np.abs(rows["kld"]).max() < 1e-6


class Stop(Exception):
    """As a kill."""


def test_killed_between_the_choice_of_k_and_the_first_batch(
    tools, kernel, score_store, tmp_path, monkeypatch
):
    """On distributions so flat that many tokens are nearly tied."""
    pieces = [*tiny_model.PIECES, *(f"x{i}" for i in range(700))]
    path = tiny_model.write(tmp_path / "flat-f16.gguf", pieces=pieces, output_scale=1e-5)
    stores = [score_store(tmp_path / name) for name in ("calm", "rough")]
    job = made.job(tools, kernel, made.load(path, stores[0]), made.documents([100, 100]), PROTOCOL)
    add = Checkpoint.add

    def stop(*_):
        raise Stop

    monkeypatch.setattr(Checkpoint, "add", stop)
    with pytest.raises(Stop):
        base_logits.get(job, 0.5, Session(stores[1], Silent()))
    monkeypatch.setattr(Checkpoint, "add", add)
    calm, rough = (base_logits.get(job, 0.5, Session(store, Silent())) for store in stores)
    assert calm.facts["k"] < job.reference.facts.n_vocab
    assert calm.manifest["files"] == rough.manifest["files"]
