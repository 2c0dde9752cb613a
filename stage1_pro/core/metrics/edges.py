"""Intervals of figures that every case agrees on, of which resampling knows nothing.

Where no exit is a false alarm, no resample holds one, and the percentiles of FPR are [0, 0]: a claim that no number of
cases supports. What is then known is how many have been looked at. With n cases that agree, the share of others among
new ones is at most 1 - tail^(1/n) by the exact test of Clopper and Pearson (1934), about 3.7/n at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A figure that is a sum over a sum: part and whole (N,) of the cases, part between least and most times whole."""

    part: ArrayLike
    whole: ArrayLike
    least: float = 0.0
    most: float = 1.0


def unseen_share(index: IntArray, whole: ArrayLike, confidence: float) -> float:
    """Return the largest share of cases that may be other than all that were seen, at two-sided `confidence`.

    index: (N,) number of each case's group; whole: (N,) weight of each case, 0 where it is not looked at, with a sum
    above 0. Exact where each case is its own group. Cases of a group may be copies of each other, so groups count as
    (sum of sizes)^2 / (sum of squared sizes) cases, Kish's effective number: the number of groups where they are
    equally large, fewer where they are not, as it has to be where large groups are harder.

    >>> round(unseen_share(np.arange(100), np.ones(100), 0.95), 4)
    0.0362
    """
    sizes = np.bincount(index, weights=np.asarray(whole, float))
    effective = sizes.sum() ** 2 / np.square(sizes).sum()
    return -math.expm1(math.log((1 - confidence) / 2) / effective)


def unanimous_intervals(
    index: IntArray, shares: Mapping[str, Share], confidence: float
) -> dict[str, tuple[float, float]]:
    """Return the interval (low, high) of each figure that all its cases agree on, by name; of the others nothing.

    index: (N,) number of each case's group. The cases that may be other than those seen take the interval to the least
    and to the most that a figure can be.
    """
    found = {}
    for name, share in shares.items():
        part, whole = np.asarray(share.part, float), np.asarray(share.whole, float)
        seen: FloatArray = part[whole > 0] / whole[whole > 0]
        if seen.size and (seen == seen[0]).all():
            value, others = float(seen[0]), unseen_share(index, whole, confidence)
            found[name] = (value - (value - share.least) * others, value + (share.most - value) * others)
    return found
