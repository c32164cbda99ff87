"""A text as it is scored: which tokens, of which documents, of how many bytes."""

import numpy as np
import pytest

from imatrix_lab.errors import BadText
from imatrix_lab.models.tokenizer import Vocabulary
from imatrix_lab.score import text as texts
from imatrix_lab.score.text import Text
from imatrix_lab.score.windows import Protocol
from imatrix_lab.types import Document
from tests import tiny_model
from tests.score import made

PROTOCOL = Protocol("document", 64, 16)


@pytest.fixture
def plan(tools, reference):
    """A function: documents' texts -> the plan."""

    def make(contents, protocol=PROTOCOL, model=reference, sequences_max=64):
        text = Text("nb", tuple(Document(f"d{i}", t, "x", "x") for i, t in enumerate(contents)))
        with Vocabulary(tools, model) as vocabulary:
            return texts.plan(text, vocabulary, protocol, sequences_max)

    return make


@pytest.fixture(scope="module")
def no_bos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no-bos")
    return tiny_model.write(folder / "tiny-f16.gguf", bos=False, output_scale=0.25)


def names(made_plan):
    words = made_plan.columns["doc_id"]
    return [words.names[c] for c in words.codes]


def test_columns_are_the_tokenizers_tokens(plan, tools, reference):
    contents = ["en to tre", "ål og sild, blåbær", made.prose(200)]
    made_plan = plan(contents)
    with Vocabulary(tools, reference) as vocabulary:
        tokens = [vocabulary.tokens(t, add_special=False) for t in contents]
    columns = made_plan.columns
    assert columns["token"].tolist() == [t for document in tokens for t in document]
    assert names(made_plan) == [f"d{i}" for i, t in enumerate(tokens) for _ in t]
    assert columns["pos"].tolist() == [i + 1 for t in tokens for i in range(len(t))]
    assert sum(made_plan.sizes()) == len(columns["token"])
    for name, column in columns.items():
        assert name == "doc_id" or len(column) == sum(made_plan.sizes())
    assert set(columns["window"].tolist()) > {0, 1}


def test_bytes_add_up_to_the_text(plan):
    """And one for the space that this tokenizer puts before each text."""
    contents = ["en to", "blåbær på ål", "നല്ല മലയാളം", "🙂 x"]
    made_plan = plan(contents)
    words = made_plan.columns["doc_id"]
    per_document = np.bincount(words.codes, made_plan.columns["n_bytes"])
    assert per_document.tolist() == [len(t.encode()) + 1 for t in contents]


def test_one_token_with_bos_is_scored(plan):
    made_plan = plan(["e", ""])
    assert names(made_plan) == names(plan(["e"])) == ["d0"] * len(made_plan.columns["token"])
    assert made_plan.n_skipped == 1


def test_without_bos_the_first_token_is_not(plan, tools, no_bos):
    """A document of one token is skipped; the text of it alone is an error."""
    with Vocabulary(tools, no_bos) as vocabulary:
        assert vocabulary.bos() is None
        assert len(vocabulary.tokens("▁d", add_special=False)) >= 1
        one = next(t for t in ("e", "d", "s") if vocabulary.count(t) == 1)
        two = vocabulary.tokens("en to", add_special=False)
    made_plan = plan(["en to", one, ""], model=no_bos)
    assert made_plan.columns["token"].tolist() == two[1:]
    assert made_plan.columns["pos"].tolist() == list(range(1, len(two)))
    assert made_plan.n_skipped == 2
    with pytest.raises(BadText, match="the text nb has no two tokens in a row"):
        plan([one], model=no_bos)


@pytest.mark.parametrize("contents", [[""], ["", ""], []])
def test_nothing_to_score_is_an_error(plan, contents):
    with pytest.raises(BadText, match="nothing to score"):
        plan(contents)


def test_a_stream_shorter_than_a_window_is_an_error(plan):
    with pytest.raises(BadText, match="no 64 tokens in a row"):
        plan(["en to tre"], Protocol("llamacpp", 64, 0))


def test_a_stream_is_the_documents_joined(plan, tools, reference):
    contents = [made.prose(100, 1), made.prose(100, 2) + "\n"]
    made_plan = plan(contents, Protocol("llamacpp", 64, 0))
    with Vocabulary(tools, reference) as vocabulary:
        tokens = vocabulary.tokens((contents[0] + "\n\n" + contents[1])[:-1])
    n = len(tokens) // 64
    assert set(names(made_plan)) == {f"window-{i:06d}" for i in range(n)}
    assert made_plan.columns["token"][:31].tolist() == tokens[33:64]
    assert [len(b) for b in made_plan.batches] == [1] * n


def test_one_newline_at_the_end_is_cut():
    """As llama.cpp's programs do with a file: common/arg.cpp, ``-f``."""

    def flat(*contents):
        return texts.flat(Text("nb", tuple(Document(t, t, "x", "x") for t in contents)))

    assert [flat(t) for t in ("en", "en\n", "en\n\n", "\nen\r\n")] == [
        "en", "en", "en\n", "\nen\r",
    ]  # fmt: skip
    assert flat("en\n", "to\n") == "en\n\n\nto"


def test_special_words_are_text(plan):
    """A document that names a chat token does not contain it."""
    assert 3 not in plan(["<|chat|> en to"]).columns["token"].tolist()


def test_the_sha256_is_of_ids_and_texts():
    def of(*pairs):
        return Text("nb", tuple(Document(i, t, "x", "x") for i, t in pairs)).sha256()

    assert of(("a", "x")) == of(("a", "x"))
    assert len({of(("a", "x")), of(("b", "x")), of(("a", "y")), of(("a", "x"), ("b", ""))}) == 4
    other = Text("en", (Document("a", "x", "elsewhere", "CC0-1.0"),))
    assert other.sha256() == of(("a", "x"))
