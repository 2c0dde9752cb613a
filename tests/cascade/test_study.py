"""Ways to run a cascade, case by case."""

from typing import Any

import numpy as np
import pytest

from stage1_pro.core.cascade.prices import Prices
from stage1_pro.core.cascade.study import case_costs, measure, way
from stage1_pro.core.metrics.bootstrap import group_index

PRICES = Prices(1, 10, 1000, 100)
OPTIONS: dict[str, Any] = {"samples": 400, "confidence": 0.95}
LABELS = np.array([1, 1, 1, 0, 0, 0])
FIRST = np.array([1, 0, 1, 0, 1, 0])
SECOND = np.array([1, 1, 0, 0, 0, 1])
EXITS = np.array([True, True, False, True, True, False])


def test_costs_of_cases() -> None:
    cascade = way("cascade", EXITS, FIRST, SECOND)
    assert cascade.answers.tolist() == [1, 0, 0, 0, 1, 1]
    assert case_costs(PRICES, LABELS, cascade).tolist() == [1, 1001, 1011, 1, 101, 111]
    alone = way("stage 2 alone", np.zeros(6, dtype=bool), FIRST, SECOND, stage1=False)
    assert case_costs(PRICES, LABELS, alone).tolist() == [10, 10, 1010, 10, 10, 110]


def test_measured_ways() -> None:
    ways = [
        way("all to stage 2", np.zeros(6, dtype=bool), FIRST, SECOND),
        way("cascade", EXITS, FIRST, SECOND),
    ]
    rng = np.random.default_rng(0)
    alone, cascade = measure(PRICES, LABELS, group_index(None, 6), ways, samples=500, confidence=0.95, rng=rng)
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


def test_pairs_make_differences_sure() -> None:
    """Two ways that differ in a few cases: their costs are uncertain, which one is dearer is not."""
    rng = np.random.default_rng(1)
    labels = (rng.random(3000) < 0.1).astype(int)
    answers = np.where(rng.random(3000) < 0.95, labels, 1 - labels)
    exits = rng.random(3000) < 0.5
    ways = [way("a", exits, answers, answers), way("b", exits & (np.arange(3000) % 50 != 0), answers, answers)]
    first, second = measure(PRICES, labels, group_index(None, 3000), ways, **OPTIONS, rng=rng)
    assert first.cost[1] < second.cost[0] < first.cost[2]
    assert second.saved[2] < 0


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat((rng.random(300) < 0.2).astype(int), 10)
    wrong = np.repeat(rng.random(300) < 0.1, 10)
    cascade = way("cascade", np.ones(3000, dtype=bool), np.where(wrong, 1 - labels, labels), labels)
    independent = np.arange(3000) % 10 == 0
    alone, grouped = (
        measure(PRICES, labels, index, [cascade], **OPTIONS, rng=np.random.default_rng(0), independent=kept)[0]
        for index, kept in ((group_index(None, 3000), None), (np.repeat(np.arange(300), 10), independent))
    )
    assert grouped.cost[2] - grouped.cost[1] > 2 * (alone.cost[2] - alone.cost[1])
    assert grouped.recall[2] - grouped.recall[1] > 2 * (alone.recall[2] - alone.recall[1])
