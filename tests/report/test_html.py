"""The page as text: what it holds, and that nothing in the results can change what it is."""

import base64
import dataclasses
import hashlib
import math
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from imatrix_lab.report import html, markdown, svg
from imatrix_lab.report.blocks import Chart, Forest, ForestRow, Point, Series, Table
from imatrix_lab.report.cells import Cell
from tests.report import made_up

ROOT = Path(__file__).parent.parent.parent
NEVER = {"iframe", "img", "object", "embed", "form", "base", "image", "foreignobject"}


class Parsed(HTMLParser):
    """Tags with attributes, and text by the tag it stands in."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.texts = {"script": [], "style": [], "pre": []}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data):
        last = self.tags[-1][0] if self.tags else ""
        if last in self.texts:
            self.texts[last].append(data)

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture(scope="module")
def page():
    return html.page(made_up.study())


@pytest.fixture(scope="module")
def hostile():
    return html.page(made_up.hostile())


def test_each_verdict_has_its_cell(page):
    results = made_up.study()
    shown = Counter(
        attrs["class"].split()[0]
        for tag, attrs in Parsed(page).tags
        if tag == "td" and attrs.get("class", "").split()[:1] and "data-sort" in attrs
    )
    expected = Counter(c.verdict for c in results.comparisons if c.b == results.baseline)
    assert len(expected) == 4
    assert {v: shown[v] for v in expected} == dict(expected)
    assert page.count("not measured") > 0


def test_all_parts_are_there(page):
    for part in (
        "verdicts", "differences", "own-language", "size", "mixtures", "predicted", "similarity",
        "flips", "controls", "power", "scores", "methods", "made", "repeat", "signatures",
        "licences", "missing",
    ):  # fmt: skip
        assert f'<section id="{part}"' in page, part
    for sentence in made_up.study().answer:
        assert sentence in page


def test_numbers_lead_to_their_signatures(page):
    assert {f"#{name}" for name in ("S1", "S2", "S3")} <= set(Parsed(page).values("href"))
    assert 'id="S3"' in page


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_links_and_labels_lead_to_ids_of_the_page(name, request):
    parsed = Parsed(request.getfixturevalue(name))
    ids = parsed.values("id")
    assert [i for i, n in Counter(ids).items() if n > 1] == []
    links = [x for x in parsed.values("href") if x != "data:,"]
    assert all(x.startswith("#") for x in links)
    named = [w for x in parsed.values("aria-labelledby") for w in x.split()]
    assert {x[1:] for x in links} | set(named) <= set(ids)


@pytest.mark.parametrize("name", ["page", "hostile"])
def test_only_our_script_and_style_and_nothing_from_elsewhere(name, request):
    parsed = Parsed(request.getfixturevalue(name))
    tags = Counter(tag for tag, _ in parsed.tags)
    assert tags["script"] == tags["style"] == 1
    assert not NEVER & set(tags)
    attributes = {a for _, attrs in parsed.tags for a in attrs}
    assert not {a for a in attributes if a.startswith("on")} | attributes & {"src", "style"}
    policy = next(v for v in parsed.values("content") if "default-src" in v)
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = hashlib.sha256("".join(parsed.texts[kind]).encode()).digest()
        assert f"{kind}-src 'sha256-{base64.b64encode(digest).decode()}'" in policy


def test_hostile_text_is_shown_and_changes_no_tag(hostile):
    parsed = Parsed(hostile)
    assert "&lt;script&gt;window.hacked = 1" in hostile
    assert "{{ 7 * 7 }}" in hostile
    assert not re.search("[\x00\x1b\u202e\u2066]", hostile)
    assert "‹U+202E›" in hostile
    # the style is ours and matplotlib's: no word of the results in it
    assert "hacked" not in "".join(parsed.texts["script"] + parsed.texts["style"])


def test_long_answers_are_cut_with_a_note(page):
    assert "[cut: 1,050,000 characters, whole in results.json]" in page
    assert len(page.encode()) < 800_000


def test_equal_results_give_equal_bytes_in_another_process(hostile):
    code = (
        "import sys; from imatrix_lab.report import html; from tests.report import made_up;"
        "sys.stdout.buffer.write(html.page(made_up.hostile()).encode())"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=env,
        cwd=ROOT,
        check=True,
        timeout=120,
    )
    assert done.stdout.decode() == hostile


def test_a_long_table_is_not_read_again_for_each_cell():
    class Counted(list):
        n_read = 0

        def __iter__(self):
            self.n_read += 1
            return super().__iter__()

    rows = Counted([(Cell("a"), Cell("1", sort=1.0))] * 3)
    table = Table("", ("name", "value"), rows)
    assert [table.numeric for _ in rows] == [{1}] * 3
    assert rows.n_read == 2


def test_a_study_of_which_nothing_came():
    page = html.page(made_up.empty())
    assert "comparisons with a baseline" in page  # among the parts it does not have
    assert "<figure" not in page


def test_one_sample_is_said_to_prove_little():
    whole = made_up.study()
    unknown = [
        dataclasses.replace(c, noise=math.nan, noise_multiple=math.nan) for c in whole.comparisons
    ]
    text = markdown.text(dataclasses.replace(whole, comparisons=tuple(unknown)))
    assert "one calibration sample" in text and "one calibration sample" not in markdown.text(whole)
    assert "× noise)" not in text


def test_two_models_are_told_apart():
    one = made_up.study(types=("Q3_K_S",), has_tasks=False)
    other = [dataclasses.replace(c, model="large") for c in one.comparisons]
    text = markdown.text(
        dataclasses.replace(one, models={**one.models, "large": {}},
                            comparisons=(*one.comparisons, *other))
    )  # fmt: skip
    assert r"Q3\_K\_S · large: KLD from the original" in text
    assert r"Q3\_K\_S · demo: KLD from the original" in text


FOREST = Forest(
    "Q3_K_S · nb", "nats a token, minus en",
    (
        ForestRow("nb", -0.1543, -0.177, -0.131, "better", 0.012, True),
        ForestRow('" style="}*{display:none}" <b>$x^2$', 0.02, -0.1, 0.1, "undecided", 0.01, False),
        ForestRow("nothing", math.nan, math.nan, math.nan, "not measured", math.nan, False),
    ),
    0.02, (-0.2, 0.2), True,
)  # fmt: skip


def test_a_forest_in_the_colours_of_the_page():
    sheet = svg.Sheet()
    drawn = svg.svg(FOREST, 1, sheet)
    assert ">−0.154<" in drawn  # data are not rounded with the places
    assert not re.search("#[0-9a-f]{6}", drawn + sheet.css())
    assert "var(--better)" in sheet.css() and "var(--band)" in sheet.css()
    assert "nb: −0.154 (−0.177 … −0.131), better" in drawn
    assert "display:none" not in sheet.css() and "<b>" not in drawn


def test_a_chart_leaves_out_what_is_unknown():
    points = (Point(4.8, 1.2, 1.1, 1.3), Point(5.9, math.nan, math.nan, math.nan))
    series = tuple(Series(f"calibration {i}", i, points) for i in range(12))
    drawn = svg.svg(Chart("nb", "bits", "KLD", series, log_y=True), 2, svg.Sheet())
    assert "calibration 11: 4.8: 1.20" in drawn
    assert "nan" not in drawn.split("</desc>")[1].lower()
    assert len({svg.look(i) for i in range(24)}) == 24
