"""A certificate for each camera: thresholds of their own, delta shared, and whoever cannot pass defers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policy_cases import gated_split, header, population

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.binomial import p_value
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.gate import calibrate_gate
from stage1_pro.core.policies.group_certificates import GroupCalibration
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy, calibrate_softmax, softmax_fields
from stage1_pro.core.policies.verification import demand_consistent, demand_reproduced, promised
from stage1_pro.core.records.scores import Scores, read_scores
from stage1_pro.core.schemas import schema_problems

RISK = Risk(0.1, 0.9)
WHERE = Path("thresholds.json")


def named(split: Scores, groups: list[str] | np.ndarray) -> Scores:
    return replace(split, certificate_group=np.array(groups, dtype=object))


def split_of(seed: int, sizes: dict[str, int], separation: float = 2.0) -> Scores:
    """Cases of several cameras, a third of each positive."""
    split = population(np.random.default_rng(seed), sum(sizes.values()), separation)
    return named(split, np.repeat(list(sizes), list(sizes.values())))


def policy_of(select: Scores, calib: Scores, risk: Risk = RISK, rule: str = "one_sided") -> dict:
    """A whole policy file with a softmax threshold for each camera."""
    versions = {"certificate_groups": "camera", "answer_shift": 0.0}
    policy = {**header(risk), **versions, **softmax_fields(calibrate_softmax(select, calib, risk, rule))}
    return {**policy, "guarantee": promised(policy, WHERE)}


SIZES = {"a": 900, "b": 900, "c": 300, "": 60}


@pytest.fixture(scope="module", params=["one_sided", "symmetric"])
def made(request) -> tuple[dict, Scores]:
    calib = split_of(2, SIZES)
    return policy_of(split_of(1, SIZES), calib, rule=request.param), calib


def test_each_camera_is_certified_by_itself_at_its_part_of_delta(made) -> None:
    policy, calib = made
    assert not list(schema_problems(policy, "thresholds"))
    assert sorted(policy["groups"]) == ["a", "b", "c"]
    decisions = policy_from_artifact("softmax", policy).decide(calib)
    for name, group in policy["groups"].items():
        own = calib.take(calib.certificate_group == name)
        alone = SoftmaxExitPolicy(group["threshold"], policy["exit_rule"]).decide(own)
        assert (decisions.exits[calib.certificate_group == name] == alone.exits).all()
        counts = count_decisions(alone.exits, alone.predictions, own.labels)
        assert (group["misses"], group["exited_positives"]) == (counts.misses[0], counts.exited_positives[0])
        assert group["delta"] == pytest.approx(RISK.delta / 3)
        assert p_value(group["misses"], group["exited_positives"], RISK.target_fnr) <= group["delta"]
    assert not decisions.exits[calib.certificate_group == ""].any()  # of no camera
    demand_consistent(policy, WHERE)
    demand_reproduced(policy, decisions, calib, WHERE)
    assert "in all of them at once: a, b, c. A case of any other defers." in policy["guarantee"]["words"]


def test_a_camera_that_is_not_listed_defers_whatever_its_answer(made) -> None:
    policy, calib = made
    decisions = policy_from_artifact("softmax", policy).decide(calib, ["new"] * len(calib))
    assert not decisions.exits.any()
    assert not decisions.covered.any()
    with pytest.raises(ValueError, match="holds for each group of 'camera' by itself"):
        policy_from_artifact("softmax", policy).decide(replace(calib, certificate_group=None))
    with pytest.raises(ValueError, match="2 groups for"):
        policy_from_artifact("softmax", policy).decide(calib, ["a", "b"])


def altered(policy: dict, name: str, **changes: object) -> dict:
    return {**policy, "groups": {**policy["groups"], name: {**policy["groups"][name], **changes}}}


def test_what_is_altered_in_one_camera_is_noticed(made) -> None:
    policy, calib = made
    group = policy["groups"]["a"]
    changed = {
        "spend more than the 0.1": altered(policy, "a", delta=RISK.delta),
        "do not certify target_fnr_exit 0.1": altered(policy, "b", misses=policy["groups"]["b"]["misses"] + 60),
        "$.groups.a: its threshold is not the last one": altered(policy, "a", threshold=group["threshold"] / 2 + 0.25),
        "$.guarantee does not say": {**policy, "groups": {name: policy["groups"][name] for name in "ab"}},
        "$.misses is not that of $.groups": {**policy, "misses": policy["misses"] + 1},
        "one stands without the other": {name: it for name, it in policy.items() if name != "groups"},
    }
    for words, wrong in changed.items():
        with pytest.raises(UserError) as refused:
            demand_consistent(wrong, WHERE)
        assert words in str(refused.value)
    moved = named(calib, np.where(calib.certificate_group == "a", "b", calib.certificate_group))
    with pytest.raises(UserError, match=r"it gives|gives other values"):
        demand_reproduced(policy, policy_from_artifact("softmax", policy).decide(moved), moved, WHERE)


def test_cameras_that_cannot_pass_defer_and_leave_their_part_to_the_others() -> None:
    """Three positives, none in val_calib, none in val_select; the other two share delta by halves."""
    select = split_of(1, {"a": 900, "b": 900, "few": 9, "gone": 200})
    calib = split_of(2, {"a": 900, "b": 900, "few": 9, "new": 200})
    policy = policy_of(select, calib)
    assert {name: group["delta"] for name, group in policy["groups"].items()} == pytest.approx({"a": 0.05, "b": 0.05})
    deferred = policy["groups_deferred"]
    assert sorted(deferred) == ["few", "gone", "new"]
    assert [one["delta"] for one in deferred.values()] == [0, 0, 0]
    assert "val_calib holds 0 of its positives that count, and 38 must exit without a miss" in deferred["gone"]["why"]
    assert "val_select holds none of its positives" in deferred["new"]["why"]
    demand_consistent(policy, WHERE)


def test_one_camera_alone_has_the_whole_delta() -> None:
    select, calib = split_of(1, {"a": 900}), split_of(2, {"a": 900})
    alone = calibrate_softmax(*(replace(s, certificate_group=None) for s in (select, calib)), RISK, "one_sided")
    found = calibrate_softmax(select, calib, RISK, "one_sided")
    assert found.chosen() == alone.chosen()
    assert found.record()["groups"]["a"]["delta"] == pytest.approx(RISK.delta)


def test_a_camera_that_is_tested_and_fails_has_spent_its_part() -> None:
    """val_select promises for b what val_calib does not keep."""
    select, calib = split_of(1, {"a": 900, "b": 900}), split_of(2, {"a": 900, "b": 900})
    turned = np.where((calib.certificate_group == "b") & (np.arange(1800) % 20 > 0), -1, 1)
    policy = policy_of(select, replace(calib, logits=calib.logits * turned[:, None].astype(np.float32)))
    assert sorted(policy["groups"]) == ["a"]
    assert policy["groups"]["a"]["delta"] == policy["groups_deferred"]["b"]["delta"] == pytest.approx(0.05)
    assert "tested and not certified" in policy["groups_deferred"]["b"]["why"]
    demand_consistent(policy, WHERE)
    both = {**policy, "groups_deferred": {"b": {**policy["groups_deferred"]["b"], "delta": 0.06}}}
    with pytest.raises(UserError, match=r"spend more than the 0\.1"):
        demand_consistent(both, WHERE)


def test_where_no_camera_passes_the_evidence_of_each_is_told() -> None:
    small = {"a": 60, "b": 45}
    with pytest.raises(NothingCertified) as refused:
        calibrate_softmax(split_of(1, small), split_of(2, small), RISK, "one_sided").record()
    assert "a: val_calib holds" in str(refused.value)
    assert "fewer and larger groups in the column" in str(refused.value)


def test_a_patient_of_two_cameras_counts_once_in_each() -> None:
    split = split_of(1, {"a": 300, "b": 300})
    patients = np.array([f"p{at % 300}" for at in range(600)], dtype=object)
    both = replace(split, group=patients, labels=np.ones(600, dtype=np.int8))
    found = calibrate_softmax(both, both, Risk(0.1, 0.9), "one_sided")
    assert isinstance(found, GroupCalibration)
    assert [part.walk.calib.positives for part in found.parts.values()] == [300, 300]


def test_gate_and_scrc_have_thresholds_for_each_camera_too() -> None:
    select, calib = (named(gated_split(seed), (np.arange(3000) % 2).astype(str)) for seed in (1, 2))
    for policy, fields, shorts in (
        ("gate", calibrate_gate(select, calib, RISK, exit_rule="one_sided").fields(), ["threshold"]),
        ("scrc", calibrate_scrc(select, calib, RISK, exit_rule="one_sided").fields(), ["lambda1", "lambda2"]),
    ):
        whole = {**header(RISK), "certificate_groups": "camera", "answer_shift": 0.0, **fields}
        whole |= {"guarantee": promised(whole, WHERE)}
        demand_consistent(whole, WHERE)
        assert all(short in group for group in whole["groups"].values() for short in shorts)
        decisions = policy_from_artifact(policy, whole).decide(calib)
        demand_reproduced(whole, decisions, calib, WHERE)
        assert "one threshold" in whole["diagnostics"]["baselines"]
    with pytest.raises(UserError, match="--scrc_variant SCRC-I"):
        calibrate_scrc(select, calib, RISK, variant="SCRC-T")


def test_score_files_keep_the_camera(tmp_path) -> None:
    split = split_of(1, SIZES)
    split.write(tmp_path / "val.parquet")
    again = read_scores(tmp_path / "val.parquet", "")
    assert (again.certificate_group == split.certificate_group).all()
    assert again.take(again.certificate_group == "c").case_id.tolist() == sorted(
        split.case_id[split.certificate_group == "c"]
    )
