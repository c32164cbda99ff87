"""From a request to files of records, with the real library; and what is refused before any."""

import dataclasses
import errno
import gc
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from imatrix_lab.core.session import Session
from imatrix_lab.errors import BadModel, BadRecords, BadText, DiskFull, ImatrixLabError, UsageError
from imatrix_lab.pipeline import score
from imatrix_lab.records import parquet, summary
from imatrix_lab.score import base_logits, run
from imatrix_lab.score.engine import Engine
from imatrix_lab.types import Document
from tests import tiny_model
from tests.score import made

MODES = ["live", "cached"]
PEAK = """
import resource, sys
from pathlib import Path
from imatrix_lab.core.store import Store
from tests.score import made

store, out, reference, text, *quants = map(Path, sys.argv[1:])
made.score(Store(store), reference, quants, {"nb": text}, out, n_ctx=1024, base_logits="live")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
"""Prints its peak of memory in KiB."""
SIZES = [300, 90, 40, 7, 64, 64, 30, 120]


@pytest.fixture
def store(score_store, tmp_path):
    return score_store(tmp_path / "store")


@pytest.fixture
def text(tmp_path):
    """Eight documents."""
    return made.jsonl(tmp_path / "nb.jsonl", made.documents(SIZES))


@pytest.fixture
def ask(store, reference, text, tmp_path):
    """A function: quants -> files of records, on eight documents in windows of 128."""

    def make(*quants, texts=None, reference=reference, n_ctx=128, **rest):
        chosen = {"nb": text} if texts is None else texts
        return made.score(store, reference, quants, chosen, tmp_path / "out", n_ctx=n_ctx, **rest)

    return make


def kinds(store):
    return sorted(a.manifest["kind"] for a in store.artifacts() if a.manifest["kind"] != "kernel")


# -- files of records


@pytest.mark.parametrize("mode", MODES)
def test_a_file_for_each_quant_and_text(ask, quants, tmp_path, text, mode):
    other = made.jsonl(tmp_path / "other.jsonl", made.documents([50, 20], seed=2))
    files = ask(quants["Q4_K_M"], quants["Q2_K"], texts={"nb": text, "en": other}, base_logits=mode)
    names = ["nb.tiny-Q4_K_M", "nb.tiny-Q2_K", "en.tiny-Q4_K_M", "en.tiny-Q2_K"]
    assert files == [tmp_path / "out" / f"{name}.parquet" for name in names]
    four, two = (made.records(f) for f in files[:2])
    for name in ("doc_id", "window", "pos", "token", "n_bytes", "nll_ref", "top1_ref", "p_ref"):
        np.testing.assert_array_equal(four[name], two[name])
    assert two["kld"].mean() > 2 * four["kld"].mean() > 0.02
    assert set(four["doc_id"]) == {f"doc/{i}" for i in range(8)}


def test_the_signature_says_what_was_measured(ask, quants, reference, store, text):
    (file,) = ask(quants["Q2_K"], overlap=16)
    signature = parquet.read(file).signature
    ref, quant = (made.load(p, store) for p in (reference, quants["Q2_K"]))
    assert signature["kind"] == "token" and signature["metrics_version"] == 1
    assert signature["reference"] == {"sha256": ref.sha256, "name": "tiny", "type": "F16"}
    assert signature["quant"]["sha256"] == quant.sha256 and signature["quant"]["type"] == "Q2_K"
    assert signature["quant"]["bits_per_weight"] == pytest.approx(
        quant.facts.bits_per_weight, abs=1e-4
    )
    assert signature["quant"]["imatrix_sha256"] == signature["quant"]["calibration"] == ""
    assert signature["text"]["label"] == "nb" and signature["text"]["n_documents"] == 8
    protocol = {"name": "document", "n_ctx": 128, "overlap": 16, "divergence": "exact"}
    assert signature["protocol"] == protocol
    assert signature["toolchain"]["backend"] == "cpu" and "threads" not in signature["compute"]
    assert str(file.parent) not in str(signature) and str(reference.parent) not in str(signature)


def test_probabilities_are_those_of_the_nll(ask, quants):
    rows = made.records(ask(quants["Q2_K"])[0])
    for p, nll in (("p", "nll"), ("p_ref", "nll_ref")):
        np.testing.assert_allclose(rows[p], np.exp(-rows[nll].astype(float)), rtol=1e-6)
    assert {rows[n].dtype for n in ("nll", "nll_ref", "kld", "p", "p_ref")} == {
        np.dtype(np.float32)
    }


def test_records_are_small(ask, quants, tmp_path):
    """The promise is about 24 bytes a token."""
    long = made.jsonl(tmp_path / "long.jsonl", made.documents([400] * 40))
    (file,) = ask(quants["Q4_K_M"], texts={"nb": long})
    n = len(parquet.read(file))
    assert n > 10_000
    assert file.stat().st_size < 28 * n + 8000


@pytest.mark.parametrize("mode", MODES)
def test_the_same_request_gives_the_same_bytes(ask, quants, score_store, reference, text, tmp_path,
                                               mode):  # fmt: skip
    (one,) = ask(quants["Q4_K_M"], base_logits=mode)
    (other,) = made.score(
        score_store(tmp_path / "other"), reference, [quants["Q4_K_M"]], {"nb": text},
        tmp_path / "elsewhere", n_ctx=128, base_logits=mode,
    )  # fmt: skip
    assert one.read_bytes() == other.read_bytes()


def test_cached_is_live_but_for_a_bound_below(ask, quants):
    live = made.records(ask(quants["Q2_K"], base_logits="live")[0])
    (file,) = ask(quants["Q2_K"], base_logits="cached", rest_share=0.001)
    cached = made.records(file)
    for name in set(live) - {"kld"}:
        np.testing.assert_array_equal(live[name], cached[name])
    assert (cached["kld"] <= live["kld"] + 1e-6).all()
    missed = live["kld"].mean(dtype=float) - cached["kld"].mean(dtype=float)
    signature = parquet.read(file).signature
    assert signature["protocol"]["divergence"].startswith("lower bound, top ")
    assert signature["gap"]["gap_nats"] == pytest.approx(missed, abs=1e-6)
    assert missed < 0.01 * live["kld"].mean()


def test_limit_takes_the_first_documents(ask, quants):
    rows = made.records(ask(quants["Q2_K"], limit=3)[0])
    assert set(rows["doc_id"]) == {"doc/0", "doc/1", "doc/2"}


def test_document_tokens_takes_the_start_of_each_document(ask, quants):
    whole = made.records(ask(quants["Q2_K"])[0])
    (file,) = ask(quants["Q2_K"], document_tokens=5)
    rows = made.records(file)
    assert parquet.read(file, []).signature["text"]["document_tokens"] == 5
    assert set(rows["doc_id"]) == set(whole["doc_id"])
    for name in set(rows["doc_id"]):
        tokens, start = (r["token"][r["doc_id"] == name] for r in (whole, rows))
        assert 0 < len(start) <= 5
        np.testing.assert_array_equal(start, tokens[: len(start)])


def test_a_plain_text_is_one_document_and_says_so(ask, quants, tmp_path):
    (tmp_path / "held out.txt").write_bytes(b"en to tre\r\nfire fem\r\n")
    progress = made.Recorder()
    (file,) = ask(quants["Q2_K"], texts={"nb": tmp_path / "held out.txt"}, progress=progress)
    assert set(made.records(file)["doc_id"]) == {"held out"}
    assert any("nb is one document" in said for said in progress.said)


def test_one_huge_document(ask, quants, tmp_path):
    """Scored once each, in windows that overlap."""
    path = tmp_path / "huge.txt"
    path.write_text(made.prose(3000))
    rows = made.records(ask(quants["Q2_K"], texts={"nb": path}, overlap=40)[0])
    assert rows["pos"].tolist() == list(range(1, len(rows["pos"]) + 1))
    sizes = np.bincount(rows["window"])
    assert sizes[0] == 127 and set(sizes[1:-1]) == {128 - 1 - 40}
    assert np.isfinite(rows["kld"]).all()


def test_documents_too_short_are_counted(ask, quants, store, tmp_path):
    documents = [*made.documents([30]), Document("empty", "", "x", "x")]
    ask(quants["Q2_K"], texts={"nb": made.jsonl(tmp_path / "x.jsonl", documents)})
    (artifact,) = (a for a in store.artifacts() if a.manifest["kind"] == "score")
    assert artifact.facts["n_skipped"] == 1
    assert artifact.facts["n_scored"] > 10


# -- what is there is not done again


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_scored_twice(ask, quants, monkeypatch, mode):
    before = [f.read_bytes() for f in ask(quants["Q4_K_M"], quants["Q2_K"], base_logits=mode)]
    seen = made.count_decodes(monkeypatch)
    files = ask(quants["Q2_K"], quants["Q4_K_M"], base_logits=mode)
    assert seen == []
    assert [f.read_bytes() for f in files] == before[::-1]


def test_a_quant_added_later_takes_itself_and_the_reference(ask, quants, monkeypatch):
    ask(quants["Q4_K_M"], quants["Q2_K"], base_logits="live")
    seen = made.count_decodes(monkeypatch)
    ask(quants["Q4_K_M"], quants["Q8_0"], quants["Q2_K"], base_logits="live")
    assert {label for label, _ in seen} == {"tiny", "tiny-Q8_0"}
    first, second = ([t for label, t in seen if label == x] for x in ("tiny", "tiny-Q8_0"))
    assert first == second and len(set(first)) == len(first)


def test_a_quant_added_later_takes_itself_alone_with_cached_base_logits(ask, quants, monkeypatch):
    ask(quants["Q4_K_M"], base_logits="cached")
    seen = made.count_decodes(monkeypatch)
    ask(quants["Q4_K_M"], quants["Q8_0"], base_logits="cached")
    assert {label for label, _ in seen} == {"tiny-Q8_0"}


@pytest.mark.parametrize("mode", MODES)
def test_no_thread_outlives_the_scores(ask, quants, mode):
    """Without waiting for Python to look for circles."""
    before = set(threading.enumerate())
    gc.disable()
    try:
        ask(quants["Q4_K_M"], quants["Q2_K"], base_logits=mode)
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=10)
        assert set(threading.enumerate()) <= before
    finally:
        gc.enable()


def test_each_quant_alone_scores_as_with_others(ask, quants):
    together = [f.read_bytes() for f in ask(quants["Q4_K_M"], quants["Q2_K"], base_logits="live")]
    for quant, wanted in zip((quants["Q4_K_M"], quants["Q2_K"]), together, strict=True):
        assert ask(quant, base_logits="live")[0].read_bytes() == wanted


def test_more_quants_take_no_more_memory(ask, reference, tmp_path, text, score_store):
    """Peaks of programs that score 9 and 20; the scores are those of quants alone."""
    many, peaks = [], {}
    for i in range(20):
        many.append(tmp_path / f"q{i}.gguf")
        scale, extra = 0.25, lambda writer, i=i: writer.add_uint32("made.up", i)
        tiny_model.write(many[-1], output_scale=scale, extra=extra)
    for n in (9, 20):
        store, out = score_store(tmp_path / f"store {n}"), tmp_path / f"out {n}"
        argv = [sys.executable, "-c", PEAK, store.root, out, reference, text, *many[-n:]]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        peaks[n] = int(done.stdout) >> 10
    assert peaks[20] < peaks[9] + 100  # all at once: 200 more
    for i in (0, 19):
        (alone,) = ask(many[i], base_logits="live", n_ctx=1024)
        assert alone.read_bytes() == (tmp_path / "out 20" / f"nb.q{i}.parquet").read_bytes()


@pytest.mark.parametrize(
    "rest", [{"n_ctx": 64}, {"overlap": 20}, {"n_rows": 16}, {"limit": 4}, {"document_tokens": 9}]
)
def test_another_setting_is_another_run(ask, quants, store, monkeypatch, rest):
    ask(quants["Q2_K"])
    seen = made.count_decodes(monkeypatch)
    ask(quants["Q2_K"], **rest)
    assert seen and kinds(store).count("score") == 2


def test_threads_and_rows_change_no_bit(ask, quants, monkeypatch, tmp_path, score_store,
                                        reference, text):  # fmt: skip
    (one,) = ask(quants["Q4_K_M"], n_rows=32)
    seen = made.count_decodes(monkeypatch)
    ask(quants["Q4_K_M"], n_rows=32, threads=2)
    assert seen == []
    (other,) = made.score(
        score_store(tmp_path / "other"), reference, [quants["Q4_K_M"]], {"nb": text},
        tmp_path / "elsewhere", n_ctx=128, threads=2,
    )  # fmt: skip
    assert parquet.read(other).signature["compute"]["n_rows"] != 32
    for name, values in made.records(one).items():
        np.testing.assert_array_equal(values, made.records(other)[name])


# -- resumed


class Stop(Exception):
    """Not an error of ours: as a kill, but for what Python still does."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [1, 7, 20])
