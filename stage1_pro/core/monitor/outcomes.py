"""From labels to evidence: one drawn positive of each audited group, and what a missing label may stand for.

Of each group's positives, deferred ones included, the one whose id hashes lowest is drawn; it is evidence only
if it exits. That is what the certificate counted. "One exited positive of each group" is another rate: with it
the alarm went off in .86 of the runs in which the promise held.

A label that never came is neither a hit nor a miss, and which cases lack one may depend on what they are: counted
as misses, .01 of unlabelled cases raise the alarm in .59 of the runs. So each group has two outcomes, the one
that is best for the promise and the one that is worst, and the alarm reads the first, the all-clear the second.

Out of the counts come bounds on FNR on exits that hold at every look, the "all clear" and its counterpart: a
confidence sequence for one fixed rate, U(n) >= rate at all n at once with probability >= 1 - delta, and likewise
L(n) <= rate. It costs more cases than a test of fixed size (186 instead of 149 without a miss at .02), since nobody
fixed beforehand when to look.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincc, betaln

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.hashing import HashArray

UNKNOWN = -1
HIT, NOTHING, MISS = -1, 0, 1
"""Outcomes of a group, in the order in which they speak against the promise."""


def group_outcomes(
    groups: HashArray, keys: HashArray, answered_positive: BoolArray, exits: BoolArray, labels: IntArray
) -> tuple[HashArray, IntArray, IntArray]:
    """Best and worst outcome of each group: (groups, best, worst), each (G,), groups in ascending order.

    groups, keys: (N,) hashes of each case's group and id; labels: (N,) 1, 0 or UNKNOWN. With every label known
    best and worst are equal: HIT, MISS, or NOTHING where no positive is drawn or the drawn one was deferred.

    Valid for the alarm: only sure misses are fed as misses and all that may be hits as hits, so the rate among
    the fed cases is at most that of all.
    """
    order = np.lexsort((keys, groups))
    groups, labels = groups[order], labels[order]
    outcome = np.where(~exits, NOTHING, np.where(answered_positive, HIT, MISS))[order]
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]])) if groups.size else np.zeros(0, int)
    if not starts.size:
        return groups, np.zeros(0, int), np.zeros(0, int)
    # A case may be the drawn one unless it is a negative, or a known positive hashes lower.
    positives = np.cumsum(labels == 1)
    sizes = np.diff(np.append(starts, labels.size))
    earlier = positives - (labels == 1)
    earlier -= np.repeat(earlier[starts], sizes)
    may = (labels != 0) & (earlier == 0)
    best = np.minimum.reduceat(np.where(may, outcome, MISS + 1), starts)
    worst = np.maximum.reduceat(np.where(may, outcome, HIT - 1), starts)
    none_drawn = np.add.reduceat((labels == 1).astype(int), starts) == 0
    best = np.where(none_drawn, np.minimum(best, NOTHING), best)
    worst = np.where(none_drawn, np.maximum(worst, NOTHING), worst)
    return groups[starts], best, worst


def needs_label(groups: HashArray, exits: BoolArray) -> BoolArray:
    """(N,) the cases of audited groups whose label can matter: all of a group in which any case exits."""
    _, index = np.unique(groups, return_inverse=True)
    return np.bincount(index, weights=exits)[index] > 0 if groups.size else np.zeros(0, dtype=bool)


# ---- bounds that hold at every look

PRIOR = (0.5, 9.5)
"""Beta prior of the rate, mean .05."""
HALVINGS = 60


def upper_bound(misses: ArrayLike, exited_positives: ArrayLike, delta: float) -> FloatArray:
    """U (...,): largest rate that the cases so far do not rule out. misses, exited_positives: (...,) counts.

    >>> float(upper_bound(0, 186, 0.05).round(5))
    0.01994
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
