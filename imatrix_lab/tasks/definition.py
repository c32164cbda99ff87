"""Benchmarks as data: ``tasks/<name>.toml``. Adding one touches no code.

A field is a template: ``{column}`` is the value of a column, ``{a.b}`` of a column inside one,
``{beside.column}`` of the same row in another language, ``{words.name}`` a word of the language's
prompts, ``{words[column]}`` the word that a column names. ``{column|filter}`` changes the text:
see `template`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core import config
from imatrix_lab.core.config import TABLE, TEXTS, Keys, nearest, read_toml
from imatrix_lab.core.paths import data_dir, user_dir
from imatrix_lab.errors import UsageError
from imatrix_lab.tasks import template

SCORERS = ("choice", "mixeval", "number", "translation", "language")
GOLDS = ("from 0", "from 1", "letter", "text")
"""How a definition says which option is right; `text` is an answer, not an option."""
VARIANTS = ("letter", "raw", "token", "byte")

_FILE: Keys = {
    "name": (str, True), "title": (str, True), "scorer": (str, True), "licence": (str, True),
    "citation": (str, True), "note": (str, False), "items": (int, False), "unique": (int, False),
    "source": (TABLE, True), "languages": (TABLE, False), "fields": (TABLE, True),
    "prompt": (TABLE, True),
}  # fmt: skip
_FIELDS: Keys = {
    "id": (str, False), "part": (str, False), "context": (str, False), "question": (str, True),
    "options": (TEXTS, False), "gold": (str, False), "gold_is": (str, False),
    "cluster": (str, False),
}  # fmt: skip
_PROMPT: Keys = {
    "ask": (str, True), "variant": (str, False), "max_tokens": (int, False),
    "stop": (TEXTS, False), "shots": (int, False),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where the items are.

    Attributes
    ----------
    hub : Hub repository; empty where there is none, and `get` says what to fetch.
    revision : commit; else the newest is looked up and recorded, and the task is not pinned.
    config, files : templates with ``{language}``, the benchmark's own code of it.
    splits : of the Hub repository.
    data_files : files in that repository, a pattern with ``{language}``, in place of `config`.
    files : in a local folder; one table each, or the lines of a text each (``column=file``).
    columns : names, for tables without a header.
    beside : the code of the language whose rows are ``{beside.…}``, joined by place.
    drop : rows to leave out, ``column=value``.
    """

    hub: str = ""
    revision: str = ""
    config: str = ""
    splits: tuple[str, ...] = ("test",)
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    beside: str = ""
    get: str = ""
    drop: tuple[str, ...] = ()
    data_files: str = ""

    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None


@dataclass(frozen=True)
class Definition:
    """One benchmark.

    Attributes
    ----------
    scorer : one of `SCORERS`.
    items, unique : how many there are in a language, and how many are not repeats; 0: not known.
        What the Hub gives must have so many, unless it is pinned.
    languages : our code -> the benchmark's own. Empty: any, as the data says.
    fields : templates by name; `options` a list of them, or one for a column that is a list.
    ask : template of the prompt. A line with ``{lettered}``, the options with letters before
        them, is left out where options are scored by their text.
    variant : of `VARIANTS`, how options are scored by likelihood.
    shots : examples before each item.
    path : the file it was read from.
    """

    name: str
    title: str
    scorer: str
    licence: str
    citation: str
    source: Source
    languages: Mapping[str, str]
    fields: Mapping[str, Any]
    ask: str
    path: Path
    note: str = ""
    items: int = 0
    unique: int = 0
    variant: str = "letter"
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    shots: int = 0

    def generates(self) -> bool:
        """Whether the model has to write, rather than options be scored by likelihood."""
        return self.scorer != "choice"

    def shows_letters(self) -> bool:
        """Whether the prompt lists the options with letters before them."""
        return "lettered" in template.places(self.ask)


def folders() -> list[Path]:
    """Return where definitions are; the user's are laid over the package's."""
    return [data_dir("tasks"), user_dir().parent / "tasks"]


def load_all() -> dict[str, Definition]:
    """Return every definition by name.

    Raises
    ------
    UsageError : a file with an unknown or misplaced key, or of another name than its task.
    """
    paths = {path.stem: path for folder in folders() for path in sorted(folder.glob("*.toml"))}
    return {name: load(path) for name, path in sorted(paths.items())}


def get(word: str) -> Definition:
    """Return a task by name, or from a TOML file.

    Raises
    ------
    UsageError : there is none; the message lists what there is.
    """
    if word.endswith(".toml"):
        return load(Path(word).expanduser())
    for folder in reversed(folders()):
        if (folder / f"{word}.toml").is_file():
            return load(folder / f"{word}.toml")
    known = sorted({path.stem for folder in folders() for path in folder.glob("*.toml")})
    raise UsageError(
        f"no task is called {word!r}{nearest(word, known)}",
        fix=f"one of {' '.join(known)}; or a file of your own: task run mine.toml",
    )


def load(path: Path) -> Definition:
    """Return the definition in a file.

    Raises
    ------
    UsageError : see `load_all`.
    """
    raw = read_toml(path)
    config.check(raw, _FILE, path)
    fields = dict(raw["fields"])
    options = fields.get("options")
    if isinstance(options, str):  # one column that is a list
        fields["options"] = [options]
    config.check(fields, _FIELDS, path, "fields")
    config.check(raw["prompt"], _PROMPT, path, "prompt")
    languages = raw.get("languages", {})
    config.check(languages, dict.fromkeys(languages, (str, False)), path, "languages")
    if raw["name"] != path.stem:
        raise UsageError(f"name is {raw['name']!r}, the file is called {path.name}", where=path)
    scorer = _one_of(raw["scorer"], SCORERS, "scorer", path)
    _one_of(fields.get("gold_is", "text"), GOLDS, "gold_is", path)
    _one_of(raw["prompt"].get("variant", "letter"), VARIANTS, "variant", path)
    if scorer == "choice" and "options" not in fields:
        raise UsageError("scorer = 'choice' needs options in [fields]", where=path)
    facts = {k: raw[k] for k in ("name", "title", "licence", "citation", "note", "items", "unique")
             if k in raw}  # fmt: skip
    found = Definition(
        **facts, scorer=scorer, source=config.build(Source, raw["source"], path, "source"),
        languages=languages, fields=fields, path=path, **config.with_tuples(raw["prompt"]),
    )  # fmt: skip
    if scorer == "choice" and found.variant == "letter" and not found.shows_letters():
        raise UsageError("variant = 'letter' needs {lettered} in the prompt", where=path)
    return found


def _one_of(word: str, known: tuple[str, ...], key: str, path: Path) -> str:
    if word not in known:
        raise UsageError(
            f"{key} is one of {', '.join(known)}, not {word!r}{nearest(word, known)}",
            where=path,
        )
    return word
