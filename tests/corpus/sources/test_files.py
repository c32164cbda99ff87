"""The user's own text, and what is written for the project."""

import json
import os
import shlex
import tracemalloc
from dataclasses import replace

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from imatrix_lab.cli import main as cli_main
from imatrix_lab.core.outputs import Rules
from imatrix_lab.core.paths import user_dir
from imatrix_lab.core.progress import Silent
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.sources import files, local_sha256, written
from imatrix_lab.errors import BadText, UsageError

PARAGRAPH = "Havet er stort og kaldt, og ingen vet hva som finnes der nede. " * 10


class Told(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def added(paths, **rest):
    files.add(list(paths), "nn", "mine", "CC0-1.0", **rest)
    language = languages.get("nn")
    (source,) = (s for s in language.sources if s.name == "mine")
    return language, source


def read(paths, store, **rest):
    language, source = added(paths, **rest)
    pinned = files.reach(source, Session(store, Silent()))
    return list(files.documents(pinned, language, Session(store, Silent())))


def test_text_is_cut_at_form_feeds(tmp_path, own_store):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffEin.\r\n\r\n\r\nTo.\r\n\fTre.\n\f\nFire.".encode())
    found = read([path], own_store)
    assert [d.text for d in found] == ["Ein.\n\nTo.", "Tre.", "Fire."]
    assert [d.id for d in found] == [f"mine/a.txt/{i:06d}" for i in range(3)]
    assert {d.licence for d in found} == {"CC0-1.0"}


def test_text_without_form_feeds_is_cut_at_paragraphs(tmp_path, own_store):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join([PARAGRAPH] * 30), encoding="utf-8")
    found = read([path], own_store)
    assert "\n\n".join(d.text for d in found) == "\n\n".join([PARAGRAPH.rstrip()] * 30)
    assert len(found) == 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text("aåം \n\f", max_size=200))