def test_what_was_done_is_not_decoded_again(ask, quants, monkeypatch, tmp_path, mode, at):
    """Stopped at one decode; at most the batch it was in is decoded twice, by each model."""
    seen = made.count_decodes(monkeypatch)
    decode = Engine.decode

    def stopping(self, step):
        if len(seen) == at:
            raise Stop
        return decode(self, step)

    monkeypatch.setattr(Engine, "decode", stopping)
    with pytest.raises(Stop):
        ask(quants["Q4_K_M"], quants["Q2_K"], base_logits=mode, n_ctx=64)
    monkeypatch.setattr(Engine, "decode", decode)
    files = ask(quants["Q4_K_M"], quants["Q2_K"], base_logits=mode, n_ctx=64)
    assert len(seen) - len(set(seen)) <= (3 if mode == "live" else 1)
    assert len({label for label, _ in seen}) == 3
    resumed = [f.read_bytes() for f in files]
    shutil.rmtree(tmp_path / "store" / "score")
    shutil.rmtree(tmp_path / "store" / "teacher", ignore_errors=True)
    undisturbed = ask(quants["Q4_K_M"], quants["Q2_K"], base_logits=mode, n_ctx=64)
    assert [f.read_bytes() for f in undisturbed] == resumed


# -- a full disk


