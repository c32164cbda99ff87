"""Whole corpora, of texts made for the test, in the small model's vocabulary."""

import dataclasses
import json
import random

import pytest

from imatrix_lab.core.manifest import MANIFEST
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import (
    build,
    cleaned,
    documents,
    heldout,
    languages,
    mixture,
    selection,
    show,
)
from imatrix_lab.corpus.clean.overlap import Shingles
from imatrix_lab.corpus.sources import files
from imatrix_lab.errors import BadText, DiskFull, FetchFailed, ToolFailed, UsageError
from imatrix_lab.models import resolve
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.types import TextOptions
from tests.corpus.made_up import LANGUAGE, prose


class Heard(Silent):
    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch):
    """Sources of a hundred kilobytes are large here."""
    monkeypatch.setattr(selection, "USUAL_BYTES", 120_000)
    monkeypatch.setattr(selection, "HELDOUT_BYTES_MIN", 10_000)
    monkeypatch.setattr(heldout, "HELDOUT_BYTES", 20_000)
    monkeypatch.setattr(cleaned, "BASIS_BYTES", 60_000)


@pytest.fixture
def languages_of_ours(tmp_path, monkeypatch):
    """A function that adds a language with sources of so many documents each."""
    data = tmp_path / "data"
    monkeypatch.setenv("IMATRIX_LAB_DATA", str(data))
    (data / "corpora").mkdir(parents=True)

    def add(code, **n_documents):
        text = LANGUAGE.format(code=code, name=f"Language {code}")
        (data / "corpora" / f"{code}.toml").write_text(text)
        for name, n in n_documents.items():
            path = tmp_path / f"{code}-{name}.jsonl"
            rng = random.Random(f"{code} {name}")
            lines = [json.dumps({"id": f"{i:04d}", "text": prose(rng)}) for i in range(n)]
            path.write_text("\n".join(lines))
            files.add([path], code, name, "CC0-1.0")
        return languages.get(code)

    return add


@pytest.fixture
def make(tools, tiny, own_store):
    """A function: what text, how many tokens, how -> the corpus."""

    def corpus(text, n_tokens=4000, store=own_store, heard=None, **options):
        model = resolve.resolve(str(tiny), Session(store, Silent()))
        wanted = TextOptions(**options)
        with Vocabulary(tools, tiny) as vocabulary:
            found = build.build(
                mixture.parse(text),
                model,
                vocabulary,
                n_tokens,
                wanted,
                Session(store, heard or Silent()),
            )
            text = found.calibration.read_bytes().decode()
            assert text.endswith("\n")  # llama.cpp takes one off
            assert vocabulary.count(text[:-1]) == found.n_tokens <= n_tokens
        return found

    return corpus


def facts(corpus):
    return json.loads((corpus.calibration.parent / MANIFEST).read_text())["facts"]


def used(corpus):
    """Source -> how many of its documents are calibrated on, how many held out."""
    return {s["name"]: (s["n_used"], s["n_heldout"]) for s in facts(corpus)["sources"]}


def test_a_language_added_in_a_folder_is_built(languages_of_ours, make):
    languages_of_ours("qaa", only=260)
    corpus = make("qaa")
    assert (corpus.language, corpus.language_name) == ("qaa", "Language qaa")
    assert corpus.n_tokens == 4000 and corpus.licence == "CC0-1.0"
    assert corpus.n_heldout == len(documents.read(corpus.heldout)) >= 4


def test_where_the_documents_end_is_known(languages_of_ours, make, tmp_path):
    languages_of_ours("qaa", only=260)
    corpus = make("qaa", sample=2, n_samples=2)
    given = [json.loads(row)["text"] for row in (tmp_path / "qaa-only.jsonl").open()]
    texts = [*build.document_texts(corpus)]
    assert len(texts) == corpus.n_documents > 2 and {*texts[:-1]} <= {*given}
    assert sum(map(len, texts)) + 2 * len(texts) - 1 == len(corpus.calibration.read_text())
    assert build.from_folder(corpus.calibration.parent) == corpus
    earlier = dataclasses.replace(corpus, document_ends=())
    with pytest.raises(BadText, match="earlier version"):
        list(build.document_texts(earlier))


