"""The small answer on small models: scored, compared, told, recorded, stopped and resumed."""

import dataclasses
import json
import math

import numpy as np
import pytest

from imatrix_lab.cli import main
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.corpus import cleaned, documents
from imatrix_lab.corpus import heldout as split
from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import quick
from imatrix_lab.pipeline import tune as pipeline
from imatrix_lab.pipeline.quick import Case
from imatrix_lab.pipeline.quick_answer import explanation, rows, sentence
from imatrix_lab.quantize import probes
from imatrix_lab.records import parquet
from imatrix_lab.types import ComputeOptions, Request
from tests.corpus import made_up

TOKENS = 600  # small, as the models here


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


@pytest.fixture(scope="module")
def _languages(tmp_path_factory):
    """A folder with Qaish and an English of our own."""
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMATRIX_LAB_DATA", str(data))
        made_up.add(data, "qa", "Qaish")
        made_up.add(data, "en", "English")
    return data


@pytest.fixture(scope="module")
def store(score_store, tmp_path_factory):
    return score_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def small(_languages, monkeypatch):
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(_languages))
    monkeypatch.setattr(quick, "TOKENS", TOKENS)
    monkeypatch.setattr(quick, "ENGLISH_TOKENS", 1024)
    monkeypatch.setattr(split, "HELDOUT_BYTES", 12_000)
    monkeypatch.setattr(cleaned, "BASIS_BYTES", 30_000)


@pytest.fixture
def tune(store, reference, tmp_path):
    """A function: language and settings -> request, result, answer, lines printed."""

    def make(text="qa", types=("Q2_K",), out="out", before=lambda result: None, **settings):
        compute = ComputeOptions("cpu", n_ctx=128, threads=1)
        request = Request(
            text, types, str(reference), 4096, tmp_path / out, compute, **settings,
        )  # fmt: skip
        heard = Heard()
        watch = quick.Watch(heard)
        result = pipeline.tune(request, Session(store, watch))
        before(result)
        return request, result, quick.answer(request, result, store, watch), heard.lines

    return make


@pytest.fixture
def answered(tune):
    return tune()


def scores(store, sha256s):
    """Records of these quants in the store, by sha256."""
    tables = {}
    for artifact in store.artifacts():
        if artifact.manifest["kind"] == "score":
            table = parquet.read(artifact.path / "records.parquet")
            tables[table.signature["quant"]["sha256"]] = table
    return [tables[s] for s in sha256s]


def test_the_numbers_are_those_of_the_records(answered, store):
    _, result, answer, _ = answered
    assert [r.language for r in answer.rivals] == ["", "en"]
    assert (answer.type, answer.language, answer.imatrix_tokens) == ("Q2_K", "qa", 4096)
    mine, *others = scores(store, [result.quants[0].sha256, *(r.sha256 for r in answer.rivals)])
    assert answer.n_tokens == len(mine) and answer.n_documents == len(mine.words("doc_id").names)
    assert answer.kld_nats == pytest.approx(mine.array("kld").mean(dtype=float))
    codes = mine.words("doc_id").codes
    for rival, table in zip(answer.rivals, others, strict=True):
        assert rival.kld_nats == pytest.approx(table.array("kld").mean(dtype=float))
        difference = np.float64(mine.array("kld")) - table.array("kld")
        assert rival.difference_nats == pytest.approx(difference.mean())
        assert rival.ci95_low < rival.difference_nats < rival.ci95_high
        clear = len({np.sign(difference[codes == c].sum()) for c in set(codes)}) == 1
        assert not clear or rival.verdict == ("better" if difference.mean() < 0 else "worse")
    none, english = answer.rivals
    assert not none.imatrix_sha256 and none.imatrix_tokens == 0
    assert english.imatrix_tokens == 1024
    assert answer.signature["reference"]["sha256"] == result.model.sha256


def test_the_documents_are_held_out_and_short(answered, tools, reference):
    _, result, answer, _ = answered
    heldout = documents.read(result.corpus.heldout)
    assert answer.n_documents == min(quick.DOCUMENTS, len(heldout))
    assert answer.document_tokens * answer.n_documents <= TOKENS
    with Vocabulary(tools, reference) as vocabulary:
        sizes = [vocabulary.count(d.text) for d in heldout]
    assert answer.n_tokens <= sum(min(s, answer.document_tokens) for s in sizes)


