"""Windows of one document each, against llama-imatrix on each document alone."""

import json
import re
import subprocess

import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.errors import BadText
from imatrix_lab.imatrix import collect, format, merge, moments, validate, windows
from imatrix_lab.imatrix.format import Entry
from imatrix_lab.imatrix.merge import MergeInput
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.pipeline import tune
from tests.imatrix.test_collect import a_model, request, same
from tests.imatrix.test_moments import read_by

LENGTHS = (40, 17, 128, 90, 300, 9, 25, 61, 140)
"""Tokens of the documents. Of 300, 44 are a window of their own; 12 of 140, and 9, are too few."""
KEPT = sorted((40, 17, 128, 90, 128, 128, 44, 25, 61, 128), reverse=True)


class Heard(Silent):
    """Progress that remembers its notes."""

    def __init__(self):
        self.notes = []

    def say(self, text):
        self.notes.append(text)


def rows(own_text, tools, model, path):
    """A file with a document of each length on its lines, and the documents."""
    documents = []
    with Vocabulary(tools, model) as vocabulary:
        for i, length in enumerate(LENGTHS):
            words = own_text(400 + i).read_text().split()
            text = ""
            while vocabulary.count(text) < length:
                text = f"{text} {words.pop()}".strip()
            while vocabulary.count(text) > length:
                text = re.sub(" $", "x", text[:-1])  # blanks at an end are not read
            assert vocabulary.count(text) == length
            documents.append(text)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path, documents


def one_by_one(tools, model, documents, own_text, tmp_path):
    """Sums of llama-imatrix's first window on each document, as long as the document."""
    rest, total = own_text(500).read_text(), {}  # it refuses less than two windows
    with Vocabulary(tools, model) as vocabulary:
        for i, text in enumerate(documents):
            n = vocabulary.count(text)
            file, out = tmp_path / f"{i}.txt", tmp_path / f"{i}.gguf"
            file.write_text(f"{text}\n{rest}")
            assert vocabulary.tokens(file.read_text())[:n] == vocabulary.tokens(text)
            argv = [tools.program("llama-imatrix"), "-m", model, "-f", file, "-o", out, "-t", "1"]
            settings = ["-c", n, "-b", n, "-ub", n, "--chunks", "1", "-fa", "off", "--no-repack"]
            command = [*map(str, [*argv, *settings])]
            subprocess.run(command, check=True, capture_output=True)
            for name, e in format.read(out).entries.items():
                old = total.get(name, Entry(np.zeros_like(e.sums), np.zeros_like(e.counts)))
                total[name] = Entry(old.sums + e.sums, old.counts + e.counts)
    return total


@pytest.mark.parametrize("family", ["llama", "moe", "lfm2"])
def test_sums_are_those_of_llama_imatrix_on_each_document(
    tools, store_at, tmp_path, own_text, family
):
    model = a_model(family, tmp_path / "m-f16.gguf")
    file, documents = rows(own_text, tools, model, tmp_path / "rows.jsonl")
    whole = [text for text, n in zip(documents, LENGTHS, strict=True) if 16 <= n <= 128]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in whole))
    theirs = one_by_one(tools, model, whole, own_text, tmp_path)
    results = []
    for n_batch in (128, 512, 64):  # a window a decode, several of different lengths, half a window
        out, store = tmp_path / f"{n_batch}.gguf", store_at(tmp_path / f"{n_batch}")
        asked = request(model, file, windows="document", n_batch=n_batch)
        made = tune.imatrix(asked, out, Session(store, Silent()))
        same(format.read(made).entries, theirs)
        results.append(out.read_bytes())
    assert results[0] == results[1] == results[2]


