"""Benchmarks as data: ``tasks/<name>.toml``. Adding one touches no code.

A field is a template: ``{column}`` is the value of a column, ``{a.b}`` of a column inside one,
``{beside.column}`` of the same row in another language, ``{words.name}`` a word of the language's
prompts, ``{words[column]}`` the word that a column names. ``{column|filter}`` changes the text:
see `template`.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from imatrix_lab.core.config import build, nearest, read_toml
from imatrix_lab.core.paths import data_dir, expanded, user_dir
from imatrix_lab.errors import UsageError
from imatrix_lab.tasks import golds, template

SCORERS = ("choice", "mixeval", "number", "translation", "language")
GOLDS = ("", *golds.KINDS)
"""How a definition says which option is right; empty: as the data show."""
VARIANTS = ("letter", "raw", "token", "byte")


@dataclass(frozen=True)
class Source:
    """Where the items are; ``{language}`` in a name is the benchmark's own code of it.

    Attributes
    ----------
    hub : Hub repository; empty where there is none, and `get` says what to fetch.
    revision : commit; else the newest is looked up and recorded, and the task is not pinned.
    data_files : pattern of files in that repository, in place of `config`.
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
class Fields:
    """Templates of an item's fields, and one of `GOLDS`; one option may be a column of lists."""

    question: str
    id: str = "{place}"
    part: str = ""
    context: str = ""
    options: tuple[str, ...] = ()
    gold: str = ""
    gold_is: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Prompt:
    """How an item is asked, after so many examples (`shots`), and scored (`variant`).

    A line of the template with ``{lettered}``, the options with letters before them, is left out
    where options are scored by their text. With `enable_thinking` a model whose chat template
    knows of thoughts may think before an answer, and write more tokens.
    """

    ask: str
    variant: str = "letter"
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    shots: int = 0
    enable_thinking: bool = False


@dataclass(frozen=True)
class Definition:
    """One benchmark, as the file `path` defines it.

    In a language it has `items`, of which `unique` are not repeats (0: not known); what the Hub
    gives must have so many, unless it is pinned. `languages` are our codes with the benchmark's
    own; empty: any, as the data says.
    """

    name: str
    title: str
    scorer: str
    licence: str
    citation: str
    source: Source
    fields: Fields
    prompt: Prompt
    path: Path
    languages: dict[str, str] = field(default_factory=dict)
    note: str = ""
    items: int = 0
    unique: int = 0

    def generates(self) -> bool:
        """Whether the model has to write, rather than options be scored by likelihood."""
        return self.scorer != "choice"

    def shows_letters(self) -> bool:
        """Whether the prompt lists the options with letters before them."""
        return "lettered" in template.places(self.prompt.ask)


def paths() -> dict[str, Path]:
    """Return the files of definitions by name; the user's replace the package's."""
    folders = (data_dir("tasks"), user_dir().parent / "tasks")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def load_all() -> dict[str, Definition]:
    """Return every definition by name."""
    return {name: load(path) for name, path in sorted(paths().items())}


def get(word: str) -> Definition:
    """Return a task by name or TOML file; for an unknown name `UsageError` has the nearest one."""
    if word.endswith(".toml"):
        return load(expanded(word))
    known = paths()
    if word in known:
        return load(known[word])
    raise UsageError(
        f"unknown task {word!r}{nearest(word, known)}",
        fix=f"one of {' '.join(sorted(known))}; or a file of your own: task run mine.toml",
    )


def load(path: Path) -> Definition:
    """Return the definition in a file; `UsageError` names a key or value that is wrong."""
    raw = read_toml(path)
    match raw:
        case {"fields": {"options": str(option)}}:
            raw["fields"]["options"] = [option]
    task = build(Definition, {**raw, "path": str(path)}, path)
    if task.name != path.stem:
        raise UsageError(f"name is {task.name!r}, the file is called {path.name}", where=path)
    for key, value, known in (
        ("scorer", task.scorer, SCORERS),
        ("gold_is", task.fields.gold_is, GOLDS),
        ("variant", task.prompt.variant, VARIANTS),
    ):
        if value not in known:
            names = ", ".join(filter(None, known))
            what = f"{key} is one of {names}, not {value!r}{nearest(value, known)}"
            raise UsageError(what, where=path)
    if task.scorer == "choice" and not task.fields.options:
        raise UsageError("scorer = 'choice' needs options in [fields]", where=path)
    if (task.scorer, task.prompt.variant) == ("choice", "letter") and not task.shows_letters():
        raise UsageError("variant = 'letter' needs {lettered} in the prompt", where=path)
    return task
