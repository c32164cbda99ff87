"""The engine against a Llama in numpy, and against itself in other batches."""

import dataclasses

import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.progress import Silent
from imatrix_lab.errors import BadModel
from imatrix_lab.llamacpp.native import Interruptible
from imatrix_lab.score import run
from imatrix_lab.score.checkpoint import Checkpoint
from imatrix_lab.score.engine import Engine, rates
from imatrix_lab.score.windows import Protocol
from imatrix_lab.types import Document
from tests import tiny_model
from tests.score import made
from tests.score.numpy_llama import NumpyLlama

PROTOCOL = Protocol("document", 128, 32)
NOISE = 5e-3
"""Nats a token: llama.cpp sums in another order when there is more or less in a decode."""


@pytest.fixture
def ask(tools, kernel, store):
    """A function: model file, documents -> the model and a job."""

    def make(path, texts, protocol=PROTOCOL, **rest):
        model = made.load(path, store)
        return model, made.job(tools, kernel, model, texts, protocol, **rest)

    return make


def rows_of(asked, quant, folder):
    """Rows of a quant, scored live."""
    folder.mkdir()
    checkpoint = Checkpoint(folder, asked.plan.sizes())
    run.decode_together(asked, [quant], [checkpoint], Silent())
    return checkpoint.all()


def by_document(asked, values):
    """Values of the scored tokens, by document."""
    words = asked.plan.columns["doc_id"]
    return {name: values[words.codes == i] for i, name in enumerate(words.names)}


# -- an independent reference


def in_numpy(path, asked):
    """Log-probabilities of the scored rows by the Llama in numpy."""
    model = NumpyLlama(path)
    windows = [w for batch in asked.plan.batches for w in batch]
    logits = [model.logits(w.tokens)[w.first - 1 : -1] for w in windows]
    return made.log_softmax(np.concatenate(logits))


@pytest.fixture(scope="module")
def pairs(tools, reference, quants, tmp_path_factory):
    """A reference and a quant of it in two precisions, the quant's weights dequantized."""
    folder, files = tmp_path_factory.mktemp("pairs"), {}
    whole = tiny_model.write(folder / "whole-f32.gguf", output_scale=0.25, dtype=np.float32)
    for kind, ref in (("F32", whole), ("F16", reference)):
        quant = folder / f"quant-{kind}.gguf"
        argv = [tools.program("llama-quantize"), "--allow-requantize", quants["Q2_K"], quant, kind]
        process.run([*argv, "1"], timeout_s=120)
        files[kind] = ref, quant
    return files


@pytest.mark.parametrize(("kind", "relative"), [("F32", 1e-4), ("F16", 1e-3)])
def test_scores_are_those_of_a_llama_in_numpy(ask, pairs, store, tmp_path, kind, relative):
    """Mean KLD to 1e-4 with F32 weights, 1e-3 with F16: llama.cpp rounds its activations there.

    Single tokens to 0.02 nats, which is what its float16 cache and sums cost.
    """
    ref, quant = pairs[kind]
    _, asked = ask(ref, made.documents([300, 90, 40]))
    rows = rows_of(asked, made.load(quant, store), tmp_path / "rows")
    p, q = in_numpy(ref, asked), in_numpy(quant, asked)
    targets = asked.plan.columns["token"]
    each = np.arange(len(targets))
    kld = (np.exp(p) * (p - q)).sum(1)
    assert kld.mean() > 0.5
    assert rows["kld"].mean(dtype=float) == pytest.approx(kld.mean(), rel=relative)
    np.testing.assert_allclose(rows["kld"], kld, rtol=5e-3, atol=5e-3)
    for name, log_p in (("nll_ref", p), ("nll", q)):
        np.testing.assert_allclose(rows[name], -log_p[each, targets], rtol=0, atol=0.02)
        assert rows[name].mean(dtype=float) == pytest.approx(-log_p[each, targets].mean(), abs=2e-3)
    for name, log_p in (("top1_ref", p), ("top1", q)):
        two = np.sort(log_p, axis=1)[:, -2:]
        clear = two[:, 1] - two[:, 0] > 0.05
        assert clear.sum() > 100
        np.testing.assert_array_equal(rows[name][clear], log_p.argmax(1)[clear])


# -- batches


