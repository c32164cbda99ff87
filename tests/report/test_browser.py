"""The page in headless Chromium: quiet, alone, usable, and not to be taken over."""

import re

import pytest

from imatrix_lab.report import html
from tests.report import made_up

WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pages")
    languages, types = ("en", "nb", "ml", "ar", "ja"), ("Q3_K_S",)
    html.write(made_up.study(languages, types), path / "page.html")
    html.write(made_up.hostile(), path / "hostile.html")
    return path


@pytest.fixture
def opened(browser, folder):
    """A function: page, options of the browser -> the page, open and watched."""
    contexts = []

    def open_page(name, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(180_000)  # a busy machine is no failure
        contexts.append(context)
        page = context.new_page()
        page.noise = []
        page.on("console", lambda message: page.noise.append(message.text))
        page.on("pageerror", lambda error: page.noise.append(str(error)))
        page.on("request", lambda request: page.noise.append(request.url))
        page.goto((folder / f"{name}.html").as_uri())
        page.noise[:] = [n for n in page.noise if n != page.url and not n.startswith("data:")]
        return page

    yield open_page
    for context in contexts:
        context.close()


def unfold(page):
    page.click("#unfold")
    assert page.locator("details:not([open])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["page", "hostile"])
def test_quiet_alone_and_within_its_width(opened, name, scheme):
    page = opened(name, color_scheme=scheme)
    unfold(page)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        assert page.evaluate(sizes) == [width, width]
        assert len(page.screenshot()) > 10_000
    assert page.noise == []
    assert page.evaluate("window.hacked") is None


def test_the_policy_stops_script_that_got_in(opened):
    """Even where escaping failed: the browser itself refuses."""
    page = opened("page")
    page.evaluate(
        """() => { const s = document.createElement("script"); s.textContent = "window.hacked = 1";
        document.body.append(s); const i = new Image(); i.src = "https://evil.example/x.png";
        document.body.append(i); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert len([n for n in page.noise if "Content Security Policy" in n]) == 2


def cells(page, table, column):
    return page.locator(f"{table} tbody tr td:nth-child({column})").all_inner_texts()


def test_tables_sort_by_mouse_and_keyboard(opened):
    page = opened("page")
    unfold(page)
    table = "#size table"
    head = page.locator(f"{table} th").nth(5)
    before = cells(page, table, 6)
    numbers = [float(c) for c in before]
    assert numbers != sorted(numbers)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(c) for c in cells(page, table, 6)] == sorted(numbers)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(c) for c in cells(page, table, 6)] == sorted(numbers, reverse=True)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert cells(page, table, 6) == before


def test_the_unknown_comes_last_either_way(opened):
    page = opened("page")
    unfold(page)
    button = page.locator("#predicted table").first.locator("th button").nth(5)
    for _ in range(2):
        button.click()
        last = page.locator("#predicted table").first.locator("tbody tr").last
        assert last.locator("td").nth(5).inner_text() == "–"


def test_tables_are_copied_for_spreadsheets(opened):
    page = opened("page", permissions=["clipboard-read", "clipboard-write"])
    unfold(page)
    page.locator("#differences .copy").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    rows = [line.split("\t") for line in copied.splitlines()]
    assert rows[0][:5] == ["type", "on", "A", "B", "A minus B"]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == page.locator("#differences table").first.locator("tr").count()
    values = [float(row[4]) for row in rows[1:]]
    assert min(values) < 0 < max(values)
    page.locator(".copy-code").first.click()
    assert "imatrix-lab study run" in page.evaluate("navigator.clipboard.readText()")


def test_colours_follow_the_reader(opened):
    grounds = []
    for scheme in ("light", "dark"):
        page = opened("page", color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        text = page.locator("#differences svg text").first
        grounds.append(text.evaluate("e => getComputedStyle(e).fill"))
    sums = [sum(map(int, re.findall(r"\d+", g)[:3])) for g in grounds]
    assert sums[0] > 700 > sums[1]
    assert sums[2] < 150 < sums[3]


def test_scripts_and_directions(opened):
    page = opened("page")
    unfold(page)
    answer = page.locator("#flips pre[lang=ar]").first
    assert answer.get_attribute("dir") == "auto"
    assert answer.evaluate("e => getComputedStyle(e).direction") == "rtl"
    other = page.locator("#flips pre[lang=ml]").first
    assert other.evaluate("e => getComputedStyle(e).direction") == "ltr"


def test_a_link_opens_the_part_it_leads_to(opened):
    page = opened("page")
    assert not page.locator("#S1").is_visible()
    page.evaluate("location.hash = 'S1'")
    page.wait_for_function("document.querySelector('#S1').closest('details').open")
    assert page.locator("#S1").is_visible()


def test_prints_light_on_paper(opened, tmp_path):
    page = opened("page", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 5 < len(re.findall(rb"/Type\s*/Page\b", paper)) < 60
