"""The SCRC policy: exit where the calibrated gate reaches lambda1 and the prediction set holds one class.

Selective conformal risk control after arXiv 2512.12844, whose lambda1 is one minus ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.selective import spearman
from stage1_pro.core.policies.base import ExitDecisions, Outputs
from stage1_pro.core.policies.candidate_pairs import RankedPairs, chain_pairs
from stage1_pro.core.policies.certification import Calibration, End, Family, demand_binary
from stage1_pro.core.policies.dirichlet import demand_diagonal, fit_dirichlet, keeping_answers, log_odds
from stage1_pro.core.policies.exit_rules import EXIT_RULES, ExitRule
from stage1_pro.core.policies.fixed_sequence import power_aware_start
from stage1_pro.core.policies.gate import advice, baseline_row, calibrate_gate, demand_gate, fit_gate, tilt_notes
from stage1_pro.core.policies.gate_maps import calibrated, demand_matching
from stage1_pro.core.policies.group_certificates import certify_family
from stage1_pro.core.policies.independence import any_case_per_group, counted_positives
from stage1_pro.core.policies.scrc_transductive import Selection, Transductive, calibrate_transductive, selection_of
from stage1_pro.core.policies.softmax import answer_probabilities, calibrate_softmax
from stage1_pro.core.records.scores import Scores

ALIKE = 0.98
CONVENTION = "exit iff the calibrated gate is at least lambda1: one minus the lambda1 of arXiv 2512.12844"
FILE = "scrcparams.json"


@dataclass(frozen=True, slots=True)
class SCRCExitPolicy:
    """Exit iff the calibrated gate >= lambda1 and the prediction set is a single class, in float64.

    The answer is the argmax of the Dirichlet-calibrated class probabilities, ½ answering 1; the set is that
    answer alone where its probability >= lambda2, else both classes. With one-sided exits every answer 1 exits, and its
    set is {1}. NaN never exits. answer_shift: as of SoftmaxExitPolicy.
    """

    lambda1: float
    lambda2: float
    dirichlet_params: dict[str, Any]
    calibrator_params: dict[str, Any]
    exit_rule: str = "symmetric"
    answer_shift: float = 0.0

    @classmethod
    def from_artifact(cls, data: dict[str, Any]) -> "SCRCExitPolicy":
        demand_diagonal(data["dirichlet_params"], FILE, artifacts.MENDS["scrcparams"])
        demand_matching(data, "scrcparams")
        maps = data["dirichlet_params"], data["calibrator_params"]
        rule, shift = data.get("exit_rule", "symmetric"), data.get("answer_shift", 0.0)
        return cls(data["lambda1"], data["lambda2"], *maps, rule, shift)

    def decide(self, outputs: Outputs, groups: Any = None) -> ExitDecisions:
        demand_gate(outputs)
        rule, maps = EXIT_RULES[self.exit_rule], (self.dirichlet_params, self.calibrator_params)
        predictions, confidence, gate = ranked_by(rule, *maps, outputs)
        single = confidence >= self.lambda2
        sets = np.stack([predictions == 0, predictions == 1], axis=1) | ~single[:, None]
        probabilities = confidence
        if self.answer_shift:  # of the calibrated probabilities only ½ is where the placed answers put it
            probabilities = answer_probabilities(outputs.logits, predictions, self.answer_shift)
        return ExitDecisions((gate >= self.lambda1) & single, predictions, gate, probabilities, sets)


def answered(dirichlet: dict[str, Any], outputs: Outputs) -> tuple[IntArray, FloatArray]:
    """(N,) argmax of the calibrated class probabilities, and the probability of it; NaN where not finite."""
    odds = log_odds(dirichlet, outputs.logits)
    return (odds >= 0).astype(np.int64), expit(np.abs(odds))


def ranked_by(
    rule: ExitRule, dirichlet: dict[str, Any], calibrator: dict[str, Any], outputs: Outputs
) -> tuple[IntArray, FloatArray, FloatArray]:
    """(N,) each: answers, and what the rule compares with lambda2 and with lambda1."""
    predictions, confidence = answered(dirichlet, outputs)
    gate = gate_of(calibrator, outputs, predictions, confidence)
    return predictions, rule.exit_scores(confidence, predictions), rule.exit_scores(gate, predictions)


def gate_of(params: dict[str, Any], outputs: Outputs, answers: IntArray, confidence: FloatArray) -> FloatArray:
    """(N,) float64 calibrated gate of these answers; NaN where a logit or the gate logit is not finite."""
    scores = calibrated(params, np.asarray(outputs.gate_logit), answers)
    return np.where(np.isfinite(confidence), scores, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class SCRCCalibration:
    """outcome: of SCRC-I or SCRC-T on `calib`; notes: what val_select says of it beside the softmax policy."""

    outcome: Calibration | Transductive
    select: Scores
    calib: Scores
    risk: Risk
    rule: ExitRule
    variant: str
    kind: str
    dirichlet_params: dict[str, Any]
    calibrator_params: dict[str, Any]
    notes: list[str]

    def fields(self) -> dict[str, Any]:
        """SCRC's part of scrcparams.json. Raises NothingCertified where there is no pair."""
        record = self.outcome.record()
        if isinstance(self.outcome, Calibration):
            record |= self.outcome.chosen()
        baselines = {**record["diagnostics"].get("baselines", {}), **self._baselines()}
        return {
            **record,
            "exit_rule": self.rule.name,
            "diagnostics": {**record["diagnostics"], "baselines": baselines, "notes": self.notes},
            "fnr_bound": self.risk.target_fnr,
            "scrc_variant": self.variant,
            "lambda1_convention": CONVENTION,
            "dirichlet_params": self.dirichlet_params,
            "calibrator_type": self.kind,
            "calibrator_params": self.calibrator_params,
        }

    def _baselines(self) -> dict[str, Any]:
        """What the other policies certify on the same cases, without becoming policies."""
        softmax = calibrate_softmax(self.select, self.calib, self.risk, self.rule.name)
        try:
            found = calibrate_gate(self.select, self.calib, self.risk, self.kind, self.rule.name)
            gate = baseline_row(found.calibration, "gate")
        except UserError as error:  # a gate that its calibrator refuses for argmax answers
            gate = {"certified": False, "note": str(error)}
        return {"softmax": baseline_row(softmax, "softmax"), "gate": gate}