def test_manifest_and_card_have_it_and_keep_it(answered, tune):
    request, result, answer, _ = answered
    for asked in (None, False):  # again without: what is known of the same file stays
        tune(quick=asked)
        entries = json.loads((request.out / "manifest.json").read_text())["files"]
        assert entries[result.files[0].name]["quick"]["sentence"] == sentence(answer)
        assert entries[result.files[0].name]["quick"]["n_tokens"] == answer.n_tokens
        card = (request.out / "README.md").read_text()
        assert sentence(answer) in card and answer.signature["text"]["sha256"][:12] in card


def test_what_was_made_for_it_is_gone_and_nothing_is_made_again(answered, tune, store):
    request, result, answer, _ = answered
    assert [p.name for p in request.out.glob("*.gguf")].count(result.files[0].name) == 1
    assert len(list(request.out.glob("*.gguf"))) == 2  # the imatrix and the quant
    assert not list(store.root.glob("work/quick*"))
    before = {a.path for a in store.artifacts()}
    assert {p.parent.name for p in before} >= {"score", "quick", "imatrix"}
    *_, again, lines = tune()
    assert again == answer and not any(line.startswith("quick answer") for line in lines)
    assert {a.path for a in store.artifacts()} == before


def test_an_english_file_is_compared_with_none_alone(tune):
    _, _, answer, _ = tune("en")
    assert [r.language for r in answer.rivals] == [""]


def test_a_file_made_with_awq_and_feedback_is_compared_with_a_plain_one(tune):
    _, result, answer, _ = tune("en", out="ways", awq=True, feedback=True)
    assert "-awq-feedback" in result.files[0].name
    (rival,) = answer.rivals
    assert rival.sha256 != result.quants[0].sha256


