"""Where answers stand: the shift of the log-odds that one-sided exits are predicted to be worth most with.

With one-sided exits every answer 1 exits, and an answer 0 exits iff its probability reaches one threshold; what
defers lies between "surely negative" and u, the log-odds from which a case is answered 1. FNR on exits and its
p-value then grow with coverage, so the last threshold with p <= delta is certified at the full delta. How much that is
depends on u: a low u buys the evidence that a certificate needs with false alarms. So u is placed on val_select, where
coverage less the price of false alarms and misses is largest at the predicted certificate, and b = −u becomes part of
the class head's bias.

The prediction redraws val_calib: 60 times Dirichlet weights over val_select's independent positives, then a
multinomial draw of as many as val_calib holds. One pseudo-positive below the lowest stands for what a larger sample
would bring; without it the prediction is optimistic by .1 to .3 of utility.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import expit

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.binomial import minimum_positives, p_value
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.seeds import rng_of

QUANTILES = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.3, 0.4, 0.5)
RESAMPLES = 60
FEW_POSITIVES = 30


@dataclass(frozen=True, slots=True)
class Prices:
    """The cost of a wrong exit, in deferrals. false_alarm: of an exited negative answered 1; at 1 everything would
    exit. miss: of an exited positive answered 0, which the constraint holds down already."""

    false_alarm: float = 5.0
    miss: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Cases that get a certificate of their own, such as those of a camera. members: (N,) bool, of val_select;
    calib_positives: how many positives val_calib counts there."""

    members: BoolArray
    calib_positives: int


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """The chosen shift, and what each candidate is predicted to be worth at the certified end on val_select.

    shifts: (K,) b to add to z; utility, coverage, false_alarms, misses: (K,) means over the redrawn calibration
    sets, per case of val_select, 0 where a set certifies nothing; certified: (K,) share of the sets that certify.
    chosen: index of the candidate to use; positives: independent ones of val_select.
    """

    shifts: FloatArray
    utility: FloatArray
    coverage: FloatArray
    false_alarms: FloatArray
    misses: FloatArray
    certified: FloatArray
    chosen: int
    positives: int

    @property
    def shift(self) -> float:
        """b of the chosen candidate; 0 leaves the answers as they were trained."""
        return float(self.shifts[self.chosen])

    def predicted(self) -> dict[str, float]:
        """Figures of the chosen candidate by name."""
        coverage, alarms, misses = (
            float(values[self.chosen]) for values in (self.coverage, self.false_alarms, self.misses)
        )
        return {
            "utility": float(self.utility[self.chosen]),
            "coverage": coverage,
            "right_exits": coverage - alarms - misses,
            "false_alarms": alarms,
            "misses": misses,
            "certified": float(self.certified[self.chosen]),
        }

    def warnings(self) -> list[str]:
        """Sentences for the user about a placement that should not be trusted."""
        found = []
        if self.positives < FEW_POSITIVES:
            found.append(
                f"val_select holds {self.positives} independent positives, fewer than {FEW_POSITIVES}: where answers "
                "are placed rests on too few of them. Give val_select more positives (val_select_ratio)."
            )
        if not self.certified.any():
            found.append(
                "no placement of the answers is predicted to be certified with the positives that val_calib holds: the "
                "answers stay as they were trained."
            )
        elif self.utility[self.chosen] <= 0:
            found.append(
                "at the stated prices no placement of the answers is predicted to be worth more than deferring every "
                "case."
            )
        return found


