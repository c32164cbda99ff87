"""Shared runs of words and characters, and the files they come from."""

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imatrix_lab.corpus.clean import scripts
from imatrix_lab.corpus.clean.overlap import Shingles, task_strings
from imatrix_lab.corpus.clean.shingles import TABLED, shingles, word_crcs
from imatrix_lab.errors import BadText

EIGHT = "a river ran through the middle of town"


def test_eight_words_in_a_row_hit_whatever_stands_between_them() -> None:
    known = Shingles.of([f"Long ago, {EIGHT}."])
    assert known.hits("They say that A RIVER ran; through -- the middle\nof town? Indeed") == 1
    assert known.hits("a river ran through the middle of a town") == 0
    assert known.hits("a river ran through the middle of") == 0
    assert Shingles.of([]).hits(EIGHT) == 0
    assert Shingles.of(["too short"]).hits("too short") == 0


def test_a_malayalam_word_is_one_word_and_chillus_count() -> None:
    words = "കേരളത്തിൽ മഴക്കാലം ജൂൺ ഒന്നിന് തുടങ്ങും എന്നാണ് കർഷകർ പറയുന്നത്"
    assert len(words.split()) == 8
    assert Shingles.of([words]).hits(words.replace(" ", ", ")) == 1
    assert len(Shingles.of([words])) == 1


@pytest.mark.parametrize(
    "text",
    [
        "吾輩は猫である名前はまだ無いどこで生れたか頓と見当がつかぬ",
        "ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำแน่นอน",
    ],
)
def test_scripts_without_spaces_go_by_twenty_characters(text: str) -> None:
    known = Shingles.of([text])
    assert len(known) == len(text) - 19
    assert known.hits(f"……{text[3:24]}。") == 2
    assert known.hits(text[:12] + "x" + text[13:25]) == 0 or "ไทย" in text
    assert known.hits(text[:19]) == 0


def test_runs_do_not_go_from_one_text_into_the_next() -> None:
    first, second = "one two three four", "five six seven eight"
    hashes, offsets = shingles([first, "", second, "日本語の文章"], 3, 4)
    assert offsets.tolist() == [0, 2, 2, 4, 7]
    alone = [shingles([t], 3, 4)[0] for t in (first, second, "日本語の文章")]
    assert np.array_equal(hashes, np.concatenate(alone))
    assert shingles([], 3, 4)[0].size == 0


@given(st.lists(st.text("aå語𝔘", min_size=1, max_size=2 * TABLED)))
def test_words_are_known_by_their_crc(words: list[str]) -> None:
    points = scripts.code_points("".join(f" {word}," for word in words))
    crcs = word_crcs(points, ~np.isin(points, [ord(" "), ord(",")]))
    assert crcs.tolist() == [zlib.crc32(word.encode()) for word in words]


@pytest.mark.parametrize("script", ["Latn", "Mlym", "Jpan", "Zyyy"])
def test_no_letter_of_another_script_is_overlooked(script: str) -> None:
    others = np.flatnonzero(scripts.letters_of(script) == 1).tolist()
    assert others and all(map(scripts.maybe_other(script).match, map(chr, others)))
    assert not scripts.maybe_other("Latn").search("Blåbærsyltetøy, 12 °C – «ja»!")


def test_scripts_of_characters() -> None:
    words = scripts.word_characters()
    assert [words[ord(c)] for c in "aß5മ്の語ท"] == [1, 1, 1, 1, 1, 2, 2, 2]
    assert [words[ord(c)] for c in " -_.。'"] == [0] * 6
    mlym = scripts.letters_of("Mlym")
    assert (mlym[ord("മ")], mlym[ord("a")], mlym[ord("1")], mlym[0x301]) == (2, 1, 0, 0)
    jpan = scripts.letters_of("Jpan")
    assert [jpan[ord(c)] for c in "のノ語a"] == [2, 2, 2, 1]


def test_many_texts_are_settled_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imatrix_lab.corpus.clean.overlap._PENDING_MAX", 50)
    texts = [" ".join(f"w{i * 7 + j}" for j in range(12)) for i in range(100)]
    known = Shingles()
    for text in texts:
        known.add(text)
    assert all(known.hits(t) == 5 for t in texts)
    assert len(known) == len(Shingles.of(texts)) == 500


def test_every_string_of_a_task_file(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "q": "what\nis it", "choices": ["a b", "c"], "deep": {"x": "y"}},
        {"q": "two"},
    ]
    wanted = ["what\nis it", "a b", "c", "y", "two"]
    (tmp_path / "a.json").write_text(json.dumps({"k1": rows[0], "k2": rows[1]}))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(
        pa.Table.from_pylist([{**rows[0]}, {"id": 2, "q": "two"}]), tmp_path / "a.parquet"
    )
    assert list(task_strings(tmp_path / "a.json")) == wanted
    assert list(task_strings(tmp_path / "a.jsonl")) == wanted
    assert list(task_strings(tmp_path / "a.parquet")) == wanted
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tone\ttwo\n")
    (tmp_path / "a.csv").write_text('id,text\n1,"one, ""quoted""\nline"\n')
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\ntwo\u2028three".encode())
    assert list(task_strings(tmp_path / "a.tsv")) == ["id", "text", "1", "one", "two"]
    assert list(task_strings(tmp_path / "a.csv")) == ["id", "text", "1", 'one, "quoted"\nline']
    assert [s.strip() for s in task_strings(tmp_path / "a.txt")] == ["one", "two\u2028three"]


def test_a_run_over_the_line_breaks_of_a_wrapped_text_hits(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(EIGHT.replace(" ", "\n"))
    assert Shingles.of(task_strings(tmp_path / "a.txt")).hits(EIGHT) == 1


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.json", b'{"a": ', "JSON"),
        ("a.json", b"[" * 100_000, "JSON"),
        ("a.jsonl", b'{"a": 1}\nnope\n', "line 2"),
        ("a.parquet", b"PAR1 not really", "Parquet"),
        ("a.txt", b"one\n\ncaf\xe9 bar", "byte 8"),
        ("a.csv", b"a,b\ncaf\xe9,bar", "byte 7"),
    ],
)
def test_damaged_task_files_are_named(
    tmp_path: Path, name: str, content: bytes, place: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadText, match=place) as caught:
        list(task_strings(tmp_path / name))
    assert caught.value.where == str(tmp_path / name)


def test_a_task_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadText):
        list(task_strings(tmp_path / "none.json"))


def test_large_json_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imatrix_lab.corpus.tables.JSON_BYTES_MAX", 10)
    (tmp_path / "a.json").write_text('{"a": "' + "x" * 100 + '"}')
    with pytest.raises(BadText) as caught:
        list(task_strings(tmp_path / "a.json"))
    assert caught.value.fix.startswith("jq ")
