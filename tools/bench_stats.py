"""Do the statistics keep their promises? Simulation, with cluster-blind tests for comparison.

    make bench-stats                        about eight minutes on one core; seeded
    python tools/bench_stats.py --scale 0.1 --write docs/statistics.md

Data are shaped like real records: documents of 300 to 1,800 tokens with heavy-tailed KLD that the
two runs share for the most part; items with the group sizes of MixEval, a group answering as one.
Each row: what was promised, what was found, twice its Monte-Carlo error, and the same for a test
that takes tokens or items as independent. A row fails if it lies outside the promise by more than
three standard errors; `--write` puts the table between the markers of a Markdown file.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imatrix_lab.compare.benchmarks import group_sizes
from imatrix_lab.stats import (
    binary,
    clustered,
    equivalence,
    interaction,
    multiplicity,
    paired,
    power,
    quantiles,
    sign_flips,
)
from imatrix_lab.stats.interaction import Cell
from imatrix_lab.stats.paired import Sums

MARKERS = ("<!-- bench-stats: begin -->", "<!-- bench-stats: end -->")
TAIL_SHARES = (0.5, 0.99, 0.999)


@dataclass(frozen=True)
class Row:
    """One promise. `blind` is None where there is no cluster-blind way."""

    what: str
    where: str
    promised: tuple[float, float]
    observed: float
    n: int
    blind: float | None = None

    def error(self) -> float:
        """Return twice the Monte-Carlo standard error."""
        share = min(max(self.observed, 1 / self.n), 1 - 1 / self.n)
        return float(2 * (share * (1 - share) / self.n) ** 0.5)

    def kept(self) -> bool:
        """Whether the promise is kept within three standard errors: there are some 60 rows."""
        low, high = self.promised
        return low - 1.5 * self.error() <= self.observed <= high + 1.5 * self.error()

    def markdown(self) -> str:
        """Return a row of the table."""
        low, high = (f"{100 * x:.3g}" for x in self.promised)
        promised = f"≤ {high}" if self.promised[0] == 0 else low if low == high else f"{low}–{high}"
        blind = "" if self.blind is None else f"{100 * self.blind:.1f}"
        observed = f"{100 * self.observed:.1f} ± {100 * self.error():.1f}"
        cells = (
            self.what,
            self.where,
            promised,
            observed,
            blind,
            "yes" if self.kept() else "**no**",
        )
        return f"| {' | '.join(cells)} |"


LEVEL = (0.05, 0.05)
COVERAGE = (0.935, 0.965)
AT_MOST = (0.0, 0.05)


class Documents:
    """Two runs on documents: shared heavy-tailed KLD, and a difference of their own."""

    def __init__(self, n: int, rng: np.random.Generator, tokens: tuple[int, int] = (300, 1800)):
        self.n, self.rng = n, rng
        self.codes = np.repeat(np.arange(n), rng.integers(*tokens, n))
        own = rng.normal(0, 0.3, n)[self.codes]
        self.shared = np.exp(-3 + own + 1.3 * rng.standard_normal(len(self.codes)))

    def runs(self, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Return (A, B); B is A but for chance where the effect is 0."""
        rng, codes = self.rng, self.codes
        by_document = 0.05 * rng.standard_normal((2, self.n))
        noise = 0.25 * rng.standard_normal((2, len(codes)))
        a, b = (self.shared * np.exp(d[codes] + e) for d, e in zip(by_document, noise, strict=True))
        return a * (1 + effect), b

    @staticmethod
    def mean() -> float:
        """Return the expected KLD of a token."""
        return float(np.exp(-3 + (0.3**2 + 1.3**2 + 0.05**2 + 0.25**2) / 2))

    def sums(self, effect: float = 0.0) -> Sums:
        """Return A minus B, summed by document."""
        a, b = self.runs(effect)
        return Sums.of(a - b, self.codes, self.n)


