"""Sign flips of whole clusters: the test of a paired mean, and the interval of what it keeps.

Under the null that swapping the two runs' names changes nothing, the total of each cluster's
differences is as likely with the other sign (Fisher 1935). No document need be as long as another
or as variable, which t tests assume in effect: with documents of lognormal length they reject
6 to 8 % of true nulls at 5 %.

With up to `EXACT_MAX` clusters all patterns of signs are taken. With more, the tail comes from a
saddlepoint approximation (Robinson 1982, JRSS B 44:91; Lugannani & Rice 1980): the cumulant
function of Σ ±t is Σ log cosh(t s), so the tail has no Monte-Carlo error and no floor, whatever the
number of clusters. Clusters that hold much of the sum of squares make the law lumpy; their signs
are enumerated.
"""

import functools
import itertools

import numpy as np
from scipy import optimize, special

EXACT_MAX = 13
"""8,192 patterns."""
_LARGE_SHARE, _LARGE_MAX = 0.06, 6  # of what is left of the sum of squares; enumerated


def p_value(totals: np.ndarray, one_sided: bool = False) -> tuple[float, bool]:
    """Return p of the sum of `totals`, (G,), and whether all patterns of signs were taken.

    `one_sided` counts sums as small as the observed one or smaller.
    """
    totals = np.asarray(totals, np.float64)
    observed, exact = float(totals.sum()), len(totals) <= EXACT_MAX
    if not exact:
        p = tail(totals, -observed) if one_sided else min(1.0, 2 * tail(totals, abs(observed)))
        return p, False
    flipped = _patterns(len(totals)) @ totals
    slack = 1e-10 * float(np.abs(totals).sum())
    hits = flipped <= observed + slack if one_sided else abs(flipped) >= abs(observed) - slack
    return float(np.mean(hits)), True


def interval(totals: np.ndarray, sizes: np.ndarray, level: float) -> tuple[float, float]:
    """Return the ratio means, Σ totals / Σ sizes, that the sign flips do not reject.

    Unbounded with so few clusters that nothing can be rejected: 95 % need 6.
    Assumes differences symmetric around their mean.
    """
    if len(totals) <= EXACT_MAX:
        return _exact_interval(totals, sizes, level)
    estimate = float(totals.sum() / sizes.sum())
    residual = totals - estimate * sizes
    step = float(np.sqrt(np.sum(residual**2))) / float(sizes.sum())
    if step <= 1e-12 * abs(estimate):
        return estimate, estimate
    low, high = (_end(totals, sizes, (1 - level) / 2, side * step) for side in (-1, 1))
    return low, high


def _end(totals: np.ndarray, sizes: np.ndarray, share: float, step: float) -> float:
    """Return the mean on the side of `step` whose one-sided p is `share`."""
    estimate, side = totals.sum() / sizes.sum(), np.sign(step)

    def excess(k: float) -> float:
        shifted = side * (totals - (estimate + k * step) * sizes)
        return tail(shifted, float(-shifted.sum())) - share

    far = 3.0
    while excess(far) > 0 and far < 1e6:
        far *= 2
    return float(estimate + step * optimize.brentq(excess, 0.0, far, xtol=1e-5))


def _exact_interval(totals: np.ndarray, sizes: np.ndarray, level: float) -> tuple[float, float]:
    """Return the interval by enumeration.

    The means of all non-empty subsets of clusters are "typical values" (Hartigan 1969, JASA
    64:1303): flipping the signs of a subset changes the order of the totals of
    (values - mean) exactly where the candidate passes that subset's own mean. The interval is cut
    at the floor(2^G α/2)-th from each end, and unbounded where that is 0.
    """
    chosen = (_patterns(len(sizes)) < 0)[1:]
    means = np.sort((chosen @ totals) / (chosen @ sizes))
    k = int(2 ** len(sizes) * (1 - level) / 2 + 1e-9)
    if k < 1:
        return float("-inf"), float("inf")
    return float(means[k - 1]), float(means[-k])


def tail(totals: np.ndarray, at_least: float) -> float:
    """Return the probability that Σ ±totals reaches a value, approximately.

    Never below that of the one pattern with all signs alike, 2^-G.
    """
    ordered = np.sort(np.abs(totals[totals != 0]))[::-1]
    scale = float(np.sqrt(np.sum(ordered**2)))
    if scale == 0:
        return float(at_least <= 0)
    ordered = ordered / scale
    left = np.cumsum(ordered[::-1] ** 2)[::-1]
    is_large = ordered**2 > _LARGE_SHARE * left
    n_large = min(_LARGE_MAX, int(np.argmin(is_large)) or int(is_large[0]) * len(ordered))
    rest = at_least / scale - _patterns(n_large) @ ordered[:n_large]
    # groups of items have few different totals
    alike, counts = np.unique(ordered[n_large:], return_counts=True)
    p = float(np.mean(_lugannani_rice(alike, counts, rest)))
    return max(p, 2.0 ** -len(ordered)) if at_least <= scale * ordered.sum() * (1 + 1e-12) else 0.0


def _lugannani_rice(a: np.ndarray, n: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return P(Σ ±a >= x) for each of `x`; `a` are positive, and there are `n` of each."""
    distance, room = np.abs(x), float(n @ a)
    rarest = 2.0 ** -float(n.sum())
    upper = np.where(distance < room, 0.5, 0.0)
    upper[np.isclose(distance, room, rtol=1e-9)] = rarest
    inside = (distance > 1e-6) & (distance < room * (1 - 1e-9))
    z = distance[inside]
    s = _saddlepoint(a, n, z)
    products = s[:, None] * a
    cumulants = (np.logaddexp(products, -products) - np.log(2)) @ n
    w = np.sqrt(np.maximum(2 * (s * z - cumulants), 1e-300))
    v = s * np.sqrt((a / np.cosh(np.minimum(products, 300))) ** 2 @ n)
    density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi)
    upper[inside] = np.clip(special.ndtr(-w) + density * (1 / v - 1 / w), rarest, 0.5)
    return np.where(x < 0, 1 - upper, upper)


def _saddlepoint(a: np.ndarray, n: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return s with Σ n a tanh(s a) = z, by Newton's method.

    The sum is concave in s and at most s Σ n a² = s, so that steps from s = z never go too far.
    """
    s = z / (n @ a**2)
    for _ in range(100):
        tanh = np.tanh(s[:, None] * a)
        step = (z - tanh @ (n * a)) / np.maximum((1 - tanh**2) @ (n * a**2), 1e-300)
        s = s + step
        if np.all(step <= 1e-9 * s):
            break
    return np.asarray(s)


@functools.cache
def _patterns(n: int) -> np.ndarray:
    """Return all patterns of signs, (2^n, n); the first has no minus."""
    return np.array(list(itertools.product((1.0, -1.0), repeat=n))).reshape(2**n, n)
