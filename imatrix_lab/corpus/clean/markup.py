"""Remove left-over markup: HTML, entities, wiki, Markdown, LaTeX, BBCode, bare addresses.

Marks go and their text stays; comments, scripts, templates, tables and code go whole. A paragraph
in which marks remain after that is dropped. Every pattern is bounded or ends at the next sign of
its kind, so that hostile text takes linear time.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from imatrix_lab.corpus.clean.report import CHANGES, LINES, Report
from imatrix_lab.corpus.clean.rules import Draft, Rules, split


@dataclass(frozen=True)
class Mark:
    """One kind of mark; its pattern is tried only if the text has its sign."""

    reason: str
    sign: str
    pattern: re.Pattern[str]
    new: str | Callable[[re.Match[str]], str]


def _mark(reason: str, sign: str, pattern: str, new: str | Callable[[re.Match[str]], str]) -> Mark:
    return Mark(reason, sign, re.compile(pattern, re.M | re.I), new)


def _link(match: re.Match[str]) -> str:
    target, _, shown = match.group(1).partition("|")
    return "" if re.match(r"\s*:?[^\W\d_]{2,14}:\S", target) else shown or target


_BLOCK = (
    "article|aside|blockquote|body|br|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head|"
    "header|hr|html|li|link|main|meta|nav|ol|option|p|pre|section|select|table|tbody|td|th|thead|"
    "title|tr|ul"
)
_INLINE = (
    "a|abbr|acronym|b|bdi|bdo|big|button|cite|code|del|dfn|em|embed|font|gallery|i|iframe|img|"
    "includeonly|input|ins|kbd|label|mark|nobr|noscript|nowiki|object|param|poem|q|s|samp|small|"
    "source|span|strike|strong|sub|sup|time|tt|u|var|video|wbr"
)
_TEXTLESS = "script|style|math|svg|ref|timeline|syntaxhighlight"
_REST = r"(?:\s[^<>]{0,500})?>"

_TAGS = (
    _mark("html", "<", r"<!--(?:(?!<!--|-->)[\s\S]){0,5000}-->", ""),
    _mark(
        "html", "<",
        rf"<({_TEXTLESS})\b[^<>]{{0,500}}(?:/>|>(?:(?!</?\1)[\s\S]){{0,5000}}</\1\s*>)", "",
    ),
    _mark("html", "<", rf"</?(?:{_BLOCK})\s?/?{_REST}|</?(?:{_BLOCK})/?>", "\n\n"),
    _mark("html", "<", rf"</?(?:{_INLINE})\s?/?{_REST}|</?(?:{_INLINE})/?>", ""),
)  # fmt: skip
MARKS = (
    *_TAGS,
    _mark(
        "entities", "&", r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});",
        lambda m: html.unescape(m.group()),
    ),
    *_TAGS,  # tags that were written as entities
    _mark("code", "```", r"^[ \t]*```[^\n]*\n[\s\S]{0,5000}?^[ \t]*```[ \t]*$", "\n\n"),
    _mark("wiki", "{|", r"\{\|(?:(?!\{\||\n\|\})[\s\S]){0,20000}\n\|\}", "\n\n"),
    _mark("wiki", "{{", r"\{\{[^\W_][^{}]{0,2000}\}\}", ""),
    _mark("wiki", "{{", r"\{\{[^\W_][^{}]{0,2000}\}\}", ""),  # they nest
    _mark("wiki", "[[", r"\[\[([^\[\]\n]{1,300})\]\]", _link),
    _mark("wiki", "[[", r"\[\[[^\[\]\n]{1,300}\]\]", ""),  # a picture whose caption had links
    _mark("wiki", "[http", r"\[https?://[^\s\]]{1,500}(?: ([^\]\n]{0,300}))?\]", r"\1"),
    _mark("wiki", "''", r"'{2,5}([^\s'][^'\n]{0,300})'{2,5}", r"\1"),
    _mark("wiki", "==", r"^(={2,6})[ \t]*([^\n=]{1,200}?)[ \t]*\1[ \t]*$", r"\2"),
    _mark("markdown", "](", r"!\[[^\[\]\n]{0,300}\]\([^()\n]{1,500}\)", ""),
    _mark(
        "markdown", "](",
        r"\[([^\[\]\n]{1,300})\]\((?:https?:|/|#|\.|mailto:)[^()\s]{0,500}\)", r"\1",
    ),
    _mark("markdown", "#", r"^[ \t]{0,3}#{1,6}[ \t]+([^\n]{1,500}?)[ \t]*#*[ \t]*$", r"\1"),
    _mark("markdown", "**", r"\*\*([^\s*][^*\n]{0,1000})\*\*", r"\1"),
    _mark("markdown", "__", r"(?<!\w)__([^\s_][^_\n]{0,1000})__(?!\w)", r"\1"),
    _mark(
        "markdown", "*",
        r"(?<![^\s(\[\"'«“„‘—–])\*([^\s*](?:[^*\n]{0,300}[^\s*])?)\*(?![\w*])", r"\1",
    ),
    _mark("markdown", "`", r"`([^`\n]{1,200})`", r"\1"),
    _mark("markdown", "--", r"^[ \t]{0,3}(?:-[ \t]?){3,80}$", ""),
    _mark("markdown", "**", r"^[ \t]{0,3}(?:\*[ \t]?){3,80}$", ""),
    _mark("markdown", "__", r"^[ \t]{0,3}(?:_[ \t]?){3,80}$", ""),
    _mark("markdown", "==", r"^[ \t]{0,3}={3,80}[ \t]*$", ""),
    _mark("markdown", ">", r"^[ \t]{0,3}>[ \t]?", ""),
    _mark(
        "latex", "\\",
        r"\\(?:emph|text(?:bf|it|sc|tt|rm)?|(?:sub)*section\*?|chapter\*?|title)"
        r"\{([^{}]{0,500})\}", r"\1",
    ),
    _mark(
        "latex", "\\",
        r"~?\\(?:cite[tp]?|ref|eqref|label|footnote|index)(?:\[[^\]]{0,200}\])?\{[^{}]{0,500}\}",
        "",
    ),
    _mark(
        "bbcode", "[/",
        r"\[(img|youtube|media|code)(?:=[^\]\n]{0,200})?\][^\[]{0,2000}\[/\1\]", "",
    ),
    _mark(
        "bbcode", "[",
        r"\[/?(?:b|i|u|s|url|quote|size|color|font|list|center|left|right|spoiler|email|table|tr|td"
        r"|\*)(?:=[^\]\n]{0,200})?\]", "",
    ),
)  # fmt: skip

_ADDRESS = r"(?:(?:https?://|www\.|ftp://)\S{1,2000}|[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64})"
ADDRESS_LINE = re.compile(
    rf"^[^\w\n]{{0,5}}(?:\w{{1,12}}:[ \t]?)?{_ADDRESS}(?:[ \t,;|]{{1,5}}{_ADDRESS})*"
    r"[^\w\n]{0,5}$",
    re.M,
)
REMAINS = re.compile(
    r"(?<!<)</?[a-z][\w:-]{0,30}(?: [^<>\n]{0,300})?/?>|<!--|<!doctype|"
    r"\{\{#?[a-z]|\{\||\|\}|\[\[|\]\]|"
    r"\|\||^[ \t]*\|.{0,500}\|[ \t]*$|\\[a-z]{2,20}\{|\\(?:begin|end|frac|sum|int|left|right)\b|"
    r"\[/[a-z]{1,10}\]|&(?:[a-z]{2,8}|#\d{2,6});|\$(?!\s)[^$\n]{0,200}[\\^_][^$\n]{0,200}(?<!\s)\$|"
    r"[{};][ \t]*\n.{0,300}[{};][ \t]*$",
    re.M | re.I,
)
_SIGNS = ("<", "&", "{", "[[", "]]", "|", "\\", "[/", "}\n", "^", "_")


def strip(drafts: Sequence[Draft], rules: Rules, report: Report) -> None:
    """Take markup out of every draft, and drop paragraphs in which some remains."""
    for draft in drafts:
        before = draft.text
        text = _without_marks(before, draft, report)
        text = _without_addresses(text, draft, report)
        if text is not before:
            draft.paragraphs = split(text)
        if _may_remain(text):
            paragraphs = enumerate(draft.paragraphs)
            marked = [i for i, p in paragraphs if _may_have(p) and REMAINS.search(p)]
            draft.drop(dict.fromkeys(marked, "marks remain"), report)


def _has(text: str, sign: str) -> bool:
    """Return whether a sign is in a text; its first character, found much faster, seldom is."""
    return sign[0] in text and sign in text


def _may_remain(text: str) -> bool:
    return any(_has(text, sign) for sign in _SIGNS)


def _may_have(paragraph: str) -> bool:
    """Return whether a paragraph of a text with signs may be marked: also by its lines' ends."""
    is_code = "\n" in paragraph and any(sign in paragraph for sign in ";}")
    return is_code or _may_remain(paragraph)


def _without_marks(text: str, draft: Draft, report: Report) -> str:
    for mark in MARKS:
        if not _has(text, mark.sign):
            continue
        if first := mark.pattern.search(text):
            sample = text[max(0, first.start() - 30) : first.end() + 30]
            text, n = mark.pattern.subn(mark.new, text)
            report.count(mark.reason, CHANGES, draft.document.id, sample, n)
    return text


def _without_addresses(text: str, draft: Draft, report: Report) -> str:
    if not any(_has(text, sign) for sign in ("@", "://", "www.")):
        return text
    for line in ADDRESS_LINE.finditer(text):
        report.count("address only", LINES, draft.document.id, line.group())
    return ADDRESS_LINE.sub("", text)
