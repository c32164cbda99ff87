"""The model card, with what a study says of the files: on made-up results."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import UsageError
from imatrix_lab.pipeline import deliver, tune
from imatrix_lab.pipeline.card.studies import of_study
from imatrix_lab.pipeline.card.text import card
from imatrix_lab.report import results
from imatrix_lab.report.results import Calibration, Comparison, Preference, Results, Times
from imatrix_lab.types import ComputeOptions, Model, ModelFacts, Request

MODEL = "aa" * 32
IMATRIX = "bb" * 32
SIGNATURE = {
    "toolchain": {"commit": "0c1e57098", "backend": "cpu"},
    "package_version": "0.1.0",
    "reference": {"sha256": MODEL},
    "text": {"sha256": "cc" * 32},
}
NB_EN = Comparison(
    model="demo", text="nb", task="", type="Q4_K_M", metric="kld_nats",
    words="KLD from the original", unit="nats a token", lower_is_better=True, a="nb", b="en",
    estimate=-0.021, low=-0.027, high=-0.015, p_value=0.0004, p_adjusted=0.0008, adjust="holm",
    family="f", n_family=2, verdict="better", margin=math.nan, p_equivalence=math.nan,
    detectable=0.01, noise=0.002, noise_multiple=10.5, n=3000, n_clusters=12, n_to_decide=0,
    clusters_to_decide=0, plain="", formal="", signatures=("s1",),
)  # fmt: skip
NONE_NB = dataclasses.replace(
    NB_EN, a="no imatrix", b="nb", estimate=0.0863, low=0.0801, high=0.0924, verdict="worse"
)


def study(*comparisons: Comparison, model_sha256: str = MODEL) -> Results:
    nb = Calibration(
        model="demo", label="nb", name="Norwegian Bokmål", kind="language", sample=1,
        shares={"nb": 1.0}, n_tokens=16384, imatrix_sha256=IMATRIX, corpus_sha256="", source="",
        licence="",
    )  # fmt: skip
    lists = ("quants", "scores", "interactions", "controls", "predictions", "agreements",
             "similarities", "flips", "flip_counts", "power", "missing", "licences", "notes",
             "unknown")  # fmt: skip
    return Results(
        schema=results.SCHEMA, name="quick-nb", question="?", source="",
        answer=("Take the nb one.", "It is beyond the noise.", "One model."), baseline="en",
        metric="kld_nats", languages={}, models={"demo": {"sha256": model_sha256}},
        types=("Q4_K_M", "Q3_K_S"), calibrations=(nb,), comparisons=comparisons,
        commands=("imatrix-lab study run recipe.toml",), reduced=True, recipe={},
        signatures={"s1": SIGNATURE}, times=Times({}, 0.0), **dict.fromkeys(lists, ()),
    )  # fmt: skip


def model(sha256: str = MODEL) -> Model:
    facts = ModelFacts("llama", "tiny", "", 1, 1, 1, 1, 1, 0, "F16", 1, 16.0, {}, ())
    return Model("demo", Path("x"), (), sha256, facts, "demo")


def entries(imatrix_sha256: str = "dd" * 32) -> dict:
    quant = {
        "kind": "quant", "language": "nb", "type": "Q4_K_M", "size_bytes": 2**20,
        "bits_per_weight": 4.5, "perplexity": 2.0, "perplexity_reference": 1.0, "fallback": [],
        "model_name": "tiny", "base_model": "", "license": "", "command": "make quant LANG=nb",
        "provenance": "here", "note": "", "imatrix_sha256": imatrix_sha256,
    }  # fmt: skip
    facts = of_study(study(NB_EN, NONE_NB), model(), "nb")
    return {"a.gguf": quant, "nb.imatrix.gguf": {**quant, "kind": "imatrix", "study": facts}}


def cells(written, *row):
    """The cells after those given, of the only line of a table that begins so."""
    (line,) = (s for s in written.splitlines() if s.startswith("| " + " | ".join(row) + " |"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1 + len(row) : -1]]


def test_the_table_has_the_languages_comparisons_from_its_side(golden):
    written = card(entries())
    golden("card", written)
    numbers = {
        "en": ["−0.0210", "−0.0270 … −0.0150"],
        "no imatrix": ["−0.0863", "−0.0924 … −0.0801"],
    }
    for other, (difference, interval) in numbers.items():
        measure, *rest = cells(written, "nb", "Q4_K_M", other)
        assert measure == f"{NB_EN.words}, {NB_EN.unit}"
        assert rest == [difference, interval, "0.0008", "better"]


def test_whether_the_imatrix_is_the_studys_is_said():
    assert "16,384 tokens" in card(entries())
    assert "16,384 tokens" not in card(entries(IMATRIX))


def test_only_types_that_are_here():
    other = dataclasses.replace(NB_EN, type="Q3_K_S")
    files = entries()
    files["nb.imatrix.gguf"]["study"] = of_study(study(other), model(), "nb")
    assert "quick-nb" not in card(files)


def test_what_is_unknown_and_what_would_break_the_table():
    odd = dataclasses.replace(
        NB_EN, b="a|b", estimate=math.nan, low=math.nan, high=math.nan, p_adjusted=math.nan
    )
    files = entries()
    files["nb.imatrix.gguf"]["study"] = of_study(study(odd), model(), "nb")
    files = json.loads(json.dumps(files, allow_nan=False))
    row = cells(card(files), "nb", "Q4_K_M", "a\\|b")
    assert row[1:] == ["–", "–", "–", "better"]


def test_votes_of_people_are_on_the_card():
    voted = Preference(
        model="demo", text="nb", a="demo", b="demo-nb.1-Q4_K_M", n_people=4, n_prompts=150,
        n_wins_a=300, n_ties=100, n_wins_b=200, n_identical=0, estimate=16.7, low=8.0, high=25.3,
        p_value=0.001, verdict="better", plain="People prefer demo to demo-nb.1-Q4_K_M.",
    )  # fmt: skip
    files = entries()
    assert "Blind votes" not in card(files)
    voted_on = dataclasses.replace(study(NB_EN), preferences=(voted,))
    files["nb.imatrix.gguf"]["study"] = of_study(voted_on, model(), "nb")
    assert "- People prefer demo to demo-nb.1-Q4_K_M." in card(files)


def test_a_study_of_another_model_or_language_is_refused():
    with pytest.raises(UsageError) as caught:
        of_study(study(NB_EN, model_sha256="ee"), model(), "nb")
    assert "demo" in caught.value.fix
    with pytest.raises(UsageError) as caught:
        of_study(study(NB_EN), model(), "ml")
    assert "nb" in caught.value.fix


def test_tune_puts_a_study_into_manifest_and_card_and_it_stays(
    store_at, tiny, own_text, tools, tmp_path, monkeypatch
):
    """All but the text is real; the corpus stage makes none of a file's held-out documents."""
    store = store_at(tmp_path / "store")
    folder = tmp_path / "study"
    folder.mkdir()
    results.write(folder / results.FILE, study(NB_EN, model_sha256=sha256_file(tiny)))
    request = Request("et", ("Q4_K_M",), str(tiny), 512, tmp_path / "out",
                      ComputeOptions("cpu", n_ctx=128, threads=1), study=folder)  # fmt: skip
    corpus = _corpus(store, tools, tiny, own_text)
    monkeypatch.setattr(tune, "corpus_of", lambda *_: corpus)
    tune.tune(request, Session(store, Silent()))
    for study_again in (folder, None):
        tune.tune(dataclasses.replace(request, study=study_again), Session(store, Silent()))
        assert "Compared in the study" in (request.out / deliver.CARD).read_text()
    results.write(folder / results.FILE, study(NB_EN))
    with pytest.raises(UsageError):
        tune.tune(request, Session(store, Silent()))
    (folder / results.FILE).write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        tune.tune(request, Session(store, Silent()))


def _corpus(store: Store, tools, tiny: Path, own_text):
    asked = Request(str(own_text(600)), (), str(tiny), 512, Path(), ComputeOptions("cpu"))
    made = tune.resolve.resolve(str(tiny), Session(store, Silent()))
    corpus = tune.corpus_of(asked, tools, made, Session(store, Silent()))
    heldout = corpus.calibration.with_name("other.jsonl")
    heldout.write_text(json.dumps({"id": "1", "text": corpus.calibration.read_text()}) + "\n")
    return dataclasses.replace(
        corpus, language="nb", heldout=heldout, n_heldout=1, n_heldout_tokens=corpus.n_tokens
    )
