"""Means and paired differences over seeds against hand computations, and what they are called."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ab_results import CASES, decided, plan_of, result_of

from stage1_pro.core import artifacts, schemas
from stage1_pro.core.ab.outcome import stand
from stage1_pro.core.ab.statistics import PairedDifference, SeedMean, false_alarm
from stage1_pro.core.report.ab.tables import remarks

NOBODY = np.zeros((3, 5))


def compared(coverages: dict[str, list[float]], failures=None, **options):
    """An A/B test whose arms exit these shares of the cases, a seed each."""
    plan = plan_of(list(coverages), len(next(iter(coverages.values()))))
    failures = failures or {}
    results = [
        result_of(
            trial, decided(coverages[trial.arm.name][trial.seed - 42], trial.seed, **options.get(trial.arm.name, {}))
        )
        for trial in plan.trials()
        if trial.name not in failures
    ]
    return stand(plan, results, CASES, failures, 1)


def test_a_mean_over_seeds_by_hand():
    """Values 1, 2, 6: mean 3, deviation √7, error √(7/3); t with 2 degrees of freedom at 95 % is 4.302653."""
    mean = SeedMean.of([1, 2, np.nan, 6], 0.95)
    assert (mean.value, mean.seeds) == (3.0, 3)
    assert mean.error == pytest.approx(1.5275252)
    assert (mean.low, mean.high) == pytest.approx((3 - 6.572411, 3 + 6.572411))


def test_one_seed_has_no_error_and_none_has_no_mean():
    assert SeedMean.of([0.5], 0.95) == SeedMean(0.5, None, None, None, 1)
    assert SeedMean.of([np.nan], 0.95) == SeedMean(None, None, None, None, 0)


def test_a_difference_is_paired_by_seed_and_its_case_interval_is_that_of_the_mean_over_seeds():
    """Differences .1, .2, .3: mean .2, error .057735; two of the replicates' columns average to .1 and .3."""
    replicates = np.array([[0.0, 0.2], [0.1, 0.3], [0.2, 0.4]])
    found = PairedDifference.between([0.5, 0.9, 0.4], [0.4, 0.7, 0.1], replicates, 0.9, 1)
    assert (found.value, found.error) == pytest.approx((0.2, 0.1 / np.sqrt(3)))
    assert (found.case_low, found.case_high) == pytest.approx((0.1 + 0.05 * 0.2, 0.3 - 0.05 * 0.2))
    reach = 2.919986 * 0.1 / np.sqrt(3)  # t at 90 %, 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((0.2 - reach, 0.2 + reach))
    assert found.sense == 1


@pytest.mark.parametrize(
    ("arm", "cases", "better", "sense"),
    [
        ([0.30, 0.31, 0.32], 0.2, 1, 1),
        ([0.30, 0.31, 0.32], 0.2, -1, -1),
        ([0.30, 0.31, 0.32], 0.0, 1, 0),  # the cases alone could have made it
        ([0.1, 0.9, 0.2], 0.2, 1, 0),  # the seeds could have
        ([0.0, 0.0, 0.0], 0.0, 1, 0),
    ],
)
def test_a_difference_is_seen_where_neither_seeds_nor_cases_explain_it(arm, cases, better, sense):
    replicates = np.tile([cases - 1e-9, cases + 1e-9], (3, 1))
    assert PairedDifference.between(arm, [0.0] * 3, replicates, 0.95, better).sense == sense


def test_a_seed_counts_where_both_arms_define_the_figure():
    found = PairedDifference.between([np.nan, 0.2, 0.4], [0.1, np.nan, 0.1], NOBODY, 0.95, 1)
    assert (found.value, found.seeds, found.low) == (pytest.approx(0.3), 1, None)
    nothing = PairedDifference.between([np.nan] * 3, [0.1] * 3, NOBODY, 0.95, 1)
    assert (nothing.value, nothing.case_low, nothing.sense, nothing.seeds) == (None, None, 0, 0)


REFERENCE = [0.50, 0.52, 0.51]


