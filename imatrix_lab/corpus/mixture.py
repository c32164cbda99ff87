"""How users name text: a language, a control, or a mixture of these.

nb                      one language
nb=0.75,en=0.25         shares of the tokens
multi10                 a mixture by name: corpora/mixtures/multi10.toml
shuffled:nb             the words of a language's text, in random order
random-tokens           tokens of the model's vocabulary, drawn evenly
code                    program code, treated as a language
"""

import contextlib
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from imatrix_lab.core import config
from imatrix_lab.core.paths import data_dir, expanded
from imatrix_lab.corpus import languages
from imatrix_lab.corpus.languages import Language
from imatrix_lab.errors import UsageError

LABEL_CHARS_MAX = 60
RANDOM_TOKENS, SHUFFLED = "random-tokens", "shuffled"
BY_TOKENS = "-by-tokens"
"""Of a mixture of imatrices that was weighted by tokens."""


@dataclass(frozen=True)
class Part:
    """One ingredient and its share of the tokens; `language` is None for `RANDOM_TOKENS`."""

    language: Language | None
    weight: float
    shuffled: bool = False

    @property
    def label(self) -> str:
        """Short name, safe in file names."""
        code = self.language.code if self.language else RANDOM_TOKENS
        return f"{SHUFFLED}-{code}" if self.shuffled else code

    @property
    def name(self) -> str:
        """Name in words."""
        name = self.language.name if self.language else "random tokens"
        return f"{name}, shuffled" if self.shuffled else name


@dataclass(frozen=True)
class Mixture:
    """Parts whose weights sum to one; labelled ``nb``, ``multi10`` or (per cent) ``nb75-en25``."""

    label: str
    name: str
    parts: tuple[Part, ...]


def parse(word: str) -> Mixture:
    """Return the mixture a user named; see the module's docstring for the forms."""
    if named := _named(word.strip()):
        return named
    entries = _entries(word)
    if not entries:
        raise UsageError("no text is named", fix="a language (nb), or shares: nb=0.75,en=0.25")
    parts = [_part(*_share(entry, len(entries))) for entry in entries]
    total = math.fsum(p.weight for p in parts)
    parts = [Part(p.language, p.weight / total, p.shuffled) for p in parts]
    labels = [p.label for p in parts]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise UsageError(f"{twice} is named twice in {word!r}")
    if len(parts) == 1:
        return Mixture(parts[0].label, parts[0].name, tuple(parts))
    label = "-".join(f"{p.label}{_percent(p.weight)}" for p in parts)
    if len(label) > LABEL_CHARS_MAX:
        label = f"mix-of-{len(parts)}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
    name = ", ".join(f"{_percent(p.weight)} % {p.name}" for p in parts)
    return Mixture(label, name, tuple(parts))


def _entries(word: str) -> list[str]:
    entries = word.replace(",", " ").split()
    if len(entries) > 1 and "=" not in word:
        with contextlib.suppress(UsageError):
            return [languages.get(word).code]  # "Norwegian Bokmål"
    return entries


def parse_or_path(text: str, file: str) -> Mixture | Path:
    """Return the path of a file, or of a folder with `file`, or else the mixture of that name.

    What is a code, or a name in our own files, is no path.
    """
    path = expanded(text)
    is_path = path.is_file() or (path / file).is_file()
    is_name = text in {*files(), RANDOM_TOKENS} or languages.is_name(text)
    if is_path and not is_name:
        return path
    try:
        return parse(text)
    except UsageError as error:
        if text.strip() and path.is_dir():
            what = f"`corpus build` did not make this folder: it has no {file}"
            fix = "name a file of text in it, or a language"
            raise UsageError(what, where=path, fix=fix) from error
        if "=" not in text and ("/" in text or path.suffix[1:].isalnum()) and not path.exists():
            raise UsageError("no such file", where=path, fix="check the path") from error
        raise


def languages_of(label: str) -> tuple[str, ...]:
    """Return the codes of the languages in a text's label; none of a control or a text by name.

    >>> languages_of("nb"), languages_of("nb75-en25"), languages_of("my-notes")
    (('nb',), ('nb', 'en'), ())
    """
    codes = [part.label for part in parse(label).parts] if label in files() else _codes(label)
    known = languages.load_all()
    is_natural = all(code in known and known[code].script != "Zyyy" for code in codes)
    return tuple(codes) if is_natural else ()


def is_language(label: str) -> bool:
    """Return whether a label is of a language of ours or a mixture of some, not of another text.

    >>> is_language("nb75-en25"), is_language("shuffled-nb"), is_language("my-notes")
    (True, False, False)
    """
    if label in files() or re.fullmatch(r"mix-of-\d+-[0-9a-f]{8}", label):
        return True
    known = languages.load_all()
    return label in known or all(code in known for code in _codes(label))


def _codes(label: str) -> list[str]:
    """Return what stands for languages in a label such as ``nb75-en25``."""
    parts = label.removesuffix(BY_TOKENS).split("-")
    return [part.rstrip("0123456789.") for part in parts] if len(parts) > 1 else parts


def _percent(weight: float) -> str:
    return f"{100 * weight:.3g}"


def _share(entry: str, n_entries: int) -> tuple[str, float]:
    word, equals, share = entry.partition("=")
    if not equals:
        if n_entries > 1:
            raise UsageError(f"{word!r} has no share", fix=f"{word}=0.25")
        return word, 1.0
    try:
        weight = float(share)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        what = f"the share of {word} is {share!r}, not a positive number"
        raise UsageError(what, fix=f"{word}=0.5")
    return word, weight


def _part(word: str, weight: float) -> Part:
    if word == RANDOM_TOKENS:
        return Part(None, weight)
    control, colon, code = word.partition(":")
    if colon:
        if control != SHUFFLED:
            raise UsageError(f"unknown control {control!r}", fix=f"{SHUFFLED}:{code}")
        return Part(languages.get(code), weight, shuffled=True)
    return Part(languages.get(word), weight)


@dataclass(frozen=True)
class _Named:
    """A file of ``corpora/mixtures``."""

    name: str
    shares: dict[str, float]
    source: str = ""


def files() -> dict[str, Path]:
    """Return the files of the mixtures with names."""
    return {p.stem: p for p in sorted((data_dir("corpora") / "mixtures").glob("*.toml"))}


def _named(word: str) -> Mixture | None:
    path = files().get(word)
    if path is None:
        return None
    raw = config.build(_Named, config.read_toml(path), path)
    total = math.fsum(raw.shares.values())
    if not (math.isfinite(total) and min(raw.shares.values(), default=0) > 0):
        raise UsageError("shares must be positive numbers", where=path)
    parts = tuple(_part(code, weight / total) for code, weight in raw.shares.items())
    return Mixture(word, raw.name, parts)