def place_answers(
    z: FloatArray,
    labels: IntArray,
    independent: BoolArray,
    calib_positives: int,
    risk: Risk,
    prices: Prices,
    seed: int,
    parts: Sequence[Part] | None = None,
) -> Placement:
    """Choose b on val_select for a certificate of this risk.

    z: (N,) log-odds of the positive class, of all cases; labels: (N,); independent: (N,) bool, the cases that count as
    evidence; calib_positives: how many positives val_calib counts. Largest mean utility wins among the candidates
    that are certified in any redrawn set; ties go to fewer misses, then to the larger u. parts: groups that have a
    certificate each, at an equal part of delta; then calib_positives is not used. Raises UserError without positives.

        placement = place_answers(z, labels, np.ones(len(z), bool), 300, Risk(0.05, 0.95), Prices(), seed=42)
        z + placement.shift >= 0  # answers 1
    """
    finite = np.isfinite(z)
    positives = np.sort(z[finite & independent & (labels == 1)])
    if not positives.size:
        raise UserError(
            "val_select holds no positives with a finite score, so answers cannot be placed. Begin a new run with "
            "other splits, or set answer_placement: none."
        )
    cuts = np.array([0.0, *candidate_cuts(np.sort(z[finite]), positives)])
    whole = [Part(np.ones(len(z), dtype=bool), calib_positives)]
    tested, each = _sharing(whole if parts is None else parts, risk)
    figures = np.zeros((len(cuts), 4))
    for part in tested:
        own = part.members
        found = _in_part(z[own], labels[own], independent[own], part.calib_positives, each, seed, cuts)
        figures += own.mean() * found
    coverage, alarms, misses, certified = figures.T
    utility = coverage - prices.false_alarm * alarms - prices.miss * misses
    chosen = _best(utility, misses, cuts, certified)
    return Placement(-cuts, utility, coverage, alarms, misses, certified, chosen, len(positives))


def _sharing(parts: Sequence[Part], risk: Risk) -> tuple[list[Part], Risk]:
    """The parts that hold enough positives for an equal part of delta, as many as can be, and that risk of each.

    >>> few, many = (Part(np.ones(9, dtype=bool), count) for count in (3, 400))
    >>> tested, each = _sharing([few, many], Risk(0.05, 0.9))
    >>> len(tested), round(each.delta, 3)
    (1, 0.1)
    """
    ordered = sorted(parts, key=lambda part: -part.calib_positives)
    for count in range(len(ordered), 1, -1):
        each = Risk(risk.target_fnr, 1 - risk.delta / count)
        if ordered[count - 1].calib_positives >= minimum_positives(each.target_fnr, each.delta):
            return ordered[:count], each
    return ordered[:1], risk


def _in_part(
    z: FloatArray,
    labels: IntArray,
    independent: BoolArray,
    calib_positives: int,
    risk: Risk,
    seed: int,
    cuts: FloatArray,
) -> FloatArray:
    """(K, 4) mean coverage, false alarms, misses and share certified at each cut, per case of these."""
    finite = np.isfinite(z)
    cases, positives = _Cases.of(z[finite], labels[finite], len(z)), np.sort(z[finite & independent & (labels == 1)])
    if not positives.size:
        return np.zeros((len(cuts), 4))
    drawn = resampled(len(positives), calib_positives, seed)
    everyone = with_pseudo_positive(positives)
    below = np.searchsorted(everyone, cuts, side="left")
    missed = np.cumsum(drawn, axis=1)  # by thresholds that let more and more answers 0 exit
    answered_0, found = np.unique(np.where(below, missed[:, below - 1], 0).T, return_inverse=True)
    allowed = allowed_misses(calib_positives - answered_0, answered_0, risk)[found].reshape(len(cuts), -1)
    figures = [
        _figures(cases, cut, everyone[:end], missed[:, :end], most)
        for cut, end, most in zip(cuts, below, allowed, strict=True)
    ]
    return np.array(figures)


def one_sided_scores(confidence: FloatArray, answers: IntArray) -> FloatArray:
    """(N,) scores under which every answer 1 exits at any threshold, and an answer 0 by its confidence.

    confidence: (N,) max softmax; one that is not finite stays so, and never exits.
    """
    return np.where((answers == 1) & np.isfinite(confidence), 1.0, confidence)


@lru_cache(maxsize=2)
def resampled(positives: int, size: int, seed: int) -> IntArray:
    """(60, positives + 1) how often each positive is drawn into a calibration set of this size, read-only; the first
    column is that of the pseudo-positive."""
    rng = rng_of(seed, "placement")
    drawn = rng.multinomial(size, rng.dirichlet(np.ones(positives + 1), RESAMPLES))
    drawn.flags.writeable = False
    return drawn


