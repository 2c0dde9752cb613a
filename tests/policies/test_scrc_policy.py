"""The SCRC policy: two thresholds on calibrated scores, stored as JSON, applied bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_cases import gated_split, header
from scipy.special import expit

from stage1_pro.core import artifacts
from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.dirichlet import keeping_answers, log_odds
from stage1_pro.core.policies.gate import calibrate_gate
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import SCRCCalibration, SCRCExitPolicy, answered, calibrate_scrc
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced
from stage1_pro.core.records.scores import Scores

RISK = Risk(0.1, 0.9)
PLAIN = {"W": [[1.0, 0.0], [0.0, 1.0]], "b": [0.0, 0.0]}
PLATT = {"type": "platt", "answer_0": {"a": 1.0, "b": 0.0}, "answer_1": {"a": 1.0, "b": 0.0}}


def policy_of(found: SCRCCalibration) -> dict:
    top = header(RISK)
    versions = {"model_version": top["model_digest"], "splits_version": top["splits_digest"]}
    return {**top, **versions, **found.fields()}


@pytest.mark.parametrize(
    ("variant", "kind", "rule"),  # the flat pieces of isotonic maps tie at SCRC-T's cut
    [
        ("SCRC-I", "quantile", "one_sided"),
        ("SCRC-I", "quantile", "symmetric"),
        ("SCRC-I", "platt", "symmetric"),
        ("SCRC-I", "isotonic", "one_sided"),
        ("SCRC-T", "quantile", "one_sided"),
        ("SCRC-T", "platt", "symmetric"),
    ],
)
@pytest.mark.parametrize("dirichlet", ["tied", "free"])
def test_a_policy_read_back_decides_the_same(
    tmp_path: Path, variant: str, kind: str, dirichlet: str, rule: str
) -> None:
    select, calib, fresh = (gated_split(seed) for seed in range(3))
    policy = policy_of(calibrate_scrc(select, calib, RISK, kind, variant, dirichlet, exit_rule=rule))
    assert policy["exit_rule"] == ("symmetric" if variant == "SCRC-T" else rule)
    assert policy["calibrator_type"] == kind
    path = tmp_path / "scrcparams.json"
    artifacts.write_json(path, policy, "scrcparams")
    read = artifacts.read_json(path, "scrcparams")
    assert read == policy
    demand_consistent(read, path)
    decider = policy_from_artifact("scrc", read)
    demand_reproduced(read, decider.decide(calib), calib, path)
    assert decider.decide(calib).exits.sum() == policy["val_calib_metrics"]["exited"]
    whole = decider.decide(fresh)
    for size in (1, 7, 64):
        parts = [
            decider.decide(replace(fresh, logits=fresh.logits[i : i + size], gate_logit=fresh.gate_logit[i : i + size]))
            for i in range(0, 128, size)
        ]
        for name in ("exits", "predictions", "scores", "prediction_sets"):
            joined = np.concatenate([getattr(part, name) for part in parts])[:128]
            assert np.array_equal(joined, getattr(whole, name)[:128])


def test_decisions_are_the_two_thresholds_on_calibrated_scores() -> None:
    cases = gated_split(4)
    z = cases.logits[:, 1].astype(float)
    dirichlet = {"W": [[0.7, 0.0], [0.0, 1.3]], "b": [0.1, 0.6]}
    decider = SCRCExitPolicy(0.6, 0.8, dirichlet, PLATT)
    p = expit(1.3 * np.log(expit(z)) + 0.6 - 0.7 * np.log(expit(-z)) - 0.1)
    found = decider.decide(cases)
    assert np.array_equal(found.predictions, p >= 0.5)
    assert ((p >= 0.5) != (z >= 0)).any()  # the answer is that of the calibrated probabilities
    np.testing.assert_allclose(found.scores, expit(cases.gate_logit.astype(float)), rtol=1e-12)
    sets = np.column_stack([(1 - p >= 0.8) | (p < 0.8) & (p > 0.2), (p >= 0.8) | (p < 0.8) & (p > 0.2)])
    assert np.array_equal(found.prediction_sets, sets)
    assert np.array_equal(found.exits, (found.scores >= 0.6) & (sets.sum(axis=1) == 1))
    assert 0 < found.exits.sum() < len(cases)


def test_equality_exits_on_both_thresholds() -> None:
    cases = gated_split(5, 50)
    scores = SCRCExitPolicy(0.5, 0.5, PLAIN, PLATT).decide(cases).scores
    confidence = answered(PLAIN, cases)[1]
    np.testing.assert_allclose(confidence, expit(np.abs(cases.logits[:, 1].astype(float))), rtol=1e-12)
    for i in range(50):
        at = SCRCExitPolicy(float(scores[i]), float(confidence[i]), PLAIN, PLATT).decide(cases)
        assert at.exits[i]
        assert at.prediction_sets[i].sum() == 1
        gate_above = SCRCExitPolicy(float(np.nextafter(scores[i], 2)), float(confidence[i]), PLAIN, PLATT)
        assert not gate_above.decide(cases).exits[i]
        class_above = SCRCExitPolicy(float(scores[i]), float(np.nextafter(confidence[i], 2)), PLAIN, PLATT).decide(
            cases
        )
        assert not class_above.exits[i]
        assert class_above.prediction_sets[i].all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_exits_and_keeps_both_classes(bad: float) -> None:
    gate, logits = np.array([bad, 9, 9, 9], np.float32), np.array([[0, 1], [bad, 0], [0, bad], [0, 1]], np.float32)
    cases = replace(gated_split(0, 4), gate_logit=gate, logits=logits)
    found = SCRCExitPolicy(0.0, 0.5, PLAIN, PLATT).decide(cases)
    assert found.exits.tolist() == [False, False, False, True]
    assert found.prediction_sets[1:3].all()


def test_a_half_answers_positive_and_is_a_single_class() -> None:
    cases = replace(gated_split(0, 1), logits=np.zeros((1, 2), np.float32))
    found = SCRCExitPolicy(0.0, 0.5, PLAIN, PLATT).decide(cases)
    assert found.predictions.tolist() == [1]
    assert found.prediction_sets.tolist() == [[False, True]]
    assert not SCRCExitPolicy(0.0, 0.6, PLAIN, PLATT).decide(cases).exits.any()


def test_baselines_are_what_the_other_policies_certify() -> None:
    select, calib = gated_split(0), gated_split(1)
    found = calibrate_scrc(select, calib, RISK)
    fields = found.fields()
    rows = fields["diagnostics"]["baselines"]
    assert rows["softmax"]["coverage"] == calibrate_softmax(select, calib, RISK).record()["coverage"]
    assert rows["gate"]["coverage"] == calibrate_gate(select, calib, RISK).fields()["coverage"]
    assert fields["coverage"] > rows["softmax"]["coverage"] + 0.01
    assert "one minus" in fields["lambda1_convention"]
    assert fields["fnr_upper_bound"] <= fields["fnr_bound"] == RISK.target_fnr
    assert calibrate_scrc(select, calib, RISK, variant="SCRC-T").fields()["fnr_bound"] == RISK.target_fnr


# ---- one-sided exits and placed answers


@pytest.mark.parametrize("dirichlet", ["tied", "free"])
def test_every_answer_1_exits_and_the_thresholds_decide_answers_0(dirichlet: str) -> None:
    select, calib, fresh = (gated_split(seed) for seed in range(3))
    policy = policy_of(calibrate_scrc(select, calib, RISK, dirichlet=dirichlet, exit_rule="one_sided"))
    found = policy_from_artifact("scrc", policy).decide(fresh)
    assert np.array_equal(found.predictions, fresh.logits[:, 1] >= fresh.logits[:, 0])
    assert found.exits[found.predictions == 1].all()
    assert (found.prediction_sets[found.predictions == 1] == [False, True]).all()
    assert 0 < found.exits[found.predictions == 0].mean() < 1
    assert len({row["exited_positives"] - row["misses"] for row in policy["sweep_results"]}) == 1


@pytest.mark.parametrize("seed", range(5))
def test_placed_answers_stay_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    params = {"W": np.diag(rng.uniform(0.001, 20, 2)).tolist(), "b": rng.normal(0, 3, 2).tolist()}
    z = np.concatenate([[0.0, 1e-30, -1e-9, 1e-7, -1e-7], rng.normal(0, 5, 5000)]).astype(np.float32)
    logits = np.column_stack([np.zeros_like(z), z])
    z[2] = 0  # where the model's precision ends
    kept, moved = log_odds(keeping_answers(params), logits), log_odds(params, logits)
    assert np.array_equal(np.delete(kept, 2) >= 0, np.delete(z, 2) >= 0)
    assert kept[0] == 0
    np.testing.assert_allclose(np.diff(kept - moved), 0, atol=1e-9)  # one intercept, no slope


@pytest.mark.parametrize("variant", ["SCRC-I", "SCRC-T"])
def test_a_free_map_moves_no_placed_answer_by_either_rule(variant: str) -> None:
    """It would undo the placement, and with it the misses that the placement avoids."""

    def placed(split: Scores) -> Scores:
        return replace(split, logits=split.logits + np.float32([0, 1.5]), answer_shift=1.5)

    few = [gated_split(seed, 1000) for seed in range(2)]
    free, fixed = (
        calibrate_scrc(*pair, RISK, variant=variant, dirichlet="free")
        for pair in ((few[0], few[1]), (placed(few[0]), placed(few[1])))
    )
    shifted = placed(gated_split(2))
    assert np.array_equal(answered(fixed.dirichlet_params, shifted)[0], shifted.logits[:, 1] >= 0)
    assert not np.array_equal(answered(free.dirichlet_params, shifted)[0], shifted.logits[:, 1] >= 0)


def test_a_placed_policy_gives_the_probabilities_of_before() -> None:
    cases = replace(gated_split(2), logits=gated_split(2).logits + np.float32([0, 1.5]))
    found = SCRCExitPolicy(0.5, 0.8, PLAIN, PLATT, "one_sided", 1.5).decide(cases)
    z = gated_split(2).logits[:, 1].astype(float)
    np.testing.assert_allclose(found.probabilities, expit(np.where(found.predictions == 1, z, -z)), atol=1e-6)


def test_gates_that_rank_like_softmax_are_named() -> None:
    def alike(split: Scores) -> Scores:
        return replace(split, gate_logit=np.abs(split.logits[:, 1]))

    found = calibrate_scrc(alike(gated_split(0)), alike(gated_split(1)), RISK)
    assert any("rank val_select alike" in warning for warning in found.fields()["diagnostics"]["warnings"])
    other = calibrate_scrc(gated_split(0), gated_split(1), RISK)
    assert not any("alike" in warning for warning in other.fields()["diagnostics"]["warnings"])


def test_labels_of_calib_move_no_calibrator_and_no_candidate() -> None:
    select, calib = gated_split(0), gated_split(1)
    found = calibrate_scrc(select, calib, RISK)
    shuffled = replace(calib, labels=np.random.default_rng(0).permutation(calib.labels))
    other = calibrate_scrc(select, shuffled, RISK)
    assert (other.dirichlet_params, other.calibrator_params) == (found.dirichlet_params, found.calibrator_params)
    assert (other.outcome.parameters, other.outcome.walk.start) == (found.outcome.parameters, found.outcome.walk.start)
    assert other.notes == found.notes


def test_nothing_certified_is_an_outcome() -> None:
    found = calibrate_scrc(gated_split(0, 60), gated_split(1, 60), Risk(0.001, 0.95))
    assert not found.outcome.certified
    with pytest.raises(NothingCertified, match=r"best candidate tested \(lambda1 .*, lambda2"):
        found.fields()


def test_scores_that_cannot_carry_a_policy_are_refused() -> None:
    plain = replace(gated_split(0), gate_logit=None)
    with pytest.raises(UserError, match=r"scores of val_calib hold no gate_logit.*single head"):
        calibrate_scrc(plain, plain, RISK)
    with pytest.raises(UserError, match="single head"):
        SCRCExitPolicy(0.5, 0.5, PLAIN, PLATT).decide(plain)
    negatives = replace(gated_split(1), labels=np.zeros(3000, np.int8))
    with pytest.raises(UserError, match="holds no positives"):
        calibrate_scrc(gated_split(0), negatives, RISK)
    against = replace(gated_split(0), gate_logit=-gated_split(0).gate_logit)
    with pytest.raises(UserError, match="anti-informative"):
        calibrate_scrc(against, gated_split(1), RISK, "platt")


def test_a_certification_of_pairs_may_be_ended_before_val_calib_is_read() -> None:
    select, calib, risk = gated_split(1), gated_split(2), Risk(0.05, 0.9)
    whole = calibrate_scrc(select, calib, risk, exit_rule="one_sided").outcome
    ended = calibrate_scrc(select, calib, risk, exit_rule="one_sided", end=lambda counts: 7).outcome
    assert ended.parameters == whole.parameters[:8]
