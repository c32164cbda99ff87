"""Which of a language's sources a corpus is made from: asked once, then remembered.

Sources are taken in the order of the language's file until they hold the budget. What can be
reached differs from day to day; the choice is kept in the store, so that the same command
makes the same text until `renew` asks again.

What is held out is decided as for the default budget, whatever is asked for: text that one
corpus of a language holds out is calibrated on by no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.corpus import clean, pool, sources
from imatrix_lab.corpus.pool import Pool
from imatrix_lab.corpus.split import HELDOUT_TOKENS, HELDOUT_TOKENS_MIN
from imatrix_lab.errors import BadText, FetchFailed, MissingTool, UsageError
from imatrix_lab.languages import LICENCE_CLASSES, Language, Source
from imatrix_lab.progress import Progress
from imatrix_lab.records import TOKENS_DEFAULT, TextOptions
from imatrix_lab.store import Store


@dataclass(frozen=True)
class Choice:
    """Pools to calibrate on, the one that is held out (None: cut from the others), and why not
    the rest: source name -> reason."""

    calibration: tuple[Pool, ...]
    heldout: Pool | None
    skipped: dict[str, str]


def inputs(language: Language, options: TextOptions, n_tokens: int, vocabulary_of: str) -> Any:
    """Return what a choice depends on, apart from what can be reached."""
    return {
        "language": language.code,
        "sources": [pool.declared(s) for s in language.sources],
        "named": list(options.sources),
        "heldout": options.heldout,
        "licence": options.licence,
        "n_tokens": _budget(n_tokens, options),
        "clean_version": clean.CLEAN_VERSION,
        "pool_version": pool.POOL_VERSION,
        "vocabulary_of": vocabulary_of,
    }


def _budget(n_tokens: int, options: TextOptions) -> int:
    """Return tokens to hold; for small budgets the default's, so that they share one choice."""
    return max(n_tokens * options.n_samples, TOKENS_DEFAULT)


def choose(
    language: Language,
    options: TextOptions,
    n_tokens: int,
    vocabulary_of: str,
    count: Callable[[str], int],
    store: Store,
    progress: Progress,
) -> Choice:
    """Return the sources for a budget, as chosen before or now.

    Raises
    ------
    UsageError : a source is named that the language does not have.
    BadText, FetchFailed, MissingTool : no source can be had; says why for each.
    """
    wanted = inputs(language, options, n_tokens, vocabulary_of)
    if options.renew:
        store.drop("sources", wanted)
    limit = pool.limit_bytes(_budget(n_tokens, options) + HELDOUT_TOKENS)

    def make(out: Path, scratch: Path) -> Mapping[str, Any]:
        chosen = _choose(
            language, options, limit, _budget(n_tokens, options), count, store, progress
        )
        held = chosen.heldout
        return {
            "calibration": [pool.identity(p.pinned) for p in chosen.calibration],
            "heldout": pool.identity(held.pinned) if held else None,
            "skipped": chosen.skipped,
        }

    facts = store.get("sources", language.code, wanted, make, progress).facts

    def again(identity: dict[str, Any]) -> Pool:
        pinned = pool.restored(identity, language)
        return pool.build(language, pinned, limit, options.workers, store, progress)

    held = facts["heldout"]
    return Choice(
        tuple(again(identity) for identity in facts["calibration"]),
        again(held) if held else None,
        dict(facts["skipped"]),
    )


def _choose(
    language: Language,
    options: TextOptions,
    limit: int,
    n_tokens: int,
    count: Callable[[str], int],
    store: Store,
    progress: Progress,
) -> Choice:
    held, wanted = _named(language, options)
    skipped: dict[str, str] = {}
    reached = _reached(language, held + wanted, options, limit, skipped, store, progress)
    calibration: list[tuple[int, Pool]] = []
    heldout: Pool | None = None
    n_found = 0
    for found in reached:
        source = found.pinned.source
        basis, size = (sum(count(d.text) for d in part) for part in found.basis_and_all())
        if source in held:
            heldout = found
        elif options.sources or n_found < TOKENS_DEFAULT:
            calibration.append((basis, found))
            n_found += size
        elif heldout is None and basis >= HELDOUT_TOKENS_MIN:
            heldout = found
        elif n_found < n_tokens:
            calibration.append((basis, found))
            n_found += size
        if heldout and n_found >= n_tokens and not options.sources:
            break
    if heldout is None and not options.sources:
        heldout = _spare(calibration)
    if not calibration:
        raise _nothing(language, skipped)
    if options.heldout and heldout is None:
        raise BadText(f"{options.heldout} cannot be held out: {skipped.get(options.heldout)}")
    return Choice(tuple(p for _, p in calibration if p is not heldout), heldout, skipped)


def _spare(found: Sequence[tuple[int, Pool]]) -> Pool | None:
    """Return the smallest source that can be held out whole without starving calibration.

    It may cost what the budget leaves over, or a quarter of a text that is short anyway.
    """
    total = sum(size for size, _ in found)
    for size, candidate in sorted(found, key=lambda entry: entry[0])[: len(found) - 1]:
        rest = total - size
        if size >= HELDOUT_TOKENS_MIN and (rest >= TOKENS_DEFAULT or rest >= total * 3 / 4):
            return candidate
    return None


def _named(language: Language, options: TextOptions) -> tuple[list[Source], list[Source]]:
    """Return the sources to hold out and the ones to calibrate on: those named, or all.

    Raises
    ------
    UsageError : an unknown name, or one for both.
    """
    known = {s.name: s for s in language.sources}
    for name in (*options.sources, *filter(None, [options.heldout])):
        if name not in known:
            raise UsageError(
                f"{language.name} has no source called {name!r}", fix=f"one of: {' '.join(known)}"
            )
    if options.heldout in options.sources:
        raise UsageError(f"{options.heldout} cannot both be calibrated on and held out")
    wanted = [known[n] for n in options.sources] or list(known.values())
    named = {options.heldout} if options.heldout else {s.name for s in known.values() if s.heldout}
    held = [s for s in known.values() if s.name in named - set(options.sources)]
    return held, [s for s in wanted if s not in held]


def _reached(
    language: Language,
    wanted: Sequence[Source],
    options: TextOptions,
    limit: int,
    skipped: dict[str, str],
    store: Store,
    progress: Progress,
) -> Iterator[Pool]:
    """Yield the pools that can be had; note in `skipped` why others cannot."""
    for source in wanted:
        if options.licence and not admits(options.licence, source.licence_class):
            skipped[source.name] = f"its licence is {source.licence} ({source.licence_class})"
            continue
        try:
            pinned = sources.reach(source, store, progress)
            yield pool.build(language, pinned, limit, options.workers, store, progress)
        except (FetchFailed, MissingTool, BadText) as error:
            if options.sources:  # asked for by name
                raise
            skipped[source.name] = error.what
            progress.say(f"note: {language.code}: without {source.name}: {error.what}")


def admits(limit: str, licence_class: str) -> bool:
    """Return whether a licence class is within a limit."""
    return LICENCE_CLASSES.index(licence_class) <= LICENCE_CLASSES.index(limit)


def _nothing(language: Language, skipped: dict[str, str]) -> BadText:
    reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
    return BadText(
        f"no text in {language.name} can be had here now: {reasons or 'it has no sources'}",
        fix=f"imatrix-lab corpus add FILE --lang {language.code}, or a network",
    )
