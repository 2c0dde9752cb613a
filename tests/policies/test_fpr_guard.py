"""The FPR guard: what it keeps, what it may look at, and that it is the smallest that does."""

from dataclasses import replace

import numpy as np
import pytest
from policy_cases import gated_split
from scipy.special import expit, logit

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.fixed_sequence import predicted_p
from stage1_pro.core.policies.fpr_guard import TILTS, Allowance, guarded, tilted
from stage1_pro.core.policies.gate import calibrate_gate, fit_gate
from stage1_pro.core.policies.gate_maps import FittedCalibrator, calibrated, demand_sound, fit_calibrator
from stage1_pro.core.policies.softmax import answers, softmax_ranked, softmax_scores
from stage1_pro.core.records.scores import Scores

RISK = Risk(0.1, 0.9)


def rare(seed: int, cases: int = 6000) -> Scores:
    """Positives are rare, and the gate flatters those answered 1."""
    made = gated_split(seed, cases, share=0.2)
    positive = answers(made.logits) == 1
    return replace(made, gate_logit=(made.gate_logit + 0.6 * positive).astype(np.float32))


def plain_map(select: Scores) -> FittedCalibrator:
    given = answers(select.logits)
    return fit_calibrator(
        "quantile", select.gate_logit.astype(float), given, given == select.labels, softmax_scores(select.logits)
    )


def end_by_hand(scores: np.ndarray, given: np.ndarray, labels: np.ndarray, positives: int) -> tuple[float, float]:
    """(coverage, FPR on exits) where the walk would end, threshold after threshold."""
    softmax = softmax_ranked(gated_split(0, 10))
    ranked = replace(softmax, scores=scores, answers=given, labels=labels, independent=np.ones(len(labels), bool))
    thresholds = thresholds_between(scores, 0.0)
    p = predicted_p(ranked.counts(thresholds, labels == 1), positives, RISK.target_fnr)
    end, certified = int(np.argmin(p)), False
    for j in range(end, len(p)):
        if p[j] > RISK.delta:
            break
        end, certified = j, True
    exits = scores >= thresholds[end]
    negatives = exits & (labels == 0)
    fpr = (given == 1)[negatives].mean() if negatives.any() else 0.0
    return (exits.mean() if certified else 0.0), fpr


@pytest.mark.parametrize("seed", range(5))
def test_the_tilt_is_the_smallest_near_the_best_that_keeps_fpr(seed: int) -> None:
    select, positives = rare(seed), 1000
    given, labels = answers(select.logits), select.labels
    fitted = plain_map(select)
    _, allowed = end_by_hand(softmax_scores(select.logits), given, labels, positives)
    ends = {}
    for tilt in TILTS:
        scores = calibrated(fitted.params, select.gate_logit, given)
        scores = np.where(given == 1, expit(logit(scores) - tilt), scores)
        ends[tilt] = end_by_hand(scores, given, labels, positives)
    kept = {tilt: coverage for tilt, (coverage, fpr) in ends.items() if coverage and fpr <= allowed + 1e-12}
    expected = min(t for t, c in kept.items() if c >= max(kept.values()) - 0.002) if kept else 0.0
    found = guarded(fitted, select.gate_logit.astype(float), given, softmax_ranked(select), positives, RISK)
    assert found.tilt == pytest.approx(expected)
    demand_sound(found.params, "gateparams")
    assert found.params["answer_0"] == fitted.params["answer_0"]
    assert found.params["type"] == "quantile"


def test_it_holds_fpr_where_the_plain_map_spends_it() -> None:
    spent, held = [], []
    for seed in range(6):
        select, calib = rare(2 * seed, 12_000), rare(2 * seed + 1, 12_000)
        found = calibrate_gate(select, calib, RISK)
        softmax = end_by_hand(softmax_scores(calib.logits), answers(calib.logits), calib.labels, calib.positives)
        for params, rates in ((plain_map(select).params, spent), (found.params, held)):
            scores = calibrated(params, calib.gate_logit, answers(calib.logits))
            rates.append(end_by_hand(scores, answers(calib.logits), calib.labels, calib.positives)[1] - softmax[1])
    assert np.mean(spent) > 0.01
    assert np.mean(held) < 0.005


def test_a_tilt_moves_predicted_positives_by_that_much_and_no_others() -> None:
    select = rare(0)
    fitted, given = plain_map(select), answers(select.logits)
    before, after = (calibrated(p, select.gate_logit, given) for p in (fitted.params, tilted(fitted.params, 0.3)))
    assert np.array_equal(before[given == 0], after[given == 0])
    shift = logit(before[given == 1]) - logit(after[given == 1])
    np.testing.assert_allclose(shift, 0.3, atol=0.01)
    assert tilted(fitted.params, 0.0) == fitted.params
    full = {**fitted.params, "answer_1": {"x": [0.0, 1.0], "y": [0.9, 1.0]}}  # a saturated end stays
    assert tilted(full, 0.5)["answer_1"]["y"][1] == 1


def test_of_val_calib_it_knows_the_number_of_positives_only() -> None:
    select, calib = rare(3), rare(4)
    rng = np.random.default_rng(0)
    shuffled = replace(calib, labels=rng.permutation(calib.labels), gate_logit=rng.permutation(calib.gate_logit))
    assert calibrate_gate(select, shuffled, RISK).params == calibrate_gate(select, calib, RISK).params


def test_it_warns_where_no_tilt_keeps_fpr_and_takes_the_least() -> None:
    """All predicted positives stand first, and no tilt moves a score of 1."""
    select = rare(0)
    given, softmax = answers(select.logits), softmax_ranked(select)
    steep = replace(plain_map(select), params={**plain_map(select).params, "answer_1": {"x": [0.0], "y": [1.0]}})
    found = guarded(steep, select.gate_logit.astype(float), given, softmax, 1000, RISK)
    assert "the extra coverage raises FPR" in found.warnings[-1]
    assert found.warnings[:-1] == steep.warnings


def test_where_softmax_certifies_nothing_its_fpr_at_equal_coverage_counts() -> None:
    """At its start hardly anything exits, so its FPR there would forbid every gate."""
    select = rare(1, 12_000)
    hopeless = replace(softmax_ranked(select), scores=np.random.default_rng(0).uniform(0.5, 1, len(select)))
    allowance = Allowance.of(hopeless, 1000, Risk(0.02, 0.95))
    assert allowance.end is None
    every = float((answers(select.logits) == 1)[select.labels == 0].mean())
    assert allowance.at(0.5) == pytest.approx(every, rel=0.1)
    assert (
        Allowance.of(softmax_ranked(select), 1000, RISK).at(0.5) == Allowance.of(softmax_ranked(select), 1000, RISK).end
    )


def test_no_tilt_where_nothing_can_be_certified() -> None:
    """Nothing can be certified at all, so no tilt has a predicted coverage."""
    select = rare(5, 400)
    given = answers(select.logits)
    found = fit_gate("quantile", select, given, 3, Risk(0.01, 0.95), EXIT_RULES["symmetric"])
    assert found.tilt == 0
    assert found.params == plain_map(select).params
    assert TILTS[0] == 0


def test_no_tilt_where_every_answer_1_exits() -> None:
    """No gate moves a false alarm there, also one that the guard would push back."""
    select, calib = rare(0), rare(1)
    one_sided = calibrate_gate(select, calib, RISK, exit_rule="one_sided")
    assert any("moved back" in note for note in calibrate_gate(select, calib, RISK).notes)
    assert not any("moved back" in note for note in one_sided.notes)
    assert one_sided.params["answer_0"] == plain_map(select).params["answer_0"]
