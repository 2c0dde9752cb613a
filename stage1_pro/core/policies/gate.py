"""The gate policy: exit where the calibrated gate, "this answer is right", reaches a certified threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.policies.base import ExitDecisions, Outputs
from stage1_pro.core.policies.calibration import Calibration, Ranked, calibrate_threshold, demand_binary
from stage1_pro.core.policies.calibrators import STORED_AS, calibrated, demand_sound, fit_calibrator
from stage1_pro.core.policies.certify import predicted_coverage, threshold_candidates
from stage1_pro.core.policies.softmax import (
    SATURATED_SHARE,
    answers,
    calibrate_softmax,
    saturation_warnings,
    softmax_scores,
)
from stage1_pro.core.run import Risk
from stage1_pro.core.scores import Scores


@dataclass(frozen=True, slots=True)
class GateExitPolicy:
    """Exit iff the calibrated gate >= gate_threshold, in float64. NaN never exits; the answer stays argmax."""

    gate_threshold: float
    calibrator_params: dict[str, Any]

    @classmethod
    def from_artifact(cls, data: dict[str, Any]) -> "GateExitPolicy":
        params = data["calibrator_params"]
        if params["type"] != data["calibrator_type"]:
            raise UserError(
                f"gateparams.json: $.calibrator_type is {data['calibrator_type']!r} and $.calibrator_params.type "
                f"{params['type']!r}: the file has been altered. Run 33_calibrate_gate.py again for this run."
            )
        demand_sound(params, "gateparams.json")
        return cls(data["gate_threshold"], params)

    def decide(self, outputs: Outputs) -> ExitDecisions:
        scores = gate_scores(self.calibrator_params, outputs)
        return ExitDecisions(scores >= self.gate_threshold, answers(outputs.logits), scores)


@dataclass(frozen=True, slots=True, eq=False)
class GateCalibration:
    """calibration: the walk over thresholds of the calibrated gate; baseline: softmax on the same cases, for
    comparison; notes: what val_select says of the two."""

    calibration: Calibration
    baseline: Calibration
    kind: str
    params: dict[str, Any]
    notes: list[str]

    def fields(self) -> dict[str, Any]:
        """The gate's part of gateparams.json. Demands a certified threshold."""
        record = self.calibration.record()
        diagnostics = {**record["diagnostics"], "baselines": {"softmax": self._softmax()}, "notes": self.notes}
        return {
            **record,
            "diagnostics": diagnostics,
            "gate_threshold": self.calibration.parameters[self.calibration.demand_certified()]["threshold"],
            "calibrator_type": STORED_AS[self.kind],
            "calibrator_params": self.params,
        }

    def _softmax(self) -> dict[str, Any]:
        try:
            row = self.baseline.row(self.baseline.demand_certified())
        except NothingCertified:
            return {"certified": False, "note": "nothing could be certified with the softmax policy"}
        unused = ("p_value", "fpr_on_exits", "accuracy_on_exits")
        kept = {name: value for name, value in row.items() if name not in unused}
        return {**kept, "note": "the softmax policy on the same scores, for comparison only"}


def calibrate_gate(select: Scores, calib: Scores, risk: Risk, kind: str = "platt") -> GateCalibration:
    """Fit the calibrator and the candidates on `select`, certify a threshold on `calib`.

    kind: platt, isotonic or quantile. Raises UserError for scores without a gate, or with a gate that
    ranks wrong answers first.
    """
    for split in (select, calib):
        demand_binary(split)
        _demand_gate(split)
    answered = answers(select.logits)
    fitted = fit_calibrator(
        kind,
        np.asarray(select.gate_logit, np.float64),
        answered,
        answered == select.labels,
        softmax_scores(select.logits),
    )
    chosen_on, certified_on = (
        Ranked.of(split, gate_scores(fitted.params, split), answers(split.logits)) for split in (select, calib)
    )
    warnings = [*fitted.warnings, *_tie_warnings(kind, chosen_on.scores)]
    thresholds = threshold_candidates(chosen_on.scores)
    calibration = calibrate_threshold(chosen_on, certified_on, thresholds, risk, warnings)
    baseline = calibrate_softmax(select, calib, risk)
    softmax_on = Ranked.of(select, softmax_scores(select.logits), answered)
    gain = _predicted(chosen_on, calibration) - _predicted(softmax_on, baseline)
    return GateCalibration(calibration, baseline, kind, fitted.params, [_advice(gain)])


def gate_scores(params: dict[str, Any], outputs: Outputs) -> FloatArray:
    """(N,) float64 calibrated gate; NaN where a logit or the gate logit is not finite."""
    if outputs.gate_logit is None:
        raise UserError(NO_GATE)
    scores = calibrated(params, outputs.gate_logit, answers(outputs.logits))
    return np.where(np.isfinite(outputs.logits).all(axis=1), scores, np.nan)


NO_GATE = (
    "this model has a single head and no gate, so a gate policy cannot be calibrated or applied. "
    "Train a run with --phase 3, or use exit_policy: softmax."
)


def _demand_gate(split: Scores) -> None:
    if split.gate_logit is None:
        raise UserError(f"scores of {split.split} hold no gate_logit: {NO_GATE}")


def _tie_warnings(kind: str, scores: FloatArray) -> list[str]:
    """Platt ties where probabilities saturate, isotonic by its nature: a flat piece exits whole or not at all."""
    if kind != "isotonic":
        return saturation_warnings(scores)
    share = float(np.mean(scores == np.nanmax(scores))) if np.isfinite(scores).any() else 0.0
    if share <= SATURATED_SHARE:
        return []
    return [
        f"{share:.0%} of the val_select scores tie at the top of the isotonic map, and no threshold can tell those "
        "cases apart: calibrate with --calibrator platt or quantile"
    ]


def _predicted(select: Ranked, calibration: Calibration) -> float:
    """Coverage at which the walk would end if val_calib were like val_select."""
    thresholds = np.array([row["threshold"] for row in calibration.parameters])
    positives = calibration.walk.calib.positives
    counts = select.counts(thresholds)
    return predicted_coverage(counts, positives, calibration.risk.target_fnr, calibration.risk.delta)


def _advice(gain: float) -> str:
    if gain > 0:
        return f"val_select predicts {gain:+.1%} coverage over the softmax policy."
    return (
        f"val_select predicts no gain over the softmax policy ({gain:+.1%} coverage): a run with exit_policy: softmax "
        "is the better choice here."
    )