def test_no_letter_of_a_text_is_lost(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    found = "".join(part for _, part in files.text_file(path))
    assert "".join(found.split()) == "".join(text.split())


def test_json_lines_and_parquet(tmp_path, own_store):
    rows = [{"id": "x", "body": "Ein.\r\n\n\nTo."}, {"id": "y", "body": ""}]
    rows += [{"id": "x", "body": "Tre."}, {"id": None, "body": "Fire."}, {"body": "Fem."}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    table = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    found = read([lines, table], own_store, field="body")
    assert [d.text for d in found] == ["Ein.\n\nTo.", "Tre.", "Fire.", "Fem."] * 2
    assert [d.id for d in found] == [
        *(f"mine/a.jsonl/{i}" for i in ("x/000001", "x/000003", "000004", "000005")),
        *(f"mine/b.parquet/{i}" for i in ("x/000000", "x/000002", "000003", "000004")),
    ]


@pytest.mark.parametrize("n_bytes", [0, 10, (1 << 20) - 1, (1 << 20) + 5])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_wrong_encoding_is_named_with_its_byte(tmp_path, own_store, n_bytes, kind):
    path = tmp_path / f"a.{kind}"
    line = b'{"text": "Hav."}\n' if kind == "jsonl" else "Blåbær.\n\n".encode()
    good = (line * (n_bytes // len(line) + 1))[:n_bytes]
    good += b"x" * (n_bytes - len(good))
    at = len(good.decode(errors="ignore").encode())
    path.write_bytes(good[:at] + b"\xe5pent hav")
    with pytest.raises(BadText) as caught:
        read([path], own_store)
    if "line" not in caught.value.what:  # a cut line of JSON is told first
        assert f"not UTF-8 at byte {at} (line {good.count(10) + 1})" in caught.value.what
        assert caught.value.where == str(path)


@pytest.mark.parametrize("line", ["[]", '{"text": 1}', '{"txt": "a"}', '{"text": "\\ud800"}'])
def test_a_row_without_text_is_left_out_and_said(tmp_path, own_store, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "god"}\n' + line)
    language, source = added([path])
    session = Session(own_store, Told())
    documents = list(files.documents(files.reach(source, session), language, session))
    assert [d.text for d in documents] == ["god"]
    (note,) = session.progress.lines
    assert "1 of 2 rows" in note and "row 2" in note


def test_a_line_that_is_not_json_is_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "god"}\n{')
    with pytest.raises(BadText, match="line 2"):
        added([path])


def test_a_damaged_table_is_told(tmp_path, own_store):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(BadText, match="Parquet"):
        read([path], own_store)
    parquet.write_table(pyarrow.table({"a": ["b"]}), path)
    with pytest.raises(BadText, match="column text; it has: a") as caught:
        read([path], own_store, field="text")
    assert caught.value.fix == "--field a"


def test_a_changed_file_must_be_added_again(tmp_path, own_store):
    path = tmp_path / "a.txt"
    path.write_text("Ein.")
    _, source = added([path])
    before = files.reach(source, Session(own_store, Silent()))
    os.utime(path)
    assert files.reach(source, Session(own_store, Silent())) == before
    path.write_text("To..")
    with pytest.raises(BadText) as caught:
        files.reach(source, Session(own_store, Silent()))
    program, *words = shlex.split(caught.value.fix)
    assert (program, cli_main.run(words)) == ("imatrix-lab", 0)
    (source,) = (s for s in languages.get("nn").sources if s.name == "mine")
    assert files.reach(source, Session(own_store, Silent())).sha256 != before.sha256
    path.unlink()
    with pytest.raises(BadText):
        files.reach(source, Session(own_store, Silent()))


def test_a_text_that_changed_since_it_was_chosen_is_not_read(tmp_path, own_store):
    path = tmp_path / "a.txt"
    path.write_text("Ein.")
    language, source = added([path])
    pinned = files.reach(source, Session(own_store, Silent()))
    assert local_sha256(source) == pinned.sha256
    path.write_text("To.")
    with pytest.raises(BadText, match="mine"):
        list(files.documents(pinned, language, Session(own_store, Silent())))
    _, again = added([path])
    assert local_sha256(again) != pinned.sha256
    with pytest.raises(BadText) as caught:
        list(files.documents(replace(pinned, source=again), language, Session(own_store, Silent())))
    assert caught.value.fix == "imatrix-lab corpus build nn --renew"


def test_two_languages_may_each_have_a_text_of_one_name(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Ein.")
    for code in ("nn", "nb", "nn"):
        files.add([path], code, "mine", "CC0-1.0")
    for code in ("nn", "nb"):
        assert [s.name for s in languages.get(code).sources].count("mine") == 1
    with pytest.raises(UsageError, match="wikipedia"):
        files.add([path], "nb", "wikipedia", "CC0-1.0")
    own = user_dir() / "own" / "nn"
    (own / "mine.toml").rename(own / "wikipedia.toml")
    with pytest.raises(UsageError, match="wikipedia"):
        files.add([path], "nn", "wikipedia", "CC0-1.0")


def test_a_text_without_text_is_told_when_it_is_added(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["", None]}), path)
    with pytest.raises(BadText, match="no text"):
        files.add([path], "nn", "mine", "MIT")
    assert not user_dir().exists()


def test_what_cannot_be_added_is_told(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Ein.")
    for paths, name, words in (
        ([path], "../x", "name"),
        ([path], "wikipedia", "wikipedia"),
        ([path, path], "mine", "same name"),
    ):
        with pytest.raises(UsageError, match=words):
            files.add(paths, "nn", name, "MIT")
    with pytest.raises(BadText):
        files.add([tmp_path / "b.txt"], "nn", "mine", "MIT")
    assert not user_dir().exists()


def test_odd_names_survive(tmp_path, own_store):
    path = tmp_path / 'a "b" \\ ൻ 😀\x7f.txt'
    path.write_text("Ein.")
    (found,) = read([path], own_store)
    assert found.text == "Ein."


@pytest.mark.parametrize(
    ("licence", "found"),
    [
        ("CC0-1.0", "public-domain"),
        ("MIT", "permissive"),
        ("CC-BY-4.0", "permissive"),
        ("CC-BY-SA-4.0", "share-alike"),
        ("MIT AND CC-BY-SA-4.0", "share-alike"),
        ("GPL-3.0-or-later", "copyleft"),
        ("who knows", "copyleft"),
    ],
)
def test_licence_classes(licence, found):
    assert files.licence_class(licence) == found


def test_large_text_takes_little_memory(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(30):
            file.write((PARAGRAPH + "\n\n") * (1_000_000 // len(PARAGRAPH)))
    tracemalloc.start()
    n_chars = sum(len(text) for _, text in files.text_file(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n_chars > 29_000_000
    assert peak_bytes < 8_000_000


def test_written_text_comes_with_the_package(monkeypatch, tmp_path):
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "d.jsonl").write_text('{"id": "a-01", "kind": "x", "text": "Hei."}\n')
    monkeypatch.setattr("imatrix_lab.corpus.sources.written.data_dir", lambda _: tmp_path)
    raw = {"kind": "written", "file": "written/d.jsonl", "heldout": True, "licence": "CC0-1.0"}
    raw |= {"licence_class": "public-domain", "origin": "here", "note": "n"}
    source = languages.source("written", raw, tmp_path)
    store = Store(tmp_path / "store")
    pinned = written.reach(source, Session(store, Silent()))
    (found,) = written.documents(pinned, languages.get("nb"), Session(store, Silent()))
    assert (found.id, found.text) == ("written/a-01/000001", "Hei.")
    assert local_sha256(source) == pinned.sha256
    (tmp_path / "written" / "d.jsonl").write_text('{"id": "a-01", "text": "Hallo."}\n')
    with pytest.raises(BadText):
        list(written.documents(pinned, languages.get("nb"), Session(store, Silent())))
    (tmp_path / "written" / "d.jsonl").unlink()
    with pytest.raises(BadText):
        written.reach(source, Session(store, Silent()))
    assert local_sha256(source) == ""
    assert local_sha256(languages.get("nb").sources[0]) == ""


def test_files_of_every_kind_together(tmp_path, own_store):
    texts = ["Ein fin dag.", "To fine dagar."]
    lists, plain, rows = (tmp_path / name for name in ("a.json", "b.txt", "c.CSV"))
    lists.write_text(json.dumps(texts))
    plain.write_text("\f".join(texts))
    rows.write_text("\n".join(["text", *texts]))
    assert [d.text for d in read([lists, plain, rows], own_store)] == texts * 3
    (tmp_path / "d.csv").write_text("tekst,n\nTre fine dagar.,3\n")
    with pytest.raises(UsageError, match=r"tekst of d\.csv"):
        added([rows, tmp_path / "d.csv"])


def test_a_source_of_other_files_is_replaced_only_by_force(tmp_path):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("Ein fin dag.")
    second.write_text("To fine dagar.")
    files.add([first], "nn", "mine", "CC0-1.0")
    first.write_text("Ein finare dag.")
    files.add([first], "nn", "mine", "CC0-1.0")
    with pytest.raises(UsageError, match=r"a\.txt"):
        files.add([second], "nn", "mine", "CC0-1.0")
    heard = Told()
    files.add([second], "nn", "mine", "CC0-1.0", rules=Rules((second,), True, heard))
    assert "a.txt" in heard.lines[0]
    source = next(s for s in languages.get("nn").sources if s.name == "mine")
    assert [f["path"] for f in source.settings["files"]] == [str(second)]
