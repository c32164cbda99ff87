"""The page for votes in Chromium: alone, usable by keyboard and on a phone, not taken over."""

import json

import pytest

from imatrix_lab.publish.preference import pack, page, prompts, votes
from imatrix_lab.publish.preference.pack import Key

HOSTILE = "</script><script>window.hacked = 1</script><img src=https://evil.example/x.png>"
N = 32


def key_of(language="nb"):
    texts = {f"p{i}": f"Spørsmål {i}? {HOSTILE}" for i in range(N)}
    answers = {
        f"{i:02d}{system}hash": {"prompt": f"p{i}", "system": system,
                                 "text": f"Svar {system} {i} {HOSTILE}\n\u202e മലയാളം שלום"}
        for system in "ab" for i in range(N)
    }  # fmt: skip
    systems = {name: {"name": name, "sha256": name} for name in "ab"}
    return Key(pack.KEY, "0", "pack", "r", "s", language, systems, {}, texts, answers)


@pytest.fixture
def opened(browser, tmp_path):
    contexts = []

    def open_page(key, **options):
        path = tmp_path / "vote.html"
        path.write_text(page.render(pack._page_data(key), prompts.texts_of(key.language)))
        context = browser.new_context(accept_downloads=True, **options)
        context.set_default_timeout(180_000)  # a busy machine is no failure
        contexts.append(context)
        view = context.new_page()
        view.noise = []
        view.on("console", lambda message: view.noise.append(message.text))
        view.on("pageerror", lambda error: view.noise.append(str(error)))
        view.on("request", lambda request: view.noise.append(request.url))
        view.goto(path.as_uri())
        view.noise[:] = [n for n in view.noise if n != view.url and not n.startswith("data:")]
        return view

    yield open_page
    for context in contexts:
        context.close()


def shown(view):
    return view.evaluate("({at: state.at, total: state.shown.length, vote: state.shown[state.at]})")


def save(view, tmp_path):
    with view.expect_download() as download:
        view.click("#save")
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_person_votes_to_the_end_and_the_file_is_read(opened, tmp_path):
    key = key_of()
    view = opened(key)
    view.click("#start")
    total = shown(view)["total"]
    assert total == N + N // 15
    for i in range(total):
        assert view.locator("h1").inner_text() == f"{i + 1} av {total}"
        assert view.evaluate("document.activeElement.tagName") == "H1"
        view.keyboard.press("1" if i % 2 else "0")
    path = save(view, tmp_path)
    (ballot,) = votes.read_ballots([path], key)
    assert len(ballot.votes) == total
    assert {vote.choice for vote in ballot.votes} == {2, None}
    assert sum(vote.repeat for vote in ballot.votes) == N // 15
    a_first = [key.answers[v.first]["system"] == "a" for v in ballot.votes if not v.repeat]
    assert 0.2 * N < sum(a_first) < 0.8 * N
    assert {v.prompt for v in ballot.votes} == set(key.prompts)
    assert view.noise == [n for n in view.noise if n.startswith("blob:")]
    assert view.evaluate("window.hacked") is None
    assert json.loads(path.read_text())["finished"]


def test_it_goes_on_where_it_was_left(opened):
    view = opened(key_of())
    view.click("#start")
    for choice in ("2", "-1", "cannot"):
        view.click(f"[data-choice='{choice}']")
    before = shown(view)
    view.reload()
    assert shown(view) == before
    view.click("text=Tilbake")
    assert view.get_attribute("[data-choice='cannot']", "aria-pressed") == "true"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_fits_and_can_be_read(opened, width, scheme):
    view = opened(key_of("ml"), color_scheme=scheme)
    view.set_viewport_size({"width": width, "height": 800})
    view.click("#start")
    size = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert view.evaluate(size) == [width, width]
    assert "ഏത് ഉത്തരമാണ്" in view.locator("legend").inner_text()
    heights = view.eval_on_selector_all("button", "all => all.map((b) => b.offsetHeight)")
    assert min(heights) >= 44  # of a finger
    boxes = [view.locator(f"section:has(#{name})").bounding_box() for name in ("first", "second")]
    beside = boxes[0]["y"] == boxes[1]["y"]
    assert beside == (width > 704)
    assert len(view.screenshot()) > 5_000
    assert view.noise == []


def test_what_a_model_wrote_is_text(opened):
    view = opened(key_of())
    view.click("#start")
    text = view.locator("#first + p").inner_text()
    assert HOSTILE in text
    assert "‹U+202E›" in text
    assert view.locator("img").count() == 0
    assert view.evaluate("window.hacked") is None


def test_a_screen_reader_has_names_for_everything(opened):
    view = opened(key_of())
    view.click("#start")
    nameless = """() => [...document.querySelectorAll("button, progress, section, fieldset")]
        .filter((e) => !(e.innerText || e.getAttribute("aria-label") || "").trim()).length"""
    assert view.evaluate(nameless) == 0
    assert view.evaluate("document.documentElement.lang") == "nb"
    assert view.locator("h1").count() == 1
    label = "document.getElementById(s.getAttribute('aria-labelledby')).innerText"
    labelled = view.eval_on_selector_all("section", f"all => all.map((s) => {label})")
    assert labelled == ["Spørsmål", "Svar 1", "Svar 2"]
