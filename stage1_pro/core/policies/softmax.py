"""The softmax policy: exit where the largest class probability reaches a certified threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.views import Views, views_of
from stage1_pro.core.policies.base import ExitDecisions, Outputs
from stage1_pro.core.policies.certification import Calibration, End, Family, Ranked, demand_binary
from stage1_pro.core.policies.exit_rules import EXIT_RULES, ExitRule
from stage1_pro.core.policies.group_certificates import certify_family
from stage1_pro.core.records.scores import Scores

FLOOR = 0.5
"""The least that the larger of two probabilities can be."""
SATURATED_SHARE = 0.05
ONE_A_GROUP = (
    "this policy decides groups of images, and nothing is promised of a single image: join the outputs of each group "
    "with stage1_pro.core.metrics.views.fuse first"
)


@dataclass(frozen=True, slots=True)
class SoftmaxExitPolicy:
    """Exit iff the score >= exit_threshold, in float64: the largest softmax probability, or with one-sided exits 1 for
    an answer 1. NaN never exits. answer_shift: b, which training added to the log-odds to place the answers; the
    probabilities of decisions are those before it. views: of a policy that decides groups; its outputs are those of
    `metrics.views.fuse`, a row a group."""

    exit_threshold: float
    exit_rule: str = "symmetric"
    answer_shift: float = 0.0
    views: Views | None = None

    @classmethod
    def from_artifact(cls, data: dict[str, Any]) -> "SoftmaxExitPolicy":
        shift = data.get("answer_shift", 0.0)
        return cls(data["exit_threshold"], data.get("exit_rule", "symmetric"), shift, views_of(data))

    def decide(self, outputs: Outputs, groups: Any = None) -> ExitDecisions:
        if self.views is not None and getattr(outputs, "lengths", None) is None:
            raise ValueError(ONE_A_GROUP)
        answered = answers(outputs.logits)
        scores = EXIT_RULES[self.exit_rule].exit_scores(softmax_scores(outputs.logits), answered)
        probabilities = answer_probabilities(outputs.logits, answered, self.answer_shift)
        return ExitDecisions(scores >= self.exit_threshold, answered, scores, probabilities)


def calibrate_softmax(
    select: Scores, calib: Scores, risk: Risk, exit_rule: str = "symmetric", end: End | None = None
) -> Calibration:
    """Certify a softmax threshold, for each certificate group where the scores name some.

    Candidates and their order come from `select`, the certificate from `calib`. end: the last candidate that may be
    certified.
    """
    for split in (select, calib):
        demand_binary(split)
    rule = EXIT_RULES[exit_rule]
    compared = np.isin(select.counted(answers(select.logits)), rule.compares)
    warnings = saturation_warnings(softmax_scores(select.logits)[compared])
    return certify_family(softmax_family(rule, end), select, calib, risk, warnings)


def softmax_family(rule: ExitRule, end: End | None = None) -> Family:
    """Return the softmax policy as what is certified of it: a threshold."""
    return Family(
        lambda split: softmax_ranked(split, rule),
        lambda ranked, _, __: softmax_candidates(ranked, rule),
        ("threshold",),
        rule,
        end,
    )


def softmax_ranked(split: Scores, rule: ExitRule = EXIT_RULES["symmetric"]) -> Ranked:
    """Return a split as the softmax policy ranks it."""
    answered = answers(split.logits)
    return Ranked.of(split, rule.exit_scores(softmax_scores(split.logits), answered), answered)


def softmax_candidates(ranked: Ranked, rule: ExitRule) -> FloatArray:
    """Return the candidate thresholds (J,) of val_select, high to low."""
    return rule.candidates(ranked.scores, ranked.answers, FLOOR)


def softmax_fields(calibration: Calibration) -> dict[str, Any]:
    """Return the softmax policy's part of thresholds.json. Raises NothingCertified where no threshold was."""
    return {**calibration.record(), "exit_threshold": calibration.chosen()["threshold"]}


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


def answer_probabilities(logits: np.ndarray, answered: IntArray, shift: float) -> FloatArray:
    """(N,) float64 probability of each answer as training left it, before `shift` was added to the log-odds.

    logits: (N, 2), or (N, C) for a shift of 0. Where answers were placed it may be below a half.
    """
    if not shift:
        return softmax_scores(logits)
    wide = np.asarray(logits, dtype=np.float64)
    z = np.where(np.isfinite(wide).all(axis=1), wide[:, 1] - wide[:, 0], np.nan) - shift
    return expit(np.where(answered == 1, z, -z))


def saturation_warnings(scores: FloatArray) -> list[str]:
    """Warn where many of the scores (N,) that a threshold is compared with are exactly 1, as above |z| = 36.7."""
    share = float(np.mean(scores == 1)) if scores.size else 0.0
    if share <= SATURATED_SHARE:
        return []
    return [f"{share:.0%} of the val_select scores are exactly 1, and no threshold can tell those cases apart"]
