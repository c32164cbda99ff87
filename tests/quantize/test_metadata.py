"""``general.*`` of files that llama-quantize made, read by gguf-py and by llama.cpp."""

import dataclasses

import gguf
import numpy as np
import pytest

from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.imatrix import format
from imatrix_lab.llamacpp import programs
from imatrix_lab.models import resolve
from imatrix_lab.models.gguf import read_header
from imatrix_lab.pipeline import tune
from imatrix_lab.publish import others
from imatrix_lab.quantize import metadata, run
from tests import tiny_model

PATH = "/home/somebody/texts/nb.txt"


def lists(languages=(), tags=(), base=""):
    """What an original says of itself."""

    def add(writer):
        if languages:
            writer.add_languages(list(languages))
        if tags:
            writer.add_tags(list(tags))
        if base:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, base)

    return add


@pytest.fixture
def made(tools, tmp_path, own_store, own_text):
    """A function: the model and its Q4_K_M with an imatrix of a language, verified by llama.cpp."""

    def make(label="nb", datasets=("nb", PATH), **original):
        session = Session(own_store, Silent())
        path = tiny_model.write(tmp_path / "tiny-f16.gguf", extra=lists(**original))
        entries = {
            t.name: format.Entry(np.ones((1, t.shape[0]), np.float32), np.full(1, 512, np.float32))
            for t in read_header(path).tensors
            if len(t.shape) > 1 and t.name.startswith("blk.")
        }
        matrix = format.Imatrix(entries, datasets, 4, 128, language=label)
        format.write(tmp_path / "x.gguf", matrix, {"imatrix_lab.language": label})
        model = resolve.resolve(str(path), session)
        model = dataclasses.replace(model, base_model="some-org/Tiny-1b")
        imatrix = tune.existing_imatrix(tmp_path / "x.gguf", model, Silent())
        pairs = metadata.general_pairs(model, imatrix, "Åse N.")
        heldout = run.HeldOut("text", own_text(600).read_text(), 600)
        options = run.Options(programs.Compute(1))
        spec = run.QuantSpec(model, imatrix, "Q4_K_M", options, pairs, heldout)
        return run.quantize(tools, spec, session)

    return make


def fields(path):
    """What gguf-py reads."""
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items()}


def test_a_file_says_whose_it_is_and_for_whom(made):
    quant = made()
    found = fields(quant.path)
    assert quant.perplexity > 1  # llama.cpp has run it
    assert found["general.quantized_by"] == "Åse N." and found["general.license"] == "cc0-1.0"
    assert found["general.languages"] == ["nb"] and found["general.tags"] == ["imatrix"]
    base = {k.removeprefix("general.base_model."): v for k, v in found.items() if "base_model" in k}
    assert base == {
        "count": 1,
        "0.name": "Tiny 1b",
        "0.organization": "Some Org",
        "0.repo_url": "https://huggingface.co/some-org/Tiny-1b",
    }


def test_what_the_original_says_stays(made, own_store):
    quant = made(label="nb75-se25", languages=("en", "nb"), tags=("chat",), base="X")
    found = fields(quant.path)
    assert found["general.languages"] == ["en", "nb"]  # se is no language of ours
    assert found["general.tags"] == ["chat", "imatrix"]
    assert found["general.base_model.0.name"] == "X"
    assert found["general.source.repo_url"].endswith("some-org/Tiny-1b")
    assert "general.base_model.0.repo_url" not in found
    model = resolve.resolve(str(quant.path), Session(own_store, Silent()))
    assert others._entry(model)["base_model"] == "some-org/Tiny-1b"  # of a card


def test_lists_grow_as_far_as_there_is_room(made):
    assert fields(made(label="nb50-nn50", languages=("en",)).path)["general.languages"] == [
        "en",
        "nb",
        "nn",
    ]
    many = [f"{a}{b}" for a in "abc" for b in "abcd"]
    assert fields(made(languages=many).path)["general.languages"] == many


def test_no_folder_of_a_text_enters_the_file(made):
    quant = made(datasets=(PATH,))
    found = fields(quant.path)
    assert found["quantize.imatrix.dataset"] == "nb.txt"
    assert found["quantize.imatrix.file"] == "nb.imatrix.gguf"
    assert b"somebody" not in quant.path.read_bytes()
    plain = made(datasets=("nb.txt",))  # another imatrix file, with the same numbers
    assert [t.data.tobytes() for t in gguf.GGUFReader(quant.path).tensors] == [
        t.data.tobytes() for t in gguf.GGUFReader(plain.path).tensors
    ]
