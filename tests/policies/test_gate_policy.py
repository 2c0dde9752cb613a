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
from stage1_pro.core.policies.certification import predicted
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.gate import GateExitPolicy, calibrate_gate, gate_scores
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.softmax import answers, calibrate_softmax, softmax_candidates, softmax_ranked
from stage1_pro.core.records.scores import Scores

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
    assert gain > 0.02
    assert fields["diagnostics"]["baselines"]["softmax"]["coverage"] == softmax["coverage"]
    assert fields["diagnostics"]["baselines"]["softmax"]["certified"]
    assert "right exits over the softmax policy" in found.notes[0]


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
    unsure = replace(strict, select=select, calib=calib)
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


@pytest.mark.parametrize("rule", EXIT_RULES)
def test_predicted_is_what_a_val_calib_like_val_select_certifies(rule: str) -> None:
    """Certified by the walk, since its start is sure; where too few positives are left nothing is."""
    select = split(0)
    found = calibrate_gate(select, select, RISK, exit_rule=rule).calibration
    assert found.found.method in ("walk", "one_sided")
    ranked = softmax_ranked(select, EXIT_RULES[rule])
    thresholds = softmax_candidates(ranked, EXIT_RULES[rule])
    own = calibrate_softmax(select, select, RISK, rule)
    end = predicted(ranked, thresholds, select.positives, RISK, EXIT_RULES[rule])
    assert end.coverage == own.every.coverage[own.walk.answer]
    assert end.right_exits == own.every.right_exits[own.walk.answer]
    assert end.fpr == own.every.fpr[own.walk.answer]
    few = predicted(ranked, thresholds, 10, Risk(0.001, 0.95), EXIT_RULES[rule])
    assert few.coverage == few.right_exits == 0


def test_groups_are_the_evidence_of_what_is_predicted() -> None:
    """Ten frames of each case: ten times the positives, and no more evidence."""
    select = split(0, 600)
    frames = replace(
        select,
        **{name: np.repeat(getattr(select, name), 10, axis=0) for name in ("labels", "logits", "gate_logit")},
        case_id=np.array([f"frame{i:05d}" for i in range(6000)], dtype=object),
        group=np.repeat(select.case_id, 10),
    )
    rule = EXIT_RULES["one_sided"]
    ends = []
    for cases in (select, frames):
        ranked = softmax_ranked(cases, rule)
        ends.append(predicted(ranked, softmax_candidates(ranked, rule), 300, RISK, rule))
    assert ends[0].coverage == pytest.approx(ends[1].coverage, abs=0.02)


# ---- one-sided exits


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_1_exits_and_answers_0_by_the_gate_alone(kind: str) -> None:
    select, calib, fresh = (split(seed) for seed in range(3))
    fields = calibrate_gate(select, calib, RISK, kind, "one_sided").fields()
    decider = policy_from_artifact("gate", {**header(RISK), **fields})
    decisions = decider.decide(fresh)
    answered = answers(fresh.logits)
    assert decisions.exits[answered == 1].all()
    assert 0 < decisions.exits[answered == 0].mean() < 1
    own = np.flatnonzero(answered == 0)
    assert fresh.gate_logit[own][decisions.exits[own]].min() >= fresh.gate_logit[own][~decisions.exits[own]].max()
    hits = {row["exited_positives"] - row["misses"] for row in fields["sweep_results"]}
    assert len(hits) == 1
    assert (np.diff([row["coverage"] for row in fields["sweep_results"]]) >= 0).all()
    thresholds = {row["threshold"] for row in fields["sweep_results"]} - {0.0}  # the floor, where a map reaches it
    assert not thresholds & set(decider.decide(select).scores.tolist())


def test_a_gate_that_is_wrong_about_answers_1_costs_nothing() -> None:
    select, calib = split(0), split(1)

    def turned(cases: Scores) -> Scores:
        return replace(cases, gate_logit=np.where(answers(cases.logits) == 1, -cases.gate_logit, cases.gate_logit))

    with pytest.raises(UserError, match=r"anti-informative \(answer 1\)"):
        calibrate_gate(turned(select), turned(calib), RISK)
    found = calibrate_gate(turned(select), turned(calib), RISK, exit_rule="one_sided")
    assert found.fields() == calibrate_gate(select, calib, RISK, exit_rule="one_sided").fields()


def test_scores_of_answers_1_are_no_saturation() -> None:
    assert not any(
        "exactly 1" in line
        for line in calibrate_gate(split(0), split(1), RISK, "quantile", "one_sided").calibration.warnings
    )


@pytest.mark.parametrize("exit_rule", ["one_sided", "symmetric"])
def test_a_certification_may_be_ended_before_val_calib_is_read(exit_rule: str) -> None:
    """By whatever val_select's counts say; the gate's candidates stay what they were."""
    select, calib, risk = split(1), split(2), Risk(0.05, 0.9)
    whole = calibrate_gate(select, calib, risk, "quantile", exit_rule).calibration
    ended = calibrate_gate(select, calib, risk, "quantile", exit_rule, lambda counts: 7).calibration
    assert ended.parameters == whole.parameters[:8]
    every = calibrate_gate(select, calib, risk, "quantile", exit_rule, lambda counts: counts.exited.size - 1)
    assert every.calibration.parameters == whole.parameters
