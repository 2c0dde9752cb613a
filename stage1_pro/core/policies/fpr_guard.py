"""The FPR guard: what keeps a gate from buying coverage with false alarms.

A quantile map gives each answer softmax's share of exits at any threshold, but the gate's walk ends at another
threshold than softmax's, and where it lets more predicted positives exit FPR on exits grows, which no constraint
sees. The guard moves predicted positives back against predicted negatives, as far as val_select asks for.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.certification import Ranked, predicted
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.gate_maps import FittedCalibrator, calibrated

TILTS = (*(step / 20 for step in range(12)), 0.7, 0.9, 1.2, 1.6, 2.2, 3.0)
SLACK = 0.002  # of predicted coverage, within which the smaller tilt is taken
RAISED = "answer_1"
RULE = EXIT_RULES["symmetric"]
"""The only rule with a guard: with one-sided exits every answer 1 exits, and a gate has no say in false alarms."""


def guarded(
    fitted: FittedCalibrator, gate: FloatArray, answers: IntArray, softmax: Ranked, positives: int, risk: Risk
) -> FittedCalibrator:
    """The same map with predicted positives moved back by a tilt, which may be 0.

    gate, answers: (N,) of val_select; softmax: val_select as the softmax policy ranks it; positives: the number of
    independent positives of val_calib, the only thing read of it. Among the tilts at which FPR on exits, at the
    predicted end of the walk, is no worse than softmax's, the smallest within SLACK of the most predicted coverage;
    where there is none, the one with the least FPR, and a warning.
    """
    scores = np.where(np.isfinite(softmax.scores), calibrated(fitted.params, gate, answers), np.nan)
    moved = np.flatnonzero((answers == 1) & np.isfinite(scores))
    allowance = Allowance.of(softmax, positives, risk)
    ends: list[tuple[float, float, float]] = []
    for tilt in TILTS:
        scores[moved] = calibrated(tilted(fitted.params, tilt), gate[moved], answers[moved])
        ranked = replace(softmax, scores=scores, answers=answers)
        end = predicted(ranked, thresholds_between(scores, 0.0), positives, risk, RULE)
        if end.coverage:
            ends.append((tilt, end.coverage, end.fpr))
    if not ends:
        return fitted
    kept = [(tilt, coverage) for tilt, coverage, fpr in ends if fpr <= allowance.at(coverage) + 1e-12]
    if kept:
        most = max(coverage for _, coverage in kept)
        chosen = min(tilt for tilt, coverage in kept if coverage >= most - SLACK)
        return replace(fitted, params=tilted(fitted.params, chosen), tilt=chosen)
    chosen, coverage, fpr = min(ends, key=lambda end: end[2])
    warning = (
        f"at its predicted end the gate's FPR on exits is {fpr:.2%} against {allowance.at(coverage):.2%} for softmax, "
        "however far predicted positives are moved back: the extra coverage raises FPR"
    )
    return replace(fitted, params=tilted(fitted.params, chosen), tilt=chosen, warnings=[*fitted.warnings, warning])


@dataclass(frozen=True, slots=True, eq=False)
class Allowance:
    """FPR on exits that softmax is predicted to have: at its own end, or, where it would certify nothing, at as much
    coverage. coverage, fpr: (J,) along its candidates."""

    end: float | None
    coverage: FloatArray
    fpr: FloatArray

    @classmethod
    def of(cls, softmax: Ranked, positives: int, risk: Risk) -> "Allowance":
        candidates = thresholds_between(softmax.scores, 0.5)
        end, counts = predicted(softmax, candidates, positives, risk, RULE), softmax.counts(candidates)
        return cls(end.fpr if end.coverage else None, counts.coverage, np.nan_to_num(counts.fpr))

    def at(self, coverage: float) -> float:
        return float(np.interp(coverage, self.coverage, self.fpr)) if self.end is None else self.end


def tilted(params: dict[str, Any], tilt: float) -> dict[str, Any]:
    """Knots with σ(logit(y) − tilt) for predicted positives; they still rise, so the file stays isotonic."""
    if not tilt:
        return params
    y = expit(logit(np.array(params[RAISED]["y"])) - tilt)
    return {**params, RAISED: {**params[RAISED], "y": np.maximum.accumulate(y).tolist()}}