def blind(sums: Sums) -> clustered.Interval:
    """Return the mean as if every value were independent."""
    n = sums.sizes.sum()
    estimate, error = float(sums.totals.sum() / n), (sums.variance() / n) ** 0.5
    return clustered.Interval(
        estimate, error, estimate - 1.96 * error, estimate + 1.96 * error, int(n), len(sums.sizes),
        n - 1,
    )  # fmt: skip


def covers(interval: clustered.Interval, truth: float) -> bool:
    """Whether the truth is inside."""
    return interval.low <= truth <= interval.high


def means_of_documents(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Mean differences: error rate, coverage and false equivalence, by number of documents."""
    effect, apart = 0.02, 0.2
    truth, margin = effect * Documents.mean(), apart * Documents.mean()
    for n, n_runs in ((8, 12_000), (20, 12_000), (50, 6_000), (120, 3_000)):
        hits, n_sim = np.zeros(6), round(n_runs * scale)
        for _ in range(n_sim):
            documents = Documents(n, rng)
            null, sums, far = (documents.sums(e) for e in (0.0, effect, apart))
            hits += (
                paired.mean_difference(null).p_value <= 0.05,
                not covers(blind(null), 0),
                covers(paired.mean_difference(sums).interval, truth),
                covers(blind(sums), truth),
                equivalence.tost_by_permutation(far, margin) <= 0.025,
                equivalence.tost(blind(far), margin) <= 0.025,
            )
        share, where = hits / n_sim, f"{n} documents"
        yield Row("false positives, sign flips", where, LEVEL, share[0], n_sim, share[1])
        yield Row("coverage, sign flips", where, COVERAGE, share[2], n_sim, share[3])
        yield Row("false equivalence, TOST", where, AT_MOST, share[4], n_sim, share[5])


def uneven_documents(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Documents of lognormal length (sd 0.9) whose differences are heavy-tailed (t, 4 degrees)."""
    n_sim, n_intervals, truth = round(20_000 * scale), round(4_000 * scale), 0.02
    for n, giant in ((8, 0), (15, 0), (40, 0), (100, 0), (15, 0.35), (40, 0.35)):
        rejected, covered = np.zeros(2), np.zeros(2)
        for i in range(n_sim):
            sizes = np.maximum(30, np.round(np.exp(6.5 + 0.9 * rng.standard_normal(n))))
            if giant:
                sizes[0] = np.round(giant / (1 - giant) * sizes[1:].sum())
            noise = 0.3 * np.sqrt(sizes) * rng.standard_normal(n)
            totals = 0.05 * sizes * rng.standard_t(4, n) + noise
            t = clustered.mean(totals, sizes)
            rejected += sign_flips.p_value(totals)[0] <= 0.05, paired.t_test(t) <= 0.05
            if i < n_intervals:
                low, high = sign_flips.interval(totals + truth * sizes, sizes, 0.95)
                covered += low <= truth <= high, covers(t, 0)
        where = f"{n} documents of lognormal length"
        where += f", one of them {100 * giant:g} % of the tokens" if giant else ""
        share, t_share = rejected / n_sim
        what = "false positives, sign flips (t beside it)"
        yield Row(what, where, LEVEL, share, n_sim, t_share)
        share, t_share = covered / n_intervals
        what = "coverage, sign flips (t beside it)"
        yield Row(what, where, COVERAGE, share, n_intervals, t_share)


def quantiles_of_documents(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Medians and tails of a run."""
    n_sim = round(1000 * scale)
    many = np.concatenate([Documents(400, rng).runs()[1] for _ in range(30)])
    truths = np.quantile(many, TAIL_SHARES)
    for n in (20, 50, 120):
        hits, naive = np.zeros(3), np.zeros(3)
        for _ in range(n_sim):
            documents = Documents(n, rng)
            values = documents.runs()[1]
            ordered = np.sort(values)
            for k, q in enumerate(TAIL_SHARES):
                interval = quantiles.quantile(values, documents.codes, q, rng, 400)
                hits[k] += covers(interval, truths[k])
                half = 1.96 * (q * (1 - q) * len(values)) ** 0.5
                low, high = (
                    int(np.clip(q * len(values) + s * half, 0, len(values) - 1)) for s in (-1, 1)
                )
                naive[k] += ordered[low] <= truths[k] <= ordered[high]
        for k, q in enumerate(TAIL_SHARES):
            what, where = f"coverage, {100 * q:g} % quantile of a run", f"{n} documents"
            yield Row(what, where, COVERAGE, hits[k] / n_sim, n_sim, naive[k] / n_sim)


def one_document(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """One long document: windows that resemble their neighbours."""
    n_sim, n = round(3000 * scale), 400
    hits = np.zeros(4)
    for _ in range(n_sim):
        noise = rng.standard_t(5, n + 50)
        for i in range(1, len(noise)):
            noise[i] += 0.5 * noise[i - 1]
        totals, sizes = noise[50:] * 500, np.full(n, 500.0)
        mean = paired.one_document(totals, sizes)
        naive = clustered.mean(totals, sizes)
        hits += (mean.p_value <= 0.05, covers(mean.interval, 0), not covers(naive, 0),
                 covers(naive, 0))  # fmt: skip
    share, where = hits / n_sim, f"one document, {n} windows"
    yield Row("false positives, blocks", where, LEVEL, share[0], n_sim, share[2])
    yield Row("coverage, blocks", where, COVERAGE, share[1], n_sim, share[3])


class Groups:
    """Items in groups that answer as one with probability `icc`."""

    def __init__(self, sizes: list[int], icc: float = 1.0):
        self.sizes, self.icc = sizes, icc
        self.n = len(self.sizes)
        self.codes = np.repeat(np.arange(self.n), self.sizes)

    def _draw(self, p: float, rng: np.random.Generator, together: np.ndarray) -> np.ndarray:
        by_item = rng.random(len(self.codes)) < p
        return np.where(together, (rng.random(self.n) < p)[self.codes], by_item)

    def runs(
        self, discordance: float, effect: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return right and wrong of A and B: B flips A's answers, so that A wins by `effect`."""
        together = (rng.random(self.n) < self.icc)[self.codes]
        unequal = self._draw(discordance, rng, together)
        a_wins = self._draw((1 + effect / discordance) / 2, rng, together)
        agreed = self._draw(0.6, rng, together)
        a = np.where(unequal, a_wins, agreed)
        return a.astype(int), np.where(unequal, 1 - a, a).astype(int)


def items(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Right and wrong in MixEval's groups."""
    n_sim = round(3000 * scale)
    for name, shares in (("free-form", (0.01, 0.05, 0.10)), ("multiple-choice", (0.05,))):
        groups = Groups(group_sizes(f"mixeval-{name}"))
        for discordance in shares:
            hits = np.zeros(7)
            effect, apart = 0.2 * discordance, 0.7 * discordance
            for _ in range(n_sim):
                a, b = groups.runs(discordance, 0.0, rng)
                sums = Sums.of(a - b, groups.codes, groups.n)
                hits[:3] += (
                    binary.mcnemar(sums.totals).p_exact <= 0.05,
                    binary.mcnemar(a - b).p_exact <= 0.05,
                    paired.mean_difference(sums).p_value <= 0.05,
                )
                a, b = groups.runs(discordance, effect, rng)
                sums = Sums.of(a - b, groups.codes, groups.n)
                interval = paired.mean_difference(sums).interval
                counts = binary.PairedCounts.of(a, b)
                effective = counts.effective(sums.design_effect(interval.std_error))
                low, high = binary.newcombe(effective)
                naive = binary.newcombe(counts)
                hits[3:6] += (
                    covers(interval, effect),
                    low <= effect <= high,
                    naive[0] <= effect <= naive[1],
                )
                a, b = groups.runs(discordance, apart, rng)
                sums = Sums.of(a - b, groups.codes, groups.n)
                interval = clustered.mean(sums.totals, sums.sizes)
                floored = equivalence.binary_interval(interval, sums.sizes, apart)
                p = equivalence.tost(floored, apart)
                hits[6] += max(p, equivalence.tost_by_permutation(sums, apart)) <= 0.025
            share, where = hits / n_sim, f"{name}, {100 * discordance:g} % discordant"
            # at most: net differences of few unequal groups are discrete
            what = "false positives, clustered McNemar"
            yield Row(what, where, AT_MOST, share[0], n_sim, share[1])
            yield Row("false positives, sign flips", where, AT_MOST, share[2], n_sim, share[1])
            yield Row("coverage, sign flips", where, COVERAGE, share[3], n_sim, share[5])
            yield Row("coverage, Newcombe, effective n", where, COVERAGE, share[4], n_sim, share[5])
            yield Row("false equivalence, TOST", where, AT_MOST, share[6], n_sim)


def planner(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """The power that the planner promises, for items and for documents from a pilot."""
    n_sim = round(2000 * scale)
    for icc in (0.3, 1.0):
        groups = Groups(group_sizes("mixeval-free-form"), icc)
        design = power.binary_design(0.05, icc, groups.sizes)
        margin = power.detectable(design, groups.n)
        promised = power.design_power(design, groups.n, margin)
        equal = power.design_power(design, groups.n, 0.0, margin=margin)
        hits = np.zeros(2)
        for _ in range(n_sim):
            for k, effect in enumerate((margin, 0.0)):
                a, b = groups.runs(0.05, effect, rng)
                sums = Sums.of(a - b, groups.codes, groups.n)
                hits[k] += _decided(sums, margin if k else None, binary=True)
        where = f"free-form, 5 % discordant, icc {icc:g}"
        yield _promise("power to find", where, promised, hits[0] / n_sim, n_sim)
        yield _promise("power to show equal", where, equal, hits[1] / n_sim, n_sim)
    pilot = power.from_pilot(Documents(400, rng).sums())
    margin, n = power.detectable(pilot, 40), 40
    promised = power.design_power(pilot, n, margin)
    equal = power.design_power(pilot, n, 0.0, margin=margin)
    hits = np.zeros(2)
    for _ in range(n_sim):
        for k, effect in enumerate((margin / Documents.mean(), 0.0)):
            sums = Documents(n, rng).sums(effect)
            hits[k] += _decided(sums, margin if k else None)
    where = "40 documents, pilot of 400"
    yield _promise("power to find", where, promised, hits[0] / n_sim, n_sim)
    yield _promise("power to show equal", where, equal, hits[1] / n_sim, n_sim)
    yield from _few_differ(rng, n_sim)


def _few_differ(rng: np.random.Generator, n_sim: int) -> Iterator[Row]:
    """Groups needed where so few answers differ that some 10 or 20 decide."""
    every = group_sizes("mixeval")
    for icc, effect in ((0.0, 0.015), (1.0, 0.015), (1.0, 0.019)):
        design = power.binary_design(0.02, icc, every)
        n = power.clusters_for_superiority(design, effect)
        promised, found = power.design_power(design, n, effect), 0
        for _ in range(n_sim):
            groups = Groups(rng.choice(every, n).tolist(), icc)
            a, b = groups.runs(0.02, effect, rng)
            totals = np.bincount(groups.codes, a - b)
            found += sign_flips.p_value(totals)[0] <= 0.05
        where = f"{n} groups, 2 % discordant, {100 * effect:g} apart, icc {icc:g}"
        yield _promise("power to find", where, promised, found / n_sim, n_sim)


def _decided(sums: Sums, margin: float | None, binary: bool = False) -> bool:
    """Whether a difference is found, or with a margin, equivalence shown."""
    if margin is None:
        return paired.mean_difference(sums).p_value <= 0.05
    p = equivalence.tost_by_permutation(sums, margin)
    if binary:
        interval = clustered.mean(sums.totals, sums.sizes)
        floored = equivalence.binary_interval(interval, sums.sizes, margin)
        p = max(p, equivalence.tost(floored, margin))
    return p <= 0.025


def _promise(what: str, where: str, promised: float, observed: float, n: int) -> Row:
    where = f"{where}: {100 * promised:.0f} %"
    return Row(what, where, (promised - 0.03, promised + 0.03), observed, n)


def interactions(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Differences of differences: by documents, and with samples as random effect."""
    n_sim = round(15_000 * scale)
    names = np.array([f"d{i}" for i in range(30)])
    for k in (2, 3, 5):
        hits = np.zeros(3)
        for _ in range(n_sim):
            cells = []
            moved = {t: rng.normal(0, 0.02, 30) for t in "ab"}  # of documents, by language
            for group, sign in (("a", 1.0), ("b", -1.0)):
                for sample in range(k):
                    for text, side in (("a", 1.0), ("b", -1.0)):
                        own = rng.normal(0, 0.01)
                        values = own + sign * moved[text] / 2 + rng.normal(0, 0.02, 30)
                        cells.append(Cell(sign * side / k, group, str(sample), values * 500,
                                          np.full(30, 500.0), names))  # fmt: skip
            contrast = interaction.contrast(cells)
            by_documents = clustered.t_interval(contrast.estimate, contrast.se_documents, 29, 0.95)
            hits += (contrast.p_value <= 0.05, contrast.low <= 0 <= contrast.high,
                     not by_documents[0] <= 0 <= by_documents[1])  # fmt: skip
        share, where = hits / n_sim, f"{k} samples a language, 30 documents"
        yield Row("false positives, sample as random effect", where, AT_MOST, share[0], n_sim,
                  share[2])  # fmt: skip


def families(rng: np.random.Generator, scale: float) -> Iterator[Row]:
    """Any false positive in a family of 30 comparisons on shared documents."""
    n_sim, n, m = round(4_000 * scale), 40, 30
    hits = np.zeros(4)
    for _ in range(n_sim):
        shared = rng.standard_t(4, (n, 1))
        totals = 0.8 * shared + 0.6 * rng.standard_t(4, (n, m))
        p = np.array([paired.t_test(clustered.mean(x, np.ones(n))) for x in totals.T])
        adjusted = multiplicity.max_t(totals, rng, 400)
        hits += (multiplicity.holm(p).min() <= 0.05, adjusted.min() <= 0.05,
                 multiplicity.benjamini_hochberg(p).min() <= 0.05, p.min() <= 0.05)  # fmt: skip
    share, where = hits / n_sim, f"{m} correlated comparisons, {n} documents"
    yield Row("any false positive, Holm", where, AT_MOST, share[0], n_sim, share[3])
    yield Row("any false positive, max-T", where, LEVEL, share[1], n_sim, share[3])
    yield Row("any false positive, Benjamini-Hochberg", where, AT_MOST, share[2], n_sim, share[3])


EXPERIMENTS: dict[str, Callable[[np.random.Generator, float], Iterator[Row]]] = {
    f.__name__: f
    for f in (
        means_of_documents, uneven_documents, quantiles_of_documents, one_document, items, planner,
        interactions, families,
    )
}  # fmt: skip


def main() -> None:
    """Print the table; exit 1 if a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the simulations")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--only", choices=list(EXPERIMENTS), nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--write", type=Path, help="Markdown file with the markers")
    arguments = parser.parse_args()
    head = "| what | where | promised, % | found, % | cluster-blind, % | kept |\n"
    head += "|---|---|--:|--:|--:|---|"
    lines, kept, began = [head], True, time.monotonic()
    print(head)
    for place, (name, run) in enumerate(EXPERIMENTS.items()):
        if name not in arguments.only:
            continue
        for row in run(np.random.default_rng([arguments.seed, place]), arguments.scale):
            lines.append(row.markdown())
            kept &= row.kept()
            print(lines[-1], flush=True)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        before, rest = text.split(MARKERS[0])
        after = rest.split(MARKERS[1])[1]
        table = "\n".join((MARKERS[0], *lines, MARKERS[1]))
        arguments.write.write_text(before + table + after, encoding="utf-8")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
