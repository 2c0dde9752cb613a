"""From labels to evidence: one drawn positive of each audited group, and what a missing label may stand for.

Of each group's positives, deferred ones included, the one whose id hashes lowest is drawn; it is evidence only
if it exits. That is what the certificate counted. "One exited positive of each group" is another rate: with it
the alarm went off in .86 of the runs in which the promise held.

A label that never came is neither a hit nor a miss, and which cases lack one may depend on what they are: counted
as misses, .01 of unlabelled cases raise the alarm in .59 of the runs. So each group has two outcomes, the one
that is best for the promise and the one that is worst, and the alarm reads the first, the all-clear the second.
"""

from __future__ import annotations

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, IntArray
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
