"""Results of a small study that llama.cpp really ran: imatrices, quants, every token scored."""

import math
import random

import numpy as np
import pytest

from imatrix_lab.core import process
from imatrix_lab.core.files import sha256_file
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp.programs import Compute
from imatrix_lab.models import resolve
from imatrix_lab.pipeline import tune
from imatrix_lab.quantize import run
from imatrix_lab.records import summary
from imatrix_lab.records.runs import NO_IMATRIX
from imatrix_lab.report.results import ALL_SAMPLES, Calibration, Quant
from imatrix_lab.study.analyse.assemble import assemble
from imatrix_lab.study.recipe import CalibrationSettings, ComparisonSettings
from imatrix_lab.types import CorpusFacts, ImatrixFacts
from tests.score import made as scoring
from tests.study import scored
from tests.study.analyse.test_assemble import the

LETTERS = {"nb": "etaonåøæ", "en": "wybvkcumf"}
SIZES = [160, 90, 70, 120, 60, 100, 80, 110]
KIND = "Q2_K"


def words(language, n_chars, seed):
    rng = random.Random(f"{language}{seed}")
    return " ".join(
        "".join(rng.choices(LETTERS[language], k=rng.randint(2, 8))) for _ in range(n_chars // 6)
    )


@pytest.fixture(scope="module")
def made(tools, reference, score_store, tmp_path_factory):
    """Two languages, two samples each, and no imatrix; scored on both languages."""
    folder = tmp_path_factory.mktemp("real")
    store = score_store(folder / "store")
    model = resolve.resolve(str(reference), Session(store, Silent()))
    none = Calibration(model.label, NO_IMATRIX, NO_IMATRIX, "none", 0, {}, 0, "", "", "", "")
    imatrices = [(none, None, None)]
    for language in LETTERS:
        for sample in (1, 2):
            text, path = (folder / f"{language}-{sample}.{end}" for end in ("txt", "gguf"))
            text.write_text(words(language, 3000, sample))
            argv = [tools.program("llama-imatrix"), "-t", "1", "-c", "128", "-b", "128", "-m",
                    reference, "-f", text, "-o", path]  # fmt: skip
            process.run(argv, timeout_s=120)
            read = format.read(path)
            facts = ImatrixFacts(path, sha256_file(path), language, len(read.entries),
                                 read.n_tokens(), read.chunk_count, 128, 0)  # fmt: skip
            corpus = CorpusFacts(language, language, text, text, 3000, 1, 0, 0,
                                 sha256_file(text), "", "CC0-1.0", "made up")  # fmt: skip
            row = Calibration(model.label, language, language, "language", sample,
                              {language: 1.0}, facts.n_tokens, facts.sha256, corpus.sha256,
                              corpus.source, corpus.licence)  # fmt: skip
            imatrices.append((row, facts, corpus))
    quants = {}
    for row, facts, corpus in imatrices:
        metadata = tune.metadata_of(tools, model, corpus, facts)
        spec = run.QuantSpec(model, facts, KIND, run.Options(Compute(1)), metadata)
        quants[row.label, row.sample] = run.quantize(tools, spec, Session(store, Silent()))
    texts = {
        language: scoring.jsonl(folder / f"{language}.jsonl", [
            scoring.Document(f"written/{i}", words(language, n, f"held out {i}"), "", "")
            for i, n in enumerate(SIZES)
        ])
        for language in LETTERS
    }  # fmt: skip
    paths = scoring.score(
        store, reference, [q.path for q in quants.values()], texts, folder / "scores", n_ctx=128
    )
    return scored.products(
        recipe=scored.recipe(
            types=(KIND,),
            calibration=CalibrationSettings(("en", "nb", "none"), samples=2),
            comparison=ComparisonSettings(margins={"kld_nats": 0.001}, resamples=500),
        ),
        models={model.label: model},
        calibrations=tuple(row for row, _, _ in imatrices),
        imatrices={facts.sha256: facts.path for _, facts, _ in imatrices if facts},
        quants=tuple(
            Quant(model.label, label, sample, KIND, q.path.stem, q.sha256, q.size_bytes,
                      q.bits_per_weight, len(q.fallback))
            for (label, sample), q in quants.items()
        ),
        token_records=tuple(paths),
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(made):
    return assemble(made, Silent())


def test_single_samples_say_what_score_show_says(study, made):
    rows = {"kld_nats": ("kld_mean", 1), "perplexity": ("ppl", 1),
            "top1_agreement": ("same_top", 100), "bits_per_byte": ("bits_per_byte", 1)}  # fmt: skip
    sha256 = {q.sha256: q for q in made.quants}
    for s in summary.summaries(made.token_records):
        quant = sha256[s.signature["quant"]["sha256"]]
        sample = ALL_SAMPLES if quant.calibration == NO_IMATRIX else quant.sample
        for metric, (name, scale) in rows.items():
            row = the(study.scores, text=s.text, calibration=quant.calibration, sample=sample,
                      metric=metric)  # fmt: skip
            other = getattr(s, name)
            assert row.estimate == pytest.approx(scale * other.estimate)
            assert (row.low, row.high) == pytest.approx((scale * other.low, scale * other.high))
        original = the(study.scores, text=s.text, calibration="", metric="perplexity")
        assert original.estimate == pytest.approx(s.ppl_reference.estimate)


def test_comparisons_are_of_the_records(study, made):
    def kld(text, calibration):
        return np.mean([
            scoring.records(p)["kld"].astype(float).mean()
            for p in made.token_records
            for q in made.quants
            if p.name.startswith(f"{text}.") and q.calibration == calibration
            and scoring.parquet.read(p, []).signature["quant"]["sha256"] == q.sha256
        ])  # fmt: skip

    for text in LETTERS:
        for a, b in (("nb", "en"), ("nb", NO_IMATRIX), (NO_IMATRIX, "en")):
            c = the(study.comparisons, text=text, a=a, b=b, metric="kld_nats")
            assert c.estimate == pytest.approx(kld(text, a) - kld(text, b))
            assert c.n_clusters == len(SIZES)
            assert math.isfinite(c.noise)
    assert {q.calibration for q in study.quants} == {"nb", "en", NO_IMATRIX}
    assert len({q.sha256 for q in study.quants}) == 5
    assert {x.source for x in study.licences if x.what == "held-out text nb"} == {
        "written for this project"
    }
    assert len(study.answer) == 3
