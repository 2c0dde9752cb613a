"""The promise in two numbers, and what repeated looks leave of it."""

from collections.abc import Iterable
from dataclasses import dataclass

LARGEST_TARGET, LEAST_CONFIDENCE = 0.1, 0.5
"""The weakest promise that may be asked for."""


@dataclass(frozen=True, slots=True)
class Risk:
    """What the certificate promises: FNR on exits at most `target_fnr`, except with probability `delta`."""

    target_fnr: float
    confidence: float

    @property
    def delta(self) -> float:
        return 1 - self.confidence

    def remedies(self, *, confidence: bool = True) -> str:
        """The options that could promise less, as remedies of a refusal, each ended by "; "; "" where none is left.

        confidence: whether less of it would help.

        >>> from stage1_pro.core.metrics.risk import Risk
        >>> Risk(0.1, 0.95).remedies()
        'a smaller --fnr_confidence (run again with it); '
        """
        left = ["a larger --target_fnr_exit"] if self.target_fnr < LARGEST_TARGET else []
        left += ["a smaller --fnr_confidence"] if confidence and self.confidence > LEAST_CONFIDENCE else []
        return f"{' or '.join(left)} (run again with {'either' if len(left) > 1 else 'it'}); " if left else ""


def remaining_confidence(confidences: Iterable[float]) -> float:
    """Return the least probability that certificates tested at these confidences all hold; 0 where none remains.

    Union bound, 1 - sum of (1 - confidence), valid however the tests depend on each other and whichever of their
    certificates is kept. It does not cover a model that was trained after seeing which calibration cases failed.

    >>> remaining_confidence([0.95, 0.95])
    0.9
    """
    # twelve digits: rounding of the sum must not make 0.8999999999999999 of 0.9, nor leave 1e-16 of nothing
    return max(0.0, round(1 - sum(1 - confidence for confidence in confidences), 12))
