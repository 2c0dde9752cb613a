"""A new certificate out of audited labels: a uniform sample again, halved by time.

Audited cases are no uniform sample where some were audited more often than others, and unweighted they give
false certificates (.403 where confident exits were audited more often, at .1 promised). Each is kept with a
probability that evens this out, drawn by a second hash. Then val_select and val_calib are the older and the newer
half, and `certify` runs as ever.

Valid where every exit of the new policy had a known probability above 0 to be audited, where no label is missing
and where the window's start was fixed without looking at the labels: picked by them, false certificates are seven
times as frequent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.metrics.hashing import drawn, hash64

SECOND_HASH = b"recertify:"


@dataclass(frozen=True, slots=True, eq=False)
class Resample:
    """Positions of the cases that stay: select, calib (older and newer half), and how many were thinned out."""

    select: IntArray
    calib: IntArray
    thinned: int


def resample(
    groups: ArrayLike, times: ArrayLike, probability: ArrayLike, labelled: ArrayLike, salt: bytes, since: float
) -> Resample:
    """A uniform sample of the audited cases from `since` on.

    groups, times: (N,); probability: (N,) with which each case's label was to be had (1 where stage 2 labels all
    deferred ones); labelled: (N,) bool; since: start of the window, in the unit of times. Groups stay whole. Raises
    UserError where a label of the window is missing, where a probability is not known, or where too little is left.
    """
    names, index = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    times, probability = np.asarray(times, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    first = np.full(names.size, np.inf)
    np.minimum.at(first, index, times)
    inside = first[index] >= since
    _demand_whole(inside, probability, np.asarray(labelled, dtype=bool))
    # a group is kept or left out as one, so by the least that any of its cases could be had with
    least = np.ones(names.size)
    np.minimum.at(least, index[inside], probability[inside])
    floor = least[np.unique(index[inside])].min()
    kept = drawn(hash64(names, SECOND_HASH + salt), floor / least)[index] & inside
    newer = first > np.median(first[np.unique(index[kept])]) if kept.any() else np.zeros(names.size, dtype=bool)
    return Resample(
        np.flatnonzero(kept & ~newer[index]), np.flatnonzero(kept & newer[index]), int((inside & ~kept).sum())
    )


def _demand_whole(inside: BoolArray, probability: np.ndarray, labelled: BoolArray) -> None:
    if not inside.any():
        raise UserError("no audited case since the start of the window: choose an earlier start, or wait.")
    unknown = inside & ~((probability > 0) & (probability <= 1))
    if unknown.any():
        raise UserError(
            f"{np.count_nonzero(unknown)} cases without an audit probability in (0, 1]: only cases decided with "
            "--audit_share can be used. Start the window where the audit starts."
        )
    missing = inside & ~labelled
    if missing.any():
        raise UserError(
            f"{np.count_nonzero(missing)} audited cases have no label, and which ones do not may depend on what they "
            "are. Label them first."
        )