def test_chosen_types_are_compared_with_the_standard_type(
    tune, store, tmp_path, monkeypatch, capsys
):
    for name, value in (("PIECE_TOKENS", 24), ("PIECES_MIN", 4), ("PIECES_MAX", 4)):
        monkeypatch.setattr(probes, name, value)
    request, result, answer, _ = tune(types=("size:Q3_K_M",))
    mine, english = answer.rivals
    assert [(r.type, r.text) for r in answer.rivals] == [("Q3_K_M", ""), ("Q3_K_M", "English")]
    by_text = {}
    for artifact in store.artifacts():
        if artifact.manifest["kind"] == "score":
            table = parquet.read(artifact.path / "records.parquet")
            quant = table.signature["quant"]["sha256"]
            by_text[table.signature["text"]["label"], quant] = table.array("kld")
    for label, rival in (("qa", mine), ("en", english)):
        own, standard = (by_text[label, s] for s in (result.quants[0].sha256, rival.sha256))
        assert rival.kld_nats == pytest.approx(standard.mean(dtype=float))
        assert rival.difference_nats == pytest.approx((np.float64(own) - standard).mean())
        assert rival.ci95_low < rival.difference_nats < rival.ci95_high
    assert answer.kld_nats == pytest.approx(mine.kld_nats + mine.difference_nats)
    assert (mine.difference_nats < 0) or mine.verdict != "better"
    own, size_row, english_row = rows(answer)
    assert own.startswith("qa ") and "than Q3_K_M" in size_row and english_row.startswith("English")
    card = (request.out / "README.md").read_text()
    assert sentence(answer) in card and "| ffn_down |" in card
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(store.root))
    argv = ["tune", "qa", "--model", request.model, "--tokens", "4096", "--ctx", "128"]
    argv += ["--threads", "1", "--size", "Q3_K_M", "--out", str(tmp_path / "other"), "--dry-run"]
    assert main.run([*argv, "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert steps[-1]["name"] == "quick answer size:Q3_K_M"
    assert all(step["cached"] for step in steps)


def test_a_type_that_needs_an_imatrix_is_compared_with_english_alone(tune):
    _, _, answer, _ = tune(types=("Q2_K_S",))
    assert [r.language for r in answer.rivals] == ["en"]
    *_, answer, lines = tune("en", types=("Q2_K_S",))
    assert answer is None
    assert len(lines) == 1 and "Q2_K_S" in lines[0]
    with pytest.raises(BadText):
        tune("en", types=("Q2_K_S",), quick=True)


def test_a_type_that_uses_no_imatrix_is_the_same(tune):
    _, _, answer, _ = tune(types=("Q8_0", "Q2_K"))
    assert answer.type == "Q8_0"
    assert {r.difference_nats for r in answer.rivals} == {0.0}
    assert all("the same as qa" in row for row in rows(answer)[1:])


def test_without_english_text_it_goes_without(tune, _languages, monkeypatch, tmp_path):
    (tmp_path / "corpora").mkdir()
    for code, name in (("qa", "Qaish"), ("en", "English")):
        (tmp_path / "corpora" / f"{code}.toml").write_text(
            made_up.LANGUAGE.format(code=code, name=name)
        )
    (tmp_path / "corpora" / "own").mkdir()
    (tmp_path / "corpora" / "own" / "qa").symlink_to(_languages / "corpora" / "own" / "qa")
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(tmp_path))
    *_, answer, lines = tune()
    assert [r.language for r in answer.rivals] == [""]
    assert sum("without English" in line for line in lines) == 1


def test_what_takes_long_is_only_done_when_asked_for(tune, monkeypatch):
    monkeypatch.setattr(quick, "MINUTES_MAX", 0.0)
    *_, answer, lines = tune(types=("Q3_K_S",))
    assert answer is None
    assert any("QUICK=1" in line for line in lines)
    *_, answer, lines = tune(types=("Q3_K_S",), quick=True)
    assert answer is not None
    assert any("about" in line and "min" in line for line in lines)


def case(request, result, english=None):
    return Case(
        request, result.model, result.corpus, result.imatrix, result.quants[0], None, english
    )


def test_the_time_is_told_from_the_rate_of_this_run(answered):
    request, result, _, _ = answered
    one = case(request, result, result.corpus)
    assert result.quants[0].seconds is None or result.quants[0].seconds < 60
    slow, fast = one.seconds(1.0), one.seconds(1e9)
    assert slow - fast == pytest.approx(4 * TOKENS + result.corpus.n_tokens, rel=1e-3)
    known = dataclasses.replace(result.model.facts, n_parameters=10**12)
    large = dataclasses.replace(result, model=dataclasses.replace(result.model, facts=known))
    assert case(request, large).seconds(math.nan) > 60 * quick.MINUTES_MAX


def test_a_watch_counts_what_was_done_here(monkeypatch):
    now = 0.0
    monkeypatch.setattr("imatrix_lab.core.progress.time.monotonic", lambda: now)
    watch = quick.Watch(Silent())
    with watch.task("imatrix", 4000, "tokens") as task:
        task.update(1000, "going on from where the last run stopped")
        now = 10.0
        task.update(4000)
    assert watch.tokens_per_s == 300
    with watch.task("quantize", 10, "weights") as task:
        task.update(10)
    with watch.task("perplexity", 10, "tokens"):
        pass
    assert watch.tokens_per_s == 300


def test_one_document_is_no_basis(answered):
    request, result, _, _ = answered
    one = dataclasses.replace(result.corpus, n_heldout=1)
    with pytest.raises(BadText) as caught:
        case(request, dataclasses.replace(result, corpus=one)).require_comparable()
    assert caught.value.where == str(result.corpus.heldout)


def test_stopped_in_the_middle_the_files_are_whole_and_it_goes_on(tune, monkeypatch, store):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(quick.score, "score", stop)
        with pytest.raises(KeyboardInterrupt):
            tune(types=("Q3_K_M",), out="stopped")
    (left,) = store.root.glob("work/quick*/scratch")
    assert {p.name for p in left.glob("*.gguf")} >= {"none.gguf", "en.gguf"}

    def quantized(*_):
        raise AssertionError("quantized again")

    with monkeypatch.context() as patch:
        patch.setattr(quick.run, "run_quantize", quantized)
        request, result, answer, _ = tune(types=("Q3_K_M",), out="stopped")
    assert answer is not None
    entries = json.loads((request.out / "manifest.json").read_text())["files"]
    for path in result.files:
        assert entries[path.name]["sha256"] == sha256_file(path)


def test_the_command_prints_the_line_after_the_files(
    answered, store, tmp_path, capsys, monkeypatch
):
    request, _, answer, _ = answered
    monkeypatch.setenv("IMATRIX_LAB_CACHE", str(store.root))
    argv = ["tune", "qa", "--model", request.model, "--tokens", "4096", "--ctx", "128"]
    argv += ["--threads", "1", "--type", "Q2_K Q3_K_S", "--out", str(tmp_path / "other")]
    assert main.run(argv) == 0
    printed = capsys.readouterr()
    assert printed.out.strip().splitlines()[-4:] == [*rows(answer), explanation(answer)]
    assert "Q3_K_S" in printed.err
    assert main.run([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quick"]["sentence"] == sentence(answer)
    assert main.run([*argv, "--dry-run", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert steps[-1]["name"] == "quick answer Q2_K" and steps[-1]["cached"]
    assert main.run([*argv, "--no-quick"]) == 0
    assert "held-out documents" not in capsys.readouterr().out
