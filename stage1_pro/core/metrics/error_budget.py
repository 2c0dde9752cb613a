"""Dividing one error probability delta: among groups that are certified together, and among attempts over time."""

import math

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import BoolArray
from stage1_pro.core.metrics.binomial import minimum_positives


def group_delta(least_p: ArrayLike, delta: float) -> tuple[BoolArray, float]:
    """Which of G groups to certify, (G,) bool, and the delta of each that is.

    least_p: (G,) smallest p-value that each group is predicted to reach, from val_select alone; NaN: none. Kept is the
    largest number k of groups of which each reaches delta / k; the others always defer, and k groups share delta.
    Groups that are chosen by val_calib instead break the promise in .17 to .56 of the runs.

    >>> kept, each = group_delta([0.001, 0.02, 0.4], 0.05)
    >>> kept.tolist(), each
    ([True, True, False], 0.025)
    """
    p = np.nan_to_num(np.asarray(least_p, dtype=np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    reached = np.flatnonzero(p[order] * np.arange(1, p.size + 1) <= delta)
    count = int(reached[-1]) + 1 if reached.size else 0
    kept = np.zeros(p.size, dtype=bool)
    kept[order[:count]] = True
    return kept, delta / max(1, count)


def group_sample_sizes(target_fnr: float, delta: float, groups: int, misses: int = 2) -> list[int]:
    """Exited positives that each of `groups` groups needs with 0, 1, … `misses` of them missed.

    >>> group_sample_sizes(0.02, 0.05, 5)
    [228, 330, 418]
    """
    return [minimum_positives(target_fnr, delta / groups, count) for count in range(misses + 1)]


def attempt_delta(delta: float, attempt: int) -> float:
    """What attempt 1, 2, … may spend, so that all attempts there will ever be spend delta together.

    >>> round(attempt_delta(0.05, 1), 4)
    0.0304
    """
    if attempt < 1:
        raise ValueError(f"attempt is {attempt}; allowed 1 or more")
    return 6 * delta / (math.pi**2 * attempt**2)