def test_a_document_scores_the_same_alone_and_among_others(ask, pairs, store, tmp_path):
    reference, path = pairs["F16"]
    documents = made.documents([60, 20, 100, 5, 33, 300, 12])
    _, asked = ask(reference, documents)
    assert len(asked.plan.batches) < len(documents)
    quant = made.load(path, store)
    together = rows_of(asked, quant, tmp_path / "all")
    for i, document in enumerate(documents):
        _, one = ask(reference, [document])
        alone = rows_of(one, quant, tmp_path / f"{i}")
        packed = by_document(asked, together)[document.id]
        for name in ("nll", "nll_ref", "kld"):
            np.testing.assert_allclose(alone[name], packed[name], rtol=0, atol=NOISE)
            assert abs(alone[name].mean() - packed[name].mean()) < 1e-3


def test_a_sequence_sees_nothing_of_another(ask, reference, store, tmp_path):
    """The same document beside quite different ones."""
    document = made.documents([50], seed=1)
    scores = []
    for seed in (2, 3):
        (other,) = made.documents([50], seed=seed)
        before = dataclasses.replace(other, id="before")
        model, asked = ask(reference, [before, *document])
        assert len(asked.plan.batches) == 1
        size = len(asked.plan.batches[0][0].tokens)
        rows = rows_of(asked, model, tmp_path / str(seed))
        scores.append((size, by_document(asked, rows)[document[0].id]["nll_ref"]))
    np.testing.assert_allclose(scores[0][1], scores[1][1], rtol=0, atol=NOISE)


def test_a_long_document_in_windows_is_the_long_document(ask, reference, tmp_path):
    """Windows with all of the context score as one window does; with less, they differ."""
    document = made.documents([250])
    model, whole = ask(reference, document, Protocol("document", 512, 128))
    assert len(whole.plan.batches[0]) == 1
    _, cut = ask(reference, document, Protocol("document", 128, 64))
    assert sum(map(len, cut.plan.batches)) > 2
    one, several = (rows_of(j, model, tmp_path / n) for j, n in ((whole, "w"), (cut, "c")))
    first = cut.plan.batches[0][0].n_scored
    np.testing.assert_allclose(
        one["nll_ref"][:first], several["nll_ref"][:first], rtol=0, atol=NOISE
    )
    assert np.abs(one["nll_ref"] - several["nll_ref"])[first:].max() > 0.05
    np.testing.assert_array_equal(whole.plan.columns["pos"], cut.plan.columns["pos"])
    np.testing.assert_array_equal(whole.plan.columns["token"], cut.plan.columns["token"])


@pytest.mark.parametrize("rest", [{"n_batch": 16}, {"n_rows": 3}, {"n_batch": 7, "n_rows": 5}])
def test_short_decodes_score_the_same(ask, reference, tmp_path, rest):
    model, plain = ask(reference, made.documents([200, 50, 30]))
    _, short = ask(reference, made.documents([200, 50, 30]), **rest)
    assert len(list(short.steps(0))) > len(list(plain.steps(0)))
    one, other = (rows_of(j, model, tmp_path / n) for j, n in ((plain, "p"), (short, "s")))
    np.testing.assert_allclose(one["nll_ref"], other["nll_ref"], rtol=0, atol=NOISE)


def test_one_sequence_a_batch(ask, reference, tmp_path):
    """As for models with a state besides attention's."""
    documents = made.documents([40, 20, 60])
    model, packed = ask(reference, documents)
    _, single = ask(reference, documents, sequences_max=1)
    assert [len(b) for b in single.plan.batches] == [1, 1, 1]
    one, other = (rows_of(j, model, tmp_path / n) for j, n in ((packed, "p"), (single, "s")))
    np.testing.assert_allclose(one["nll_ref"], other["nll_ref"], rtol=0, atol=NOISE)


def test_two_hundred_documents(ask, reference, tmp_path):
    documents = made.documents([10 + i % 40 for i in range(200)])
    model, asked = ask(reference, documents, Protocol("document", 1024, 256))
    assert max(map(len, asked.plan.batches)) > 20
    rows = rows_of(asked, model, tmp_path / "rows")
    assert set(asked.plan.columns["doc_id"].names) == {d.id for d in documents}
    assert np.isfinite(rows["nll_ref"]).all()
    alone = ask(reference, documents[199:], Protocol("document", 1024, 256))[1]
    np.testing.assert_allclose(
        rows_of(alone, model, tmp_path / "last")["nll_ref"],
        by_document(asked, rows)["doc/199"]["nll_ref"], rtol=0, atol=NOISE,
    )  # fmt: skip


# -- the reference against itself


def test_the_reference_does_not_diverge_from_itself(ask, reference, tmp_path):
    model, asked = ask(reference, made.documents([300, 90, 40, 7]))
    rows = rows_of(asked, model, tmp_path / "rows")
    assert np.abs(rows["kld"]).max() < 1e-6
    assert rows["nll"].tobytes() == rows["nll_ref"].tobytes()
    assert rows["top1"].tobytes() == rows["top1_ref"].tobytes()


