"""What tasks need to know of a language: ``tasks/languages/<code>.toml``.

Words of prompts, the phrases that announce an answer, how numbers are written, and what tells
the language from its neighbours. A new language is one file and touches no code; there is no
default language.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.config import TABLE, TEXTS, Keys, nearest, read_toml
from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.errors import UsageError

_FILE: Keys = {
    "code": (str, True), "name": (str, True), "spaces": (bool, False), "words": (TABLE, True),
    "answer": (TABLE, True), "numbers": (TABLE, False), "identify": (TABLE, False),
    "judge": (TABLE, False),
}  # fmt: skip
_WORDS = ("question", "answer", "translate")
"""What every language needs; others, where a task's prompt has them."""
_ANSWER: Keys = {
    "letter": (TEXTS, True), "tail": (TEXTS, True), "head": (TEXTS, False),
    "inside_words": (bool, False), "one_letter": (TEXTS, False), "negations": (TEXTS, False),
}  # fmt: skip
_NUMBERS: Keys = {"decimal": (str, True), "groups": (str, True)}
_IDENTIFY: Keys = {"labels": (TEXTS, True), "markers": (TEXTS, False)}
_JUDGE: Keys = {"grade": (str, True), "prefer": (str, True)}


@dataclass(frozen=True)
class Speech:
    """One language, as tasks use it.

    Attributes
    ----------
    spaces : whether words are separated by them.
    words : parts of prompts by name.
    letter : phrases after which an option's letter stands.
    tail : words after which a short answer stands.
    head : words that come after the answer, as in languages that end with the verb.
    inside_words : the rules are MixEval's own, for English: `tail` is also found inside words.
    one_letter : words of one letter, as they are at the start of a sentence.
    negations : words after which a letter is not the answer.
    decimal, groups : decimal mark, and the marks that may separate groups of three digits.
    labels : what py3langid calls the language.
    markers : frequent words that its near neighbours write otherwise.
    judge : instructions of a judge, by name; empty where nobody has written them.
    """

    code: str
    name: str
    words: Mapping[str, str]
    letter: tuple[str, ...]
    tail: tuple[str, ...]
    head: tuple[str, ...] = ()
    inside_words: bool = False
    one_letter: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()
    spaces: bool = True
    decimal: str = "."
    groups: str = ","
    labels: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    judge: Mapping[str, str] = field(default_factory=dict)


def load_all() -> dict[str, Speech]:
    """Return every language by code; the user's files are laid over the package's.

    Raises
    ------
    UsageError : a file with an unknown or misplaced key.
    """
    return {code: _speech(path) for code, path in sorted(_paths().items())}


def _paths() -> dict[str, Path]:
    folders = (data_dir("tasks") / "languages", user_dir().parent / "tasks" / "languages")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def get(code: str) -> Speech:
    """Return a language.

    Raises
    ------
    UsageError : nobody has written its words.
    """
    found = _paths()
    if code not in found:
        raise UsageError(
            f"there are no prompts for the language {code!r}{nearest(code, found)}",
            fix=f"one of {' '.join(sorted(found))}; or write tasks/languages/{code}.toml",
        )
    return _speech(found[code])


def _speech(path: Path) -> Speech:
    raw: dict[str, Any] = read_toml(path)
    config.check(raw, _FILE, path)
    for name, keys in (("answer", _ANSWER), ("numbers", _NUMBERS), ("identify", _IDENTIFY)):
        if name in raw:
            config.check(raw[name], keys, path, name)
    if "judge" in raw:
        config.check(raw["judge"], _JUDGE, path, "judge")
    if raw["code"] != path.stem:
        raise UsageError(f"code is {raw['code']!r}, the file is called {path.name}", where=path)
    words = dict.fromkeys(raw["words"], (str, False)) | dict.fromkeys(_WORDS, (str, True))
    config.check(raw["words"], words, path, "words")
    return Speech(
        raw["code"], raw["name"], raw["words"], spaces=raw.get("spaces", True),
        judge=raw.get("judge", {}), **raw.get("numbers", {}), **config.with_tuples(raw["answer"]),
        **config.with_tuples(raw.get("identify", {})),
    )  # fmt: skip
