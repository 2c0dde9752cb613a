"""Certify every threshold of nested exit sets at once, by a boundary on the misses.

Fixed-sequence testing has one start; where that candidate fails nothing is certified, although many others would pass.
Where exit sets are nested (score >= t, the answer independent of t) a boundary b over the number of exited positives
certifies every candidate with misses <= b(exited positives).

Guarantee: P(some certified candidate has FNR on exits > target) <= P(S_m <= b(m) for some m <= N), the crossing
probability, where S is a random walk of Bernoulli(target) steps. Why: between two thresholds lies a block of positives
with its own miss rate. Shifting misses from a stricter block to the next looser one until every block misses at exactly
the target makes each "misses <= b(exited)" likelier, because b rises by at most 1 at a time; and at equal rates the
counts of all thresholds lie on one such walk. So the boundary must start at b(0) = -1, never fall, and rise in steps of
1, and must be fixed before val_calib is read, of which it may know the number of positives alone.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln, xlog1py, xlogy

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.binomial import minimum_positives, p_value
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.fixed_sequence import Walk, certify, power_aware_start
from stage1_pro.core.seeds import rng_of

RESAMPLES = 60
SEED = 0
"""Of the resamples that choose the window: one val_select always gives one boundary."""
EDGES = 9
"""Window ends that are tried, geometric between the minimum evidence and all positives."""
SURE = 0.9
"""Chance of the walk's start to pass above which the walk is taken."""
MANY_POSITIVES, SURE_OF_MANY = 2_000, 0.5
"""With more positives a likely start is enough: what the boundary spends on all other thresholds costs more coverage
than a start that fails now and then. At 3,000 positives by .003 to .010 in six simulated cells, in two of them by less
than two standard errors; at 2,000 by −.004 ± .005, at 2,100 by 0 and +.002."""
MOST_POSITIVES = 20_000
"""Of val_calib, above which only the walk is tried: boundaries take seconds there, and evidence is plentiful."""
SLACK = 1 - 1e-9
"""Rounding of the crossing probability, which is kept below delta by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Misses that are allowed among the exited positives. lo, hi: exited positives between which the nominal level is
    spent; rises: (K,) ascending numbers of exited positives from which on 0, 1, 2 … misses are allowed.

    The rises alone are the boundary: `crossing(rises, target_fnr)` recomputes its error.
    """

    lo: int
    hi: int
    rises: IntArray

    def allowed(self, exited_positives: ArrayLike) -> IntArray:
        """Return b(m), the most misses that are certified among m exited positives (...,); -1 where none are."""
        return np.searchsorted(self.rises, exited_positives, side="right") - 1


@dataclass(frozen=True, slots=True, eq=False)
class NestedWalk:
    """walk: the evidence, its `certified` as the boundary says, or the walk itself where that was surer; boundary: None
    there; start_passes: predicted chance that the walk's start would pass."""

    walk: Walk
    boundary: Boundary | None
    start_passes: float


def certify_nested(
    select: ExitCounts, calib: ExitCounts, coverage: FloatArray, target_fnr: float, delta: float
) -> NestedWalk:
    """Certify "FNR on exits <= target_fnr" at error `delta` for nested exit sets, by the boundary or by the walk.

    select, calib: counts (J,) on the independent positives of val_select and val_calib, candidates in the order of
    growing coverage, fixed before val_calib was read; coverage: (J,) of val_select, all of its cases.
    val_select chooses between walk and boundary, and among boundaries; of val_calib the choice uses the number of
    positives only. With probability >= 1 - delta over the draw of val_calib every certified candidate keeps the target,
    if its positives are exchangeable with those met later. A stricter candidate than a certified one need not be
    certified itself. Raises AssertionError for exit sets that are not nested.
    """
    for counts in (select, calib):
        assert (np.diff(counts.misses) >= 0).all(), "exit sets are not nested"
        assert (np.diff(counts.exited_positives - counts.misses) >= 0).all(), "exit sets are not nested"
    walk = certify(select, calib, target_fnr, delta)
    if not select.exited.size:
        return NestedWalk(walk, None, 0.0)
    surety = start_passes(select, calib.positives, target_fnr, delta)
    if calib.positives > MOST_POSITIVES or surety > (SURE_OF_MANY if calib.positives > MANY_POSITIVES else SURE):
        return NestedWalk(walk, None, surety)
    boundary = choose_window(select, coverage, calib.positives, target_fnr, delta)
    certified = calib.misses <= boundary.allowed(calib.exited_positives)
    return NestedWalk(replace(walk, certified=certified), boundary, surety)


