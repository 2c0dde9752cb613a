"""Prices: the published example, the formulas against counting case by case, and prices that cannot be."""

import numpy as np
import pytest

from stage1_pro.core.cascade.prices import (
    NOTHING_EXITS,
    Exits,
    Prices,
    StageTwo,
    break_even,
    certified_recall,
    cheapest,
    cost_per_thousand,
    cost_without_stage1,
    prices_from,
)
from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.exits import count_exits

PRICES = Prices(0.001, 0.5, 200, 5)
SECOND = StageTwo(0.98, 0.99)
EXITS = Exits(0.05, 0.8, 0.9, 0.8 * 0.02, 0.01)


def test_published_example() -> None:
    assert cost_per_thousand(PRICES, EXITS, SECOND) == pytest.approx(305.75)
    assert cost_without_stage1(PRICES, 0.05, SECOND) == pytest.approx(747.5)
    assert cost_per_thousand(PRICES, Exits(0.05, **NOTHING_EXITS), SECOND) == pytest.approx(748.5)
    assert cost_per_thousand(PRICES, Exits(0.05, 1.0, 1.0, 0.05, 0.03), SECOND) == pytest.approx(643.5)
    assert EXITS.recall(SECOND) == pytest.approx(0.98)
    assert EXITS.precision(SECOND) == pytest.approx(0.824222, abs=5e-7)
    assert break_even(PRICES, EXITS, SECOND, stage1_runs=True) == pytest.approx(0.0753438, abs=1e-7)
    assert break_even(PRICES, EXITS, SECOND, stage1_runs=False) == pytest.approx(0.0752188, abs=1e-7)
    assert certified_recall(0.05, SECOND) == pytest.approx(0.95)
    assert certified_recall(0.01, SECOND) == pytest.approx(0.98)


@pytest.mark.parametrize("runs", [True, False])
def test_at_break_even_the_cascade_costs_what_stage_2_alone_costs(runs: bool) -> None:
    fnr = break_even(PRICES, EXITS, SECOND, stage1_runs=runs)
    at_it = Exits(0.05, 0.8, 0.9, 0.8 * fnr, 0.01)
    alone = cost_without_stage1(PRICES, 0.05, SECOND) + (1000 * PRICES.stage1 if runs else 0)
    assert cost_per_thousand(PRICES, at_it, SECOND) == pytest.approx(alone)


def test_the_certified_recall_holds_whatever_share_of_positives_exits() -> None:
    for share in np.linspace(0, 1, 11):
        for target in (0.01, 0.05):
            worst = Exits(0.05, share, 0.9, share * target, 0.01)
            assert worst.recall(SECOND) >= certified_recall(target, SECOND) - 1e-12


def test_rates_of_counts_cost_what_the_cases_cost() -> None:
    """Stage 2 as a coin with its sensitivity and specificity, averaged case by case."""
    rng = np.random.default_rng(0)
    labels, scores = (rng.random(4000) < 0.2).astype(int), rng.random(4000)
    answers = np.where(rng.random(4000) < 0.9, labels, 1 - labels)
    thresholds = np.array([0.9, 0.5, 0.1])
    costs = cost_per_thousand(PRICES, Exits.of(count_exits(scores, answers, labels, thresholds)), SECOND)
    for threshold, cost in zip(thresholds, np.asarray(costs), strict=True):
        total = 0.0
        for label, score, answer in zip(labels, scores, answers, strict=True):
            total += PRICES.stage1
            wrong = PRICES.miss if label else PRICES.false_alarm
            if score >= threshold:
                total += wrong * (answer != label)
            else:
                total += PRICES.stage2 + wrong * (1 - (SECOND.sensitivity if label else SECOND.specificity))
        assert cost == pytest.approx(total / 4)


def test_the_cheapest_candidate() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(4000) < 0.2).astype(int)
    z = np.where(labels, 1.5, -1.5) + rng.standard_normal(4000)
    thresholds = np.linspace(3, 0, 31)
    counts = count_exits(np.abs(z), (z >= 0).astype(int), labels, thresholds)
    costs = np.asarray(cost_per_thousand(PRICES, Exits.of(counts), SECOND))
    assert costs[cheapest(PRICES, counts, SECOND)] == costs.min()
    dear = Prices(0.001, 50.0, 200, 5)  # a deferral dearer than a false alarm: more exits
    assert cheapest(dear, counts, SECOND) > cheapest(PRICES, counts, SECOND)


def test_one_price_system() -> None:
    assert (PRICES.false_alarm_price, PRICES.miss_price, PRICES.can_place) == (10.0, 400.0, True)
    assert not Prices(0.001, 5.0, 200, 5).can_place
    named = {"c1": 0.001, "c2": 0.5, "cm": 200, "cf": 5}
    assert prices_from(named, "prices.yaml") == PRICES


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"c1": -1, "c2": -0.5, "cm": 1, "cf": float("nan")}, ["c1 is -1", "c2 is -0.5", "cf is nan"]),
        ({"c1": 0, "c2": 0, "cm": 1, "cf": 1}, ["defer everything"]),
        ({"c2": 1, "cm": "much", "fc": 1}, ["c1 is missing", "'much'", "fc is not a known", "cf: a false alarm"]),
    ],
)
def test_prices_that_cannot_be_are_refused_all_at_once(data: dict, told: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        prices_from(data, "prices.yaml")
    assert all(part in str(refused.value) for part in told)
