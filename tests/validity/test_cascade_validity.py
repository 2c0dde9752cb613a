"""Intervals of a cascade's cost hold the truth, and a certification that prices end early holds its promise."""

from collections.abc import Sequence

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid
from population import MAIN

from stage1_pro.core.cascade.prices import Exits, Prices, StageTwo, cheapest, cost_per_thousand
from stage1_pro.core.cascade.stage_two import errors_of
from stage1_pro.core.cascade.study import Cases, Measured, measure, way
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.fixed_sequence import certify

pytestmark = pytest.mark.mc

RISK = Risk(0.05, 0.9)
DRAWS, STUDIES = 400, 1000
BROKEN = pytest.raises(AssertionError, match="false certificates")
PRICES, SECOND = Prices(0.001, 0.5, 20, 5), StageTwo(0.97, 0.97)
PREVALENCE, ERRORS, EXITING = 0.3, 0.08, 0.5


# ---- intervals of cost, savings and recall


def study(rng: np.random.Generator, groups: int, frames: int, prevalence: float | None, predicted: bool) -> Measured:
    """The cascade of one study: half of the groups exit, with errors of their own. predicted: stage 2's answers are
    known; else its rates are."""
    labels = np.repeat((rng.random(groups) < PREVALENCE).astype(int), frames)
    exits = np.repeat(rng.random(groups) < EXITING, frames)
    first = np.repeat(rng.random(groups) < ERRORS, frames).astype(float)
    second = (rng.random(labels.size) < 0.03).astype(float) if predicted else errors_of(SECOND, labels)
    ways = [way("all to stage 2", np.zeros(labels.size, bool), first, second), way("cascade", exits, first, second)]
    names = None if frames == 1 else np.repeat(np.arange(groups), frames)
    independent = np.arange(labels.size) % frames == 0
    cases = Cases(labels, group_index(names, labels.size), independent, prevalence)
    return measure(PRICES, cases, ways, samples=400, confidence=0.95, rng=rng)[1]


def truth(prevalence: float) -> tuple[float, float]:
    """Expected cost of 1,000 cases, and what is saved against all to stage 2."""
    wrong = prevalence * PRICES.miss + (1 - prevalence) * PRICES.false_alarm
    alone = PRICES.stage1 + PRICES.stage2 + 0.03 * wrong
    cascade = PRICES.stage1 + (1 - EXITING) * PRICES.stage2 + (EXITING * ERRORS + (1 - EXITING) * 0.03) * wrong
    return 1000 * cascade, 1000 * (alone - cascade)


def held(found: Sequence[Measured], prevalence: float) -> tuple[float, float, float]:
    """Shares of the studies whose interval of cost, of savings and of recall holds the truth."""
    cost, saved = truth(prevalence)
    recall = 1 - (EXITING * ERRORS + (1 - EXITING) * 0.03)
    hits = [
        (one.cost[1] <= cost <= one.cost[2], one.saved[1] <= saved <= one.saved[2],
         one.recall[1] <= recall <= one.recall[2])
        for one in found
    ]  # fmt: skip
    return tuple(np.mean(hits, axis=0).tolist())


@pytest.mark.parametrize(
    ("groups", "frames", "prevalence", "predicted"),
    [(1200, 1, None, True), (800, 5, None, True), (1200, 1, 0.05, True), (1200, 1, None, False)],
    ids=["cases", "groups", "another-prevalence", "assumed-stage-2"],
)
def test_intervals_hold_the_truth(groups: int, frames: int, prevalence: float | None, predicted: bool) -> None:
    """In 95 % ± 2 of the studies, of cost and of savings; exact intervals of recall in no fewer."""
    rng = np.random.default_rng(31)
    found = [study(rng, groups, frames, prevalence, predicted) for _ in range(STUDIES)]
    cost, saved, recall = held(found, PREVALENCE if prevalence is None else prevalence)
    assert (cost, saved) == pytest.approx((0.95, 0.95), abs=0.02)
    assert recall >= 0.94


def test_intervals_with_few_misses_hold_no_less() -> None:
    """Thirty positives, about two of them missed: wider, never too narrow."""
    rng = np.random.default_rng(32)
    found = [study(rng, 100, 1, None, True) for _ in range(STUDIES)]
    assert np.mean([one.too_few_misses for one in found]) > 0.9
    assert min(held(found, PREVALENCE)) >= 0.93


def test_control_groups_taken_for_cases() -> None:
    """Five frames of a group counted as five: the intervals are far too narrow."""
    rng, cost = np.random.default_rng(33), truth(PREVALENCE)[0]
    hits = []
    for _ in range(200):
        labels = np.repeat((rng.random(800) < PREVALENCE).astype(int), 5)
        exits, first = (np.repeat(rng.random(800) < share, 5) for share in (EXITING, ERRORS))
        second = (rng.random(labels.size) < 0.03).astype(float)
        ways = [way("cascade", exits, first.astype(float), second)]
        cases = Cases(labels, group_index(None, labels.size), np.ones(labels.size, bool))
        one = measure(PRICES, cases, ways, samples=200, confidence=0.95, rng=rng)[0]
        hits.append(one.cost[1] <= cost <= one.cost[2])
    assert np.mean(hits) < 0.85


# ---- a certification at a price


def counts(z: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> ExitCounts:
    """Exits of the symmetric rule |z| >= threshold."""
    return count_exits(np.abs(z), (z >= 0).astype(int), labels, thresholds)


def test_a_certification_that_ends_early_holds() -> None:
    """At val_select's cheapest candidate, which is fixed before val_calib is read."""
    rng, fnr = np.random.default_rng(29), []
    for _ in range(DRAWS):
        select, calib = MAIN.draw(rng, 5000), MAIN.draw(rng, 5000)
        candidates = thresholds_between(np.abs(select[0]), floor=0.0)
        first = counts(*select, candidates)
        walk = certify(first, counts(*calib, candidates), RISK.target_fnr, RISK.delta)
        passed = np.flatnonzero(walk.certified[: cheapest(PRICES, first, SECOND) + 1])
        fnr.append(MAIN.fnr(candidates[passed[-1]]) if passed.size else np.nan)
    demand_valid(Outcomes(np.array(fnr), None), RISK)


def test_control_the_target_read_off_the_cheapest_threshold_of_val_calib() -> None:
    """alpha := the bound at the threshold where val_calib is cheapest; false where the truth is above that bound."""
    rng, risk, above, least = np.random.default_rng(30), Risk(0.5, 0.95), [], []
    for _ in range(STUDIES):
        select, calib = MAIN.draw(rng, 3000), MAIN.draw(rng, 3000)
        candidates = thresholds_between(np.abs(select[0]), floor=0.0)
        found = counts(*calib, candidates)
        walk = certify(counts(*select, candidates), found, 0.05, risk.delta)
        costs = np.asarray(cost_per_thousand(PRICES, Exits.of(found), SECOND))
        for picks, pick in ((above, np.argmin(costs)), (least, np.argmin(walk.upper_bounds))):
            picks.append(MAIN.fnr(candidates[pick]) > walk.upper_bounds[pick])
    for wrong in (above, least):
        with BROKEN:
            demand_valid(Outcomes(np.array(wrong, dtype=float), None), risk)