def test_held_out_by_source_where_there_are_several(languages_of_ours, make):
    """The first that hold the budget are calibrated on, the next one is held out."""
    languages_of_ours("qaa", a=250, b=100, c=200)
    found = used(make("qaa"))
    assert found["a"][0] and not found["a"][1]
    assert found["b"][1] and not found["b"][0]
    assert "c" not in found  # not needed


WAYS = {
    "budget": (9000, {}),
    "large budget": (10**6, {}),
    "seed": (9000, {"seed": 5}),
    "sample": (9000, {"sample": 2, "n_samples": 3}),
    "licence": (10**6, {"licence": "public-domain"}),
}


@pytest.mark.parametrize("code", ["qaa", "qab"])
def test_what_one_corpus_holds_out_no_other_calibrates_on(code, languages_of_ours, make):
    """Neither a document nor a run of words; held out by source, and by cuts."""
    languages_of_ours("qaa", a=250, b=100)
    languages_of_ours("qab", only=260, tiny=3)
    languages_of_ours("qac", c=260)
    held = documents.read(make(code).heldout)
    seen = Shingles.of(d.text for d in held)
    for name, (n_tokens, options) in WAYS.items():
        corpus = make(code, n_tokens, **options)
        assert [d.id for d in documents.read(corpus.heldout)] == [d.id for d in held], name
        check_apart(corpus, held, seen)
    check_apart(make(f"{code}=0.5,qac=0.5", 20_000), held, seen)
    check_apart(make(f"{code}=0.5,shuffled:{code}=0.5", 20_000), held, seen)


def check_apart(corpus, held, seen):
    ids = {d.removeprefix("shuffled/") for d in facts(corpus)["documents"]}
    assert not ids & {d.id for d in held}
    text = corpus.calibration.read_text()
    assert not any(seen.hits(p) for p in text.split("\n\n"))


def test_text_that_overlaps_is_removed(languages_of_ours, make, tmp_path):
    language = languages_of_ours("qaa", a=300, b=100)
    path = tmp_path / "again.jsonl"
    held = documents.read(make("qaa", sources=("b",), heldout="a").heldout)
    shared = [d.text.split("\n\n")[1] for d in held[:3]]
    rng = random.Random(0)
    path.write_text(
        "\n".join(json.dumps({"text": f"{prose(rng)}\n\n{paragraph}"}) for paragraph in shared)
    )
    files.add([path], language.code, "again", "MIT")
    corpus = make("qaa", sources=("b", "again"), heldout="a")
    removed = facts(corpus)["overlap_removed"]
    assert removed == {"paragraphs": 2, "documents": 0}  # the third is cut from this source
    text = make("qaa", 10**6, sources=("b", "again"), heldout="a").calibration.read_text()
    assert not any(paragraph in text for paragraph in shared)


def test_an_evaluation_set_is_not_calibrated_on(languages_of_ours, make, tmp_path):
    languages_of_ours("qaa", a=300)
    everything = make("qaa", 10**6)
    text = everything.calibration.read_text().split("\n\n")[3]
    task = tmp_path / "task.json"
    task.write_text(json.dumps({"1": {"question": text, "answer": "x"}}))
    corpus = make("qaa", 10**6, exclude=(task,))
    assert text not in corpus.calibration.read_text()
    assert facts(corpus)["overlap_removed"]["paragraphs"] >= 1
    assert len(corpus.calibration.read_text()) > 0.9 * len(everything.calibration.read_text())


def test_samples_are_disjoint_and_equal(languages_of_ours, make):
    languages_of_ours("qaa", a=300, b=100)
    heard = Heard()
    made = [make("qaa", 9000, heard=heard, sample=k, n_samples=3) for k in (1, 2, 3)]
    assert [c.n_tokens for c in made] == [9000] * 3
    assert [c.sample for c in made] == ["1/3", "2/3", "3/3"]
    ids = [i for c in made for i in facts(c)["documents"]]
    assert len(ids) == len(set(ids))
    assert not any(facts(c)["bootstrap"] for c in made) and len({c.sha256 for c in made}) == 3
    assert not any("bootstrap" in line for line in heard.lines)


