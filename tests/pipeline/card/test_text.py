"""What a card says, of made-up entries and scores: claims follow from records."""

import math

from huggingface_hub import ModelCard

from imatrix_lab.pipeline.card import picture
from imatrix_lab.pipeline.card.scores import Scores
from imatrix_lab.pipeline.card.text import Release, Text, card
from imatrix_lab.types import NOT_FOR_USE
from tests.pipeline.card.made_up import against, quant, scored, scores

SMALL, LARGE, WORSE = "m-nb-Q3_K_M.gguf", "m-nb-Q5_K_M.gguf", "m-nb-Q4_0.gguf"
FILES = {
    SMALL: quant(type="Q3_K_M", memory_bytes=2**29, size_bytes=2**19),
    WORSE: quant(type="Q4_0", memory_bytes=2**30),
    LARGE: quant(type="Q5_K_M", memory_bytes=2**31, size_bytes=2**21),
}
SCORED = scores(
    scored(SMALL, "nb", 0.30, against("better", -0.05)),
    scored(SMALL, "ml", 0.90, against("worse", 0.21), against("undecided", 0.01)),
    scored(WORSE, "nb", 0.40, size_bytes=2**20),
    scored(LARGE, "nb", 0.10, size_bytes=2**21),
)


def rows(written: str, title: str) -> list[list[str]]:
    """The rows of the first table under a title, without its head."""
    lines = written.split(f"\n## {title}\n", 1)[1].split("\n## ", maxsplit=1)[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table[2:]]


def test_every_text_is_shown_also_where_a_file_loses(golden):
    written = card(FILES, Release("user/M-nb-GGUF", SCORED))
    golden("card", written)
    shown = {(row[0], row[1], row[2], row[3]) for row in rows(written, "Measured")}
    assert shown == {
        (SMALL, "nb", "no imatrix Q4_K_M", "better"),
        (SMALL, "ml", "no imatrix Q4_K_M", "worse"),
        (SMALL, "ml", "no imatrix Q4_K_M", "undecided"),
        (WORSE, "nb", "", ""),
        (LARGE, "nb", "", ""),
    }
    assert "nb better in 1 of 1" in written
    assert "ml worse in 1, undecided in 1 of 2" in written


def test_a_file_that_a_smaller_one_beats_is_not_recommended():
    written = card(FILES, Release(scores=SCORED))
    assert [row[:2] for row in rows(written, "Which file")] == [
        ["0.5 GiB", SMALL],
        ["2 GiB", LARGE],
    ]
    names = [row[1] for row in rows(card(FILES), "Which file")]
    assert names == [SMALL, WORSE, LARGE]  # nothing is known of their loss
    written = card({SMALL: FILES[SMALL], "x-F16.gguf": quant(type=NOT_FOR_USE[0])})
    assert [row[1] for row in rows(written, "Which file")] == [SMALL]
    other = {"m-ml-Q3_K_M.gguf": quant(language="ml", memory_bytes=2**30)}
    both = scores(*SCORED.files, scored("m-ml-Q3_K_M.gguf", "ml", 0.5))
    written = card({**FILES, **other}, Release(scores=both))
    assert ["1 GiB", "m-ml-Q3_K_M.gguf", "ml", "0.5000"] in rows(written, "Which file")


def test_without_scores_nothing_is_claimed():
    written = card(FILES)
    assert "has not been scored" in written and picture.NAME not in written
    assert "better" not in written and "## Measured" not in written


def test_front_matter_is_the_hubs():
    of_base = {"base_model": "org/Model", "license": "other"}
    of_base |= {"license_name": "gemma", "license_link": "https://ai.google.dev/gemma/terms"}
    files = {name: e | of_base for name, e in FILES.items()}
    data = ModelCard(card(files, Release("user/M-nb-GGUF", SCORED))).data
    assert data.base_model == "org/Model" and data.language == ["nb"]
    assert (data.license, data.license_name) == ("other", "gemma")
    assert data.to_dict()["base_model_relation"] == "quantized"
    assert data.to_dict()["quantized_by"] == "user"
    assert data.library_name == "gguf" and {"gguf", "imatrix", "nb"} <= set(data.tags)
    klds = {(r.dataset_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert klds["ml", f"KLD from the original, nats a token, {SMALL}"] == 0.9


def test_texts_with_their_licences_and_what_may_not_be_given():
    release = Release(
        scores=SCORED,
        calibration={"bb" * 32: Text(("handbook: a book (CC-BY-SA-3.0)",))},
        heldout={"nb": Text(("written: ours (CC0-1.0)",), "heldout-nb.jsonl")},
    )
    written = card(FILES, release)
    assert "CC-BY-SA-3.0" in written and "not here" in written
    assert "--text nb=heldout-nb.jsonl ml --limit 12 --ctx 1024" in written


def test_parts_of_the_original_that_are_missing_and_the_chat_template():
    told = {"left_out": ["the vision tower"], "chat_template_sha256": "ff" * 32}
    written = card({SMALL: quant(**told)})
    assert "the vision tower" in written and "ff" * 32 in written
    others = {k: v for k, v in quant().items() if k != "left_out"}
    assert "left out: nothing" in card(FILES)
    assert "left out: nothing" not in card({"x.gguf": others})  # nobody knows


def test_shards_and_pipes_in_names():
    shards = {SMALL: ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]}
    files = {SMALL: quant(), "b|c.gguf": quant(language="", imatrix="d|e.dat")}
    written = card(files, Release(shards=shards))
    assert any("a-00001-of-00002.gguf" in row[0] for row in rows(written, "Files"))
    assert "b\\|c.gguf" in written and "d\\|e.dat" in written


def test_the_picture_has_every_text_and_survives_unknown_intervals():
    drawn = picture.svg(SCORED)
    assert all(f">{words}<" in drawn for words in ("nb", "ml", "size of the file, MiB"))
    assert drawn == picture.svg(SCORED)
    alone = scored(SMALL, "nb", 0.3)
    no_interval = type(alone.summary.kld_mean)(0.3, math.nan, math.nan, math.nan, 9, 1, 0.0)
    summary = type(alone.summary)(**{**vars(alone.summary), "kld_mean": no_interval})
    assert "<svg" in picture.svg(Scores((type(alone)(SMALL, 5, summary),)))