def start_passes(select: ExitCounts, calib_positives: int, target_fnr: float, delta: float) -> float:
    """Return the predicted chance that the walk's start passes on val_calib.

    Beta-binomial: the start's FNR as val_select shows it (Jeffreys prior), its exited positives scaled to val_calib.
    """
    start = power_aware_start(select, calib_positives, target_fnr)
    misses, exited = int(select.misses[start]), int(select.exited_positives[start])
    scaled = round(calib_positives / max(1, select.positives) * exited)
    return _beta_binomial_cdf(_allowed_once(scaled, target_fnr, delta), scaled, misses + 0.5, exited - misses + 0.5)


def _allowed_once(exited: int, target_fnr: float, delta: float) -> int:
    """Return the most misses that a single test certifies among so many exited positives; -1 where none are."""
    return bisect_left(range(exited), True, key=lambda misses: bool(p_value(misses, exited, target_fnr) > delta)) - 1


def _beta_binomial_cdf(most: int, trials: int, a: float, b: float) -> float:
    count = np.arange(most + 1)
    choices = -np.log(trials + 1) - betaln(trials - count + 1, count + 1)
    return min(1.0, float(np.exp(choices + betaln(count + a, trials - count + b) - betaln(a, b)).sum()))


# ---- the window, chosen on val_select


def choose_window(
    select: ExitCounts, coverage: FloatArray, calib_positives: int, target_fnr: float, delta: float
) -> Boundary:
    """Return the window boundary that promises most mean coverage on resamples of val_select's positives.

    The widest on ties, and where every window certifies nothing.
    """
    options = windows(calib_positives, target_fnr, delta)
    if not select.positives:
        return options[0]
    exited, misses = _resampled(select, calib_positives)
    allowed = np.stack([option.allowed(np.arange(calib_positives + 1)) for option in options])
    certified = (misses <= allowed[:, exited])[..., ::-1]  # (windows, resamples, J), the loosest first
    reached = np.where(certified.any(axis=2), coverage[::-1][certified.argmax(axis=2)], 0.0)
    return options[int(np.argmax(reached.mean(axis=1)))]


def _resampled(select: ExitCounts, calib_positives: int) -> tuple[IntArray, IntArray]:
    """Return exited positives and misses (RESAMPLES, J) of val_calib as it might be.

    Dirichlet weights on val_select's positives, then multinomial: both the chance in val_select and that in val_calib.
    Positives between the same two candidates are summed before they are drawn, which is the same distribution.
    """
    rng = rng_of(SEED, "boundary window")
    hits = np.diff(select.exited_positives - select.misses, prepend=0)
    missed = np.diff(select.misses, prepend=0)
    cells = np.concatenate([hits, missed, [select.positives - select.exited_positives[-1]]])
    weights = rng.standard_gamma(cells, size=(RESAMPLES, cells.size))
    drawn = rng.multinomial(calib_positives, weights / weights.sum(axis=1, keepdims=True))
    hits, missed = (drawn[:, part].cumsum(axis=1) for part in (slice(hits.size), slice(hits.size, -1)))
    return hits + missed, missed


# ---- boundaries


def uniform_boundary(calib_positives: int, target_fnr: float, delta: float) -> Boundary:
    """Return the boundary of one nominal level for all numbers of exited positives.

    b(m) is the largest k with P(Bin(m, target_fnr) <= k) <= c, with the largest c at which the crossing probability is
    still <= delta. Example: uniform_boundary(300, .02, .05).rises is [170, 262].
    """
    return windows(calib_positives, target_fnr, delta)[0]


@lru_cache(maxsize=128)
def windows(calib_positives: int, target_fnr: float, delta: float) -> tuple[Boundary, ...]:
    """Return boundaries that spend delta between lo and hi exited positives, widest first; the first is uniform.

    Below lo a boundary falls by 1 a positive, down to -1; above hi it stays. Neither adds to the crossing probability:
    a walk that crosses before lo is still below the boundary at lo, and S never falls. With lo = hi it is one test.
    """
    least = minimum_positives(target_fnr, delta)
    if calib_positives < least:
        return (Boundary(calib_positives, calib_positives, np.zeros(0, dtype=np.int64)),)
    levels = _Levels.of(calib_positives, target_fnr, delta)
    edges = np.unique(np.geomspace(least, calib_positives, EDGES).round().astype(int)).tolist()
    best: dict[tuple[int, int], int] = {}
    for i, j in _widest_first(len(edges)):
        # a narrower window can afford a higher level
        known = max(best.get((i - 1, j), 0), best.get((i, j + 1), 0))
        best[i, j] = _highest_level(levels, edges[i], edges[j], known)
    return tuple(levels.boundary(level, edges[i], edges[j]) for (i, j), level in best.items())