def fill(disk, pages_left):
    """Leave so many pages: the first files fit, and then there is no more."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break
        file.truncate(file.tell() - pages_left * 4096)


@pytest.mark.parametrize(
    ("mode", "pages_left"), [("live", 3), ("live", 30), ("live", 50), ("cached", 30)]
)
def test_a_full_disk_stops_it_and_room_lets_it_go_on(
    score_store, small_disk, reference, quants, tmp_path, monkeypatch, mode, pages_left
):
    """In the first batches, in later ones, and in the records."""
    monkeypatch.setattr(
        base_logits, "need_room", lambda *_: None
    )  # its margin is more than the disk
    monkeypatch.setattr(base_logits, "SAMPLE_BYTES", 20 * 4 * 300)
    text = made.jsonl(tmp_path / "nb.jsonl", made.documents([60] * 40))
    args = (reference, [quants["Q2_K"]], {"nb": text})
    store = score_store(small_disk / "store")
    for path in (reference, quants["Q2_K"]):
        made.load(path, store)  # sha256.json has its room
    fill(small_disk, pages_left)
    with pytest.raises(DiskFull) as caught:
        made.score(store, *args, tmp_path / "out", n_ctx=64, base_logits=mode)
    assert "imatrix-lab store gc" in str(caught.value) and str(small_disk) in str(caught.value)
    assert not (tmp_path / "out").exists()
    (small_disk / "filler").unlink()
    seen = made.count_decodes(monkeypatch)
    (file,) = made.score(store, *args, tmp_path / "out", n_ctx=64, base_logits=mode)
    n_seen = len(seen)
    (wanted,) = made.score(
        score_store(tmp_path / "calm"), *args, tmp_path / "calm out", n_ctx=64, base_logits=mode
    )
    assert file.read_bytes() == wanted.read_bytes()
    assert n_seen < len(seen) - n_seen or pages_left < 10
    assert n_seen or pages_left > 40


def test_a_cached_run_says_when_its_files_will_not_fit(
    score_store, small_disk, reference, quants, text, tmp_path
):
    store = score_store(small_disk / "store")
    with pytest.raises(DiskFull, match=r"the reference's distributions needs [\d.]+ MiB"):
        made.score(
            store, reference, [quants["Q2_K"]], {"nb": text}, tmp_path / "out", base_logits="cached"
        )


# -- refused before any work


@pytest.fixture
def nothing_done(monkeypatch, store):
    """Fail if anything is decoded, and see that nothing but a model's loading was stored."""
    seen = made.count_decodes(monkeypatch)
    yield
    assert seen == []
    assert set(kinds(store)) <= {"toolchain", "load"}
    assert list(store.unfinished()) == []


