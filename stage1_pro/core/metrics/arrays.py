"""Array types, the one division that every count needs, and how its outcome is written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
NumberArray = NDArray[Any]
"""int64 or float64: counts stay whole, since numpy sums those four times faster."""


def ratio(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """part / whole, elementwise with broadcasting; NaN where whole is 0: a share of nothing."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def share(value: float) -> float | None:
    """A share as JSON has it: None for a share of nothing, since JSON has no NaN."""
    return None if np.isnan(value) else float(value)


def percent(share: float | None) -> str:
    """A share in words.

    >>> percent(0.123), percent(None)
    ('12.3%', 'undefined')
    """
    return "undefined" if share is None else f"{share:.1%}"
