"""How many cases stage 2 can take, and what coverage that asks of stage 1."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binom

from stage1_pro.core.metrics.binomial import fnr_upper_bound

GOOD_DAYS = 0.99
"""Share of days on which the capacity suffices."""


def coverage_floor(volume: int, capacity: int, days: float = GOOD_DAYS) -> float:
    """Least coverage at which no more than `capacity` of `volume` cases are deferred on that share of days.

    Cases are taken as independent; bursts need more.

    >>> round(coverage_floor(5000, 800), 4)
    0.8517
    """
    if volume < 1 or capacity < 0:
        raise ValueError(f"volume {volume} and capacity {capacity} a day; allowed 1 or more, and 0 or more")
    # the largest rate of deferrals at which P(Bin(volume, rate) <= capacity) is `days`
    return 1 - float(fnr_upper_bound(min(capacity, volume), volume, days))


def deferrals(volume: int, coverage: float, days: float = GOOD_DAYS) -> tuple[float, int]:
    """Deferrals a day: the mean, and what is not exceeded on that share of days."""
    return volume * (1 - coverage), int(binom.ppf(days, volume, 1 - coverage))


@dataclass(frozen=True, slots=True)
class Capacity:
    """Whether a certified coverage fits a capacity. over: cases a day above it, on a day that .99 of them do not
    exceed; 0 where it fits."""

    certified: float
    floor: float
    over: int

    @property
    def fits(self) -> bool:
        return self.certified >= self.floor


def against_capacity(volume: int, capacity: int, certified: float) -> Capacity:
    """A certified coverage against what stage 2 can take. The threshold is never lowered to make it fit."""
    floor = coverage_floor(volume, capacity)
    over = max(0, deferrals(volume, certified)[1] - capacity)
    return Capacity(certified, floor, over)


def smallest_target(misses: int, exited_positives: int, delta: float) -> float:
    """The smallest target that these counts of val_calib could certify, at the coverage of the floor.

    Only advice: it was chosen after the look, so it needs new calibration data.
    """
    return float(fnr_upper_bound(misses, exited_positives, delta))
