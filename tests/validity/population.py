"""Populations with a closed-form truth: what a certificate claims can be checked exactly.

z | y=1 ~ (1-h) N(mean, 1) + h N(hard_mean, 1),  z | y=0 ~ N(-mean, 1),  P(y=1) = positive_share.
The logits of a case are (0, z), so its softmax score is sigma(|z|) and it exits at t iff |z| >= t.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.records.scores import Scores


@dataclass(frozen=True)
class Population:
    """step: z is rounded to multiples of it, so that scores tie; 0 leaves it continuous."""

    positive_share: float = 0.3
    mean: float = 1.6
    hard_share: float = 0.08
    hard_mean: float = -0.8
    step: float = 0.0

    def draw(self, rng: np.random.Generator, *shape: int) -> tuple[FloatArray, IntArray]:
        """z and labels of fresh cases, each of `shape`."""
        labels = rng.random(shape) < self.positive_share
        return self.logits(rng, labels), labels.astype(np.int64)

    def logits(self, rng: np.random.Generator, labels: np.ndarray) -> FloatArray:
        """z of fresh cases with these labels."""
        hard = rng.random(labels.shape) < self.hard_share
        centre = np.where(labels, np.where(hard, self.hard_mean, self.mean), -self.mean)
        return self.rounded(centre + rng.standard_normal(labels.shape))

    def rounded(self, z: FloatArray) -> FloatArray:
        return np.round(z / self.step) * self.step if self.step else z

    def fnr(self, threshold: float) -> float:
        """True FNR on exits of the rule |z| >= threshold >= 0."""
        low, high = self._cuts(threshold)
        missed, found = self._positives_below(low), self._positives_above(high)
        return float(missed / (missed + found))

    def coverage(self, threshold: float) -> float:
        """True share of cases that exit."""
        low, high = self._cuts(threshold)
        positives = self._positives_below(low) + self._positives_above(high)
        negatives = ndtr(low + self.mean) + ndtr(-high - self.mean)
        return float(self.positive_share * positives + (1 - self.positive_share) * negatives)

    def oracle_coverage(self, target_fnr: float) -> float:
        """Largest coverage whose true FNR on exits meets the target (continuous, falling FNR only)."""
        return self.coverage(brentq(lambda t: self.fnr(t) - target_fnr, 0, 10))

    def _cuts(self, threshold: float) -> tuple[float, float]:
        """(low, high): z < low exits with answer 0, z >= high with answer 1, in terms of unrounded z."""
        if not self.step:
            return -threshold, threshold
        steps = np.ceil(threshold / self.step - 1e-3)  # z is float32: a tie at the threshold exits
        return -(max(steps, 1) - 0.5) * self.step, (steps - 0.5) * self.step

    def _positives_below(self, z: float) -> FloatArray:
        return (1 - self.hard_share) * ndtr(z - self.mean) + self.hard_share * ndtr(z - self.hard_mean)

    def _positives_above(self, z: float) -> FloatArray:
        return (1 - self.hard_share) * ndtr(self.mean - z) + self.hard_share * ndtr(self.hard_mean - z)


MAIN = Population()
TIED = Population(step=0.24)
"""About a tenth of its thresholds; one of them misses a target of .05 by a hair (FNR .0508)."""
RARE = Population(positive_share=0.02)
EVEN = Population(positive_share=0.5)
NULL = Population(hard_share=0.05, hard_mean=-1.6)
"""FNR on exits falls toward .05 and never reaches it: any certificate of .05 is false."""


def scores(z: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> Scores:
    """z, labels: (n,) as a score file holds them; without groups every case is its own."""
    names = case_names(len(z))
    logits = np.zeros((len(z), 2), dtype=np.float32)
    logits[:, 1] = z
    return Scores("val_calib", names, names if groups is None else groups, labels.astype(np.int8), logits, None, "", "")


@cache
def case_names(count: int) -> np.ndarray:
    return np.char.mod("%07d", np.arange(count)).astype(object)


def z_threshold(probability: float) -> float:
    """The |z| at which the softmax score reaches a probability."""
    return float(np.log(probability / (1 - probability)))
