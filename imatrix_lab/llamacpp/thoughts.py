"""A model's thoughts before its answer: where they are in a text, and what asks for them.

Thoughts stand between marks, such as ``<think>`` and ``</think>``. A prompt may end with the first
of them, so that only the second is in what the model writes; some servers give thoughts in a field
of their own. Both get their marks back, so that a text has everything, and `answer` is the part of
it that counts.
"""

import re
from collections.abc import Iterable

from imatrix_lab.types import Generated

VARIABLES = ("enable_thinking", "thinking")
"""The switch in chat templates: of Qwen, SmolLM, GLM and others; of Granite and DeepSeek."""
EXTRA_TOKENS = 4096
"""What a model that may think first may write beside its answer."""

_TAGS = r"(?:think|thinking|thoughts?|reasoning|seed:think|mm:think|think:\w+)"
_TOKENS = (
    (rf"<{_TAGS}(?:\s[^<>]*)?>", rf"</{_TAGS}\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|think\|>", r"<\|content\|>"),
    (r"<\|open\|>think<\|sep\|>", r"<\|close\|>think<\|sep\|>"),
    (r"<\|channel>thought\b", r"<channel\|>"),
    (r"<\|channel\|>(?:analysis|commentary)\b", r"<\|channel\|>final\s*<\|message\|>"),
)
_STEPS = r"here are my reasoning steps:"
_WORDS = (
    (r"(?-i:\A\s*analysis(?=[A-Z]))", r"assistantfinal"),  # the last, without its special tokens
    (r"\A\s*here(?:'s| is) (?:my )?thought process:", r"here(?:'s| is) (?:my )?response:"),
    (rf"\A\s*{_STEPS}", r"\[BEGIN FINAL RESPONSE\]"),
)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


_OPEN = "|".join(opening for opening, _ in (*_TOKENS, *_WORDS))
_QUOTES = "[`'\"‘’“”„«»]"
_QUOTED = _pattern(rf"(?<={_QUOTES})(?:{_OPEN}|{'|'.join(c for _, c in _TOKENS)})(?={_QUOTES})")
"""Marks that a text speaks of, as answers and thoughts about HTML do."""
_MASK = str.maketrans("<[◁", "\ufdd0\ufdd1\ufdd2")
_UNMASK = {after: before for before, after in _MASK.items()}
_OPENING, _CLOSING = _pattern(_OPEN), _pattern("|".join(closing for _, closing in _TOKENS))
_CLOSED = _pattern("|".join(closing for _, closing in (*_TOKENS, *_WORDS)))
_BLOCKS = [_pattern(f"{opening}.*?{closing}") for opening, closing in (*_TOKENS, *_WORDS)]
_PROMPT_OPENING = _pattern(rf"{_OPEN}|{_STEPS}")
_OPEN_LINE = _pattern(rf"(?:\A|\n)\s*(?:{_OPEN})")
_NAMES = r"(?:response|answer|output|solution)"
_WRAPPER = _pattern(
    rf"\A\s*(?:<{_NAMES}>|<\|START_RESPONSE\|>|<\|begin_of_solution\|>"
    rf"|<\|open\|>response<\|sep\|>)"
    rf"|(?:</{_NAMES}>|<\|END_RESPONSE\|>|<\|end_of_solution\|>"
    rf"|<\|close\|>response<\|sep\|>|\[END FINAL RESPONSE\])\s*\Z"
)
"""Around an answer that follows thoughts."""
_CONTROL = _pattern(
    rf"{_OPEN}|{_CLOSING.pattern}|<\|?(?:channel|message|start|end|open|close|sep)\|?>"
)
_JINJA = _pattern(r"\{#.*?#\}|(\{%.*?%\}|\{\{.*?\}\})")
_STRING = _pattern(r"'[^']*'|\"[^\"]*\"")
_SWITCH = _pattern(rf"(?<![\w.])(?:{'|'.join(VARIABLES)})(?!\w|\s*=[^=])")


def answer(text: str) -> str:
    """Return a text without thoughts: "" if it ends within them, itself if it has none."""
    rest = whole = _masked(text)
    if has_marks(whole):
        rest = _CLOSING.split(_without_blocks(whole))[-1]  # a prompt opened what closes alone
    if _OPEN_LINE.search(rest):
        return ""
    return text if rest == whole else _WRAPPER.sub("", rest).strip().translate(_UNMASK)


def _masked(text: str) -> str:
    """Return a text, as long, in which marks between quotes are none."""
    return _QUOTED.sub(lambda mark: mark[0].translate(_MASK), text)


def _without_blocks(text: str) -> str:
    for block in _BLOCKS:
        text = block.sub("", text)
    return text


def begun_by_prompt(text: str) -> bool:
    """Return whether a text ends thoughts that it does not begin."""
    return bool(_CLOSING.search(_without_blocks(_masked(text))))


def is_cut(reply: Generated) -> bool:
    """Return whether thoughts took all the tokens of a reply, so that no answer came."""
    return not reply.error and reply.finish == "length" and not answer(reply.text).strip()


def before_stop(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first stop string in its answer: those in thoughts end nothing."""
    start = 0
    if has_marks(text):
        ends = (
            [match.end() for match in _CLOSED.finditer(_masked(text))]
            if answer(text)
            else [len(text)]
        )
        start = max(ends, default=0)
        start += len(text[start:]) - len(text[start:].lstrip())
    places = [place for stop in stops if stop and (place := text.find(stop, start)) >= 0]
    return text[: min(places, default=len(text))]


def opened(end: str) -> str:
    """Return the thoughts that a prompt's end has begun, from their mark on, or ""."""
    *_, last = ["", *_CLOSING.split(end)]
    opening = _PROMPT_OPENING.search(last)
    return last[opening.start() :] if opening else ""


def joined(thoughts: str, content: str, is_cut: bool) -> str:
    """Return the fields of a server's answer as one text."""
    if not thoughts.strip() or _OPENING.match(content.lstrip()):
        return content
    if is_cut and not content.strip():
        return f"<think>\n{thoughts}"
    return f"<think>\n{thoughts}\n</think>\n\n{content}"


def has_switch(template: str) -> bool:
    """Return whether a chat template takes one of `VARIABLES`."""
    blocks = (_STRING.sub("''", match[1] or "") for match in _JINJA.finditer(template))
    return any(map(_SWITCH.search, blocks))


def has_marks(text: str) -> bool:
    """Return whether a text, or a chat template, has any mark that begins or ends thoughts."""
    return bool(_OPENING.search(text) or _CLOSING.search(text))


def variables(thinking: bool) -> dict[str, bool]:
    """Return what a chat template is told."""
    return dict.fromkeys(VARIABLES, thinking)


def is_mark(token: str) -> bool:
    """Return whether a special token is one of the marks."""
    return bool(_CONTROL.fullmatch(token))