def calibrate_scrc(
    select: Scores,
    calib: Scores,
    risk: Risk,
    kind: str = "quantile",
    variant: str = "SCRC-I",
    dirichlet: str = "tied",
    seed: int = 0,
    exit_rule: str = "symmetric",
    end: End | None = None,
) -> SCRCCalibration:
    """Fit both calibrators and the candidate pairs on `select`, choose a pair on `calib`.

    kind: of the gate's calibrator; variant: SCRC-I or SCRC-T; dirichlet: tied or free, the free one draws its folds
    by seed; end: of SCRC-I, the last candidate that may be certified. Raises UserError for scores without a gate, or
    with one that cannot be used.
    """
    for split in (select, calib):
        demand_binary(split)
        demand_gate(split, split.split)
    # fixed on val_select; of val_calib only the number of its positives is known here
    rule = EXIT_RULES["symmetric" if variant == "SCRC-T" else exit_rule]  # SCRC-T selects by the gate of either answer
    positives = counted_positives(calib)
    probabilities = fit_dirichlet(dirichlet, select.logits, select.labels, select.group, seed)
    if rule.name == "one_sided" or select.answer_shift:  # a map fitted freely would move placed answers back
        probabilities = keeping_answers(probabilities)
    predictions, _ = answered(probabilities, select)
    fitted = fit_gate(kind, select, predictions, positives, risk, rule)
    family = Family(
        lambda split: _ranked(rule, probabilities, fitted.params, split),
        lambda ranked, counted, at: chain_pairs(ranked, counted, at, rule),
        ("lambda1", "lambda2"),
        rule,
        end,
    )
    warnings = [*fitted.warnings, *_alike_warnings(family.ranked(select))]
    outcome = VARIANTS[variant](family, select, calib, risk, warnings)
    notes = [*tilt_notes(fitted), *NOTES[variant](family, select, positives, risk)]
    return SCRCCalibration(outcome, select, calib, risk, rule, variant, kind, probabilities, fitted.params, notes)


def _ranked(rule: ExitRule, dirichlet: dict[str, Any], calibrator: dict[str, Any], split: Scores) -> RankedPairs:
    predictions, confidence, gate = ranked_by(rule, dirichlet, calibrator, split)
    return RankedPairs.of(split, gate, confidence, predictions)


def _transductive(family: Family, select: Scores, calib: Scores, risk: Risk, warnings: list[str]) -> Transductive:
    if calib.certificate_group is not None:
        raise UserError(
            "SCRC-T promises an expectation over all cases, and none for each certificate group: calibrate with "
            "--scrc_variant SCRC-I."
        )
    selection = _selected(family, select, counted_positives(calib), risk)
    return calibrate_transductive(family.ranked(calib), any_case_per_group(calib), selection, risk, warnings)


def _selected(family: Family, select: Scores, positives: int, risk: Risk) -> Selection:
    """What val_select selects, where SCRC-I's walk would start. positives: all that is used of val_calib."""
    ranked = family.ranked(select)
    return selection_of(
        ranked, _start(ranked, family.proposed(ranked, positives, risk)[0], positives, risk), risk.delta
    )


def _start(select: RankedPairs, pairs: FloatArray, positives: int, risk: Risk) -> float:
    """lambda1 where SCRC-I's walk would start; of val_calib only the number of its positives is used."""
    if not len(pairs):
        return np.inf
    counts = select.counts(pairs, select.labels == 1)
    return float(pairs[power_aware_start(counts, positives, risk.target_fnr), 0])


VARIANTS: dict[str, Callable[..., Calibration | Transductive]] = {"SCRC-I": certify_family, "SCRC-T": _transductive}


def _alike_warnings(select: RankedPairs) -> list[str]:
    known = np.isfinite(select.gate) & np.isfinite(select.confidence)
    alike = spearman(select.gate[known], select.confidence[known]) if known.any() else 0.0
    if not alike > ALIKE:  # NaN where either is constant
        return []
    return [
        f"gate and class probability rank val_select alike (Spearman {alike:.3f}), so the second threshold adds "
        "nothing to the first"
    ]


def _chain_notes(family: Family, select: Scores, positives: int, risk: Risk) -> list[str]:
    """How far the second threshold is used at all, and what the walk promises beside softmax."""
    pairs, _ = family.proposed(family.ranked(select), positives, risk)
    off = int(np.count_nonzero(pairs[:, 1] > 0.5))
    return [
        f"{off} of {len(pairs)} candidates use the second threshold; the others are the gate's own.",
        advice(family, select, positives, risk),
    ]


def _selection_notes(family: Family, select: Scores, positives: int, risk: Risk) -> list[str]:
    level = _selected(family, select, positives, risk).level
    return [f"SCRC-T selects {level:.1%} of the cases, where SCRC-I's walk would start: SCRC-I may cover more."]


NOTES: dict[str, Callable[..., list[str]]] = {"SCRC-I": _chain_notes, "SCRC-T": _selection_notes}