def cut(path, target, n_bytes):
    target.write_bytes(path.read_bytes()[:-n_bytes])
    return target


@pytest.mark.usefixtures("nothing_done")
class TestRefused:
    """Of models, texts and options that cannot be scored."""

    @pytest.mark.parametrize("n_bytes", [1, 100_000])
    def test_a_truncated_quant(self, ask, quants, tmp_path, n_bytes):
        bad = cut(quants["Q2_K"], tmp_path / "bad.gguf", n_bytes)
        with pytest.raises(BadModel) as caught:
            ask(quants["Q4_K_M"], bad)
        assert str(bad) in str(caught.value)

    def test_a_truncated_reference(self, ask, reference, quants, tmp_path):
        bad = cut(reference, tmp_path / "bad-f16.gguf", 1000)
        with pytest.raises(BadModel):
            ask(quants["Q4_K_M"], reference=bad)

    def test_a_file_that_is_no_gguf(self, ask, quants, tmp_path):
        (tmp_path / "x.gguf").write_text("en to tre " * 100)
        with pytest.raises(BadModel):
            ask(quants["Q4_K_M"], tmp_path / "x.gguf")

    def test_a_quant_that_is_not_there(self, ask, quants, tmp_path):
        with pytest.raises(ImatrixLabError, match="no such file"):
            ask(quants["Q4_K_M"], tmp_path / "absent.gguf")

    @pytest.mark.parametrize(
        "rest",
        [
            {"pieces": list(reversed(tiny_model.PIECES))},
            {"architecture": "qwen2"},
            {"feed_forward": 256},
            {"channels": 320},
        ],
    )
    def test_a_quant_of_another_model(self, ask, quants, tmp_path, rest):
        other = tiny_model.write(tmp_path / "other.gguf", **rest)
        with pytest.raises(BadModel, match="other is not a quant of the reference"):
            ask(quants["Q4_K_M"], other)

    @pytest.mark.parametrize("overlap", [0, -1, 127, 128, 1000])
    def test_an_overlap_that_leaves_no_room(self, ask, quants, overlap):
        with pytest.raises(UsageError, match="must be from 1 to 126"):
            ask(quants["Q2_K"], overlap=overlap)

    def test_an_overlap_of_the_other_protocol(self, ask, quants):
        with pytest.raises(UsageError, match="--overlap works only"):
            ask(quants["Q2_K"], protocol="llamacpp", overlap=16)

    def test_a_text_that_is_not_there(self, ask, quants, tmp_path):
        with pytest.raises(BadText, match="no such text"):
            ask(quants["Q2_K"], texts={"nb": tmp_path / "absent.jsonl"})

    def test_a_language_that_is_none(self, ask, quants):
        with pytest.raises(ImatrixLabError, match="'klingon'"):
            ask(quants["Q2_K"], texts={"klingon": None})

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            (b'{"id": "a", "text": "en"}\nto\n', "line 2 is not a document"),
            (b'{"id": "a"}\n', "no column of this file is text: id"),
            (b'{"text": 3}\n', "no text in its 1 rows"),
            (b"[1]\n", "no text in its 1 rows"),
            (b'{"id": "a", "text": "en"}\n{"id": "a", "text": "to"}\n', "'a' occurs twice"),
            (b'{"text": "bl\xe5b\xe6r"}\n', "not UTF-8 at byte 12"),
            (b"", "the text nb is empty"),
            (b'{"text": " \\n "}\n', "the text nb is empty"),
        ],
    )
    def test_a_damaged_text(self, ask, quants, tmp_path, raw, said):
        path = tmp_path / "bad.jsonl"
        path.write_bytes(raw)
        with pytest.raises(BadText, match=said):
            ask(quants["Q2_K"], texts={"nb": path})

    @pytest.mark.parametrize("raw", [b"", b" \n", "blåbær".encode("latin-1")])
    def test_a_plain_text_of_nothing(self, ask, quants, tmp_path, raw):
        path = tmp_path / "bad.txt"
        path.write_bytes(raw)
        with pytest.raises(BadText):
            ask(quants["Q2_K"], texts={"nb": path})


