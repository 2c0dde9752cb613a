"""What a few seeds can say: means with t intervals, paired differences, and what they amount to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from stage1_pro.core.comparison.contender import HEADLINE, MEASURES, PRICES, known
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.bootstrap import percentile_interval

TOLERANCE = 0.005
"""How much worse FPR and accuracy on exits may be, on average over seeds, for more right exits to count as a gain."""


@dataclass(frozen=True, slots=True)
class SeedMean:
    """A figure's mean over seeds; error: its standard error; low, high: Student's interval with one degree of freedom
    less than seeds. None where undefined: no seed at all, or no second one."""

    value: float | None
    error: float | None
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: ArrayLike, confidence: float) -> "SeedMean":
        """values: (S,), NaN where a seed has none."""
        return cls(*_spread(np.asarray(values, float), confidence))


@dataclass(frozen=True, slots=True)
class PairedDifference(SeedMean):
    """An arm less the reference, paired by seed. low, high: over seeds; case_low, case_high: percentiles over resamples
    of the test cases, of the same mean over seeds."""

    case_low: float | None
    case_high: float | None
    sense: int
    """1 where both intervals hold better values only, -1 worse only, else 0."""

    @classmethod
    def between(
        cls, arm: ArrayLike, first: ArrayLike, replicates: FloatArray, confidence: float, better: int
    ) -> "PairedDifference":
        """arm, first: (S,) of the same seeds, NaN where undefined; replicates: (S, R) differences on the same resamples
        of the cases; better: the sign of an improvement. A seed counts where both are defined."""
        differences = np.asarray(arm, float) - np.asarray(first, float)
        paired = ~np.isnan(differences)
        value, error, low, high, seeds = _spread(differences, confidence)
        case_low, case_high = _case_interval(replicates[paired], confidence)
        sense = better * _common_sign((low, high), (case_low, case_high))
        return cls(value, error, low, high, seeds, case_low, case_high, sense)


def verdict(differences: Mapping[str, PairedDifference], failed: int) -> str:
    """What an arm's differences from the reference amount to, in one word; words for people are the report's.

    failed: runs of either arm that did not end: the seeds that fail may be the ones that do badly.
    """
    gain = differences[HEADLINE]
    if failed:
        return "incomplete"
    if gain.seeds < 2:
        return "one seed"
    if gain.sense <= 0:
        return "less" if gain.sense < 0 else "like"
    prices = [differences[name].value for name in PRICES]
    if None in prices:
        return "price unknown"
    return "at a price" if any(paid(differences, name) for name in PRICES) else "more"


def paid(differences: Mapping[str, PairedDifference], name: str) -> bool:
    """Whether an arm is worse by this measure than a gain in right exits may cost."""
    value = differences[name].value
    return value is not None and -MEASURES[name] * value > TOLERANCE


def false_alarm(comparisons: int, confidence: float) -> float:
    """Largest chance that at least one of so many intervals misses 0 although no arm differs (union bound)."""
    return min(1.0, comparisons * (1 - confidence))


Spread = tuple[float | None, float | None, float | None, float | None, int]
"""The fields of SeedMean."""


def _spread(values: FloatArray, confidence: float) -> Spread:
    values = values[~np.isnan(values)]
    count = len(values)
    if not count:
        return None, None, None, None, 0
    mean = float(values.mean())
    if count < 2:
        return mean, None, None, None, count
    error = float(values.std(ddof=1) / np.sqrt(count))
    reach = error * float(student.ppf((1 + confidence) / 2, count - 1))
    return mean, error, mean - reach, mean + reach, count


def _case_interval(replicates: FloatArray, confidence: float) -> tuple[float | None, float | None]:
    """Percentiles of the mean over seeds. replicates: (S, R)."""
    if not len(replicates):
        return None, None
    low, high = percentile_interval(replicates.mean(axis=0), confidence)
    return known(low), known(high)


def _common_sign(*intervals: tuple[float | None, float | None]) -> int:
    """1 or -1 where all intervals lie on that side of 0, else 0."""
    signs = {0 if low is None or high is None else int(low > 0) - int(high < 0) for low, high in intervals}
    return signs.pop() if len(signs) == 1 else 0
