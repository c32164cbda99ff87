"""The `llamacpp` protocol against llama-perplexity, run here on the same models and bytes.

llama-perplexity keeps the reference's log-probabilities as 16-bit numbers, clamped 16 nats below
the largest, and leaves what is below e^-16 out of its sum. The same rounding is done here to
logits of our engine; what is left between the two is float arithmetic.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score.windows import Protocol
from imatrix_lab.types import Document
from tests import tiny_model
from tests.score import made

N_CTX, N_WINDOWS = 128, 5
TYPES = ("Q8_0", "Q2_K")
STEPS = 65535
N_VOCAB = 260 + len(tiny_model.PIECES)


@dataclass(frozen=True)
class Theirs:
    """What llama-perplexity says of a quant.

    Attributes
    ----------
    base : (n, vocabulary) float32, the reference's log-probabilities as it kept them.
    """

    ppl: float
    ppl_base: float
    kld_mean: float
    kld_median: float
    same_top: float
    rms_delta_p: float
    base: np.ndarray


def last_number(pattern, argv, tries=5):
    """Run a program until its output has the pattern: its logger can lose the last lines."""
    for _ in range(tries):
        if match := re.search(pattern, process.run(argv, timeout_s=120).tail):
            return match
    pytest.fail(f"{argv[0]} did not print {pattern}")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held out.txt"
    path.write_bytes((made.prose(N_CTX * (N_WINDOWS + 1)) + "\r\nend\n").encode())
    return path


def read_base(path, n_vocab):
    """The reference's log-probabilities in a base file: see kl_divergence() of perplexity.cpp."""
    raw = path.read_bytes()
    assert raw[:8] == b"_logits_"
    n_ctx, vocabulary, n_windows = np.frombuffer(raw, np.int32, 3, 8)
    assert (n_ctx, vocabulary) == (N_CTX, n_vocab)
    width = 2 * ((n_vocab + 1) // 2) + 4
    rows = np.frombuffer(raw, np.uint16, offset=20 + 4 * n_ctx * n_windows).reshape(-1, width)
    scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
    kept = rows[:, 4 : 4 + n_vocab].astype(np.float32)
    return scale[:, None] * kept + least[:, None]


@pytest.fixture(scope="module")
def theirs(tools, reference, quants, text, tmp_path_factory):
    """Both passes of llama-perplexity; repacked weights and flash attention are off here too."""
    base = tmp_path_factory.mktemp("base") / "logits"
    same = ["-t", "2", "-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX), "--no-warmup"]
    same += ["--no-repack", "-fa", "off", "--kl-divergence-base", base]
    program = tools.program("llama-perplexity")
    final = r"Final estimate: PPL = ([\d.]+)"
    ppl_base = float(last_number(final, [program, "-m", reference, "-f", text, *same])[1])
    kept = read_base(base, N_VOCAB)
    number, printed = r"\s*(-?[\d.]+)", {}
    pattern = (
        rf"(?s)Mean PPL\(Q\) +:{number}.*Mean    KLD:{number}.*Median  KLD:{number}"
        rf".*RMS Δp    :{number}.*Same top p:{number}"
    )
    for kind in TYPES:
        argv = [program, "-m", quants[kind], *same, "--kl-divergence"]
        ppl, mean, median, rms, top = map(float, last_number(pattern, argv).groups())
        printed[kind] = Theirs(ppl, ppl_base, mean, median, top / 100, rms / 100, kept)
    return printed


@pytest.fixture(scope="module")
def ours(score_store, reference, quants, text, tmp_path_factory):
    """Our records of the same, by type."""
    folder = tmp_path_factory.mktemp("ours")
    files = made.score(
        score_store(folder / "store"), reference, [quants[k] for k in TYPES], {"nb": text},
        folder / "out", protocol="llamacpp", n_ctx=N_CTX, threads=2,
    )  # fmt: skip
    return {kind: made.records(file) for kind, file in zip(TYPES, files, strict=True)}


@pytest.fixture(scope="module")
def raw(tools, kernel, score_store, reference, quants, text, tmp_path_factory):
    """Logits of the scored tokens by model, from our engine, and the tokens."""
    store = score_store(tmp_path_factory.mktemp("raw"))
    whole = [Document("x", text.read_bytes().decode(), "x", "CC0-1.0")]
    logits_of = {}
    for name, path in {"reference": reference, **{k: quants[k] for k in TYPES}}.items():
        model = made.load(path, store)
        asked = made.job(tools, kernel, model, whole, Protocol("llamacpp", N_CTX, 0), threads=2)
        logits_of[name], targets = made.logits(asked, model)
    return logits_of, targets


def quantized(z):
    """log_softmax(…, uint16_t * log_prob, …) of perplexity.cpp, in its float32."""
    highest = z.max(1, keepdims=True)
    lowest = np.maximum(z.min(1, keepdims=True), highest - np.float32(16))
    log_sum = np.log(np.exp(z - highest).astype(np.float64).sum(1, keepdims=True))
    scale = (highest - lowest) / np.float32(STEPS)
    steps = np.where(z > lowest, np.rint((z - lowest) * (1 / scale)), 0).astype(np.float32)
    return scale * steps + (lowest - highest - log_sum.astype(np.float32))


def clamped_kld(log_p, z):
    """The divergence as log_softmax(…, kl_divergence_result &) of perplexity.cpp sums it."""
    log_q = made.log_softmax(z)
    log_p = log_p.astype(np.float64)
    return np.where(log_p > -16, np.exp(log_p) * (log_p - log_q), 0).sum(1)


def test_the_text_is_cut_as_theirs_is(tools, reference, text, ours):
    with Vocabulary(tools, reference) as vocabulary:
        tokens = vocabulary.tokens(text.read_bytes().decode().removesuffix("\n"))
    assert "\r" in text.read_bytes().decode()
    n = len(tokens) // N_CTX
    wanted = [tokens[i * N_CTX + j] for i in range(n) for j in range(N_CTX // 2 + 1, N_CTX)]
    assert n >= N_WINDOWS and len(tokens) % N_CTX
    assert ours["Q2_K"]["token"].tolist() == wanted
    assert len(set(ours["Q2_K"]["doc_id"])) == n


@pytest.mark.parametrize("kind", TYPES)
def test_perplexities(ours, theirs, kind):
    """llama-perplexity prints six decimals of the quant's, four of the reference's."""
    rows, printed = ours[kind], theirs[kind]
    assert math.exp(rows["nll"].mean(dtype=float)) == pytest.approx(printed.ppl, rel=1e-5)
    assert math.exp(rows["nll_ref"].mean(dtype=float)) == pytest.approx(printed.ppl_base, rel=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_mean_divergence_with_their_rounding_is_theirs(raw, theirs, kind):
    """To the six decimals printed: 1e-6, and 1e-6 of the value for sums in float32."""
    logits, _ = raw
    log_p = quantized(logits["reference"])
    assert (log_p < -16).any() and np.ptp(logits["reference"], axis=1).max() > 16  # it clamps
    kld = clamped_kld(log_p, logits[kind])
    assert kld.mean() == pytest.approx(theirs[kind].kld_mean, rel=1e-6, abs=1e-6)
    assert np.median(kld) == pytest.approx(theirs[kind].kld_median, rel=1e-5, abs=2e-6)


def test_their_base_file_is_our_reference(raw, theirs):
    """Entry by entry, to one of its 65,535 steps."""
    logits, _ = raw
    log_p = quantized(logits["reference"])
    step = np.minimum(np.ptp(logits["reference"], axis=1), 16)[:, None] / STEPS
    assert (np.abs(log_p - theirs["Q2_K"].base) <= 1.01 * step + 1e-5).all()


@pytest.mark.parametrize("kind", TYPES)
def test_without_their_rounding_ours_differs_by_that_alone(raw, ours, theirs, kind):
    """At this vocabulary their rounding is some 1e-5 a token, and nearly nothing on average."""
    logits, targets = raw
    rows = ours[kind]
    assert rows["token"].tolist() == targets.tolist()
    p, q = (made.log_softmax(logits[name]) for name in ("reference", kind))
    exact = (np.exp(p) * (p - q)).sum(1)
    rounding = clamped_kld(quantized(logits["reference"]), logits[kind]) - exact
    assert np.abs(rounding).max() > 1e-5
    assert np.abs(rows["kld"] - exact).max() < 0.1 * np.abs(rounding).max()
    corrected = rows["kld"].mean(dtype=float) + rounding.mean()
    assert corrected == pytest.approx(theirs[kind].kld_mean, rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_top_token_and_probability(ours, theirs, kind):
    """They print 0.001 %, and their reference's probabilities are rounded as above."""
    rows = ours[kind]
    assert (rows["top1"] == rows["top1_ref"]).mean() == pytest.approx(
        theirs[kind].same_top, abs=6e-6 + 1 / len(rows["top1"])
    )
    delta = rows["p"].astype(float) - rows["p_ref"]
    assert math.sqrt((delta**2).mean()) == pytest.approx(theirs[kind].rms_delta_p, abs=2e-5)
