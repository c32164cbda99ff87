"""Which of a language's sources a corpus is made from: asked once, then remembered.

Sources are taken in the order of the language's file until they hold the budget. What can be
reached differs from day to day; the choice is kept in the store, so that the same command makes
the same text until `renew` asks again.

What is held out is decided once for a language, by bytes: it depends neither on the model nor on
budget, licence, seed or sample. So text that one corpus of a language holds out is calibrated on
by no other, unless its source is asked for by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imatrix_lab.core.progress import Progress
from imatrix_lab.core.session import Session
from imatrix_lab.core.store import Store
from imatrix_lab.corpus import clean, cleaned, sources
from imatrix_lab.corpus.cleaned import Pool
from imatrix_lab.corpus.heldout import HELDOUT_BYTES_MIN
from imatrix_lab.corpus.languages import LICENCE_CLASSES, Language, Source
from imatrix_lab.errors import BadText, FetchFailed, MissingTool, UsageError
from imatrix_lab.types import TOKENS_DEFAULT, TextOptions

USUAL_BYTES = cleaned.BYTES_PER_TOKEN * TOKENS_DEFAULT
"""Sources are taken by default until they hold this."""

Counter = Callable[[str], int]


@dataclass(frozen=True)
class Choice:
    """Where a corpus's text is from.

    Attributes
    ----------
    calibration : pools to calibrate on, less the cut of each (`split.cut_of`).
    cut : of these, the ones whose cuts are the held-out text; none where `heldout` is.
    heldout : the pool that is held out whole, or None.
    skipped : source -> why it is not used.
    """

    calibration: tuple[Pool, ...]
    cut: tuple[Pool, ...]
    heldout: Pool | None
    skipped: dict[str, str]


def choose(
    language: Language,
    options: TextOptions,
    n_tokens: int,
    vocabulary_of: str,
    count: Counter,
    session: Session,
) -> Choice:
    """Return the sources for a budget, as chosen before or now.

    Parameters
    ----------
    vocabulary_of : what tells the vocabulary that `count` counts in.

    Raises
    ------
    UsageError : a source is named that the language does not have.
    BadText, FetchFailed, MissingTool : no source can be had; says why for each.
    """
    _check(language, options)
    ours = _Chooser(language, options, session.store, session.progress)
    usual = ours.remembered({}, ours.usual)
    n_wanted = n_tokens * options.n_samples
    if not (options.sources or options.heldout or options.licence) and n_wanted <= TOKENS_DEFAULT:
        return usual
    given = {
        "usual": _identities(usual),
        "named": list(options.sources),
        "heldout": options.heldout,
        "licence": options.licence,
        "n_tokens": max(n_wanted, TOKENS_DEFAULT),
        "vocabulary_of": vocabulary_of,
    }
    limit = cleaned.limit_bytes(max(n_wanted, TOKENS_DEFAULT))
    return ours.remembered(given, lambda: ours.special(usual, limit, n_wanted, count), limit)


def _check(language: Language, options: TextOptions) -> None:
    known = [s.name for s in language.sources]
    for name in (*options.sources, *filter(None, [options.heldout])):
        if name not in known:
            raise UsageError(
                f"{language.name} has no source called {name!r}", fix=f"one of: {' '.join(known)}"
            )
    if options.heldout in options.sources:
        raise UsageError(f"{options.heldout} cannot both be calibrated on and held out")


def _identities(choice: Choice) -> dict[str, Any]:
    return {
        "calibration": [cleaned.identity(p.pinned) for p in choice.calibration],
        "cut": [p.pinned.source.name for p in choice.cut],
        "heldout": cleaned.identity(choice.heldout.pinned) if choice.heldout else None,
    }


@dataclass(frozen=True)
class _Chooser:
    language: Language
    options: TextOptions
    store: Store
    progress: Progress

    def remembered(
        self,
        given: Mapping[str, Any],
        decide: Callable[[], Choice],
        limit: int = cleaned.limit_bytes(TOKENS_DEFAULT),
    ) -> Choice:
        """Return the choice for what is `given`, from the store, or as decided now."""
        language = self.language
        inputs = {
            "language": language.code,
            "sources": [
                {**cleaned.declared(s), "local_sha256": sources.local_sha256(s)}
                for s in language.sources
            ],
            "clean_version": clean.CLEAN_VERSION,
            "pool_version": cleaned.POOL_VERSION,
            **given,
        }
        if self.options.renew:
            decide()  # first: what is remembered stays if nothing can be reached
            self.store.drop("sources", inputs, self.progress)

        def make(out: Path, scratch: Path) -> Mapping[str, Any]:
            chosen = decide()
            return {**_identities(chosen), "skipped": chosen.skipped}

        facts = self.store.get("sources", language.code, inputs, make, self.progress).facts
        pools = {
            found["name"]: self._pool(cleaned.restored(found, language), limit)
            for found in (*facts["calibration"], facts["heldout"])
            if found
        }
        return Choice(
            tuple(pools[found["name"]] for found in facts["calibration"]),
            tuple(pools[name] for name in facts["cut"]),
            pools[facts["heldout"]["name"]] if facts["heldout"] else None,
            dict(facts["skipped"]),
        )

    def _pool(self, pinned: sources.Pinned, limit: int) -> Pool:
        workers = self.options.workers
        return cleaned.build(
            self.language, pinned, limit, workers, Session(self.store, self.progress)
        )

    def usual(self) -> Choice:
        """Decide what is held out, and what is calibrated on by default."""
        skipped: dict[str, str] = {}
        calibration: list[Pool] = []
        heldout: Pool | None = None
        n_bytes = 0
        order = sorted(self.language.sources, key=lambda s: not s.heldout)
        for found in self._reached(order, cleaned.limit_bytes(TOKENS_DEFAULT), "", skipped):
            if found.pinned.source.heldout:
                heldout = found
            elif n_bytes < USUAL_BYTES:
                calibration.append(found)
                n_bytes += found.n_bytes
            elif heldout is None and found.n_bytes >= HELDOUT_BYTES_MIN:
                heldout = found
            if heldout and n_bytes >= USUAL_BYTES:
                break
        heldout = heldout or _spare(calibration)
        calibration = [p for p in calibration if p is not heldout]
        if not calibration:
            raise _nothing(self.language, skipped)
        return Choice(tuple(calibration), () if heldout else tuple(calibration), heldout, skipped)

    def special(self, usual: Choice, limit: int, n_tokens: int, count: Counter) -> Choice:
        """Decide for named sources, a limit on licences, or a budget beyond the default."""
        named, known = self.options.sources, {s.name: s for s in self.language.sources}
        skipped: dict[str, str] = {}
        heldout = usual.heldout
        if self.options.heldout:
            (heldout,) = self._reached([known[self.options.heldout]], limit, "", skipped, True)
        elif heldout and heldout.pinned.source.name in named:
            heldout = None
        kept = {p.pinned.source.name for p in (heldout, usual.heldout) if p}
        order = [known[n] for n in named] or [
            s for s in known.values() if s.name not in kept and not s.heldout
        ]
        calibration: list[Pool] = []
        n_found = 0
        licence = self.options.licence
        for found in self._reached(order, limit, licence, skipped, strict=bool(named)):
            calibration.append(found)
            n_found += sum(count(d.text) for d in found.documents())
            if n_found >= n_tokens and not named:
                break
        if not calibration:
            raise _nothing(self.language, skipped)
        usually = {p.pinned.source.name for p in usual.cut}
        cut = [p for p in calibration if p.pinned.source.name in usually] or calibration
        return Choice(tuple(calibration), () if heldout else tuple(cut), heldout, skipped)

    def _reached(
        self,
        wanted: Sequence[Source],
        limit: int,
        licence: str,
        skipped: dict[str, str],
        strict: bool = False,
    ) -> Iterator[Pool]:
        """Yield the pools that can be had; note in `skipped` why others cannot, or raise it."""
        for source in wanted:
            if licence and not admits(licence, source.licence_class):
                skipped[source.name] = f"its licence is {source.licence} ({source.licence_class})"
                continue
            try:
                yield self._pool(sources.reach(source, Session(self.store, self.progress)), limit)
            except (FetchFailed, MissingTool, BadText) as error:
                if strict:
                    raise
                why = f"{error.what} ({error.where})" if error.where else error.what
                if not any(error.what in said for said in skipped.values()):
                    self.progress.say(f"note: {self.language.code}: without {source.name}: {why}")
                skipped[source.name] = why


def _spare(found: Sequence[Pool]) -> Pool | None:
    """Return the smallest source that can be held out whole without starving calibration.

    It may cost what there is beyond the usual budget, or a quarter of a text that is short anyway.
    """
    total = sum(p.n_bytes for p in found)
    for candidate in sorted(found, key=lambda p: p.n_bytes)[: len(found) - 1]:
        rest = total - candidate.n_bytes
        enough = rest >= USUAL_BYTES or rest >= total * 3 / 4
        if candidate.n_bytes >= HELDOUT_BYTES_MIN and enough:
            return candidate
    return None


def admits(limit: str, licence_class: str) -> bool:
    """Return whether a licence class is within a limit."""
    return LICENCE_CLASSES.index(licence_class) <= LICENCE_CLASSES.index(limit)


def _nothing(language: Language, skipped: dict[str, str]) -> BadText:
    reasons = "; ".join(f"{name}: {why}" for name, why in skipped.items())
    return BadText(
        f"no text in {language.name} can be had here now: {reasons or 'it has no sources'}",
        fix=f"imatrix-lab corpus add FILE --lang {language.code}, or a network",
    )