def test_a_later_text_with_nothing_to_score(ask, quants, text, tmp_path, monkeypatch):
    """Said before the first text takes its hours, not after."""
    short = tmp_path / "short.txt"
    short.write_text("en to tre")
    seen = made.count_decodes(monkeypatch)
    with pytest.raises(BadText, match="the text en has no 128 tokens"):
        ask(quants["Q2_K"], texts={"nb": text, "en": short}, protocol="llamacpp")
    assert seen == []


@pytest.mark.parametrize("labels", [("nb", "nb"), ("nb 1", "nb-1"), ("ål", "a\u030al")])
def test_texts_of_one_name_are_refused(store, reference, quants, text, tmp_path, labels):
    """One's records would overwrite the other's."""
    other = made.jsonl(tmp_path / "other.jsonl", made.documents([50, 20], seed=2))
    asked = made.request(reference, [quants["Q2_K"]], {}, tmp_path / "out", n_ctx=128)
    asked = dataclasses.replace(asked, texts=tuple(zip(labels, (text, other), strict=True)))
    with pytest.raises(UsageError, match="two texts are called"):
        score.score(asked, Session(store, made.Recorder()))


def test_a_context_beyond_the_models_is_refused(ask, quants):
    with pytest.raises(UsageError, match="context of 2048 tokens"):
        ask(quants["Q2_K"], n_ctx=2049, limit=1)
    ask(quants["Q2_K"], n_ctx=2048, limit=1)


