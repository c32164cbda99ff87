"""Prompts that people judge answers to: ``prompts/<language>.toml``, or a file of the user's own.

language = "nb"
[prompts]
daily_life = ["Jeg har glemt …", "…"]
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from imatrix_lab.core import config
from imatrix_lab.core.paths import data_dir
from imatrix_lab.errors import UsageError


@dataclass(frozen=True)
class Prompts:
    """Prompts by kind; `licence` and `note` (who wrote them) go along."""

    language: str
    prompts: dict[str, tuple[str, ...]]
    licence: str = ""
    note: str = ""

    def by_id(self) -> dict[str, str]:
        """Return the prompts by name: their kind, and a hash of the text."""
        texts = [(kind, text) for kind, prompts in self.prompts.items() for text in prompts]
        return {f"{k}-{sha256(t.encode()).hexdigest()[:8]}": t for k, t in texts}


@dataclass(frozen=True)
class Texts:
    """What the page says, in one language."""

    language: str
    title: str
    intro: tuple[str, ...]
    start: str
    prompt: str
    answers: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    cannot: str
    progress: str
    back: str
    save: str
    pause: str
    done: str
    keys: str
    unkept: str
    no_script: str
    next_person: str


def read(source: str | Path) -> Prompts:
    """Return the prompts of a file or, for a language, the project's own.

    Raises UsageError: there are none, or an empty or repeated one.
    """
    path, known = Path(source), {p.stem: p for p in sorted(data_dir("prompts").glob("*.toml"))}
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            fix = f"check the path, or name a language: {', '.join(known)}"
            raise UsageError("no such file", where=path, fix=fix)
        if str(source) not in known:
            what = f"no prompts for {source}: there are {', '.join(known)}"
            fix = "a TOML file of your own: --prompts FILE, with language and [prompts]"
            raise UsageError(what, fix=fix)
        path = known[str(source)]
    prompts = config.build(Prompts, config.read_toml(path), path)
    texts = [text for group in prompts.prompts.values() for text in group]
    if len(texts) < 2 or not all(map(str.strip, texts)):
        raise UsageError("at least two prompts are needed, none of them empty", where=path)
    if twice := [text for text in texts if texts.count(text) > 1]:
        raise UsageError(f"a prompt is there twice: {twice[0]!r}", where=path)
    return prompts


def texts_of(language: str) -> Texts:
    """Return the page's words in a language; English where nobody has written them."""
    folder = Path(__file__).parent / "texts"
    known = {path.stem: path for path in folder.glob("*.toml")}
    path = known.get(language, known["en"])
    return config.build(Texts, config.read_toml(path), path)
