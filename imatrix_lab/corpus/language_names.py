"""What a word for a language means: tags, POSIX locales, names in any language, common slips.

Tags and names are those of IANA and CLDR, as `langcodes` and `language_data` have them; both are
imported only for words that are not a code or name of ours.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import langcodes

_LOCALE = re.compile(r"([A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*)(?:\.([\w-]+))?(?:@(\w+))?")
"""``nb``, ``nb-NO``, ``nb_NO.UTF-8``, ``sr_RS@latin``."""
_MODIFIERS = {"latin": "Latn", "cyrillic": "Cyrl", "devanagari": "Deva"}


class Known(Protocol):
    """What is known of a language of ours."""

    @property
    def code(self) -> str: ...  # noqa: D102
    @property
    def aliases(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def native_name(self) -> str: ...  # noqa: D102
    @property
    def script(self) -> str: ...  # noqa: D102


def own_names(language: Known) -> set[str]:
    """Return the names of a language of ours, for words passed through `plain`."""
    names = (language.code, *language.aliases, language.name, language.native_name)
    return {plain(name) for name in names}


def plain(word: str) -> str:
    """Return a word without differences of case and of Unicode's forms."""
    return unicodedata.normalize("NFC", word.strip().casefold())


def meanings(word: str, known: Mapping[str, Known]) -> list[str]:
    """Return the codes of those languages of ours that a word can mean.

    A word that is a tag means only that. Two letters that are no language, but a country, mean
    the language that most people there speak: ``jp``.
    """
    if tag := _tag(word):
        return _of_tag(tag, known)
    if code := _of_country(word, known):
        return [code]
    folded = _folded(word)
    codes = [c for c in known if folded and folded in _names(known[c].code, known[c].aliases)]
    return codes or ((tag := _of_name(word)) and _of_tag(tag, known)) or []


def unknown(word: str, known: Mapping[str, Known]) -> str:
    """Return what helps a user whose word means none of our languages, in brackets, or ""."""
    notes, near = list[str](), True
    if tag := _tag(word) or _of_name(word):
        if not (name := tag.display_name()).startswith("Unknown"):
            notes.append(f"{tag} is {name}")
        same = [f"{c} is {known[c].name}" for c in known if _standard(c) == tag.language]
        if tag.language == word.strip().lower() and (code := _of_country(word, known)):
            same.append(f"for {known[code].name}: {code}")
        notes += same
        near = len(tag.language or "") == 3 and not same  # most misspelt codes are codes too
    if near:
        codes = {name: code for code, language in known.items() for name in own_names(language)}
        names = difflib.get_close_matches(plain(word), codes, 3, 0.6)
        nearest = ", ".join(dict.fromkeys(codes[name] for name in names))
        notes += [f"near: {nearest}"] if nearest else []
    return f" ({'; '.join(notes)})" if notes else ""


def _of_tag(tag: langcodes.Language, known: Mapping[str, Known]) -> list[str]:
    tags = (tag, tag.prefer_macrolanguage())
    return next(filter(None, ([c for c in known if _is(t, known[c])] for t in tags)), [])


def _tag(word: str) -> langcodes.Language | None:
    import langcodes

    match = _LOCALE.fullmatch(word.strip())
    if not match or not langcodes.tag_is_valid(match[1]):
        return None
    if match[2]:
        try:
            codecs.lookup(match[2])
        except LookupError:  # nb.txt is a file
            return None
    tag = langcodes.get(match[1])
    script = _MODIFIERS.get(match[3] or "")
    return tag.update_dict({"script": script}) if script else tag


def _is(tag: langcodes.Language, language: Known) -> bool:
    """Return whether a tag means a language of ours: code, and the script if it tells one."""
    import langcodes

    if tag.language not in set(_standards(language.code, language.aliases)):
        return False
    usual = langcodes.Language.make(language=tag.language).maximize().script
    script = tag.script or tag.maximize().script
    return script == language.script or (not tag.script and script == usual)


@functools.cache
def _standard(code: str) -> str:
    import langcodes

    return langcodes.get(code).language or "" if langcodes.tag_is_valid(code) else ""


def _standards(code: str, aliases: tuple[str, ...]) -> Iterator[str]:
    """Yield the valid codes of a language, without script and country."""
    return filter(None, map(_standard, (code, *aliases)))


def _of_country(word: str, known: Mapping[str, Known]) -> str:
    """Return the language of a country in `known`, or ""."""
    import langcodes

    if not re.fullmatch("[A-Za-z]{2}", word.strip()):
        return ""
    country = langcodes.Language.make(territory=word.strip().upper())
    spoken = country.maximize()
    if not country.is_valid() or spoken.language == "en":  # which is also said of no country
        return ""
    return next((c for c in known if _is(spoken, known[c])), "")


@functools.cache
def _names(code: str, aliases: tuple[str, ...]) -> frozenset[str]:
    """Return the names of a language in every language that CLDR has, folded."""
    from language_data.names import code_to_names

    codes = {tag for c in _standards(code, aliases) for tag in (c, f"{c}-Hans")}
    return frozenset(_folded(name) for c in codes for name in code_to_names(c).values())


@functools.cache
def _every_name() -> Any:
    from language_data import names, util

    return names.load_trie(util.data_filename("trie/und/name_to_language.marisa"))


def _of_name(word: str) -> langcodes.Language | None:
    """Return what a name means in CLDR; not its beginning alone, as `Language.find` takes."""
    import langcodes
    from language_data import names

    name = names.normalize_name(word)
    every = _every_name()
    try:
        return langcodes.get(names.get_trie_value(every, name)) if name in every else None
    except UnicodeError:  # the trie takes a word with a zero byte or half a character for another
        return None


def _folded(name: str) -> str:
    """Return a name without case, accents and punctuation: ``espanol``, ``bokmal``."""
    letters = unicodedata.normalize("NFKD", name.casefold())
    bare = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(re.sub(r"[-_(),.'’]", " ", bare).split())
