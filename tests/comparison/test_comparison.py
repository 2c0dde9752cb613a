"""Runs side by side: paired differences against a plain loop, and what they amount to."""

from dataclasses import replace

import numpy as np
import pytest

from stage1_pro.core.comparison.compare import compare
from stage1_pro.core.comparison.contender import (
    IN_EXPECTATION,
    MEASURES,
    Certificate,
    Contender,
    SharedCases,
    paired_replicates,
)
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.selective import augrc
from stage1_pro.core.policies.base import ExitDecisions

RISK = Risk(0.05, 0.95)


@pytest.fixture(scope="module")
def cases() -> SharedCases:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 400)
    labels = rng.integers(0, 2, 400)
    independent = np.ones(400, dtype=bool)
    independent[::3] = False
    return SharedCases(labels, group_index(groups, 400), independent, "0" * 64)


def contender(cases: SharedCases, skill: float, threshold: float = 1.0, seed: int = 1, risk: Risk = RISK) -> Contender:
    """Answers by the sign of a noisy margin, exits where it is large."""
    rng = np.random.default_rng(seed)
    margin = skill * (2 * cases.labels - 1) + rng.normal(0, 1, cases.labels.size)
    scores = np.abs(margin)
    decisions = ExitDecisions(scores >= threshold, (margin > 0).astype(np.int64), scores, scores)
    digests = {"model": "1" * 64, "policy": "2" * 64, "scores": "3" * 64}
    certificate = Certificate(0.04, 1)
    return Contender("run", "runs/run", 2, "softmax", 42, risk, certificate, decisions, "score", digests)


def uncertified(one: Contender) -> Contender:
    nobody = replace(one.decisions, exits=np.zeros_like(one.decisions.exits))
    return replace(one, certificate=None, decisions=nobody)


def in_expectation(one: Contender) -> Contender:
    return replace(one, certificate=Certificate(0.05, 1, IN_EXPECTATION, "SCRC-T"))


def compared(cases, *contenders, samples=400, seed=0):
    return compare(contenders, cases, samples=samples, confidence=0.9, rng=np.random.default_rng(seed))


