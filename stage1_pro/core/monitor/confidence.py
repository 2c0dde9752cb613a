"""Bounds on FNR on exits that hold at every look: the "all clear", and its counterpart.

A confidence sequence for one fixed rate: U(n) >= rate at all n at once with probability >= 1 - delta, and
likewise L(n) <= rate. It costs more cases than a test of fixed size (186 instead of 149 without a miss at
.02), since nobody fixed beforehand when to look.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincc, betaln

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

PRIOR = (0.5, 9.5)
"""Beta prior of the rate, mean .05."""
HALVINGS = 60


def upper_bound(misses: ArrayLike, exited_positives: ArrayLike, delta: float) -> FloatArray:
    """U (...,): largest rate that the cases so far do not rule out. misses, exited_positives: (...,) counts.

    >>> float(upper_bound(0, 186, 0.05).round(5))
    0.01998
    """
    return _bound(misses, exited_positives, delta, "upper")


def lower_bound(misses: ArrayLike, exited_positives: ArrayLike, delta: float) -> FloatArray:
    """L (...,): smallest rate that the cases so far do not rule out; 0 without a miss."""
    return _bound(misses, exited_positives, delta, "lower")


def _bound(misses: ArrayLike, exited: ArrayLike, delta: float, side: Literal["upper", "lower"]) -> FloatArray:
    """The rate at which the evidence against it reaches 1/delta, by bisection away from misses / exited."""
    k, n = np.broadcast_arrays(np.asarray(misses), np.asarray(exited))
    end = 1.0 if side == "upper" else 0.0
    allowed = np.divide(k, n, out=np.full(k.shape, end), where=n > 0)
    refused = np.full(k.shape, end)
    for _ in range(HALVINGS):
        middle = (allowed + refused) / 2
        kept = _log_evidence(middle, k, n, side) < -math.log(delta)
        allowed, refused = np.where(kept, middle, allowed), np.where(kept, refused, middle)
    # without a hit U is 1, without a miss L is 0: no rate can be ruled out on that side
    return np.where(k == n, 1.0, refused) if side == "upper" else np.where(k == 0, 0.0, refused)


def _log_evidence(rate: FloatArray, k: IntArray, n: IntArray, side: Literal["upper", "lower"]) -> FloatArray:
    """Log likelihood ratio of the prior, cut off at `rate`, against `rate` itself."""
    a, b = PRIOR
    share = betainc if side == "upper" else betaincc
    with np.errstate(divide="ignore", invalid="ignore"):
        mixture = betaln(a + k, b + n - k) - betaln(a, b)
        cut = np.log(share(a + k, b + n - k, rate)) - np.log(share(a, b, rate))
        return mixture + cut - k * np.log(rate) - (n - k) * np.log1p(-rate)
