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
    return Key(pack.KEY, "0", "pack", "r", "s", language, systems, texts, answers)


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


def another_tab(view):
    tab = view.context.new_page()
    tab.goto(view.url)
    return tab


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["nb", "ml", "ar"])
def test_axe_finds_nothing(opened, language, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    view = opened(key_of(language), color_scheme=scheme, bypass_csp=True)
    for go_on in (lambda: None, lambda: view.click("#start"), lambda: to_end(view)):
        go_on()
        assert axe.run(view).response["violations"] == []


def to_end(view):
    for _ in range(shown(view)["total"]):
        view.keyboard.press("3")


def test_two_tabs_are_one_ballot(opened):
    view = opened(key_of())
    other = another_tab(view)
    view.click("#start")
    for key in "123":
        view.keyboard.press(key)
    other.wait_for_function("state.at === 3")
    other.keyboard.press("4")
    view.wait_for_function("state.at === 4")
    view.reload()
    choices = "state.shown.filter((v) => 'choice' in v).map((v) => v.choice)"
    assert view.evaluate(choices) == [2, 1, 0, -1]


def test_a_double_click_or_a_key_held_down_is_one_choice(opened):
    view = opened(key_of())
    view.dblclick("#start")
    view.dblclick("[data-choice='1']")
    assert shown(view)["at"] == 1
    for _ in range(3):
        view.keyboard.down("1")
    assert shown(view)["at"] == 2


NO_STORAGE = """Object.defineProperty(window, "localStorage",
    {get() { throw new DOMException("no", "SecurityError"); }});"""
FULL = """for (let size = 2 ** 20; size >= 1; size = Math.floor(size / 4)) {
    try { for (let i = 0; ; i++) localStorage.setItem(`${size} ${i}`, "x".repeat(size)); } catch {}
}"""


@pytest.mark.parametrize("problem", [NO_STORAGE, FULL])
def test_a_browser_that_keeps_nothing_says_so_and_saves(opened, tmp_path, problem):
    key = key_of()
    view = opened(key)
    if problem is FULL:
        view.evaluate(problem)
        view.click("#start")
    else:
        view.add_init_script(problem)
        view.reload()
        assert "husker ingenting" in view.inner_text("main")
        view.click("#start")
    to_end(view)
    assert view.evaluate("isKept") is False
    (ballot,) = votes.read_ballots([save(view, tmp_path)], key)
    assert len(ballot.votes) == N + N // 15
    assert [n for n in view.noise if not n.startswith(("blob:", "file:"))] == []


def test_the_next_person_begins_anew_once_the_file_is_saved(opened, tmp_path):
    key = key_of()
    view = opened(key)
    view.click("#start")
    to_end(view)
    assert not view.is_visible("#next")
    first = save(view, tmp_path)
    view.click("#next")
    view.click("#start")
    to_end(view)
    assert len(votes.read_ballots([first, save(view, tmp_path)], key)) == 2


def test_without_scripts_it_says_what_to_do(opened):
    view = opened(key_of(), java_script_enabled=False)
    assert "nettleser" in view.inner_text("main")


def test_huge_answers_stay_in_their_place(opened):
    key = key_of()
    tall = "Z" + "\u0301" * 2000
    for name in key.answers:
        key.answers[name]["text"] = name + "W" * 20_000 + tall
    view = opened(key, viewport={"width": 360, "height": 700})
    view.click("#start")
    assert view.evaluate("document.documentElement.scrollWidth") == 360
    view.click("[data-choice='2']")
    assert shown(view)["at"] == 1
