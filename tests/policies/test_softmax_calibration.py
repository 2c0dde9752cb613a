"""calibrate_softmax against plain Python loops, and on data that leaves it nothing to certify."""

import math
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from policy_cases import from_z, population, split_of

from stage1_pro.core.errors import NothingCertified, UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import Calibration
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.independence import one_case_per_group
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.policies.verification import demand_consistent
from stage1_pro.core.records.scores import Scores

RISK = Risk(0.1, 0.9)


# ---- counts and p-values, case by case


def binomial_cdf(misses: int, exited: int, rate: float) -> float:
    return math.fsum(math.comb(exited, i) * rate**i * (1 - rate) ** (exited - i) for i in range(misses + 1))


def p_by_hand(misses: int, exited: int, rate: float) -> float:
    return 1.0 if exited == 0 else binomial_cdf(misses, exited, rate)


def rows(split: Scores) -> list[tuple[float, int, int, str, str]]:
    """(score, answer, label, group, case id) of each case."""
    found = []
    for (negative, positive), label, group, case_id in zip(
        split.logits.tolist(), split.labels.tolist(), split.group, split.case_id, strict=True
    ):
        finite = math.isfinite(negative) and math.isfinite(positive)
        score = 1 / (1 + math.exp(-abs(positive - negative))) if finite else math.nan
        found.append((score, int(positive >= negative), label, group, case_id))
    return found


def evidence_of(cases: list[tuple]) -> list[tuple]:
    """All negatives, and of each group's positives the one whose id hashes lowest."""
    drawn: dict[str, tuple] = {}
    for case in sorted(cases, key=lambda case: blake2b(case[4].encode(), digest_size=8).digest()):
        if case[2] == 1:
            drawn.setdefault(case[3], case)
    return [case for case in cases if case[2] == 0] + list(drawn.values())


def count_by_hand(cases: list[tuple], threshold: float) -> tuple[int, int]:
    """(exited positives, misses); the slack forgives the last bit in which math.exp and numpy may differ."""
    exited = [case for case in cases if case[0] >= threshold - 1e-12 and case[2] == 1]
    return len(exited), sum(case[1] == 0 for case in exited)


def random_split(rng: np.random.Generator, grouped: bool) -> Scores:
    """A few hundred cases with ties, some outputs that are not finite, and repeated groups on request."""
    split = population(
        rng, int(rng.integers(150, 500)), separation=rng.uniform(0.8, 2.5), step=rng.choice([0.1, 0.5, 1.0])
    )
    logits = split.logits + rng.integers(-2, 3, (len(split), 1)).astype(np.float32)
    logits[rng.random(len(split)) < 0.02, rng.integers(2)] = rng.choice([np.nan, np.inf, -np.inf])
    groups = [f"g{i}" for i in rng.integers(0, len(split), len(split))] if grouped else None
    return split_of(logits, split.labels, groups)


@pytest.mark.parametrize("rule", EXIT_RULES)
@pytest.mark.parametrize("grouped", [False, True])
def test_counts_are_those_of_plain_loops_and_certified_is_what_its_method_allows(grouped: bool, rule: str) -> None:
    risk = Risk(0.03, 0.95) if rule == "one_sided" else RISK  # which certifies more
    rng, answered, stopped, methods = np.random.default_rng(11), 0, 0, set()
    for _ in range(40):
        select, calib = random_split(rng, grouped), random_split(rng, grouped)
        found = calibrate_softmax(select, calib, risk, rule)
        counted = evidence_of(rows(calib))
        if rule == "one_sided":
            counted = [
                (1.0 if answer == 1 and score == score else score, answer, *rest) for score, answer, *rest in counted
            ]
        counts = [count_by_hand(counted, row["threshold"]) for row in found.parameters]
        exits = zip(found.walk.calib.exited_positives.tolist(), found.walk.calib.misses.tolist(), strict=True)
        assert list(exits) == counts
        passes = [p_by_hand(misses, exited, risk.target_fnr) <= risk.delta for exited, misses in counts]
        assert found.walk.certified.tolist() == allowed(found, counts, passes)
        methods.add(found.found.method)
        answered += found.certified
        stopped += found.certified and not found.walk.certified[-1]
    assert methods == ({"one_sided"} if rule == "one_sided" else {"walk", "boundary"})
    assert 5 < answered < 40
    assert stopped > 0


