"""Drop what is on a page but is not running text: menus, buttons, notices, lists, placeholders.

Structure decides, in every language alike. What has the form of a sentence is known by phrases
in many languages, in ``corpora/clean/boilerplate.toml``.
"""

import re
from collections.abc import Sequence

from imatrix_lab.core.config import read_toml
from imatrix_lab.core.paths import data_dir
from imatrix_lab.corpus.clean.report import LINES, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules

_PHRASES = read_toml(data_dir("corpora") / "clean" / "boilerplate.toml")
"""``latin``, ``others`` (scripts): parts of notices; ``whole``: paragraphs that are buttons."""
_BUTTONS = frozenset(_PHRASES["whole"])

SENTENCE_END = re.compile(
    r"[.!?:…。！？：．؟۔।॥։።၊။៖។૏๚᠃⸮][ \d\"“”„»«›‹’'」』）〉》】\])*]*$|[\"“”»«」』）]$"
)
"""How a sentence ends, in any script; a footnote number may follow. Speech ends with a quote."""
WITHOUT_ENDS = {"Thai", "Laoo", "Tibt"}
"""Scripts without such marks."""

FRAGMENT_MAX = 60
"""Latin characters; a longer paragraph without a sentence end may be a headline or a verse."""
NOTICE_MAX = 200
"""Latin characters of a notice; a longer paragraph is about these words."""
LIST_LINES_MIN = 3
LINE_MAX = 60

_BULLET = re.compile(r"[ \t]*(?:[•·▪▸►◦‣※○●■□◆★☆✓✔➤→»|]|[-*+–—][ \t]|\(?\d{1,3}[.)][ \t])")
_PLACEHOLDER = re.compile(
    r"(?<![\w%])%(?:\d{1,2}\$)?[-+0]?\d{0,2}(?:\.\d)?(?:l{0,2}[dux]|[sdiufxg@])(?![^\W\d_])"
    r"|%\([A-Za-z_]\w{0,30}\)[sd]|\$\{[\w.]{1,40}\}"
    r"|(?<!\w)\{(?:\d{1,2}|[A-Za-z_]\w{0,30})\}(?!\})"
    r"|(?<![\w%])%[1-9](?!\d|[.,]\d|[ \xa0]?%)(?!\w)"
)
_SEPARATORS = "|·•›»"
_SEPARATED = re.compile(r"[^|·•›»\n]{1,30}(?:[ \t][|·•›»][ \t][^|·•›»\n]{1,30}){2,}")


def drop(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Drop paragraphs and lines that are not running text."""
    for draft in drafts:
        where = draft.document.id
        draft.paragraphs = [_lines(p, where, rules, report) for p in draft.paragraphs]
        reasons = [_reason(p, rules) if p else "" for p in draft.paragraphs]
        for i, reason in enumerate(reasons[:-1]):
            alone = i == 0 or reasons[i - 1] != "fragment"
            if reason == "fragment" and alone and not reasons[i + 1]:
                reasons[i] = ""  # before running text it is a heading
        draft.drop({i: reason for i, reason in enumerate(reasons) if reason}, report)
        draft.paragraphs = [p for p in draft.paragraphs if p]


def _reason(paragraph: str, rules: Rules) -> str:
    """Return why a paragraph is not running text, or ""."""
    if any(sign in paragraph for sign in "%{$") and _PLACEHOLDER.search(paragraph):
        return "placeholder"
    if len(paragraph) <= rules.chars(NOTICE_MAX):
        if _is_notice(paragraph, rules):
            return "notice"
        if _is_menu(paragraph):
            return "menu"
        is_short = len(paragraph) <= rules.chars(FRAGMENT_MAX)
        has_end = rules.script in WITHOUT_ENDS or SENTENCE_END.search(paragraph[-10:])
        if is_short and not has_end:
            return "fragment"
    if "\n" in paragraph and _is_list(paragraph.split("\n"), rules):
        return "list"
    return ""


def _is_notice(text: str, rules: Rules) -> bool:
    folded = text.casefold()
    if folded.strip(" .!:»›>→…▸") in _BUTTONS:
        return True
    phrases = _PHRASES["latin" if rules.script == "Latn" else "others"]
    return any(map(folded.__contains__, phrases))


def _is_menu(text: str) -> bool:
    return any(map(text.__contains__, _SEPARATORS)) and _SEPARATED.fullmatch(text) is not None


def _is_list(lines: Sequence[str], rules: Rules) -> bool:
    """Return whether most lines are a few words without a sentence end, or bullets of these.

    Lines wrapped at a fixed width are longer; those of dialogue and verse end with a mark.
    """
    if len(lines) < LIST_LINES_MIN:
        return False
    longest = 0 if rules.script in WITHOUT_ENDS else rules.chars(LINE_MAX)
    n_fragments = sum(
        len(line) < longest and not SENTENCE_END.search(line[-10:]) and line[-1:] not in ",،、;—-"
        for line in lines
    )
    n_bullets = sum(_BULLET.match(line) is not None for line in lines)
    return 10 * n_fragments >= 8 * len(lines) or 2 * min(n_bullets, n_fragments) > len(lines)


def _lines(paragraph: str, where: str, rules: Rules, report: Report) -> str:
    if "\n" not in paragraph:
        return paragraph
    kept = []
    for line in paragraph.split("\n"):
        if len(line) > rules.chars(NOTICE_MAX) or not (_is_notice(line, rules) or _is_menu(line)):
            kept.append(line)
        else:
            report.count("notice or menu", LINES, where, line)
    return "\n".join(kept)
