"""The gate policy: exit where the calibrated gate, "this answer is right", reaches a certified threshold."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.base import ExitDecisions, Outputs
from stage1_pro.core.policies.certification import Calibration, End, Family, Ranked, demand_binary
from stage1_pro.core.policies.exit_rules import EXIT_RULES, ExitRule
from stage1_pro.core.policies.fpr_guard import guarded
from stage1_pro.core.policies.gate_maps import FittedCalibrator, calibrated, demand_matching, fit_calibrator
from stage1_pro.core.policies.group_certificates import certify_family
from stage1_pro.core.policies.independence import counted_positives
from stage1_pro.core.policies.softmax import (
    SATURATED_SHARE,
    answer_probabilities,
    answers,
    calibrate_softmax,
    saturation_warnings,
    softmax_family,
    softmax_ranked,
)
from stage1_pro.core.records.scores import Scores


@dataclass(frozen=True, slots=True)
class GateExitPolicy:
    """Exit iff the score >= gate_threshold, in float64: the calibrated gate, or with one-sided exits 1 for an answer 1.

    NaN never exits; the answer stays argmax. answer_shift: as of SoftmaxExitPolicy.
    """

    gate_threshold: float
    calibrator_params: dict[str, Any]
    exit_rule: str = "symmetric"
    answer_shift: float = 0.0

    @classmethod
    def from_artifact(cls, data: dict[str, Any]) -> "GateExitPolicy":
        demand_matching(data, "gateparams")
        rule, shift = data.get("exit_rule", "symmetric"), data.get("answer_shift", 0.0)
        return cls(data["gate_threshold"], data["calibrator_params"], rule, shift)

    def decide(self, outputs: Outputs, groups: Any = None) -> ExitDecisions:
        answered = answers(outputs.logits)
        scores = EXIT_RULES[self.exit_rule].exit_scores(gate_scores(self.calibrator_params, outputs), answered)
        probabilities = answer_probabilities(outputs.logits, answered, self.answer_shift)
        return ExitDecisions(scores >= self.gate_threshold, answered, scores, probabilities)


@dataclass(frozen=True, slots=True, eq=False)
class GateCalibration:
    """calibration: the walk over thresholds of the calibrated gate; select, calib: scores that it is of; notes: what
    val_select says of it beside the softmax policy."""

    calibration: Calibration
    select: Scores
    calib: Scores
    kind: str
    params: dict[str, Any]
    notes: list[str]

    def fields(self) -> dict[str, Any]:
        """The gate's part of gateparams.json. Demands a certified threshold."""
        record, risk, rule = self.calibration.record(), self.calibration.risk, self.calibration.rule_name
        softmax = calibrate_softmax(self.select, self.calib, risk, rule)
        beside = record["diagnostics"].get("baselines", {})
        diagnostics = {
            **record["diagnostics"],
            "baselines": {**beside, "softmax": baseline_row(softmax, "softmax")},
            "notes": self.notes,
        }
        return {
            **record,
            "diagnostics": diagnostics,
            "gate_threshold": self.calibration.chosen()["threshold"],
            "calibrator_type": self.kind,
            "calibrator_params": self.params,
        }


def baseline_row(calibration: Calibration, name: str) -> dict[str, Any]:
    """What another policy certifies on the same cases, logged without becoming a policy."""
    if not calibration.certified:
        return {"certified": False, "note": f"nothing could be certified with the {name} policy"}
    row = calibration.summary()
    unused = ("p_value", "fpr_on_exits", "accuracy_on_exits")
    kept = {name: value for name, value in row.items() if name not in unused}
    return {**kept, "note": f"the {name} policy on the same scores, for comparison only"}


