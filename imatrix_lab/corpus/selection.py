"""Which of a language's sources a corpus is made from: decided once, then remembered.

Sources are taken in the order of the language's file until they hold the budget. Which ones can be
reached differs from day to day; the choice is kept in the store, so that the same command makes
the same text until `renew` decides again.

What is held out is decided once for a language, by bytes: it depends neither on the model nor on
budget, licence, seed or sample. So text that one corpus of a language holds out is calibrated on
by no other, unless its source is named by the user.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.session import Session
from imatrix_lab.core.store import NotBuilt
from imatrix_lab.corpus import clean, cleaned
from imatrix_lab.corpus.cleaned import Pool
from imatrix_lab.corpus.heldout import HELDOUT_BYTES_MIN
from imatrix_lab.corpus.languages import LICENCE_CLASSES, Language, Source
from imatrix_lab.corpus.sources import KINDS, local_sha256
from imatrix_lab.corpus.sources.base import Pinned
from imatrix_lab.errors import (
    BadText,
    FetchFailed,
    ImatrixLabError,
    MissingTool,
    ToolFailed,
    UsageError,
)
from imatrix_lab.types import TOKENS_DEFAULT, TextOptions

USUAL_BYTES = cleaned.BYTES_PER_TOKEN * TOKENS_DEFAULT
"""By default, sources are taken until they hold this."""

USUAL_LIMIT = cleaned.limit_bytes(TOKENS_DEFAULT)


@dataclass(frozen=True)
class Selection:
    """The sources of a corpus, as pools of clean text; `skipped` says why others are not used.

    All of `calibration` lose their cut (`heldout.cut_of`). Held out are the cuts of those in `cut`,
    or else one pool, `heldout`, whole.
    """

    calibration: tuple[Pool, ...]
    cut: tuple[Pool, ...]
    heldout: Pool | None
    skipped: dict[str, str]

    def identities(self) -> dict[str, Any]:
        """Return the sources as JSON values."""
        return {
            "calibration": [cleaned.identity(p.pinned) for p in self.calibration],
            "cut": [p.pinned.source.name for p in self.cut],
            "heldout": cleaned.identity(self.heldout.pinned) if self.heldout else None,
        }


def select(
    language: Language,
    options: TextOptions,
    n_tokens: int,
    vocabulary_sha256: str,
    count: Callable[[str], int],
    session: Session,
) -> Selection:
    """Return the sources for a budget, as remembered or decided now."""
    check(language, options)
    selector = _Selector(language, options, session)
    usual = selector.remembered({}, selector.usual)
    n_needed = n_tokens * options.n_samples
    if not (options.sources or options.heldout or options.licence) and n_needed <= TOKENS_DEFAULT:
        return usual
    n_budget = max(n_needed, TOKENS_DEFAULT)
    key = {
        "usual": usual.identities(),
        "named": list(options.sources),
        "heldout": options.heldout,
        "licence": options.licence,
        "n_tokens": n_budget,
        "vocabulary_of": vocabulary_sha256,
    }
    limit = cleaned.limit_bytes(n_budget)
    return selector.remembered(key, lambda: selector.special(usual, limit, n_needed, count), limit)


def check(language: Language, options: TextOptions) -> None:
    """Raise UsageError if the options name sources that the language does not have."""
    known = [s.name for s in language.sources]
    for name in (*options.sources, *filter(None, [options.heldout])):
        if name not in known:
            what = f"{language.name} has no source called {name!r}"
            raise UsageError(what, fix=f"one of: {' '.join(known)}")
    if options.heldout in options.sources:
        raise UsageError(f"{options.heldout} cannot both be calibrated on and held out")


@dataclass(frozen=True)
class _Selector:
    language: Language
    options: TextOptions
    session: Session

    def remembered(
        self, key: Mapping[str, Any], decide: Callable[[], Selection], limit: int = USUAL_LIMIT
    ) -> Selection:
        """Return the selection kept in the store under `key`, or decide it now."""
        language, store, progress = self.language, self.session.store, self.session.progress
        inputs = {
            "language": language.code,
            "sources": [
                {**cleaned.declared(s), "local_sha256": local_sha256(s)} for s in language.sources
            ],
            "clean_version": clean.CLEAN_VERSION,
            "pool_version": cleaned.POOL_VERSION,
            **key,
        }
        if self.options.renew:
            decide()  # first: what is remembered stays if no source can be reached
            store.drop("sources", inputs, progress)

        def make(out: Path, scratch: Path) -> Mapping[str, Any]:
            selection = decide()
            return {**selection.identities(), "skipped": selection.skipped}

        facts = store.get("sources", language.code, inputs, make, progress).facts
        identities = [*facts["calibration"], *filter(None, [facts["heldout"]])]
        pools = {i["name"]: self._pool(cleaned.restored(i, language), limit) for i in identities}
        return Selection(
            tuple(pools[identity["name"]] for identity in facts["calibration"]),
            tuple(pools[name] for name in facts["cut"]),
            pools[facts["heldout"]["name"]] if facts["heldout"] else None,
            dict(facts["skipped"]),
        )

    def _pool(self, pinned: Pinned, limit: int) -> Pool:
        return cleaned.build(self.language, pinned, limit, self.options.workers, self.session)

    def usual(self) -> Selection:
        """Decide what is held out, and what is calibrated on by default."""
        skipped: dict[str, str] = {}
        calibration: list[Pool] = []
        heldout: Pool | None = None
        n_bytes = 0
        order = sorted(self.language.sources, key=lambda s: not s.heldout)
        for pool in self._available(order, USUAL_LIMIT, "", skipped):
            if pool.pinned.source.heldout:
                heldout = pool
            elif n_bytes < USUAL_BYTES:
                calibration.append(pool)
                n_bytes += pool.n_bytes
            elif heldout is None and pool.n_bytes >= HELDOUT_BYTES_MIN:
                heldout = pool
            if heldout and n_bytes >= USUAL_BYTES:
                break
        heldout = heldout or _spare(calibration)
        calibration = [p for p in calibration if p is not heldout]
        return self._selection(calibration, calibration, heldout, skipped)

    def special(
        self, usual: Selection, limit: int, n_tokens: int, count: Callable[[str], int]
    ) -> Selection:
        """Decide for named sources, a limit on licences, or a budget beyond the default."""
        named, known = self.options.sources, {s.name: s for s in self.language.sources}
        skipped: dict[str, str] = {}
        heldout = usual.heldout
        if self.options.heldout:
            (heldout,) = self._available([known[self.options.heldout]], limit, "", skipped, True)
        elif heldout and heldout.pinned.source.name in named:
            heldout = None
        reserved = {p.pinned.source.name for p in (heldout, usual.heldout) if p}
        order = [known[n] for n in named] or [
            s for s in known.values() if s.name not in reserved and not s.heldout
        ]
        calibration: list[Pool] = []
        n_available = 0
        licence = self.options.licence
        for pool in self._available(order, limit, licence, skipped, strict=bool(named)):
            calibration.append(pool)
            n_available += sum(count(d.text) for d in pool.documents())
            if n_available >= n_tokens and not named:
                break
        usual_cut = {p.pinned.source.name for p in usual.cut}
        cut = [p for p in calibration if p.pinned.source.name in usual_cut] or calibration
        return self._selection(calibration, cut, heldout, skipped)

    def _selection(
        self,
        calibration: Sequence[Pool],
        cut: Sequence[Pool],
        heldout: Pool | None,
        skipped: dict[str, str],
    ) -> Selection:
        if not calibration:
            reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
            raise BadText(
                f"no text in {self.language.name} is available: {reasons or 'it has no sources'}",
                fix=f"imatrix-lab corpus add FILE --lang {self.language.code} --name mine"
                " --licence CC0-1.0, or a network",
            )
        return Selection(tuple(calibration), () if heldout else tuple(cut), heldout, skipped)

    def _available(
        self,
        sources: Sequence[Source],
        limit: int,
        licence: str,
        skipped: dict[str, str],
        strict: bool = False,
    ) -> Iterator[Pool]:
        """Yield the pools that are available; note in `skipped` why others are not, or raise it."""
        for source in sources:
            strictness = LICENCE_CLASSES.index
            if licence and strictness(source.licence_class) > strictness(licence):
                skipped[source.name] = f"its licence is {source.licence} ({source.licence_class})"
                continue
            try:
                yield self._pool(KINDS[source.kind].reach(source, self.session), limit)
            except Exception as error:
                if strict or not _is_of_source(error):
                    raise
                what, where, fix = _reason(error)
                if not any(what in reason for reason in skipped.values()):
                    note = f"note: {self.language.code}: without {source.name}: {what}{where}{fix}"
                    self.session.progress.say(note)
                skipped[source.name] = what + where


def _is_of_source(error: Exception) -> bool:
    """Return whether another source may do better: not if settings, store or disk are the matter.

    What a library or a network does is not foreseen: any error that is not ours is the source's.
    """
    if isinstance(error, ImatrixLabError):
        return isinstance(error, (FetchFailed, MissingTool, BadText, ToolFailed))
    return not isinstance(error, (NotBuilt, MemoryError))


def _reason(error: Exception) -> tuple[str, str, str]:
    """Return what happened, where, and what would help."""
    if not isinstance(error, ImatrixLabError):
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first[:200]}", "", ""
    where = f" ({error.where})" if error.where else ""
    return error.what, where, f"; try: {error.fix}" if error.fix else ""


def _spare(pools: Sequence[Pool]) -> Pool | None:
    """Return the smallest source beyond the budget, or of at most a quarter where text is short."""
    total = sum(p.n_bytes for p in pools)
    for candidate in sorted(pools, key=lambda p: p.n_bytes)[: len(pools) - 1]:
        rest = total - candidate.n_bytes
        is_enough = rest >= USUAL_BYTES or rest >= total * 3 / 4
        if candidate.n_bytes >= HELDOUT_BYTES_MIN and is_enough:
            return candidate
    return None
