"""Populations with a closed-form truth: what a certificate claims can be checked exactly.

z | y=1 ~ (1-h) N(mean, 1) + h N(hard_mean, 1),  z | y=0 ~ N(-mean, 1),  P(y=1) = positive_share.
The logits of a case are (0, z + shift), so with u = z + shift its softmax score is sigma(|u|), and it exits at t iff
|u| >= t, or with one-sided exits iff u >= 0 or u <= -t.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, stdtr

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.records.scores import Scores


@dataclass(frozen=True)
class Population:
    """step: z is rounded to multiples of it, so that scores tie; 0 leaves it continuous. freedom: degrees of it, of
    Student's t in place of the normal; 0 leaves it normal."""

    positive_share: float = 0.3
    mean: float = 1.6
    hard_share: float = 0.08
    hard_mean: float = -0.8
    step: float = 0.0
    freedom: float = 0.0

    def draw(self, rng: np.random.Generator, *shape: int) -> tuple[FloatArray, IntArray]:
        """z and labels of fresh cases, each of `shape`."""
        labels = rng.random(shape) < self.positive_share
        return self.logits(rng, labels), labels.astype(np.int64)

    def stratified(self, rng: np.random.Generator, *shape: int) -> tuple[FloatArray, IntArray]:
        """The same with a fixed number of positives, as splits are made: certificates hold given that number."""
        labels = np.broadcast_to(np.arange(shape[-1]) < round(self.positive_share * shape[-1]), shape)
        return self.logits(rng, labels), labels.astype(np.int64)

    def logits(self, rng: np.random.Generator, labels: np.ndarray) -> FloatArray:
        """z of fresh cases with these labels."""
        hard = rng.random(labels.shape) < self.hard_share
        centre = np.where(labels, np.where(hard, self.hard_mean, self.mean), -self.mean)
        noise = rng.standard_t(self.freedom, labels.shape) if self.freedom else rng.standard_normal(labels.shape)
        return self.rounded(centre + noise)

    def rounded(self, z: FloatArray) -> FloatArray:
        return np.round(z / self.step) * self.step if self.step else z

    def fnr(self, threshold: float, rule: str = "symmetric", shift: float = 0.0) -> float:
        """True FNR on exits where answers 0 exit from |z + shift| >= threshold >= 0 on, answers 1 as the rule says."""
        low, high = self._cuts(threshold, rule, shift)
        missed, found = self.positives_below(low), self.positives_above(high)
        return float(missed / (missed + found))

    def coverage(self, threshold: float, rule: str = "symmetric", shift: float = 0.0) -> float:
        """True share of cases that exit."""
        low, high = self._cuts(threshold, rule, shift)
        positives = self.positives_below(low) + self.positives_above(high)
        negatives = self._cdf(low + self.mean) + self._cdf(-high - self.mean)
        return float(self.positive_share * positives + (1 - self.positive_share) * negatives)

    def oracle_coverage(self, target_fnr: float) -> float:
        """Largest coverage whose true FNR on exits meets the target (continuous, falling FNR only)."""
        return self.coverage(brentq(lambda t: self.fnr(t) - target_fnr, 0, 10))

    def utility(self, threshold: float, rule: str, shift: float, price: float = 5.0) -> float:
        """True coverage less the price of each false alarm, a case."""
        _, high = self._cuts(threshold, rule, shift)
        alarms = (1 - self.positive_share) * self._cdf(-high - self.mean)
        return self.coverage(threshold, rule, shift) - price * float(alarms)

    def _cuts(self, threshold: float, rule: str, shift: float) -> tuple[float, float]:
        """(low, high): z < low exits with answer 0, z >= high with answer 1, in terms of unrounded z."""
        low, answer = -threshold - shift, -shift
        high = answer if rule == "one_sided" else threshold - shift
        if not self.step:
            return min(low, answer), high
        # z is float32: a tie at the threshold exits
        below = (np.floor(low / self.step + 1e-3) + 0.5) * self.step
        answer, high = ((np.ceil(cut / self.step - 1e-3) - 0.5) * self.step for cut in (answer, high))
        return min(below, answer), high

    def _cdf(self, z: float) -> FloatArray:
        return stdtr(self.freedom, z) if self.freedom else ndtr(z)

    def positives_below(self, z: float) -> FloatArray:
        """Share of the positives below z, before rounding."""
        return (1 - self.hard_share) * self._cdf(z - self.mean) + self.hard_share * self._cdf(z - self.hard_mean)

    def positives_above(self, z: float) -> FloatArray:
        return (1 - self.hard_share) * self._cdf(self.mean - z) + self.hard_share * self._cdf(self.hard_mean - z)


MAIN = Population()
TIED = Population(step=0.24)
"""About a tenth of its thresholds; one of them misses a target of .05 by a hair (FNR .0508)."""
RARE = Population(positive_share=0.02)
EVEN = Population(positive_share=0.5)
NULL = Population(hard_share=0.05, hard_mean=-1.6)
"""FNR on exits of either answer falls toward .05 and never reaches it: any symmetric certificate of .05 is false."""
FLAT = Population(mean=3.0, hard_share=0.0501, hard_mean=-3.0)
"""FNR on exits of either answer is .0501 at every threshold, above a target of .05 by a hair."""
HEAVY = Population(freedom=2.0)
"""Tails so heavy that FNR on exits rises again at large thresholds."""
LEVELS = Population(step=0.5)
"""About ten levels of the score."""
SURE = Population(mean=3.0, hard_share=0.01)
"""FNR is .9 % where everything exits."""


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
