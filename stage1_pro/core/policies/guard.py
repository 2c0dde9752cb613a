"""The FPR guard: what keeps a gate from buying coverage with false alarms.

A quantile map gives each answer softmax's share of exits at any threshold, but the gate's walk ends at another
threshold than softmax's, and where it lets more predicted positives exit FPR on exits grows, which no constraint
sees. The guard moves predicted positives back against predicted negatives, as far as val_select asks for.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit, logit

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.policies.calibration import Ranked
from stage1_pro.core.policies.calibrators import FittedCalibrator, calibrated
from stage1_pro.core.policies.certify import predicted_end, threshold_candidates
from stage1_pro.core.run import Risk

TILTS = tuple(step / 20 for step in range(12))
SLACK = 0.002  # of predicted coverage, within which the smaller tilt is taken
RAISED = "answer_1"


def guarded(
    fitted: FittedCalibrator, gate: FloatArray, answers: IntArray, softmax: Ranked, positives: int, risk: Risk
) -> FittedCalibrator:
    """The same map with predicted positives moved back by a tilt, which may be 0.

    gate, answers: (N,) of val_select; softmax: val_select as the softmax policy ranks it; positives: the number of
    independent positives of val_calib, the only thing read of it. Among the tilts at which FPR on exits, at the
    predicted end of the walk, is no worse than softmax's at its own, the smallest within SLACK of the most
    predicted coverage.
    """
    _, allowed = _end(softmax, positives, risk)
    scores = np.where(np.isfinite(softmax.scores), calibrated(fitted.params, gate, answers), np.nan)
    moved = np.flatnonzero((answers == 1) & np.isfinite(scores))
    kept = {}
    for tilt in TILTS:
        scores[moved] = calibrated(tilted(fitted.params, tilt), gate[moved], answers[moved])
        coverage, fpr = _end(replace(softmax, scores=scores, answers=answers), positives, risk)
        if coverage > 0 and fpr <= allowed + 1e-12:
            kept[tilt] = coverage
    if not kept:
        return fitted
    chosen = min(tilt for tilt, coverage in kept.items() if coverage >= max(kept.values()) - SLACK)
    return replace(fitted, params=tilted(fitted.params, chosen), tilt=chosen)


def tilted(params: dict[str, Any], tilt: float) -> dict[str, Any]:
    """Knots with σ(logit(y) − tilt) for predicted positives; they still rise, so the file stays isotonic."""
    if not tilt:
        return params
    y = expit(logit(np.array(params[RAISED]["y"])) - tilt)
    return {**params, RAISED: {**params[RAISED], "y": np.maximum.accumulate(y).tolist()}}


def _end(ranked: Ranked, positives: int, risk: Risk) -> tuple[float, float]:
    """(coverage, FPR on exits) at the predicted end of the walk; coverage 0 where nothing would be certified."""
    thresholds = threshold_candidates(ranked.scores)
    if not thresholds.size:
        return 0.0, 0.0
    counts = ranked.counts(thresholds)
    end, certified = predicted_end(counts, positives, risk.target_fnr, risk.delta)
    return (float(counts.coverage[end]) if certified else 0.0), float(np.nan_to_num(counts.fpr[end]))