def test_too_little_text_for_samples_is_said(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    heard = Heard()
    for n_tokens in (60_000, 10**6):
        made = [make("qaa", n_tokens, heard=heard, sample=k, n_samples=4) for k in (1, 2, 3)]
        assert all(facts(c)["bootstrap"] for c in made)
        assert len({c.n_tokens for c in made}) == 1 and len({c.sha256 for c in made}) == 3
        assert made[0].n_tokens == 60_000 or made[0].n_tokens > 150_000
    assert any("too little text for 4 disjoint samples" in line for line in heard.lines)


def test_a_mixture_keeps_its_shares(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    languages_of_ours("qab", b=40)
    corpus = make("qaa=0.75,qab=0.25", 8000)
    sizes = {"qaa": 0, "qab": 0}
    text = corpus.calibration.read_text()
    for code in sizes:
        there = [d for p in store_pools(corpus, code) for d in documents.stream(p)]
        pieces = {piece for d in there for piece in d.text.split("\n\n")}
        sizes[code] = sum(len(p) for p in text.split("\n\n") if p in pieces)
    assert sizes["qaa"] / sum(sizes.values()) == pytest.approx(0.75, abs=0.03)
    assert corpus.language == "qaa75-qab25" and corpus.n_tokens == 8000


def store_pools(corpus, code):
    return list((corpus.calibration.parents[2] / "text").glob(f"{code}-*/documents.jsonl"))


def test_the_short_part_of_a_mixture_sets_its_size(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    languages_of_ours("qab", b=40)
    corpus = make("qaa=0.5,qab=0.5", 10**6)
    part = make("qab", 10**6)
    assert corpus.n_tokens == pytest.approx(2 * part.n_tokens, rel=0.05)


def test_a_shuffled_text_has_the_same_words(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    plain, mixed = make("qaa", 10**6), make("shuffled:qaa", 10**6)
    first, second = (c.calibration.read_text() for c in (plain, mixed))
    assert sorted(first.split()) == sorted(second.split()) and first != second
    assert mixed.language == "shuffled-qaa"


def test_random_tokens(make):
    corpus = make("random-tokens", 3000)
    assert corpus.n_tokens == 3000 and corpus.n_heldout == 0
    assert corpus.sha256 != make("random-tokens", 3000, seed=1).sha256


def test_the_same_bytes_in_another_store(languages_of_ours, make, tmp_path):
    languages_of_ours("qaa", a=300, b=100)
    there = Store(tmp_path / "elsewhere")
    for text in ("qaa", "shuffled:qaa=0.5,random-tokens=0.5"):
        first, second = make(text), make(text, store=there)
        for name in (build.CALIBRATION, build.HELDOUT, MANIFEST):
            ours, theirs = (c.calibration.with_name(name).read_bytes() for c in (first, second))
            assert ours == theirs, name


def test_the_choice_is_remembered_until_it_is_renewed(languages_of_ours, make, monkeypatch):
    languages_of_ours("qaa", a=250, b=100)
    reach = files.reach

    def without_a(source, *rest):
        if source.name == "a":
            raise FetchFailed("no network")
        return reach(source, *rest)

    monkeypatch.setattr(files, "reach", without_a)
    assert used(make("qaa")).keys() == {"b"}
    monkeypatch.setattr(files, "reach", reach)
    heard = Heard()
    again = make("qaa", 5000, heard=heard)
    assert used(again).keys() == {"b"} and not any("without" in line for line in heard.lines)
    assert facts(again)["skipped"] == {"qaa": {"a": "no network"}}
    assert used(make("qaa", 5000, renew=True)).keys() == {"a", "b"}
    assert used(make("qaa")).keys() == {"a", "b"}

    def nothing(source, *rest):
        raise FetchFailed("no network")

    monkeypatch.setattr(files, "reach", nothing)
    with pytest.raises(BadText, match="no network"):
        make("qaa", renew=True)
    assert used(make("qaa")).keys() == {"a", "b"}  # what was remembered stays


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Using SOCKS proxy, but a package is not installed"),
        RuntimeError(""),
        ConnectionResetError(104, "Connection reset by peer"),
        ToolFailed("apt-cache failed (SIGSEGV)"),
        KeyError("sha256"),
    ],
)
@pytest.mark.parametrize("stage", ["reach", "documents"])
def test_a_source_that_fails_in_any_way_leads_to_the_next(
    stage, error, languages_of_ours, make, monkeypatch
):
    languages_of_ours("qaa", a=250, b=100, c=100)
    real = getattr(files, stage)

    def failing(source, *rest):
        if getattr(source, "source", source).name in "ac":
            raise error
        return real(source, *rest)

    monkeypatch.setattr(files, stage, failing)
    heard = Heard()
    corpus = make("qaa", heard=heard)
    assert used(corpus).keys() == {"b"} and facts(corpus)["skipped"]["qaa"].keys() == {"a", "c"}
    reason = str(error).strip("'") or type(error).__name__
    assert [reason in line for line in heard.lines if "without" in line] == [True]  # said once


@pytest.mark.parametrize(
    "error", [UsageError("no such setting"), DiskFull("the disk is full"), KeyboardInterrupt()]
)
def test_what_is_no_fault_of_a_source_ends_the_run(error, languages_of_ours, make, monkeypatch):
    languages_of_ours("qaa", a=250, b=100)

    def failing(source, *rest):
        raise error

    monkeypatch.setattr(files, "reach", failing)
    with pytest.raises(type(error)):
        make("qaa")


def test_text_that_was_added_again_is_read_again(languages_of_ours, make, tmp_path):
    languages_of_ours("qaa", a=250)
    before = make("qaa")
    rng = random.Random("other")
    path = tmp_path / "qaa-a.jsonl"
    path.write_text("\n".join(json.dumps({"text": prose(rng)}) for _ in range(250)))
    files.add([path], "qaa", "a", "CC0-1.0")
    after = make("qaa")
    assert after.sha256 != before.sha256 and after.heldout_sha256 != before.heldout_sha256


def test_too_little_to_hold_out_is_said(languages_of_ours, make):
    languages_of_ours("qaa", a=1)
    with pytest.raises(BadText, match="Language qaa"):
        make("qaa")


def test_a_source_by_name(languages_of_ours, make):
    languages_of_ours("qaa", a=300, b=100)
    assert {name for name, (n, _) in used(make("qaa", sources=("b",))).items() if n} == {"b"}
    held = used(make("qaa", sources=("b",), heldout="a"))
    assert held["a"][0] == 0 < held["a"][1] and held["b"][1] == 0
    languages_of_ours("qad", a=250, b=100, c=200)  # b is held out as a rule
    other = used(make("qad", 10**6, heldout="c"))
    assert {name for name, (n, _) in other.items() if n} == {"a"} and other["c"][1]
    with pytest.raises(UsageError, match="'c'"):
        make("qaa", sources=("c",))
    with pytest.raises(UsageError):
        make("qaa", sources=("a",), heldout="a")


def test_a_limit_on_licences(languages_of_ours, make, tmp_path):
    languages_of_ours("qaa", a=300)
    path = tmp_path / "bound.jsonl"
    path.write_text(json.dumps({"text": prose(random.Random(3))}))
    files.add([path], "qaa", "bound", "GPL-3.0-only")
    assert "bound" not in used(make("qaa", 10**6, licence="permissive"))
    with pytest.raises(BadText, match=r"GPL-3\.0-only"):
        languages_of_ours("qab")
        files.add([path], "qab", "only", "GPL-3.0-only")
        make("qab", licence="permissive")


def test_a_language_without_chats_says_so(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    with pytest.raises(BadText, match="Language qaa") as caught:
        make("qaa", chat=0.2)
    assert caught.value.fix == "leave out --chat"


def test_a_language_without_text_says_what_to_do(languages_of_ours, make):
    languages_of_ours("qaa")
    with pytest.raises(BadText, match="Language qaa") as caught:
        make("qaa")
    assert caught.value.fix.startswith("imatrix-lab corpus add FILE --lang qaa")


def test_a_folder_is_a_corpus(languages_of_ours, make):
    languages_of_ours("qaa", a=300)
    corpus = make("qaa")
    folder = corpus.calibration.parent
    again = build.from_folder(folder)
    assert dataclasses.asdict(again) == dataclasses.asdict(corpus)
    (folder / build.CALIBRATION).write_text("something else")
    with pytest.raises(BadText, match=r"calibration\.txt"):
        build.from_folder(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(BadText):
        build.from_folder(folder)


def test_inspection(languages_of_ours, make, own_store):
    languages_of_ours("qaa", a=300, b=100)
    corpus = make("qaa")
    found = show.find("qaa", own_store)
    assert found.path == corpus.calibration.parent
    assert "4,000 tokens" in show.summary(found.facts)["calibration"]
    pages = show.samples(found, own_store, 3)
    assert pages["calibration"][0][:100] in corpus.calibration.read_text()
    assert show.find("nn", own_store) is None