def test_the_same_run_gives_the_same_bits(ask, reference, quants, store, tmp_path):
    _, asked = ask(reference, made.documents([300, 90, 40, 7]))
    quant = made.load(quants["Q4_K_M"], store)
    one, other = (rows_of(asked, quant, tmp_path / name) for name in "ab")
    assert one.tobytes() == other.tobytes()


# -- what is not finite


@pytest.fixture
def poisoned(tmp_path):
    """The reference with NaN for the embedding of the letter z."""
    token = 260 + tiny_model.PIECES.index("z")
    return tiny_model.write(tmp_path / "nan-f16.gguf", output_scale=0.25, nan_token=token)


def test_nan_in_the_last_batch_is_in_no_other(ask, reference, poisoned, store, tmp_path):
    documents = [*made.documents([100, 100]), Document("z", "en z to tre " * 8, "x", "x")]
    documents[:2] = [dataclasses.replace(d, text=d.text.replace("z", "s")) for d in documents[:2]]
    _, asked = ask(reference, documents)
    assert [len(b) for b in asked.plan.batches] == [1, 1, 1]
    rows = rows_of(asked, made.load(poisoned, store), tmp_path / "rows")
    kld = by_document(asked, rows["kld"])
    assert {d: np.isfinite(v).all() for d, v in kld.items()} == {
        "doc/0": True, "doc/1": True, "z": False,
    }  # fmt: skip
    assert np.isfinite(rows["nll_ref"]).all()
    np.testing.assert_array_equal(np.isnan(rows["nll"]), np.isnan(rows["kld"]))


def test_nan_in_one_batch_leaves_later_ones(ask, reference, poisoned, store, tmp_path):
    """A masked NaN is NaN still in llama.cpp's attention; what lay in the cache must be gone."""
    texts = ["en to tre " * 9, "ra z ra ra " * 9, "en to tre " * 9, "de er et " * 9, "en to"]
    documents = [Document(f"doc/{i}", t, "x", "x") for i, t in enumerate(texts)]
    _, asked = ask(reference, documents)
    assert [len(b) for b in asked.plan.batches] == [1, 1, 1, 2]
    rows = rows_of(asked, made.load(poisoned, store), tmp_path / "rows")
    finite = {d: np.isfinite(v["kld"]).all() for d, v in by_document(asked, rows).items()}
    assert finite == {"doc/0": True, "doc/1": False, "doc/2": True, "doc/3": True, "doc/4": True}
    assert np.isfinite(rows["nll_ref"]).all()


# -- the engine itself


def test_what_it_counts(ask, reference):
    model, asked = ask(reference, made.documents([100, 30]))
    with made.engine(asked, model) as opened:
        assert rates([opened]) == ""
        opened.begin()
        for step in asked.steps(0):
            logits = opened.decode(step)
            assert logits.shape == (len(step.targets), model.facts.n_vocab)
            assert logits.dtype == np.float32
        assert opened.n_tokens == sum(len(w.tokens) - 1 for w in asked.plan.batches[0])
        assert opened.seconds > 0
        assert rates([opened]).startswith("tiny ")


def test_a_decode_without_rows(ask, reference):
    """The context of a later window takes decodes of which no row is wanted."""
    model, asked = ask(reference, made.documents([300]), n_batch=16)
    later = next(i for i, b in enumerate(asked.plan.batches) if b[0].number)
    with made.engine(asked, model) as opened:
        opened.begin()
        shapes = [opened.decode(step).shape for step in asked.steps(later)]
    assert shapes[0] == (0, model.facts.n_vocab)
    assert sum(s[0] for s in shapes) == asked.plan.sizes()[later]


def test_a_model_that_llama_cpp_cannot_load(ask, tools, kernel, reference, tmp_path):
    """A header that reads well is not yet a model: this one lacks what its layers need."""
    model, asked = ask(reference, made.documents([30]))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(reference.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"))
    bad = dataclasses.replace(model, path=broken)
    with pytest.raises(BadModel, match="cannot load") as caught:
        Engine(tools, kernel, bad, asked.settings, Interruptible())
    assert str(broken) in str(caught.value)


def test_ctrl_c_ends_the_native_call_first():
    """The flag is set, and the call waited for, before the interrupt goes on."""
    run, ended = Interruptible(), []

    def native():
        while not run.flag.value:
            pass
        ended.append(True)

    submit = run._pool.submit

    class Pool:
        def submit(self, function, *args):
            future = submit(function, *args)
            future.result = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
            return future

    run._pool = Pool()
    with pytest.raises(KeyboardInterrupt):
        run(native)
    assert ended == [True]
