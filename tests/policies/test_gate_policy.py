"""The gate policy: calibrated and certified like softmax, stored as JSON, applied bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_cases import gated_split as split
from policy_cases import header

from stage1_pro.core import artifacts
from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.fixed_sequence import predicted_outcome
from stage1_pro.core.policies.gate import GateExitPolicy, calibrate_gate, gate_scores
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.softmax import answers, calibrate_softmax

RISK = Risk(0.1, 0.9)
KINDS = ["platt", "isotonic", "quantile"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_read_back_decides_the_same(tmp_path: Path, kind: str) -> None:
    select, calib, fresh = (split(seed) for seed in range(3))
    found = calibrate_gate(select, calib, RISK, kind)
    fields = found.fields()
    artifacts.write_json(tmp_path / "gateparams.json", {**header(RISK), **fields}, "gateparams")
    policy = policy_from_artifact("gate", artifacts.read_json(tmp_path / "gateparams.json", "gateparams"))
    assert isinstance(policy, GateExitPolicy)
    assert policy.calibrator_params == found.params
    assert policy.gate_threshold.hex() == fields["gate_threshold"].hex()
    for cases in (select, calib, fresh):
        scores = gate_scores(found.params, cases)
        decisions = policy.decide(cases)
        assert np.array_equal(decisions.exits, scores >= fields["gate_threshold"])
        assert np.array_equal(decisions.predictions, answers(cases.logits))
    assert policy.decide(calib).exits.sum() == fields["val_calib_metrics"]["exited"]
    for size in (1, 7, 64):
        parts = [
            policy.decide(replace(fresh, logits=fresh.logits[i : i + size], gate_logit=fresh.gate_logit[i : i + size]))
            for i in range(0, 640, size)
        ]
        assert np.array_equal(np.concatenate([p.exits for p in parts])[:640], policy.decide(fresh).exits[:640])


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_knows_more_covers_more_and_says_so(kind: str) -> None:
    select, calib = split(0), split(1)
    found = calibrate_gate(select, calib, RISK, kind)
    fields = found.fields()
    softmax = calibrate_softmax(select, calib, RISK).record()
    gain = fields["coverage"] - softmax["coverage"]
    assert gain > (-0.02 if kind == "isotonic" else 0.02)  # an isotonic map ties at its top
    assert fields["diagnostics"]["baselines"]["softmax"]["coverage"] == softmax["coverage"]
    assert fields["diagnostics"]["baselines"]["softmax"]["certified"]
    assert ("no gain" if kind == "isotonic" else "coverage over the softmax policy") in found.notes[0]


def test_no_gain_names_the_softmax_run() -> None:
    found = calibrate_gate(split(0, knowledge=0.05), split(1, knowledge=0.05), RISK, "platt")
    assert "no gain over the softmax policy" in found.notes[0]
    assert "exit_policy: softmax is the better choice" in found.notes[0]


def test_nothing_certified_is_an_outcome() -> None:
    select, calib = split(0, 60), split(1, 60)
    found = calibrate_gate(select, calib, Risk(0.001, 0.95))
    with pytest.raises(NothingCertified):
        found.fields()
    strict = calibrate_gate(split(0), split(1), RISK)
    unsure = replace(strict, baseline=found.baseline)
    assert unsure.fields()["diagnostics"]["baselines"]["softmax"]["certified"] is False


def test_scores_without_a_gate_are_refused() -> None:
    plain = replace(split(0), gate_logit=None)
    with pytest.raises(UserError, match=r"scores of val_calib hold no gate_logit.*single head.*--phase 3"):
        calibrate_gate(plain, plain, RISK)
    params = {"type": "platt", "answer_0": {"a": 1.0, "b": 0.0}, "answer_1": {"a": 1.0, "b": 0.0}}
    with pytest.raises(UserError, match="single head"):
        GateExitPolicy(0.5, params).decide(plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_exits(bad: float) -> None:
    params = {"type": "platt", "answer_0": {"a": 1.0, "b": 0.0}, "answer_1": {"a": 1.0, "b": 0.0}}
    cases = split(0, 4)
    gate, logits = np.array([bad, 9, 9, 9], np.float32), np.array([[0, 1], [bad, 0], [0, bad], [0, 1]], np.float32)
    exits = GateExitPolicy(0.0, params).decide(replace(cases, gate_logit=gate, logits=logits)).exits
    assert exits.tolist() == [False, False, False, True]


def test_labels_of_calib_move_no_calibrator_and_no_candidate() -> None:
    select, calib = split(0), split(1)
    found = calibrate_gate(select, calib, RISK)
    shuffled = replace(calib, labels=np.random.default_rng(0).permutation(calib.labels))
    other = calibrate_gate(select, shuffled, RISK)
    assert (other.params, other.calibration.parameters) == (found.params, found.calibration.parameters)
    assert (other.calibration.walk.start, other.notes) == (found.calibration.walk.start, found.notes)


def test_predicted_coverage_is_where_the_walk_would_end() -> None:
    select = split(0)
    found = calibrate_gate(select, select, RISK).calibration  # val_calib like val_select, exactly
    counts = found.walk.calib
    coverage, fpr = predicted_outcome(found.every, select.positives, RISK.target_fnr, RISK.delta)
    assert coverage == found.every.coverage[found.walk.answer]
    assert fpr == found.every.fpr[found.walk.answer]
    assert predicted_outcome(counts, 10, 0.001, 0.05)[0] == 0