def figures_of(decisions: ExitDecisions, labels: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """The measures on repeated cases, each by its definition."""
    exits, answers, label = decisions.exits[drawn], decisions.predictions[drawn], labels[drawn]
    return {
        "right_exits": (exits & (answers == label)).mean(),
        "utility": exits.mean() - 5 * (exits & (answers == 1) & (label == 0)).mean(),
        "coverage": exits.mean(),
        "fpr_on_exits": (answers == 1)[exits & (label == 0)].mean(),
        "accuracy_on_exits": (answers == label)[exits].mean(),
        "augrc": augrc(decisions.scores[drawn], answers != label),
    }


def test_differences_match_a_plain_loop_that_redraws_the_groups_of_both_runs(cases):
    first, other = contender(cases, 1.0), contender(cases, 1.3, 0.8, seed=2)
    members = [np.flatnonzero(cases.index == group) for group in range(cases.groups)]
    rng = np.random.default_rng(5)
    plain = []
    for _ in range(3000):
        drawn = np.concatenate([members[group] for group in rng.integers(0, cases.groups, cases.groups)])
        one, two = (figures_of(run.decisions, cases.labels, drawn) for run in (first, other))
        plain.append([two[name] - one[name] for name in MEASURES])
    every = np.arange(cases.labels.size)
    expected = [figures_of(run.decisions, cases.labels, every) for run in (first, other)]
    differences = compared(cases, first, other, samples=3000).standings[1].differences
    for position, name in enumerate(MEASURES):
        found, loop = differences[name], np.array(plain)[:, position]
        assert found.value == pytest.approx(expected[1][name] - expected[0][name])
        np.testing.assert_allclose([found.low, found.high], np.percentile(loop, [5, 95]), atol=0.15 * loop.std())


def test_pairing_is_worth_its_while(cases):
    """Runs that err on the same cases differ by less than two intervals side by side suggest."""
    first = contender(cases, 1.0)
    standings = compared(cases, first, contender(cases, 1.0, 0.95)).standings
    own, paired = standings[1].figures["coverage"], standings[1].differences["coverage"]
    assert paired.high - paired.low < 0.5 * (own.high - own.low)


def test_replicates_of_several_decisions_stand_on_the_same_resamples(cases):
    one, two = contender(cases, 1.0).decisions, contender(cases, 1.3, seed=2).decisions
    rows = paired_replicates([one, two, one], cases, 50, np.random.default_rng(0))
    assert rows[0]["augrc"].shape == (50,)
    for name in MEASURES:
        assert np.array_equal(rows[0][name], rows[2][name])
        assert not np.array_equal(rows[0][name], rows[1][name])


def test_identical_runs_differ_by_nothing(cases):
    standing = compared(cases, contender(cases, 1.0), contender(cases, 1.0)).standings[1]
    assert {(d.value, d.low, d.high, d.sense) for d in standing.differences.values()} == {(0.0, 0.0, 0.0, 0)}
    assert standing.verdict == "like"


def test_the_order_of_the_runs_is_kept_and_turns_the_signs(cases):
    one, two = contender(cases, 1.0), contender(cases, 2.0, 0.5, seed=2)
    there, back = compared(cases, one, two), compared(cases, two, one)
    assert [standing.contender for standing in back.standings] == [two, one]
    assert [standing.letter for standing in back.standings] == ["A", "B"]
    assert there.standings[0].differences == {}
    for name in MEASURES:
        forth, reverse = there.standings[1].differences[name], back.standings[1].differences[name]
        assert (reverse.value, reverse.low, reverse.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
        assert reverse.sense == -forth.sense
        assert there.standings[1].figures[name] == back.standings[0].figures[name]


def test_a_better_model_is_better_by_every_measure(cases):
    differences = compared(cases, contender(cases, 0.5), contender(cases, 2.5)).standings[1].differences
    assert {name: np.sign(difference.value) for name, difference in differences.items()} == {
        "right_exits": 1,
        "utility": 1,
        "coverage": 1,
        "fpr_on_exits": -1,
        "accuracy_on_exits": 1,
        "augrc": -1,
    }
    assert {difference.sense for difference in differences.values()} == {1}


def test_without_a_certificate_coverage_is_0_and_what_exits_do_is_undefined(cases):
    standing = compared(cases, contender(cases, 1.0), uncertified(contender(cases, 1.3))).standings[1]
    coverage, better = standing.figures["coverage"], standing.differences
    assert (coverage.value, coverage.low, coverage.high) == (0.0, 0.0, 0.0)
    assert (better["coverage"].sense, better["augrc"].sense, better["fpr_on_exits"].sense) == (-1, 1, 0)
    assert better["fpr_on_exits"].value is None
    assert standing.figures["augrc"].value == pytest.approx(
        augrc(standing.contender.decisions.scores, standing.contender.decisions.predictions != cases.labels)
    )
    assert standing.fnr["value"] is standing.promise_held is None
    assert standing.verdict == "uncertified"


def test_no_false_alarm_among_these_cases_is_not_none_at_all(cases):
    right = contender(cases, 50.0)
    figures = compared(cases, right).standings[0].figures
    assert (figures["fpr_on_exits"].value, figures["fpr_on_exits"].low) == (0, 0)
    assert 0.05 < figures["fpr_on_exits"].high < 0.1  # 3.0 of the 46 that 60 unequal groups are worth, at 90%
    assert figures["accuracy_on_exits"].low < 1 == figures["accuracy_on_exits"].high


def test_fnr_counts_independent_cases_and_its_interval_is_exact(cases):
    decisions = (one := contender(cases, 1.0)).decisions
    counted = decisions.exits & (cases.labels == 1) & cases.independent
    misses = np.count_nonzero(decisions.predictions[counted] == 0)
    fnr = compared(cases, one, one).standings[0].fnr
    assert (fnr["misses"], fnr["exited_positives"]) == (misses, counted.sum())
    assert (fnr["low"], fnr["high"]) == fnr_interval(misses, counted.sum(), 0.9)


@pytest.mark.parametrize(
    ("skill", "threshold", "risk", "verdict"),
    [
        (1.0, 0.5, RISK, "more at a price"),  # answers more, and those that it was less sure of
        (2.5, 0.5, RISK, "more"),
        (1.0, 1.5, RISK, "less"),
        (3.5, 0.1, Risk(0.02, 0.95), "other promise"),
        (3.5, 0.1, Risk(0.05, 0.9), "other promise"),
    ],
)
def test_more_right_exits_are_a_gain_only_at_the_same_promise_and_without_a_price(
    cases, skill, threshold, risk, verdict
):
    found = compared(cases, contender(cases, 1.0), contender(cases, skill, threshold, risk=risk))
    assert found.standings[1].verdict == verdict
    assert found.promises_differ == (verdict == "other promise")


def test_certificates_hold_together_with_less_confidence(cases):
    one, loose = contender(cases, 1.0), contender(cases, 1.0, risk=Risk(0.05, 0.9))
    assert compared(cases, one, one, samples=2).joint_confidence == pytest.approx(0.9)
    assert compared(cases, one, loose, uncertified(one), samples=2).joint_confidence == pytest.approx(0.8)
    assert compared(cases, *[loose] * 12, samples=2).joint_confidence == 0
    seen = replace(cases, looks=(0.95, 0.95, 0.9, 0.95))  # two of runs that are not shown
    assert compared(seen, one, one, samples=2).joint_confidence == pytest.approx(0.75)


def test_a_promise_in_expectation_is_another_one_than_a_certificate(cases):
    sure = contender(cases, 1.0)
    loose = in_expectation(contender(cases, 2.5, 0.5))
    for first, second in ((sure, loose), (loose, sure), (uncertified(sure), loose)):
        found = compared(cases, first, second, samples=50)
        assert found.standings[1].verdict == "other promise"
        assert found.promises_differ
    alike = compared(cases, in_expectation(sure), loose, samples=50)
    assert (alike.standings[1].verdict, alike.promises_differ) == ("more", False)
    assert compared(cases, sure, loose, uncertified(loose), samples=2).standings[2].verdict == "uncertified"


def test_a_promise_in_expectation_has_no_part_in_what_certificates_are_worth_together(cases):
    one = contender(cases, 1.0)
    assert compared(cases, one, in_expectation(one), samples=2).joint_confidence == pytest.approx(0.95)
    assert compared(cases, in_expectation(one), in_expectation(one), samples=2).joint_confidence is None
    assert compared(cases, in_expectation(one), uncertified(one), samples=2).joint_confidence is None
    runs = compared(cases, one, in_expectation(one), uncertified(one), samples=2).record()["runs"]
    assert [run["certified"] for run in runs] == [True, False, False]
    assert [run["promise_kind"] for run in runs] == ["binomial certificate", "in expectation", None]
    assert [run["scrc_variant"] for run in runs] == [None, "SCRC-T", None]


def test_letters_go_on_after_z(cases):
    letters = [standing.letter for standing in compared(cases, *[contender(cases, 1.0)] * 28, samples=2).standings]
    assert letters[:2] + letters[25:] == ["A", "B", "Z", "AA", "AB"]