# -- names


def test_two_quants_of_one_name_get_distinct_files(ask, quants, tmp_path, store):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / quants["Q4_K_M"].name
    twin.write_bytes(quants["Q2_K"].read_bytes())
    files = ask(quants["Q4_K_M"], twin)
    assert len({f.name for f in files}) == 2
    for file, quant in zip(files, (quants["Q4_K_M"], quants["Q2_K"]), strict=True):
        sha256 = made.load(quant, store).sha256
        assert file.name == f"nb.tiny-Q4_K_M.{sha256[:8]}.parquet"
        assert parquet.read(file).signature["quant"]["sha256"] == sha256


@pytest.mark.parametrize("mode", MODES)
def test_a_text_under_another_name(ask, quants, text, mode):
    """Comparisons go by the name in the signature."""
    ask(quants["Q2_K"], texts={"heldout": text}, base_logits=mode)
    (file,) = ask(quants["Q2_K"], texts={"nb": text}, base_logits=mode)
    assert file.name == "nb.tiny-Q2_K.parquet"
    assert parquet.read(file).signature["text"]["label"] == "nb"


@pytest.mark.parametrize("mode", MODES)
def test_a_quant_and_a_reference_under_another_name(ask, quants, reference, tmp_path, mode):
    ask(quants["Q2_K"], base_logits=mode)
    quant, ref = tmp_path / "nb-Q2_K.gguf", tmp_path / "demo-f16.gguf"
    shutil.copy(quants["Q2_K"], quant)
    shutil.copy(reference, ref)
    (file,) = ask(quant, reference=ref, base_logits=mode)
    signature = parquet.read(file).signature
    assert (signature["quant"]["name"], signature["reference"]["name"]) == ("nb-Q2_K", "demo")


def test_the_same_quant_twice_is_scored_once(ask, quants, tmp_path, monkeypatch):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(quants["Q2_K"].read_bytes())
    seen, progress = made.count_decodes(monkeypatch), made.Recorder()
    files = ask(quants["Q2_K"], copy, quants["Q2_K"], progress=progress, base_logits="live")
    assert [f.name for f in files] == ["nb.tiny-Q2_K.parquet"]
    assert {label for label, _ in seen} == {"tiny", "tiny-Q2_K"}
    notes = [s for s in progress.said if "is the same file as another; scored once" in s]
    assert len(notes) == 2 and "copy.gguf" in notes[0]


def test_the_reference_as_its_own_quant(ask, reference):
    rows = made.records(ask(reference)[0])
    assert np.abs(rows["kld"]).max() < 1e-6
    np.testing.assert_array_equal(rows["nll"], rows["nll_ref"])
    np.testing.assert_array_equal(rows["top1"], rows["top1_ref"])


def test_a_reference_that_looks_like_a_quant_is_told(ask, quants, reference):
    progress = made.Recorder()
    ask(reference, reference=quants["Q4_K_M"], progress=progress)
    assert any("swapped" in said for said in progress.said)
    progress = made.Recorder()
    (file,) = ask(reference, progress=progress)
    assert any("the reference itself" in said for said in progress.said)
    assert np.abs(made.records(file)["kld"]).max() < 1e-6


def test_norms_of_another_model_are_noted(ask, tmp_path):
    tuned = tiny_model.write(tmp_path / "tuned.gguf", output_scale=0.25, norm_weight=1.01)
    progress = made.Recorder()
    ask(tuned, progress=progress)
    assert any(s.startswith("note: tuned: its norm weights are not") for s in progress.said)