def _widest_first(count: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of all runs of so many edges, the longest first."""
    return ((first, first + length) for length in range(count - 1, -1, -1) for first in range(count - length))


def _highest_level(levels: "_Levels", lo: int, hi: int, known: int) -> int:
    """Return the index of the highest level that a window affords. known: a level that it affords."""
    target_fnr, delta = levels.target_fnr, levels.delta

    def too_high(level: int) -> bool:
        return crossing(levels.boundary(level, lo, hi).rises, target_fnr) > delta * SLACK

    found = known + bisect_left(range(known, levels.nominal.size), True, key=too_high) - 1
    assert found >= 0, f"even a hundredth of delta {delta} is crossed too often"
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """The nominal levels at which a boundary changes at all: p-values of single tests between delta / 100 and delta.

    first: (K,) exited positives from which on k misses pass at delta; p_values: (K, M) of k misses among first + i;
    nominal: (L,) the levels, ascending.
    """

    target_fnr: float
    delta: float
    first: IntArray
    p_values: FloatArray
    nominal: FloatArray

    @classmethod
    def of(cls, calib_positives: int, target_fnr: float, delta: float) -> "_Levels":
        misses = np.arange(_allowed_once(calib_positives, target_fnr, delta) + 1)
        first = _first_passing(misses, calib_positives, target_fnr, delta)
        past = _first_passing(misses, calib_positives, target_fnr, delta / 100)
        exited = first[:, None] + np.arange(np.max(past - first) + 1)
        p = p_value(misses[:, None], exited, target_fnr)
        return cls(target_fnr, delta, first, p, np.unique(p[(p >= delta / 100) & (exited <= calib_positives)]))

    def boundary(self, level: int, lo: int, hi: int) -> Boundary:
        rises = self.first + (self.p_values > self.nominal[level]).sum(axis=1)
        assert (np.diff(rises) >= 1).all(), "a boundary must rise in steps of 1"
        below = int(np.searchsorted(rises, lo, side="right"))
        ramp = np.arange(lo - below + 1, lo + 1)
        return Boundary(lo, hi, np.concatenate([ramp, rises[below : np.searchsorted(rises, hi, side="right")]]))


def _first_passing(misses: IntArray, most: int, target_fnr: float, level: float) -> IntArray:
    """Return the fewest exited positives (K,) at which the p-value of so many misses is <= level; at most `most`."""
    low, high = misses.copy(), np.full(misses.shape, most)
    while (high - low > 1).any():
        middle = (low + high) // 2
        passes = p_value(misses, middle, target_fnr) <= level
        low, high = np.where(passes, low, middle), np.where(passes, middle, high)
    return high


# ---- the crossing probability


def crossing(rises: IntArray, target_fnr: float) -> float:
    """Return P(S_m <= b(m) for some m), S a random walk of Bernoulli(target_fnr) steps, S_0 = 0.

    rises: (K,) ascending m at which b, -1 at first, rises by 1. Exact dynamic programme over the number of misses; it
    visits only the m where b rises, because S never falls and so can cross nowhere else.
    Example: crossing(np.array([170, 262]), .02) is .0497.
    """
    rises = np.asarray(rises, dtype=np.int64)
    ends = np.flatnonzero(np.diff(rises, append=np.inf) > 1)  # below b in a run of rises is below b at its end
    crossed, fewest, last = 0.0, 0, 0
    alive = np.ones(1)  # P(not crossed yet, S = fewest + i); with more misses than b ever allows: left out
    for allowed, exited in zip(ends.tolist(), rises[ends].tolist(), strict=True):
        alive = np.convolve(alive, _binomial(exited - last, target_fnr))[: rises.size - fewest]
        crossed += sum(alive[: allowed + 1 - fewest].tolist())  # mostly a single one
        alive = alive[allowed + 1 - fewest :]
        fewest, last = allowed + 1, exited
    return crossed


@lru_cache(maxsize=4096)
def _binomial(trials: int, rate: float) -> FloatArray:
    """Return P(Bin(trials, rate) = k) for k = 0, 1 … as far as it is not negligible."""
    k = np.arange(trials + 1)
    log = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1) + xlogy(k, rate) + xlog1py(trials - k, -rate)
    probability = np.exp(log)
    return probability[: np.flatnonzero(probability > 1e-20)[-1] + 1]
