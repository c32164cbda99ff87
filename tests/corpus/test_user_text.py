"""The one reader of the user's text: formats by content, columns, what is left out."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import tracemalloc

import pyarrow
import pytest
from pyarrow import parquet

from imatrix_lab.corpus import tables
from imatrix_lab.corpus.user_text import UserText
from imatrix_lab.errors import BadText

TEXTS = [f"Avsnitt {i} handler om været på Vestlandet,\u2028som er «vått»." for i in range(30)]
CHATS = [
    [{"role": "user", "content": text[:20]}, {"content": [{"type": "text", "text": text[20:]}]}]
    for text in TEXTS
]


def json_lines(values):
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n"


def rows(column="text"):
    return [{"n": i, column: text} for i, text in enumerate(TEXTS)]


def as_parquet(table):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(table), file)
    return file.getvalue()


def zstd(raw):
    half = len(raw) // 2  # two frames
    codec = pyarrow.Codec("zstd")
    return b"".join(codec.compress(part, asbytes=True) for part in (raw[:half], raw[half:]))


def csv(mark, column="text", end="\n"):
    return f"n{mark}{column}{end}" + "".join(f'{i}{mark}"{t}"{end}' for i, t in enumerate(TEXTS))


def tsv():
    return "n\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS))


FILES = {
    "a.jsonl": json_lines(rows()),
    "bom-crlf.jsonl": "\ufeff" + json_lines(rows()).replace("\n", "\r\n"),
    "a.JSONL": json_lines(rows()),
    "a.ndjson": json_lines(rows()),
    "lines.json": json_lines(rows()),
    "lines.txt": json_lines(rows()),
    "no-suffix": json_lines(rows()),
    "strings.jsonl": json_lines(TEXTS),
    "content.jsonl": json_lines(rows("content")),
    "only.jsonl": json_lines([{**row, "id": f"a{row['n']}"} for row in rows("brødtekst")]),
    "strings.json": json.dumps(TEXTS),
    "objects.json": json.dumps(rows(), indent=1),
    "in-an-object.json": json.dumps({"version": "1", "data": rows()}),
    "keyed.json": json.dumps({f"d{i}": row for i, row in enumerate(rows())}),
    "keyed-texts.json": json.dumps({f"d{i}": text for i, text in enumerate(TEXTS)}),
    "pandas.json": json.dumps({"text": {str(i): text for i, text in enumerate(TEXTS)}}),
    "columns.json": json.dumps({"n": [*range(30)], "text": TEXTS}),
    "array.jsonl": json.dumps(rows()),
    "a.csv": csv(","),
    "excel.csv": "\ufeff" + csv(";", end="\r\n"),
    "csv.txt": csv(","),
    "one-column.csv": "tekst\n" + "".join(f'"{text}"\n' for text in TEXTS),
    "a.tsv": tsv(),
    "utf-16.tsv": tsv().encode("utf-16"),
    "utf-16.jsonl": json_lines(rows()).encode("utf-16"),
    "utf-32.csv": csv(",").encode("utf-32"),
    "a.jsonl.gz": gzip.compress(json_lines(rows()).encode()),
    "a.txt.zst": zstd(json_lines(rows()).encode()),
    "utf-16.csv.gz": gzip.compress(csv(",").encode("utf-16")),
    "a.json.bz2": bz2.compress(json.dumps(TEXTS).encode()),
    "a.csv.xz": lzma.compress(csv(",").encode()),
    "named-wrongly.txt": gzip.compress(json_lines(rows()).encode()),
    "a.parquet": as_parquet({"text": TEXTS}),
    "content.parquet": as_parquet({"content": TEXTS}),
    "list.parquet": as_parquet({"text": [[text] for text in TEXTS]}),
    "bytes.parquet": as_parquet({"text": [text.encode() for text in TEXTS]}),
    "parquet.txt": as_parquet({"text": TEXTS}),
    "a.parquet.gz": gzip.compress(as_parquet({"text": TEXTS})),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_texts(tmp_path, name):
    path, content = tmp_path / name, FILES[name]
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert [passage.text for passage in UserText(path).passages()] == TEXTS
    assert [document.text for document in UserText(path).documents()] == TEXTS


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (json_lines({"messages": chat} for chat in CHATS).encode(), "a.jsonl"),
        (json_lines(CHATS).encode(), "b.jsonl"),
        (as_parquet({"conversations": [[{"value": t[:20]}, {"value": t[20:]}] for t in TEXTS]}),
         "a.parquet"),
        (as_parquet({"text": [[t[:20], t[20:]] for t in TEXTS]}), "b.parquet"),
    ],
)  # fmt: skip
def test_chats_and_lists_are_paragraphs(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    wanted = [f"{text[:20]}\n\n{text[20:]}" for text in TEXTS]
    assert [passage.text for passage in UserText(path).passages()] == wanted


@pytest.mark.parametrize(
    "text",
    [
        "[Applause] Thank you.\n",
        "{name} went home.\n\n[1] A note.\n",
        '["Music"]\nHello there.\n',
        '{"a": 1}\nThat was an example of JSON.\n',
        "[1]\n[2]\n",
        '"Hei," sa hun.\n"Ja," sa han.\n',
        "text, and more\nof it, like this\n",
        "[" + "x" * 100_000,
        '["A quote that has no end, ' + "he said and went on " * 5000,
        "\ufeffBlåbær\r\n\r\n\r\n\fog tyttebær\n\n",
    ],
)
def test_text_that_looks_like_something_else_is_text(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    own = UserText(path)
    assert own.format == tables.TEXT
    plain = text.removeprefix("\ufeff").replace("\r\n", "\n")
    assert own.whole() == plain
    assert "\n\n".join(own.paragraphs()) == plain.strip()
    assert own.whole(keep_cr=True).encode() == path.read_bytes()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd, bz2.compress, lzma.compress])
def test_plain_text_in_any_packing(tmp_path, encoding, pack):
    text = "\n\n".join(TEXTS)
    path = tmp_path / "a.txt"
    path.write_bytes(pack(text.encode(encoding)))
    assert UserText(path).whole() == text
    assert list(UserText(path).paragraphs()) == TEXTS


def test_rows_left_out_are_counted_and_told(tmp_path):
    path = tmp_path / "a.jsonl"
    odd = [{"text": None}, {"text": ""}, {"text": 3}, {"x": "y"}, [], {"text": "\ud800"}]
    path.write_text(json.dumps({"text": "god"}) + "\n" + "\n".join(map(json.dumps, odd)))
    own, lines = UserText(path), []
    assert [passage.text for passage in own.passages()] == ["god"]
    own.say(lines.append)
    (line,) = lines
    assert "6 of 7 rows" in line and "row 2" in line and "half a character" in line


def test_a_cut_text_of_a_table_is_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,Hei, du som er her\n2,fint vær\n")
    own, lines = UserText(path), []
    assert [passage.text for passage in own.passages()] == ["fint vær"]
    own.say(lines.append)
    assert "1 of 2 rows" in lines[0] and "more cells" in lines[0]


def test_the_column_that_is_read_is_told(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(csv(";", "brødtekst"))
    own, lines = UserText(path), []
    own.say(lines.append)
    assert own.column == "brødtekst" and "brødtekst" in lines[0]
    UserText(path, "brødtekst").say(lines.append)
    assert len(lines) == 1


def test_a_wrong_column_names_those_that_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json_lines({"question": t, "answer": t + t} for t in TEXTS))
    for field in ("", "text"):
        with pytest.raises(BadText, match=r"question, answer") as caught:
            UserText(path, field)
        option, column = caught.value.fix.split()
        assert option == "--field"
        assert next(UserText(path, column).passages()).text == TEXTS[0] * 2


def test_no_column_is_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "abc", "n": 1}\n')
    with pytest.raises(BadText, match="id, n"):
        UserText(path)


def copies(folder):
    return {path for path in folder.iterdir() if path.stem.endswith((".utf8", ".mended"))}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Bestemor bakte lefser, og kjøkkenet luktet smør. På øya er det blåbær.", "cp1252"),
        ("Москва — столица России, город федерального значения.", "cp1251"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "cp932"),
        ("Blåbær", "utf-16-le"),
        ("Blåbær", "utf-16-be"),
        ("Москва — столица России.", "utf-16-le"),
    ],
)
def test_the_remedy_for_an_encoding_makes_the_text_readable(tmp_path, text, encoding, pack):
    path = tmp_path / ("it's a.txt" if pack is bytes else "it's a.txt.gz")
    path.write_bytes(pack((text * 5).encode(encoding)))
    with pytest.raises(BadText) as caught:
        UserText(path).whole()
    assert caught.value.where == str(path)
    subprocess.run(caught.value.fix, shell=True, check=True, timeout=60)
    (copy,) = copies(tmp_path)
    assert UserText(copy).whole() == text * 5


def test_the_remedy_for_a_line_leaves_it_out(tmp_path):
    path = tmp_path / "a b.jsonl"
    path.write_text('{"text": "en"}\n{"text": \n{"text": "tre"}\n')
    with pytest.raises(BadText, match="line 2") as caught:
        list(UserText(path).passages())
    subprocess.run(caught.value.fix, shell=True, check=True, timeout=60)
    (copy,) = copies(tmp_path)
    assert [passage.text for passage in UserText(copy).passages()] == ["en", "tre"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"%PDF-1.7", "PDF"),
        ("a.docx", b"PK\x03\x04abc", "zip"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        ("a.txt", b"GGUF\x03\0\0\0", "GGUF"),
        ("a.bin", b"\0" * 100, "zero bytes"),
        ("a.jsonl.gz", gzip.compress(json_lines(rows()).encode())[:-9], "damaged"),
        ("a.jsonl.zst", zstd(json_lines(rows()).encode())[:-9], "damaged"),
        ("a.json", json.dumps(rows(), indent=1)[:-20].encode(), "line 12"),
        ("a.csv", b'id,text\n1,"never closed\n2,b\n', "line 2"),
        ("a.jsonl", b"<!DOCTYPE html>", "line 1"),
        ("a.jsonl", b"", "no rows"),
        ("a.txt", b" \n\n", "empty"),
    ],
)
def test_what_is_no_text_is_told(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadText, match=words) as caught:
        list(UserText(path).paragraphs())
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_a_long_list_is_streamed(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": text * 20} for text in TEXTS * 400], indent=1))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    n = sum(1 for _ in UserText(path).passages())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 400 * len(TEXTS)
    assert peak_bytes < 20_000_000


def test_the_start_of_one_long_line_is_read_alone(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w") as file:
        for _ in range(100):
            file.write("x" * 1_000_000)
    tracemalloc.start()
    assert next(UserText(path).paragraphs()).startswith("xxx")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 80_000_000


def test_bytes_that_are_not_utf8_are_left_out(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(as_parquet({"text": ["på".encode(), "på".encode("latin-1"), "å".encode()]}))
    text = UserText(path)
    assert [p.text for p in text.passages()] == ["på", "å"]
    assert text.left_out == {"not in UTF-8": 1}


def test_a_file_that_is_packed_twice_is_told_with_the_remedy(tmp_path):
    path = tmp_path / "a b.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(json_lines(rows()).encode())))
    with pytest.raises(BadText, match="packed twice") as caught:
        UserText(path)
    subprocess.run(caught.value.fix, shell=True, check=True)
    assert [p.text for p in UserText(tmp_path / "a b.text.jsonl").passages()] == TEXTS


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_a_table_whose_lines_end_in_cr_alone(name, tmp_path):
    path = tmp_path / name
    path.write_bytes("\r".join(["n,text", *(f'{i},"{t}"' for i, t in enumerate(TEXTS))]).encode())
    assert [p.text for p in UserText(path).passages()] == TEXTS


def test_names_beside_text_that_is_nested_are_not_taken_for_it(tmp_path):
    path = tmp_path / "squad.json"
    entries = [{"title": f"Emne {i}", "paragraphs": [{"context": t}]} for i, t in enumerate(TEXTS)]
    path.write_text(json.dumps({"version": "1", "data": entries}))
    with pytest.raises(BadText, match="title, paragraphs") as caught:
        UserText(path)
    assert "--field title" in caught.value.fix
    assert UserText(path, "title").column == "title"
