"""Exact binomial evidence about FNR on exits: p-values, Clopper-Pearson bounds, sample sizes.

For a policy fixed before the labels are looked at, misses | exited positives is binomial, so
everything here is exact at any sample size; nothing is a normal approximation.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincc, betaincinv

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

# Beyond this no calibration set reaches, and "how many more" has lost its meaning.
MOST_POSITIVES = 10**9


def p_value(misses: ArrayLike, exited_positives: ArrayLike, target_fnr: ArrayLike) -> FloatArray:
    """p-value of the hypothesis "FNR on exits > target_fnr": P(Bin(m, target_fnr) <= misses).

    misses, exited_positives: (...,) counts, misses <= exited_positives = m. Returns (...,) in
    [0, 1], 1 where m = 0. Rejecting at p <= delta errs with probability at most delta.
    """
    misses, exited_positives, target_fnr = np.broadcast_arrays(misses, exited_positives, target_fnr)
    # The beta form of the cdf. scipy.special.bdtr is off by 1e-8 (relative) at m = 1e6 and by
    # .04 (absolute) at m = 1e9; this agrees with scipy.stats.binom.cdf to 1e-12.
    others = np.maximum(exited_positives - misses, 1)
    cdf = betaincc(misses + 1.0, others.astype(float), target_fnr)
    return np.where(misses < exited_positives, cdf, 1.0)


def fnr_upper_bound(misses: ArrayLike, exited_positives: ArrayLike, delta: float) -> FloatArray:
    """Exact one-sided upper bound on FNR on exits.

    misses, exited_positives: (...,) counts, misses <= exited_positives. Returns (...,) in [0, 1],
    1 where all are missed or none exited. P(true rate <= bound) >= 1 - delta over the draw of the
    calibration set, if its positives are exchangeable with those met later. The bound is <= a
    target exactly where p_value is <= delta. Clopper & Pearson (1934).
    """
    misses, exited_positives = np.broadcast_arrays(misses, exited_positives)
    others = np.maximum(exited_positives - misses, 1)
    bound = betaincinv(misses + 1.0, others.astype(float), 1 - delta)
    bound = np.where(misses < exited_positives, bound, 1.0)
    # scipy 1.17.1 inverts wrongly where a parameter is exactly 1000 (.1251 for .0496).
    wrong = np.abs(p_value(misses, exited_positives, bound) - delta) > 1e-9 * delta
    wrong &= misses < exited_positives
    if wrong.any():
        bound[wrong] = _bisect_bound(misses[wrong], exited_positives[wrong], delta)
    return bound


def _bisect_bound(misses: IntArray, exited_positives: IntArray, delta: float) -> FloatArray:
    """The rates (K,) at which the p-values equal delta, to the last bit that a float holds."""
    low, high = np.zeros(misses.shape), np.ones(misses.shape)
    for _ in range(64):
        middle = (low + high) / 2
        too_low = p_value(misses, exited_positives, middle) > delta
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return high


def fnr_interval(misses: ArrayLike, exited_positives: ArrayLike, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Two-sided Clopper-Pearson interval (low, high), each (...,); (0, 1) where none exited.

    Covers the true rate with probability >= confidence; each tail holds half of the rest.
    """
    misses, exited_positives = np.broadcast_arrays(misses, exited_positives)
    tail = (1 - confidence) / 2
    high = fnr_upper_bound(misses, exited_positives, tail)
    # A rate is low for k misses exactly where its complement is high for m - k hits.
    low = 1 - fnr_upper_bound(exited_positives - misses, exited_positives, tail)
    return low, high


def minimum_positives(target_fnr: float, delta: float, misses: int = 0) -> int:
    """Fewest exited positives that certify target_fnr at error delta in spite of `misses`.

    Without a miss this is ceil(ln delta / ln(1 - target_fnr)).
    """
    if not (0 < target_fnr < 1 and 0 < delta < 1):
        raise ValueError(f"target_fnr {target_fnr} and delta {delta} must lie between 0 and 1")
    return _first(misses, lambda m: bool(p_value(misses, m, target_fnr) <= delta))


def positives_for_power(true_fnr: float, target_fnr: float, delta: float, power: float = 0.8) -> int | None:
    """Exited positives from which on a model of true_fnr is certified with probability >= power.

    Power is a sawtooth in m: it jumps where one more miss becomes allowed and falls until the
    next jump. Returned is the jump from which even the troughs keep the power, so more positives
    never hurt. None where true_fnr >= target_fnr, or so near that a thousand million do not do.
    """
    if true_fnr >= target_fnr:
        return None

    def trough(allowed: int) -> int:
        return minimum_positives(target_fnr, delta, allowed + 1) - 1

    def keeps_power(allowed: int) -> bool:
        return bool(p_value(allowed, trough(allowed), true_fnr) >= power)

    # The search runs over allowed misses, where troughs rise; over m they would not.
    allowed = _first(0, lambda k: trough(k) > MOST_POSITIVES or keeps_power(k))
    return minimum_positives(target_fnr, delta, allowed) if keeps_power(allowed) else None


def _first(start: int, holds: Callable[[int], bool]) -> int:
    """Smallest integer >= start for which a condition that stays true once true holds."""
    span = 1
    while not holds(start + span):
        span *= 2
    return start + bisect_left(range(span), True, key=lambda step: holds(start + step))


def bound_text(bound: float) -> str:
    """An upper bound in four decimals, rounded up: what is printed is never tighter than what holds."""
    return f"{math.ceil(bound * 1e4 - 1e-9) / 1e4:.4f}"
