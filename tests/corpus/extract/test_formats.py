"""Every format, from files made here: what is prose comes out, damage is told."""

import io
import json
import struct
import zipfile

import pytest

from imatrix_lab.corpus import extract, languages
from imatrix_lab.corpus.extract import EXTRACTORS, epub, strings
from imatrix_lab.errors import BadText

SENTENCE = "Dette er ei setning som er lang nok til å vera med."
OTHER = "Og dette er ei anna, som òg er lang nok til det."


def texts(word, raw, name="x"):
    return "\n\n".join(EXTRACTORS[word](name, raw)).split("\n\n")


def pak(*entries):
    at = 12 + 6 * (len(entries) + 1)
    head, body = struct.pack("<IB3xHH", 5, 1, len(entries), 0), b""
    for i, entry in enumerate(entries):
        head += struct.pack("<HI", 100 + i, at + len(body))
        body += entry if isinstance(entry, bytes) else entry.encode()
    return head + struct.pack("<HI", 0, at + len(body)) + body


def mo(pairs, order="<"):
    n = len(pairs)
    head = struct.pack(f"{order}7I", 0x950412DE, 0, n, 28, 28 + 8 * n, 0, 28 + 16 * n)
    at, tables, body = len(head) + 16 * n, ["", ""], b""
    tables = [b"", b""]
    for side in (0, 1):
        for pair in pairs:
            raw = pair[side].encode()
            tables[side] += struct.pack(f"{order}2I", len(raw), at + len(body))
            body += raw + b"\0"
    return head + tables[0] + tables[1] + body


def qm(*translations):
    body = b""
    for text in translations:
        raw = text.encode("utf-16-be")
        body += struct.pack(">BI", 3, len(raw)) + raw
        body += struct.pack(">BI", 6, 3) + b"src" + struct.pack(">BI", 7, 0xFFFFFFFF) + b"\x01"
    magic = bytes.fromhex("3cb86418caef9c95cd211cbf60a1bddd")
    section = struct.pack(">BI", 0x42, 4) + b"hash" + struct.pack(">BI", 0x69, len(body)) + body
    return magic + section