def test_long_documents_are_cut_short_ones_left_out_and_all_of_it_told(
    tools, tiny, own_text, tmp_path
):
    file, _ = rows(own_text, tools, tiny, tmp_path / "rows.jsonl")
    session = Session(Store(), Heard())
    asked = request(tiny, file, windows="document", moments=True)
    made = tune.imatrix(asked, tmp_path / "m.gguf", session)
    imatrix, said = format.read(made), " ".join(session.progress.notes)
    assert {e.counts[0] for e in imatrix.entries.values()} == {sum(KEPT)}
    assert (imatrix.chunk_count, imatrix.chunk_size) == (len(KEPT), 128)
    assert imatrix.metadata[format.WINDOWS] == "document" and imatrix.by_document
    assert "2 of 9 documents are longer" in said and "21 tokens in 2 windows" in said
    kinds = {finding.kind for finding in validate.check(imatrix).all}
    assert "window" in kinds and "chunks" not in kinds  # 79 tokens on average
    assert not moments.check(made)
    mixture = merge.merge([MergeInput(made, imatrix)], "tokens")
    assert '"windows": "document"' in mixture.metadata[merge.KEY]


def test_a_window_begins_with_bos_and_has_one_document(tools, tiny, own_text, tmp_path):
    file, documents = rows(own_text, tools, tiny, tmp_path / "rows.jsonl")
    session = Session(Store(), Silent())
    asked = request(tiny, file, windows="document")
    tools, model = tune.prepare(asked, session)
    corpus = tune.corpus_of(asked, tools, model, session)
    options = tune.imatrix_options(asked, model, corpus)
    read = collect._windows(tools, model, corpus, options, session)
    assert [len(w) for w in read] == KEPT
    with Vocabulary(tools, tiny) as vocabulary:
        bos, texts = vocabulary.bos(), [vocabulary.tokens(text)[1:] for text in documents]
    for window in read:
        assert window[0] == bos and bos not in window[1:]
        inside = tuple(window[1:])
        assert sum(inside in zip(*(t[i:] for i in range(len(inside))), strict=False) for t in texts)
    assert [*windows.padded(read[-2:])[1]] == [*read[-1], *[read[-1][-1]] * (len(read[-2]) - 17)]


def test_the_stream_and_the_documents_are_two_imatrices(tools, tiny, own_text, tmp_path):
    file, _ = rows(own_text, tools, tiny, tmp_path / "rows.jsonl")
    session, out = Session(Store(), Silent()), tmp_path / "i.gguf"
    stream = format.read(tune.imatrix(request(tiny, file), tmp_path / "s.gguf", session))
    made = format.read(tune.imatrix(request(tiny, file, windows="document"), out, session))
    assert not stream.by_document and format.WINDOWS not in stream.metadata
    name = "blk.0.ffn_down.weight"
    assert stream.entries[name].counts[0] % 128 == 0
    assert stream.entries[name].counts[0] != made.entries[name].counts[0]
    tune.imatrix(request(tiny, file, windows="document"), out, session)  # the same again
    with pytest.raises(Exception, match="windows"):
        tune.imatrix(request(tiny, file), out, session)


def test_a_plain_text_is_one_document(tools, tiny, own_text, tmp_path):
    text = own_text(3 * 128 + 50)
    text.write_text(text.read_text().replace(" ", "\n\n", 5))
    made = tune.imatrix(
        request(tiny, text, windows="document"), tmp_path / "i.gguf", Session(Store(), Silent())
    )
    assert format.read(made).chunk_count == 4


def test_documents_that_are_not_known_or_too_short_are_an_error(tools, tiny, tmp_path):
    file = tmp_path / "short.jsonl"
    file.write_text(json.dumps({"text": "en"}) + "\n")
    with pytest.raises(BadText) as error:
        tune.imatrix(request(tiny, file, windows="document"), None, Session(Store(), Silent()))
    assert "--windows stream" in error.value.fix


def test_rows_that_are_no_tokens_are_not_guessed_at(tools, tiny, tmp_path):
    """A padded decode whose product has other rows than tokens, or heads of them."""
    x = np.ones((40, 32), np.float32)
    session = Session(Store(), Silent())
    with read_by(tools, session, x, 0, lengths=[10, 20], window=20) as sums:
        assert sums.sums(sums.inputs()[0], 0).n == 30
    with pytest.raises(AssertionError, match="not those of tokens"):
        read_by(tools, session, x, 0, lengths=[10, 17], window=17)
