"""Candidate thresholds midway between two scores of val_select, never on one.

A threshold that equals a score depends on that score's last bit: with one thread or with two, the case that made the
threshold falls on different sides of it. Midway, half a gap separates the threshold from the next score on either side.
"""

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray

MOST = 200


def thresholds_between(scores: FloatArray, floor: float, most: int = MOST) -> FloatArray:
    """Return the candidate thresholds of val_select, high to low, so that coverage grows.

    scores: (N,) float64, finite ones >= floor; others never exit. floor: the least value that a score can take (½ for a
    largest class probability, 0 for a calibrated gate). Returns (J,), J <= most: of each of `most` equal shares of the
    sorted scores the middle of its widest gap, where a float64 lies strictly inside it; the last candidate lets every
    finite score exit, and is the floor itself where nothing lies strictly between the least score and the floor.
    O(N log N).

    Example: thresholds_between(np.array([.9, .7, .7, .6]), floor=.5) is about [.8, .65, .55].
    """
    ordered = scores[np.isfinite(scores)]
    ordered.sort()
    if not ordered.size:
        return np.zeros(0)
    assert ordered[0] >= floor, f"score {ordered[0]} lies below its floor {floor}"
    below = np.append(floor, ordered[:-1])
    gaps = ordered - below
    gaps[0] = np.inf  # the loosest candidate is always one
    chosen = _widest_of_each_share(gaps, most)[::-1]
    middle = below[chosen] + (ordered[chosen] - below[chosen]) / 2
    inside = (below[chosen] < middle) & (middle < ordered[chosen])
    middle[-1] = middle[-1] if inside[-1] else floor
    inside[-1] = True
    return middle[inside]


def _widest_of_each_share(gaps: FloatArray, shares: int) -> np.ndarray:
    """Return positions (J,), ascending, of the first widest gap in each of equal shares, counted from the top score."""
    starts = np.unique(gaps.size - np.arange(1, shares + 1) * gaps.size // shares)
    starts = starts[starts < gaps.size]  # with fewer scores than shares some are empty
    widest = np.maximum.reduceat(gaps, starts)
    found = np.flatnonzero(gaps == np.repeat(widest, np.diff(starts, append=gaps.size)))
    _, first = np.unique(np.searchsorted(starts, found, side="right"), return_index=True)
    return found[first]
