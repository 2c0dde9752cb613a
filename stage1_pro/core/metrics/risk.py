"""The promise in two numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Risk:
    """What the certificate promises: FNR on exits at most `target_fnr`, except with probability `delta`."""

    target_fnr: float
    confidence: float

    @property
    def delta(self) -> float:
        return 1 - self.confidence
