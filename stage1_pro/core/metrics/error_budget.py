"""Dividing one error probability delta among attempts over time."""

import math


def attempt_delta(delta: float, attempt: int) -> float:
    """What attempt 1, 2, … may spend, so that all attempts there will ever be spend delta together.

    >>> round(attempt_delta(0.05, 1), 4)
    0.0304
    """
    if attempt < 1:
        raise ValueError(f"attempt is {attempt}; allowed 1 or more")
    return 6 * delta / (math.pi**2 * attempt**2)
