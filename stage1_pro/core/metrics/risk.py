"""The promise in two numbers, and what repeated looks leave of it."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Risk:
    """What the certificate promises: FNR on exits at most `target_fnr`, except with probability `delta`."""

    target_fnr: float
    confidence: float

    @property
    def delta(self) -> float:
        return 1 - self.confidence


def remaining_confidence(confidences: Iterable[float]) -> float:
    """Return the least probability that certificates tested at these confidences all hold; 0 where none remains.

    Union bound, 1 - sum of (1 - confidence), valid however the tests depend on each other and whichever of their
    certificates is kept. It does not cover a model that was trained after seeing which calibration cases failed.

    >>> remaining_confidence([0.95, 0.95])
    0.9
    """
    # twelve digits: rounding of the sum must not make 0.8999999999999999 of 0.9, nor leave 1e-16 of nothing
    return max(0.0, round(1 - sum(1 - confidence for confidence in confidences), 12))
