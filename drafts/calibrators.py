"""One monotone calibrator per answer, on a scale that both answers share: the softmax score's.

P(right) under the natural prevalence is not such a scale: at prevalence .10 it lets no predicted
positive exit and nothing is certified (checked). What keeps FPR is to give each answer the
distribution of the class-weighted softmax score of the same answer on val_select.
"""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.exits import count_exits
from stage1_pro.core.policies.certify import predicted_p, threshold_candidates

TILTS = np.arange(0, 0.6, 0.05)  # in units of |z|
KNOTS = 257
SLACK = 0.002  # predicted coverage within which the smaller tilt is taken


@dataclass(frozen=True, slots=True, eq=False)
class Knots:
    """A monotone map by linear interpolation, clipped at both ends. x increasing, y not decreasing: (K,)."""

    x: FloatArray
    y: FloatArray

    def __call__(self, scores: FloatArray) -> FloatArray:
        return np.interp(scores, self.x, self.y)


@dataclass(frozen=True, slots=True)
class Platt:
    """q = sigmoid(a g + b)."""

    a: float
    b: float

    def __call__(self, scores: FloatArray) -> FloatArray:
        return _sigmoid(self.a * scores + self.b)


def fit_quantile_map(gate: FloatArray, reference: FloatArray) -> Knots:
    """The monotone map that gives `gate` the quantiles of `reference`; both (N,) of one answer on val_select."""
    if not gate.size:
        return Knots(np.array([0.0]), np.array([0.0]))
    levels = np.linspace(0, 1, min(KNOTS, gate.size))
    x, first = np.unique(np.quantile(gate, levels), return_index=True)
    return Knots(x, np.quantile(reference, levels)[first])


def fit_platt(gate: FloatArray, right: IntArray, weights: FloatArray) -> Platt:
    """Platt's smoothed targets as soft labels: every case once as a success, once as a failure.

    gate: (N,) of one answer; right: (N,) 1 where the answer is right; weights: (N,) class weights
    total / (2 count_c). a <= 0 means that the gate is anti-informative: the caller says so.
    """
    from sklearn.linear_model import LogisticRegression

    successes, failures = right.sum(), (1 - right).sum()
    target = np.where(right == 1, (successes + 1) / (successes + 2), 1 / (failures + 2))
    scores = np.concatenate([gate, gate])[:, None]
    events = np.concatenate([np.ones(len(gate)), np.zeros(len(gate))])
    model = LogisticRegression(C=np.inf, max_iter=1000)
    model.fit(scores, events, np.concatenate([weights * target, weights * (1 - target)]))
    return Platt(float(model.coef_[0, 0]), float(model.intercept_[0]))


def fit_isotonic(gate: FloatArray, right: IntArray, weights: FloatArray) -> Knots:
    """Pool-adjacent-violators to the event "the answer is right", class-weighted."""
    from sklearn.isotonic import IsotonicRegression

    fit = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(gate, right, weights)
    return Knots(fit.X_thresholds_, fit.y_thresholds_)


def guarded_tilt(
    scores: FloatArray, reference: FloatArray, answers: IntArray, labels: IntArray, calib_positives: int, target_fnr: float, delta: float
) -> float:
    """How far predicted positives are pushed back so that the gate buys no coverage with false alarms.

    All (N,) of val_select, scores and reference on the scale of |z|; of val_calib only its number of
    positives. Of the tilts at which the gate's predicted FPR on exits is no worse than the
    reference's at its own predicted end, the smallest within SLACK of the largest predicted coverage.
    """
    _, allowed = predicted_end(reference, answers, labels, calib_positives, target_fnr, delta)
    ends = [predicted_end(scores - tilt * answers, answers, labels, calib_positives, target_fnr, delta) for tilt in TILTS]
    kept = [(tilt, coverage) for tilt, (coverage, fpr) in zip(TILTS, ends, strict=True) if coverage > 0 and fpr <= allowed + 1e-12]
    if not kept:
        return 0.0
    best = max(coverage for _, coverage in kept)
    return float(min(tilt for tilt, coverage in kept if coverage >= best - SLACK))


def predicted_end(
    scores: FloatArray, answers: IntArray, labels: IntArray, calib_positives: int, target_fnr: float, delta: float
) -> tuple[float, float]:
    """(coverage, FPR on exits) where the walk would end if val_calib's rates were val_select's; coverage 0 if nowhere."""
    counts = count_exits(scores, answers, labels, threshold_candidates(scores))
    p = predicted_p(counts, calib_positives, target_fnr)
    start = int(np.argmin(p))
    passed = np.logical_and.accumulate(p[start:] <= delta)
    end = start + max(0, int(passed.sum()) - 1)
    return (float(counts.coverage[end]) if passed[0] else 0.0), float(np.nan_to_num(counts.fpr[end]))


def _sigmoid(x: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(0.5 * x))
