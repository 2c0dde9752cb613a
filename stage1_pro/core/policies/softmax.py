"""The softmax policy: exit where the largest class probability reaches a certified threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.base import ExitDecisions, Outputs
from stage1_pro.core.policies.certification import Calibration, Ranked, calibrate_threshold, demand_binary
from stage1_pro.core.policies.fixed_sequence import threshold_candidates
from stage1_pro.core.records.scores import Scores

SATURATED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class SoftmaxExitPolicy:
    """Exit iff max softmax probability >= exit_threshold, in float64. NaN never exits."""

    exit_threshold: float

    @classmethod
    def from_artifact(cls, data: dict[str, Any]) -> "SoftmaxExitPolicy":
        return cls(data["exit_threshold"])

    def decide(self, outputs: Outputs) -> ExitDecisions:
        scores = softmax_scores(outputs.logits)
        return ExitDecisions(scores >= self.exit_threshold, answers(outputs.logits), scores, scores)


def calibrate_softmax(select: Scores, calib: Scores, risk: Risk) -> Calibration:
    """Certify a softmax threshold: candidates and their order from `select`, the certificate from `calib`."""
    for split in (select, calib):
        demand_binary(split)
    chosen_on, certified_on = softmax_ranked(select), softmax_ranked(calib)
    thresholds = threshold_candidates(chosen_on.scores)
    return calibrate_threshold(chosen_on, certified_on, thresholds, risk, saturation_warnings(chosen_on.scores))


def softmax_ranked(split: Scores) -> Ranked:
    """A split as the softmax policy ranks it."""
    return Ranked.of(split, softmax_scores(split.logits), answers(split.logits))


def softmax_fields(calibration: Calibration) -> dict[str, Any]:
    """The softmax policy's part of thresholds.json. Raises NothingCertified where no threshold was."""
    threshold = calibration.parameters[calibration.demand_certified()]["threshold"]
    return {**calibration.record(), "exit_threshold": threshold}


def softmax_scores(logits: np.ndarray) -> FloatArray:
    """(N,) largest softmax probability of logits (N, C), float64; NaN where a logit is not finite."""
    shifted = np.ascontiguousarray(logits, dtype=np.float64)  # exp may round differently on strided memory
    shifted = np.where(np.isfinite(shifted), shifted, np.nan)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return 1 / np.exp(shifted).sum(axis=1)


def answers(logits: np.ndarray) -> IntArray:
    """(N,) argmax class; equal logits answer the last of them, in a binary task the positive one."""
    last = logits.shape[1] - 1
    return last - np.argmax(logits[:, ::-1], axis=1)


def saturation_warnings(scores: FloatArray) -> list[str]:
    """Above |z| = 36.7 the probability is exactly 1 and no threshold can tell cases apart."""
    share = float(np.mean(scores == 1))
    if share <= SATURATED_SHARE:
        return []
    return [
        f"{share:.0%} of the val_select scores are exactly 1, and no threshold can tell those cases apart: "
        "train with more label_smoothing or weight_decay, or for fewer epochs"
    ]