# -- what is not finite


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """The reference with NaN for the embedding of a letter."""
    folder = tmp_path_factory.mktemp("poisoned")
    token = 260 + tiny_model.PIECES.index("z")
    return tiny_model.write(folder / "nan.gguf", output_scale=0.25, nan_token=token)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_without_a_finite_score_are_counted(ask, poisoned, store, tmp_path, mode):
    """Those of the last document, and what llama.cpp decodes with them."""
    plain = [dataclasses.replace(d, text=d.text.replace("z", "s")) for d in made.documents(SIZES)]
    last = dataclasses.replace(plain[0], id="last", text="en z to tre " * 20)
    text, progress = made.jsonl(tmp_path / "z.jsonl", [*plain, last]), made.Recorder()
    (file,) = ask(poisoned, texts={"nb": text}, base_logits=mode, progress=progress)
    rows = made.records(file)
    bad = ~np.isfinite(rows["kld"])
    assert 0 < bad.sum() < len(bad) / 2 and bad[rows["doc_id"] == "last"].sum() > 100
    np.testing.assert_array_equal(~np.isfinite(rows["nll"]), bad)
    assert np.isfinite(rows["nll_ref"]).all()
    (artifact,) = (a for a in store.artifacts() if a.manifest["kind"] == "score")
    assert artifact.facts["n_nonfinite"] == bad.sum()
    words = f"{bad.sum():,} of {len(bad):,} tokens have no finite score"
    assert any(words in s for s in progress.said)
    (one,) = summary.summaries([file])
    assert (one.n_nonfinite, one.n_tokens) == (bad.sum(), (~bad).sum())
    good = rows["kld"][~bad].astype(float)
    assert one.kld_mean.estimate == pytest.approx(good.mean(), rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_quant_without_any_finite_score(ask, tmp_path, mode):
    nan = tiny_model.write(tmp_path / "nan.gguf", output_scale=0.25, nan_token=1)  # BOS
    (file,) = ask(nan, base_logits=mode)
    assert np.isnan(made.records(file)["kld"]).all()
    with pytest.raises(BadRecords, match="no token here has a finite score"):
        summary.summaries([file])


@pytest.mark.parametrize("mode", MODES)
def test_a_reference_without_any_finite_score(ask, quants, tmp_path, mode):
    nan = tiny_model.write(tmp_path / "nan-f16.gguf", output_scale=0.25, nan_token=1)
    with pytest.raises(BadModel) as caught:
        ask(quants["Q2_K"], reference=nan, base_logits=mode)
    assert caught.value.where == str(nan)


def test_auto_is_live_where_all_fits(ask, quants, store, monkeypatch):
    ask(quants["Q2_K"])
    assert "teacher" not in kinds(store)
    monkeypatch.setattr(score.compute, "memory_bytes", lambda: 4 << 20)
    ask(quants["Q4_K_M"])
    assert "teacher" in kinds(store)


def test_the_gap_is_told(ask, quants):
    progress = made.Recorder()
    ask(quants["Q2_K"], base_logits="cached", rest_share=0.3, progress=progress)
    (line,) = (s for s in progress.said if "the divergence is a lower bound, top" in s)
    assert "sampled tokens it misses" in line


def test_records_are_those_of_the_store(ask, quants, store):
    """Linked, so that they cost nothing, and read-only, so that the store stays whole."""
    (file,) = ask(quants["Q2_K"])
    (artifact,) = (a for a in store.artifacts() if a.manifest["kind"] == "score")
    assert file.samefile(artifact.path / run.RECORDS)
    assert not file.stat().st_mode & 0o222


@pytest.mark.parametrize("mode", MODES)
def test_a_reference_worse_than_chance_is_refused(ask, tmp_path, mode):
    """Random and sure of itself, over a vocabulary that is no toy's."""
    pieces = [*tiny_model.PIECES, *(f"piece{i}" for i in range(2000))]
    path = tiny_model.write(tmp_path / "wrong-f16.gguf", pieces=pieces, output_scale=0.25)
    with pytest.raises(BadModel, match="worse than chance"):
        ask(path, reference=path, base_logits=mode)
    assert not list(tmp_path.glob("out/*.parquet"))
