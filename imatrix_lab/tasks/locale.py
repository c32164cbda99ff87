"""What tasks need to know of a language: ``tasks/languages/<code>.toml``.

A new language is one file and touches no code; there is no default language.
"""

from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core.config import build, nearest, read_toml
from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.errors import UsageError


@dataclass(frozen=True)
class Answer:
    """How answers are announced: `letter` before an option's letter, `tail` before a short answer.

    Attributes
    ----------
    head : words that come after the answer, as in languages that end with the verb.
    inside_words : the rules are MixEval's own, for English: `tail` also matches inside words.
    one_letter : words of one letter, as they are at the start of a sentence.
    negations : words after which a letter is not the answer.
    """

    letter: tuple[str, ...]
    tail: tuple[str, ...]
    head: tuple[str, ...] = ()
    inside_words: bool = False
    one_letter: tuple[str, ...] = ()
    negations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Numbers:
    """How numbers are written: decimal mark, and marks between groups of three digits."""

    decimal: str
    groups: str


@dataclass(frozen=True)
class Identify:
    """What py3langid calls a language, and frequent words its near neighbours write otherwise."""

    labels: tuple[str, ...]
    markers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judge:
    """Instructions of a judge; empty where nobody has written them."""

    grade: str
    prefer: str


@dataclass(frozen=True)
class Locale:
    """One language: `words` are parts of prompts by name, `spaces` whether they separate words."""

    code: str
    name: str
    words: dict[str, str]
    answer: Answer
    numbers: Numbers = Numbers(".", ",")
    identify: Identify = Identify(())
    judge: Judge = Judge("", "")
    spaces: bool = True


def load_locales() -> dict[str, Locale]:
    """Return every language by code; the user's files replace the package's."""
    return {code: _load(path) for code, path in sorted(_paths().items())}


def get_locale(code: str) -> Locale:
    """Return a language; `UsageError` where nobody has written its words."""
    paths = _paths()
    if code in paths:
        return _load(paths[code])
    raise UsageError(
        f"no prompts in the language {code!r}{nearest(code, paths)}",
        fix=f"one of {' '.join(sorted(paths))}; or write tasks/languages/{code}.toml",
    )


def _paths() -> dict[str, Path]:
    folders = (data_dir("tasks") / "languages", user_dir().parent / "tasks" / "languages")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def _load(path: Path) -> Locale:
    locale = build(Locale, read_toml(path), path)
    if locale.code != path.stem:
        raise UsageError(f"code is {locale.code!r}, the file is called {path.name}", where=path)
    for word in ("question", "answer", "translate"):  # others, where a task's prompt has them
        if word not in locale.words:
            raise UsageError(f"missing key {word!r} in [words]", where=path)
    return locale