def calibrate_gate(
    select: Scores,
    calib: Scores,
    risk: Risk,
    kind: str = "quantile",
    exit_rule: str = "symmetric",
    end: End | None = None,
) -> GateCalibration:
    """Fit the calibrator and the candidates on `select`, certify a threshold on `calib`.

    kind: quantile, platt or isotonic; end: the last candidate that may be certified. Raises UserError for scores
    without a gate, or with a gate that ranks wrong answers first.
    """
    for split in (select, calib):
        demand_binary(split)
        demand_gate(split, split.split)
    # fixed on val_select; of val_calib only the number of its positives is known here
    rule = EXIT_RULES[exit_rule]
    fitted = fit_gate(kind, select, answers(select.logits), counted_positives(calib), risk, rule)
    family = Family(
        lambda split: _ranked(fitted, split, rule),
        lambda ranked, _, __: rule.candidates(ranked.scores, ranked.answers, 0.0),
        ("threshold",),
        rule,
        end,
    )
    calibration = certify_family(family, select, calib, risk, fitted.warnings)
    notes = [*tilt_notes(fitted), advice(family, select, counted_positives(calib), risk)]
    return GateCalibration(calibration, select, calib, kind, fitted.params, notes)


def _ranked(fitted: FittedCalibrator, split: Scores, rule: ExitRule) -> Ranked:
    answered = answers(split.logits)
    return Ranked.of(split, rule.exit_scores(gate_scores(fitted.params, split), answered), answered)


def fit_gate(
    kind: str, select: Scores, answered: IntArray, positives: int, risk: Risk, rule: ExitRule
) -> FittedCalibrator:
    """The calibrator of the gate for these answers (N,), from val_select and the number of positives of val_calib."""
    softmax, gate = softmax_ranked(select), np.asarray(select.gate_logit, np.float64)
    own = np.where(answered == softmax.answers, softmax.scores, 1 - softmax.scores)
    fitted = fit_calibrator(kind, gate, answered, answered == select.labels, own, rule.compares)
    if kind == "quantile" and 1 in rule.compares:  # else every answer 1 exits, and no gate moves a false alarm
        fitted = guarded(fitted, gate, answered, softmax, positives, risk)
    compared = np.isfinite(own) & np.isin(answered, rule.compares)
    scores = calibrated(fitted.params, gate[compared], answered[compared])
    return replace(fitted, warnings=[*fitted.warnings, *_tie_warnings(kind, scores)])


def gate_scores(params: dict[str, Any], outputs: Outputs) -> FloatArray:
    """(N,) float64 calibrated gate; NaN where a logit or the gate logit is not finite."""
    demand_gate(outputs)
    scores = calibrated(params, np.asarray(outputs.gate_logit), answers(outputs.logits))
    return np.where(np.isfinite(outputs.logits).all(axis=1), scores, np.nan)


NO_GATE = (
    "this model has a single head and no gate, so no policy with a gate can be calibrated or applied. "
    "Train a run with --phase 3, or use exit_policy: softmax."
)


def demand_gate(outputs: Outputs, split: str | None = None) -> None:
    """Raise UserError for outputs of a model without a gate."""
    if outputs.gate_logit is None:
        raise UserError(f"scores of {split} hold no gate_logit: {NO_GATE}" if split else NO_GATE)


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


def tilt_notes(fitted: FittedCalibrator) -> list[str]:
    """What the FPR guard did, where it did anything."""
    if not fitted.tilt:
        return []
    return [
        f"Predicted positives are moved back by {fitted.tilt:g} on the logit scale, so that the gate buys no coverage "
        "with false alarms."
    ]


def advice(family: Family, select: Scores, positives: int, risk: Risk) -> str:
    """Say what val_select predicts for a policy's thresholds beside the softmax policy's."""
    own, softmax = (one.predicted(select, positives, risk) for one in (family, softmax_family(family.rule)))
    gain = own.right_exits - softmax.right_exits
    if not own.coverage:
        return "val_select predicts that nothing will be certified with this policy."
    if gain > 0:
        return f"val_select predicts {gain:+.1%} right exits over the softmax policy."
    return (
        f"val_select predicts no gain over the softmax policy ({gain:+.1%} right exits): a run with exit_policy: "
        "softmax is the better choice here."
    )