def allowed(found: Calibration, counts: list[tuple[int, int]], passes: list[bool]) -> list[bool]:
    """Which candidates the method that was taken certifies, one after the other."""
    if found.found.method == "one_sided":
        return passes
    if found.found.method == "boundary":
        rises = found.found.facts["boundary"]["rises"]
        return [misses < sum(rise <= exited for rise in rises) for exited, misses in counts]
    certified, going = [], True
    for index, passed in enumerate(passes):
        going = going and (passed or index < found.walk.start)
        certified.append(going and index >= found.walk.start)
    return certified


# ---- what may be looked at


def test_calib_labels_move_the_start_only_by_their_number() -> None:
    rng = np.random.default_rng(3)
    select, calib = population(rng, 3000), population(rng, 3000)
    expected = calibrate_softmax(select, calib, RISK)
    for _ in range(20):
        shuffled = replace(calib, labels=rng.permutation(calib.labels))
        found = calibrate_softmax(select, shuffled, RISK)
        assert found.walk.start == expected.walk.start
        assert found.parameters == expected.parameters


def test_order_of_cases_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    select, calib = population(rng, 1500), population(rng, 1500)
    order = rng.permutation(1500)
    moved = replace(
        calib,
        case_id=calib.case_id[order],
        group=calib.group[order],
        labels=calib.labels[order],
        logits=calib.logits[order],
    )
    assert calibrate_softmax(select, moved, RISK).record() == calibrate_softmax(select, calib, RISK).record()


# ---- failure modes


def test_one_class_only() -> None:
    rng = np.random.default_rng(5)
    select = population(rng, 500)
    negatives = from_z(rng.normal(-2, 1, 500), np.zeros(500))
    with pytest.raises(UserError, match="no positives"):
        calibrate_softmax(select, negatives, RISK)
    with pytest.raises(UserError, match="no positives"):
        calibrate_softmax(negatives, select, RISK)
    positives = from_z(rng.normal(3, 1, 500), np.ones(500))
    record = calibrate_softmax(positives, positives, RISK).record()
    assert record["fnr_on_exits"] <= 0.1
    assert record["val_calib_metrics"]["fpr_on_exits"] is None


def test_more_classes_are_refused() -> None:
    split = population(np.random.default_rng(0), 50)
    three = replace(split, logits=np.zeros((50, 3), np.float32))
    with pytest.raises(UserError, match="3 classes"):
        calibrate_softmax(three, split, RISK)


def test_too_few_positives() -> None:
    z, labels = np.full(40, 5.0), np.r_[np.ones(21), np.zeros(19)]
    perfect = from_z(np.where(labels == 1, z, -z), labels)
    with pytest.raises(NothingCertified, match="21 independent positives") as refused:
        calibrate_softmax(perfect, perfect, RISK).record()
    assert refused.value.exit_status == 3
    enough = split_of(np.tile(perfect.logits, (2, 1)), np.tile(perfect.labels, 2))
    assert calibrate_softmax(enough, enough, RISK).record()["coverage"] == 1


def test_all_positives_missed() -> None:
    split = from_z(np.full(300, -3.0), np.r_[np.ones(150), np.zeros(150)])
    with pytest.raises(NothingCertified, match="would not help"):
        calibrate_softmax(split, split, RISK).record()


def test_all_scores_tied() -> None:
    labels = np.r_[np.ones(100), np.zeros(200)]
    tied = from_z(np.where(labels == 1, 2.0, -2.0), labels)
    calibration = calibrate_softmax(tied, tied, RISK)
    assert len(calibration.parameters) == 1
    assert calibration.record()["coverage"] == 1


def test_nothing_finite() -> None:
    split = population(np.random.default_rng(0), 200)
    broken = replace(split, logits=np.full_like(split.logits, np.nan))
    with pytest.raises(NothingCertified, match="No case of val_select has a finite score"):
        calibrate_softmax(broken, split, RISK).record()
    with pytest.raises(NothingCertified, match="0 of them exit"):
        calibrate_softmax(split, broken, RISK).record()