def book(chapters):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in chapters.items():
            archive.writestr(name, text)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("word", "raw"),
    [
        ("pak", pak("Fil", SENTENCE, b"\x1f\x8b\x00\xff", f"<b>{OTHER}</b>", SENTENCE)),
        ("gettext", mo([("", "Language: nn"), ("a", SENTENCE), ("b", f"Ny\0{OTHER}")])),
        ("gettext", mo([("", "Language: nn"), ("a", SENTENCE), ("b", OTHER)], ">")),
        ("qt", qm("Fil", SENTENCE, OTHER)),
        ("mediawiki", json.dumps({"@m": {"x": SENTENCE}, "a": SENTENCE, "b": OTHER}).encode()),
        (
            "epub",
            book({"b.xhtml": f"<p>{OTHER}</p>", "a.html": f"<p>{SENTENCE}</p>", "c.css": "p"}),
        ),
        ("html", f"<ul><li>{SENTENCE}<li>{OTHER}</ul><p>Fil<pre>Kode.</pre>".encode()),
        (
            "handbook",
            f"<div class='toc'><div class='para'>Innhald.</div></div><div class='para'>\n{SENTENCE}"
            f"<ul><li><div class='para'>{OTHER}</div></li></ul></div>".encode(),
        ),
        (
            "mallard",
            f"<page><info><desc>Om.</desc></info><p>{SENTENCE}</p><p>Sjå <link xref='a'/>.</p>"
            f"<steps><item><p>{OTHER}</p></item></steps><code>Kode.</code></page>".encode(),
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_prose_comes_out(word, raw):
    assert texts(word, raw) == [SENTENCE, OTHER]


@pytest.mark.parametrize(
    ("word", "raw"),
    [
        ("pak", b""),
        ("pak", pak(SENTENCE)[:14]),
        ("pak", pak(SENTENCE)[:-5]),
        ("pak", struct.pack("<IB3xHH", 4, 1, 0, 0)),
        ("pak", pak(b"\xff\xfe")),
        ("gettext", b""),
        ("gettext", mo([("a", SENTENCE)])[:30]),
        ("gettext", mo([("a", SENTENCE)])[:-10]),
        ("gettext", b"\xde\x12\x04\x95" + b"\xff" * 40),
        ("qt", b"no"),
        ("qt", qm(SENTENCE)[:16] + b"\x69\x00\x00\x00\x02\x03\x00"),
        ("mediawiki", b"[1]"),
        ("mediawiki", b"{"),
        ("mediawiki", b"[" * 100_000),
        ("epub", b"PK"),
        ("epub", book({"a.html": SENTENCE})[:-30]),
        ("html", b"\xff"),
    ],
)
def test_damage_is_told(word, raw):
    with pytest.raises(BadText):
        list(EXTRACTORS[word]("x", raw))


def test_a_book_that_is_a_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(epub, "CHAPTER_BYTES_MAX", 1000)
    with pytest.raises(BadText):
        list(EXTRACTORS["epub"]("x", book({"a.html": "x" * 1001})))
    monkeypatch.setattr(epub, "BOOK_BYTES_MAX", 1500)
    with pytest.raises(BadText):
        list(EXTRACTORS["epub"]("x", book({f"{i}.html": "x" * 900 for i in range(2)})))


def test_entities_are_no_bomb():
    bomb = (
        "<!DOCTYPE page [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><page><p>&b; er kort.</p></page>"
    )
    assert texts("mallard", bomb.encode()) == ["&b; er kort."]


def test_deep_nesting_ends():
    raw = b"<div>a" * 20_000 + f"<p>{SENTENCE}".encode()
    assert texts("html", raw) == [SENTENCE]


@pytest.mark.parametrize(
    "text",
    [
        "Fil", "For kort.", SENTENCE.rstrip(".") + "…", SENTENCE.rstrip(".") + "...",
        SENTENCE.rstrip(".") + ":", SENTENCE.replace("lang", "$1"), SENTENCE.replace("lang", "%s"),
        SENTENCE.replace("lang", "%(n)s"), SENTENCE.replace("lang", "{name}"),
        SENTENCE.replace("lang", "#type#"), SENTENCE.replace("lang", "l_ang"),
        SENTENCE.replace("lang", "''"), f"* {SENTENCE} * {SENTENCE}", "Hav, " * 9 + SENTENCE,
        SENTENCE.replace("lang", "https://a.b"), SENTENCE.replace("lang", "[[a|b]]"),
    ],
)  # fmt: skip
def test_what_is_no_sentence_is_left_out(text):
    assert strings.sentence(text) == ""


def test_accelerators_tags_and_entities_go():
    raw = f"<a href='x'>{SENTENCE.replace('lang', '&lang')}</a>"
    assert strings.sentence(raw) == SENTENCE
    assert strings.sentence(SENTENCE.replace("å", "&aring;")) == SENTENCE
    assert strings.sentence("&quot;" + SENTENCE + "&quot;") == f'"{SENTENCE}"'


def test_strings_make_documents_of_about_a_page():
    found = list(strings.documents(f"{i}: {SENTENCE}" for i in range(200)))
    assert len(found) > 4
    assert all(strings.DOCUMENT_CHARS <= len(f) < 1.3 * strings.DOCUMENT_CHARS for f in found[:-1])


def test_source_code_keeps_its_lines():
    code = "def f():\n    return 1\n\n\n\ndef g():\n\n    return 2\n" * 20
    found = list(EXTRACTORS["source-code"]("x.py", code.encode()))
    assert "\n\n".join(found) == code.replace("\n\n\n\n", "\n\n").rstrip("\n")
    assert list(EXTRACTORS["source-code"]("x.py", b"x = 1\n")) == []


def test_short_documents_join_the_next(tmp_path):
    raw = {"kind": "pypi", "package": "p", "version": "1", "sha256": "0", "extractor": "html"}
    raw |= {
        "files": [],
        "licence": "MIT",
        "licence_class": "permissive",
        "origin": "o",
        "note": "n",
    }
    source = languages.source("s", raw, tmp_path)
    pages = [
        (f"{i}.html", f"<p>{SENTENCE * length}</p>".encode())
        for i, length in enumerate([1, 9, 9, 1])
    ]
    found = list(extract.extract(source, pages))
    assert [d.id for d in found] == ["s/0.html/0000", "s/2.html/0000", "s/3.html/0000"]
    assert found[0].text == f"{SENTENCE}\n\n{SENTENCE * 9}"


def test_every_shipped_source_names_an_extractor():
    words = {
        source.settings["extractor"]
        for language in languages.load_all().values()
        for source in language.sources
        if "extractor" in source.settings
    }
    assert words == set(EXTRACTORS)