@pytest.mark.parametrize(
    ("coverages", "options", "verdict"),
    [
        ([0.70, 0.73, 0.71], {}, "more"),
        ([0.70, 0.73, 0.71], {"false_positives": 5}, "at a price"),
        ([0.30, 0.33, 0.31], {}, "less"),
        ([0.51, 0.51, 0.52], {}, "like"),
        ([0.30, 0.90, 0.60], {}, "like"),
    ],
)
def test_what_differences_are_called(coverages, options, verdict):
    test = compared({"plain": REFERENCE, "other": coverages}, other=options)
    assert [one.verdict for one in test.standings] == ["reference", verdict]


def test_one_seed_is_no_verdict():
    assert compared({"plain": [0.5], "other": [0.9]}).standings[1].verdict == "one seed"


def test_a_failed_run_leaves_its_pair_out_and_its_arm_without_a_verdict():
    failures = {"other-seed43": "status 1"}
    test = compared({"plain": REFERENCE, "other": [0.9] * 3, "third": [0.9] * 3}, failures)
    plain, other, third = test.standings
    assert (other.verdict, third.verdict) == ("incomplete", "more")
    assert dict(other.failures) == failures
    assert (plain.figures["coverage"].seeds, other.differences["coverage"].seeds) == (3, 2)
    assert other.differences["coverage"].value == pytest.approx(0.9 - (0.50 + 0.51) / 2)


def test_nothing_certified_counts_as_no_right_exits():
    plan = plan_of(["plain", "other"])
    results = []
    for trial in plan.trials():
        certified = trial.arm.name == "plain" or trial.seed == 42
        decisions = decided(0.6 if certified else 0.0, trial.seed)
        results.append(result_of(trial, decisions, certified=certified))
    other = stand(plan, results, CASES, {}, 1).standings[1]
    assert other.refused == 2
    assert other.figures["coverage"].value == pytest.approx(0.2)
    assert other.differences["coverage"].value == pytest.approx(-0.4)
    assert (other.figures["coverage"].seeds, other.figures["fpr_on_exits"].seeds) == (3, 1)


def test_a_reference_that_exits_nothing_leaves_the_price_open():
    plan = plan_of(["plain", "other"])
    results = [
        result_of(
            trial, decided(0.6 if trial.arm.name == "other" else 0.0, trial.seed), certified=trial.arm.name == "other"
        )
        for trial in plan.trials()
    ]
    assert stand(plan, results, CASES, {}, 1).standings[1].verdict == "price unknown"


def test_time_is_compared_on_the_seeds_that_both_have():
    plan = plan_of(["plain", "other"], 2)
    seconds = {"plain": 10.0, "other": 13.0}
    results = [result_of(trial, decided(0.5, 1), seconds[trial.arm.name]) for trial in plan.trials()]
    assert stand(plan, results, CASES, {}, 1).standings[1].time_ratio == pytest.approx(1.3)


def test_many_looks_spend_the_confidence():
    assert false_alarm(3, 0.95) == pytest.approx(0.15)
    test = compared({name: [0.5, 0.5] for name in "abcd"})
    assert test.runs == 8
    assert test.joint_confidence == pytest.approx(0.6)
    assert compared({name: [0.5] * 5 for name in "abcd"}).joint_confidence == pytest.approx(0.0)
    looks = replace(CASES, looks=(0.95,) * 11)  # one before the test, two of trials that failed after it
    spent = replace(test, cases=looks)
    assert spent.joint_confidence == pytest.approx(0.45)
    assert "looked at 3 more times" in " ".join(remarks(spent))
    assert "45% at least" in " ".join(remarks(spent))


def test_the_record_is_what_the_schema_allows(tmp_path):
    test = compared({"plain": REFERENCE, "other": [0.9] * 3}, {"other-seed43": "status 1"})
    artifacts.write_json(tmp_path / "ab.json", test.record(), "ab")
    record = artifacts.read_json(tmp_path / "ab.json", "ab")
    assert record == json.loads(json.dumps(test.record()))
    assert [arm["verdict"] for arm in record["arms"]] == ["reference", "incomplete"]
    broken = replace(test, jobs=0).record()
    assert list(schemas.schema_problems(broken, "ab")) == ["$.jobs is 0; allowed integer, 1 or more"]
