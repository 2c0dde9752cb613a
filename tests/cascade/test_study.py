"""Ways to run a cascade, case by case."""

from typing import Any

import numpy as np
import pytest

from stage1_pro.core.cascade.prices import Prices
from stage1_pro.core.cascade.study import Cases, case_costs, group_means, measure, recall_interval, way
from stage1_pro.core.metrics.bootstrap import group_index

PRICES = Prices(1, 10, 1000, 100)
OPTIONS: dict[str, Any] = {"samples": 400, "confidence": 0.95}
LABELS = np.array([1, 1, 1, 0, 0, 0])
FIRST = np.array([0, 1, 0, 0, 1, 0])
SECOND = np.array([0, 0, 1, 0, 0, 1])
EXITS = np.array([True, True, False, True, True, False])


def cases_of(labels: np.ndarray, groups: np.ndarray | None = None, prevalence: float | None = None) -> Cases:
    return Cases(labels, group_index(groups, labels.size), np.ones(labels.size, dtype=bool), prevalence)


def test_costs_of_cases() -> None:
    cascade = way("cascade", EXITS, FIRST, SECOND)
    assert case_costs(PRICES, LABELS, cascade).tolist() == [1, 1001, 1011, 1, 101, 111]
    alone = way("stage 2 alone", np.zeros(6, dtype=bool), FIRST, SECOND, stage1=False)
    assert case_costs(PRICES, LABELS, alone).tolist() == [10, 10, 1010, 10, 10, 110]
    assumed = way("assumed", EXITS, FIRST, np.full(6, 0.1))
    assert case_costs(PRICES, LABELS, assumed).tolist() == [1, 1001, 111, 1, 101, 21]


def test_measured_ways() -> None:
    ways = [
        way("all to stage 2", np.zeros(6, dtype=bool), FIRST, SECOND),
        way("cascade", EXITS, FIRST, SECOND),
    ]
    alone, cascade = measure(PRICES, cases_of(LABELS), ways, **OPTIONS, rng=np.random.default_rng(0))
    assert cascade.cost[0] == pytest.approx(2226 / 6 * 1000)
    assert cascade.saved[0] == pytest.approx(alone.cost[0] - cascade.cost[0])
    assert alone.saved == (0, 0, 0)
    assert cascade.saved[1] < cascade.saved[0] < cascade.saved[2]
    assert (cascade.coverage, cascade.precision) == (pytest.approx(4 / 6), pytest.approx(1 / 3))
    assert (cascade.misses, cascade.false_alarms) == (pytest.approx(2000 / 6), pytest.approx(2000 / 6))
    assert cascade.missed_groups == 2
    assert cascade.too_few_misses
    assert cascade.recall[0] == pytest.approx(1 / 3)
    assert cascade.recall[1:] == pytest.approx((0.0084, 0.9057), abs=1e-4)  # Clopper and Pearson, 1 of 3


def test_another_prevalence_weighs_the_same_errors_anew() -> None:
    """As if every positive stood there three times as often: shares of misses and of alarms stay as they are."""
    repeated = np.repeat(np.arange(6), [3, 3, 3, 1, 1, 1])
    ways = [way("cascade", EXITS, FIRST, SECOND)]
    again = [way("cascade", EXITS[repeated], FIRST[repeated], SECOND[repeated])]
    weighed = measure(PRICES, cases_of(LABELS, None, 0.75), ways, **OPTIONS, rng=np.random.default_rng(0))[0]
    known = measure(PRICES, cases_of(LABELS[repeated]), again, **OPTIONS, rng=np.random.default_rng(0))[0]
    assert weighed.cost[0] == pytest.approx(known.cost[0])
    for name in ("coverage", "precision", "misses", "false_alarms"):
        assert getattr(weighed, name) == pytest.approx(getattr(known, name)), name


def test_pairs_make_differences_sure() -> None:
    """Two ways that differ in a few cases: their costs are uncertain, which one is dearer is not."""
    rng = np.random.default_rng(1)
    labels = (rng.random(3000) < 0.1).astype(int)
    wrong = (rng.random(3000) < 0.05).astype(float)
    exits = rng.random(3000) < 0.5
    ways = [way("a", exits, wrong, wrong), way("b", exits & (np.arange(3000) % 50 != 0), wrong, wrong)]
    first, second = measure(PRICES, cases_of(labels), ways, **OPTIONS, rng=rng)
    assert first.cost[1] < second.cost[0] < first.cost[2]
    assert second.saved[2] < 0  # b defers more, and both answer alike


def test_a_case_repeated_in_its_group_is_no_further_evidence() -> None:
    rng = np.random.default_rng(2)
    labels = (rng.random(400) < 0.3).astype(int)
    wrong = (rng.random(400) < 0.2).astype(float)
    values = case_costs(PRICES, labels, way("a", np.ones(400, dtype=bool), wrong, wrong))[:, np.newaxis]
    ten, groups = np.repeat(np.arange(400), 10), np.repeat(np.arange(400), 10)
    for prevalence in (None, 0.05):
        once = group_means(values, cases_of(labels, None, prevalence), **OPTIONS, rng=np.random.default_rng(0))
        often = group_means(
            values[ten], cases_of(labels[ten], groups, prevalence), **OPTIONS, rng=np.random.default_rng(0)
        )
        assert np.allclose(np.ravel(once), np.ravel(often), rtol=0.1)
        assert once[1] < once[0] < once[2]


def test_few_misses_widen_a_cost_as_far_as_they_may_go() -> None:
    """Nothing is missed: resamples all agree on that, but 100 positives without a miss still allow 3.6 % of them."""
    labels, right = (np.arange(1000) < 100).astype(int), np.zeros(1000)
    one = measure(PRICES, cases_of(labels), [way("a", np.ones(1000, bool), right, right)], **OPTIONS,
                  rng=np.random.default_rng(0))[0]  # fmt: skip
    assert one.too_few_misses
    assert one.cost[0] == pytest.approx(1000)
    assert one.cost[2] > 1000 + 1000 * 0.1 * PRICES.miss * 0.036


def test_recall_with_an_assumed_stage_2() -> None:
    labels, first = np.ones(200, dtype=int), np.repeat([1.0, 0.0], [2, 198])
    exits = np.arange(200) < 150
    value, low, high = recall_interval(way("a", exits, first, np.full(200, 0.1)), cases_of(labels), 0.95)
    assert value == pytest.approx(1 - (2 + 5) / 200)
    assert low < value < high <= 1
    nothing_exits = way("all to stage 2", np.zeros(200, dtype=bool), first, np.full(200, 0.1))
    assert recall_interval(nothing_exits, cases_of(labels), 0.95) == pytest.approx((0.9, 0.9, 0.9))
