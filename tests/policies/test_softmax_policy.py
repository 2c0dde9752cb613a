"""The softmax policy as an inference host applies it: the same outputs, the same decisions, bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from policy_cases import population

from stage1_pro.core import artifacts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.softmax import (
    SoftmaxExitPolicy,
    answers,
    calibrate_softmax,
    saturation_warnings,
    softmax_scores,
)


def outputs(logits: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(logits=logits, gate_logit=None)


def random_logits(cases: int = 5000) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (cases, 2)).astype(np.float32)


def test_score_is_the_largest_softmax_probability() -> None:
    logits = random_logits()
    exponentials = np.exp(logits.astype(np.float64))
    expected = exponentials.max(axis=1) / exponentials.sum(axis=1)
    np.testing.assert_allclose(softmax_scores(logits), expected, rtol=1e-14)
    assert softmax_scores(logits).dtype == np.float64


def test_score_is_symmetric_in_the_classes_and_blind_to_a_shift() -> None:
    logits = random_logits()
    assert np.array_equal(softmax_scores(logits), softmax_scores(logits[:, ::-1]))
    eighths = np.round(logits * 8) / 8
    assert np.array_equal(softmax_scores(eighths), softmax_scores(eighths + np.float32(1024)))


def test_score_stays_finite_for_large_logits() -> None:
    assert softmax_scores(np.array([[-3e38, 3e38], [1e4, 1e4]], np.float32)).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64, 1001])
def test_decisions_do_not_depend_on_the_batch(batch: int) -> None:
    logits = random_logits()
    policy = SoftmaxExitPolicy(float(softmax_scores(logits)[17]))
    whole = policy.decide(outputs(logits))
    parts = [policy.decide(outputs(logits[i : i + batch])) for i in range(0, len(logits), batch)]
    for name in ("exits", "predictions", "scores"):
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_decisions_do_not_depend_on_memory_order() -> None:
    logits = random_logits()
    policy = SoftmaxExitPolicy(float(softmax_scores(logits)[17]))
    wide = np.zeros((len(logits) * 3, 6), np.float32)
    wide[1::3, 2:6:3] = logits
    layouts = {
        "fortran": np.asfortranarray(logits),
        "strided": wide[1::3, 2:6:3],
        "reversed": np.ascontiguousarray(logits[::-1, ::-1])[::-1, ::-1],
        "read-only": np.frombuffer(logits.tobytes(), np.float32).reshape(-1, 2),
        "float64": logits.astype(np.float64),
    }
    expected = policy.decide(outputs(logits))
    for layout, other in layouts.items():
        found = policy.decide(outputs(other))
        assert np.array_equal(found.scores, expected.scores), layout
        assert np.array_equal(found.exits, expected.exits), layout
        assert np.array_equal(found.predictions, expected.predictions), layout


def test_equality_exits() -> None:
    logits = random_logits()
    scores = softmax_scores(logits)
    for score in scores[:50].tolist():
        assert SoftmaxExitPolicy(score).decide(outputs(logits)).exits.tolist() == (scores >= score).tolist()
        assert not SoftmaxExitPolicy(np.nextafter(score, 2)).decide(outputs(logits)).exits[scores == score].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_exits(bad: float) -> None:
    logits = np.array([[0, bad], [bad, 0], [bad, bad], [0, 9]], np.float32)
    for threshold in (0.0, 0.5, 1.0, -np.inf):
        assert SoftmaxExitPolicy(threshold).decide(outputs(logits)).exits[:3].tolist() == [False] * 3
    assert SoftmaxExitPolicy(0.5).decide(outputs(logits)).exits[3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_sided_every_answer_1_exits_but_what_is_not_finite(bad: float) -> None:
    logits = np.array([[0, bad], [bad, 0], [0, 0], [0, 9], [9, 0], [0.1, 0]], np.float32)
    for threshold in (0.5, 0.99, 1.0):
        found = SoftmaxExitPolicy(threshold, "one_sided").decide(outputs(logits))
        assert found.exits.tolist() == [False, False, True, True, threshold < 1, threshold == 0.5]
        assert found.scores[2:4].tolist() == [1.0, 1.0]


def test_probabilities_are_those_before_the_answers_were_placed() -> None:
    z = np.array([-3.0, -0.5, 0.5, 3.0])
    logits = np.column_stack([np.zeros(4), z + 1]).astype(np.float32)
    found = SoftmaxExitPolicy(0.9, "one_sided", 1.0).decide(outputs(logits))
    assert found.predictions.tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-np.array([3.0, -0.5, 0.5, 3.0]))), atol=1e-6)


def test_a_file_without_a_rule_is_symmetric_and_its_answers_were_not_placed() -> None:
    policy = SoftmaxExitPolicy.from_artifact({"exit_threshold": 0.7})
    assert policy == SoftmaxExitPolicy(0.7, "symmetric", 0.0)


def test_equal_logits_answer_positive() -> None:
    logits = np.array([[0, 0], [1, 1], [2, 1], [1, 2], [0.0, -0.0]], np.float32)
    assert answers(logits).tolist() == [1, 1, 0, 1, 1]
    decisions = SoftmaxExitPolicy(0.5).decide(outputs(logits))
    assert decisions.predictions.tolist() == [1, 1, 0, 1, 1]
    assert decisions.exits.all()


def test_saturated_scores_are_named() -> None:
    logits = np.column_stack([np.zeros(100), np.r_[np.full(6, 40.0), np.ones(94)]])
    assert "6% of the val_select scores are exactly 1" in saturation_warnings(softmax_scores(logits))[0]
    assert saturation_warnings(softmax_scores(logits[6:])) == []


@pytest.mark.parametrize("rule", EXIT_RULES)
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_a_policy_read_back_decides_the_same(tmp_path, step: float, rule: str) -> None:
    rng = np.random.default_rng(2)
    select, calib, fresh = (population(rng, 2000, step=step) for _ in range(3))
    risk = Risk(0.05, 0.9)
    calibration = calibrate_softmax(select, calib, risk, rule)
    threshold = calibration.parameters[calibration.demand_certified()]["threshold"]
    header = {
        "schema_version": 1,
        "run_id": "test",
        "created_at": "2025-01-01T00:00:00Z",
        "target_fnr_exit": risk.target_fnr,
        "fnr_confidence": risk.confidence,
        "calib_use_count": 1,
        "model_digest": "0" * 64,
        "splits_digest": "0" * 64,
        "exit_threshold": threshold,
    }
    artifacts.write_json(tmp_path / "thresholds.json", {**header, **calibration.record()}, "thresholds")
    policy = SoftmaxExitPolicy.from_artifact(artifacts.read_json(tmp_path / "thresholds.json", "thresholds"))
    assert policy.exit_threshold.hex() == threshold.hex()
    for split in (select, calib, fresh):
        scores = policy.decide(split).scores
        always = (rule == "one_sided") & (answers(split.logits) == 1)
        assert np.array_equal(scores, np.where(always, 1.0, softmax_scores(split.logits)))
        assert np.array_equal(policy.decide(split).exits, scores >= threshold)
    assert threshold not in set(softmax_scores(select.logits).tolist()) - {0.5}  # but for the floor
    assert policy.exit_rule == rule
    assert policy.decide(calib).exits.sum() == calibration.record()["val_calib_metrics"]["exited"]