def with_pseudo_positive(positives: FloatArray) -> FloatArray:
    """(P + 1,) sorted log-odds, one below the lowest in front: as far below it as the third is above."""
    lowest = positives[0]
    return np.concatenate([[lowest - (positives[min(2, len(positives) - 1)] - lowest)], positives])


def candidate_cuts(z: FloatArray, positives: FloatArray, quantiles: Sequence[float] = QUANTILES) -> FloatArray:
    """(K,) u near quantiles of the positives' log-odds, midway between two cases.

    z: (N,) sorted, of all cases; positives: (P,) sorted. On a case's own log-odds rounding would decide its answer.
    """
    wanted = np.quantile(positives, quantiles)
    above = np.searchsorted(z, wanted, side="left")
    upper, lower = z[above], z[np.maximum(above - 1, 0)]
    return lower + (upper - lower) / 2


def allowed_misses(hits: IntArray, most: IntArray, risk: Risk) -> IntArray:
    """(...,) the most misses k that certify beside these exited positives answered 1; −1 where even none does not.

    p(k) = P(Bin(hits + k, target) <= k) grows with k, so bisection finds the last k <= most with p <= delta.
    """
    low, high = np.full(hits.shape, -1), most + 1
    while (open_ := high - low > 1).any():
        middle = np.where(open_, (low + high) // 2, np.maximum(low, 0))
        passes = p_value(middle, hits + middle, risk.target_fnr) <= risk.delta
        low, high = np.where(open_ & passes, middle, low), np.where(open_ & ~passes, middle, high)
    return low


@dataclass(frozen=True, slots=True, eq=False)
class _Cases:
    """The finite cases of val_select. z: (N,) sorted; alarms: (N + 1,) negatives among the first i; total: all
    cases, those without a finite score included."""

    z: FloatArray
    negatives: IntArray
    total: int

    @classmethod
    def of(cls, z: FloatArray, labels: IntArray, total: int) -> "_Cases":
        order = np.argsort(z, kind="stable")
        negatives = np.concatenate([[0], np.cumsum(labels[order] != 1)])
        return cls(np.asarray(z, dtype=np.float64)[order], negatives, total)


def _figures(
    cases: _Cases, cut: float, positives: FloatArray, missed: IntArray, allowed: IntArray
) -> tuple[float, float, float, float]:
    """Mean coverage, false alarms, misses (per case) and share certified, over the redrawn sets.

    positives: (P,) sorted log-odds below the cut; missed: (R, P) misses once that many positives exit; allowed: (R,).
    """
    blocking = np.sum(missed <= allowed[:, None], axis=1)  # the first positive that must not exit
    start = np.searchsorted(cases.z, cut, side="left")  # cases before it are answered 0
    exited = _exited(expit(cut - cases.z[:start]), expit(cut - positives), blocking)
    certified = (allowed >= 0) & (exited >= 0)
    negatives = cases.negatives
    answered_1 = len(cases.z) - start
    coverage = certified * (exited + answered_1) / cases.total
    alarms = certified * (negatives[-1] - negatives[start]) / cases.total
    misses = certified * (exited - negatives[exited]) / cases.total
    return float(coverage.mean()), float(alarms.mean()), float(misses.mean()), float(certified.mean())


def _exited(confidence: FloatArray, of_positives: FloatArray, blocking: IntArray) -> IntArray:
    """(R,) answers 0 that exit at the loosest threshold that keeps the blocking positive in; −1 where none does.

    confidence: (A,) of the answers 0, high to low; of_positives: (P,) of the positives among them; blocking: (R,) an
    index into those, P where none blocks. Thresholds stand midway between two scores, the answers 1 scoring 1.
    """
    between = (np.append(1.0, confidence[:-1]) + confidence) / 2 if confidence.size else confidence
    thresholds = np.append(between, 0.5)
    return np.searchsorted(-thresholds, -np.append(of_positives, -np.inf)[blocking], side="left") - 1


def _best(utility: FloatArray, misses: FloatArray, cuts: FloatArray, certified: FloatArray) -> int:
    """Index of the candidate to use: the first, which leaves the answers alone, where none is ever certified."""
    if not certified.any():
        return 0
    order = np.lexsort([-cuts, misses.round(12), -utility.round(12), certified == 0])
    return int(order[0])
