"""Probabilities as bins of their log-odds: few numbers that keep the order of the scores, and no case.

What is ranked against binned scores has to be binned too; then the ranks, ties drawn at random, are as uniform as
before.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

WIDTH = 0.04
"""Of a bin, in log-odds."""
LIMIT = 300
"""Bins on each side of even odds: 12 in log-odds, six in a million; all beyond are in the last one."""


def answer_bins(probability: ArrayLike) -> IntArray:
    """(N,) the bin of each probability, -LIMIT to LIMIT - 1; finite ones only.

    >>> answer_bins([0.5, 0.9, 1.0]).tolist()
    [0, 54, 299]
    """
    odds = np.clip(logit(np.asarray(probability, dtype=np.float64)), -LIMIT * WIDTH, LIMIT * WIDTH)
    return np.clip(np.floor(odds / WIDTH), -LIMIT, LIMIT - 1).astype(np.int64)


def centres(bins: ArrayLike) -> FloatArray:
    """(N,) the log-odds in the middle of each bin."""
    return (np.asarray(bins) + 0.5) * WIDTH