def test_cases_that_are_not_finite_are_deferred_and_counted() -> None:
    rng = np.random.default_rng(6)
    select, calib = population(rng, 2000), population(rng, 2000)
    logits = calib.logits.copy()
    logits[::10, 1] = np.tile([np.nan, np.inf, -np.inf, np.nan], 50)
    record = calibrate_softmax(select, replace(calib, logits=logits), RISK).record()
    assert record["val_calib_metrics"]["cases"] == 2000
    assert record["coverage"] <= 0.9


# ---- groups


def test_one_positive_stands_for_its_group() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1, 0])
    groups = np.array(["a", "a", "a", "b", "b", "c", "c"])
    kept = one_case_per_group(from_z(np.zeros(7), labels, groups.tolist()))
    assert kept[labels == 0].all()
    assert sorted(groups[kept & (labels == 1)]) == ["a", "b", "c"]


def test_any_frame_of_a_track_may_stand_for_it() -> None:
    """Frames of a track differ in a regular way, so its first one is no draw from it."""
    labels, groups = np.ones(2000, dtype=int), np.repeat([f"t{i}" for i in range(400)], 5).tolist()
    kept = np.flatnonzero(one_case_per_group(from_z(np.zeros(2000), labels, groups)))
    assert len(kept) == 400
    assert np.bincount(kept % 5, minlength=5).min() > 50


def test_groups_are_the_evidence() -> None:
    rng = np.random.default_rng(7)
    select, tracks = population(rng, 300), population(rng, 300)
    groups = [f"track{i:03d}" for i in np.repeat(np.arange(300), 5)]
    frames = split_of(np.repeat(tracks.logits, 5, axis=0), np.repeat(tracks.labels, 5), groups)
    alone, grouped = calibrate_softmax(select, tracks, RISK), calibrate_softmax(select, frames, RISK)
    assert grouped.walk.calib.exited_positives.tolist() == alone.walk.calib.exited_positives.tolist()
    assert grouped.walk.answer == alone.walk.answer
    record = grouped.record()
    assert record["val_calib_metrics"]["groups"] == 300
    assert record["val_calib_metrics"]["positive_groups"] == tracks.positives
    assert record["coverage"] == alone.record()["coverage"]
    assert "one positive drawn from each group" in record["guarantee"]["words"]
    assert "group" not in alone.record()["guarantee"]["words"]


# ---- the record


def test_record_shows_why_it_may_be_trusted(tmp_path) -> None:
    rng = np.random.default_rng(8)
    select, calib = population(rng, 3000), population(rng, 3000)
    calibration = calibrate_softmax(select, calib, RISK)
    record = calibration.record()
    assert record["fnr_on_exits"] == record["misses"] / record["exited_positives"]
    assert record["fnr_upper_bound"] <= RISK.target_fnr
    assert [row["certified"] for row in record["sweep_results"]] == calibration.walk.certified.tolist()
    naive = record["diagnostics"]["naive"]
    assert naive["fnr_on_exits"] <= RISK.target_fnr
    assert naive["coverage"] >= record["coverage"]
    header = {"target_fnr_exit": RISK.target_fnr, "fnr_confidence": RISK.confidence, "schema_version": 1}
    rest = dict.fromkeys(("run_id", "created_at", "calib_use_count", "model_digest", "splits_digest"), "x")
    threshold = record["sweep_results"][calibration.demand_certified()]["threshold"]
    policy = {**header, **rest, **record, "exit_threshold": threshold}
    demand_consistent(policy, tmp_path)
    with pytest.raises(UserError, match="altered"):
        demand_consistent({**policy, "misses": policy["exited_positives"] // 5}, tmp_path)
    with pytest.raises(UserError, match="not the last one that its sweep certified"):
        demand_consistent({**policy, "exit_threshold": 0.5}, tmp_path)
    with pytest.raises(UserError, match=r"\$\.guarantee is missing"):
        demand_consistent({name: value for name, value in policy.items() if name != "guarantee"}, tmp_path)
