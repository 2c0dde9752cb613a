"""What is certified after deployment holds: from audited labels, for several groups, for another world, at a price."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid
from population import MAIN, Population
from scipy.special import ndtr

from stage1_pro.core.cascade.prices import Exits, Prices, StageTwo, cheapest, cost_per_thousand
from stage1_pro.core.cascade.study import measure, way
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.error_budget import attempt_delta, group_delta
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.hashing import hash64
from stage1_pro.core.metrics.margins import fnr_after_ratio, kept_for_weights, robust_target
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.monitor.recertify import resample
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.fixed_sequence import certify, predicted_p
from stage1_pro.core.policies.one_sided import certify_one_sided

pytestmark = pytest.mark.mc

RISK = Risk(0.05, 0.9)
DRAWS, CONTROL_DRAWS = 400, 200
BROKEN = pytest.raises(AssertionError, match="false certificates")


def counts(z: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> ExitCounts:
    """Exits of the symmetric rule |z| >= threshold."""
    return count_exits(np.abs(z), (z >= 0).astype(int), labels, thresholds)


def certified(select: tuple[np.ndarray, np.ndarray], calib: tuple[np.ndarray, np.ndarray], risk: Risk = RISK) -> float:
    """The threshold on |z| that the walk certifies, NaN where nothing is. select, calib: z and labels."""
    candidates = thresholds_between(np.abs(select[0]), floor=0.0)
    walk = certify(counts(*select, candidates), counts(*calib, candidates), risk.target_fnr, risk.delta)
    return np.nan if walk.answer is None else float(candidates[walk.answer])


def judged(thresholds: list[float], truth: Callable[[float], float], risk: Risk = RISK) -> Outcomes:
    """Hold the true FNR of each threshold against the target."""
    found = Outcomes(np.array([np.nan if np.isnan(t) else truth(t) for t in thresholds]), None)
    demand_valid(found, risk)
    return found


def loosest(thresholds: list[float]) -> float:
    return float(np.nanmin(thresholds)) if not np.isnan(thresholds).all() else np.nan


# ---- from audited labels


CASES = 16_000
IDS = np.arange(CASES).astype(str)


def audited(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, labels and audit probabilities of audited cases: confident ones were audited more often."""
    z, labels = MAIN.draw(rng, 2 * CASES)
    probability = np.where(np.abs(z) > 1.5, 0.9, 0.3)
    chosen = np.flatnonzero(rng.random(z.size) < probability)[:CASES]
    return z[chosen], labels[chosen], probability[chosen]


def halves(z: np.ndarray, labels: np.ndarray, select: np.ndarray, calib: np.ndarray) -> float:
    return certified((z[select], labels[select]), (z[calib], labels[calib]))


def recertified(draw: int, rng: np.random.Generator) -> float:
    z, labels, probability = audited(rng)
    ids, times = IDS[: z.size], np.arange(z.size)
    kept = resample(ids, times, probability, np.ones(z.size, dtype=bool), b"salt %d" % draw, since=0)
    return halves(z, labels, kept.select, kept.calib)


def test_recertified_from_audited_labels() -> None:
    rng = np.random.default_rng(20)
    found = judged([recertified(draw, rng) for draw in range(DRAWS)], MAIN.fnr)
    assert found.none_found < 0.5


def skewed(rng: np.random.Generator) -> float:
    z, labels, _ = audited(rng)
    middle = z.size // 2
    return halves(z, labels, np.arange(middle), np.arange(middle, z.size))


def test_control_audited_labels_without_their_probabilities() -> None:
    rng = np.random.default_rng(21)
    with BROKEN:
        judged([skewed(rng) for _ in range(CONTROL_DRAWS)], MAIN.fnr)


def test_control_a_window_whose_start_was_picked_by_its_labels() -> None:
    """Of eight starts the one whose labels certify most."""

    def picked(rng: np.random.Generator) -> float:
        z, labels = MAIN.draw(rng, 16_000)
        cut = [[(z[s : s + 4000], labels[s : s + 4000]) for s in (t, t + 4000)] for t in range(0, 8001, 1000)]
        return loosest([certified(select, calib) for select, calib in cut])

    rng = np.random.default_rng(22)
    with BROKEN:
        judged([picked(rng) for _ in range(CONTROL_DRAWS)], MAIN.fnr)


def test_attempts_without_end_spend_delta_together() -> None:
    """Twelve attempts, of which the last that certified is in force; false if any was."""
    rng = np.random.default_rng(23)
    ever = []
    for _ in range(DRAWS // 4):
        thresholds = []
        for attempt in range(1, 13):
            risk = Risk(RISK.target_fnr, 1 - attempt_delta(RISK.delta, attempt))
            thresholds.append(certified(MAIN.draw(rng, 3000), MAIN.draw(rng, 3000), risk))
        ever.append(loosest(thresholds))
    judged(ever, MAIN.fnr)


# ---- for several groups


@dataclass(frozen=True)
class OneSided:
    """Answers 1 exit from u on, answers 0 below -t: exited positives are those answered 1 and the misses."""

    population: Population
    u: float

    def fnr(self, t: float) -> float:
        missed = self._below(min(-t, self.u))
        return missed / (missed + 1 - self._below(self.u))

    def coverage(self, t: float) -> float:
        p = self.population
        positives = self._below(min(-t, self.u)) + 1 - self._below(self.u)
        negatives = float(ndtr(min(-t, self.u) + p.mean) + ndtr(-self.u - p.mean))
        return p.positive_share * positives + (1 - p.positive_share) * negatives

    def _below(self, z: float) -> float:
        p = self.population
        return float((1 - p.hard_share) * ndtr(z - p.mean) + p.hard_share * ndtr(z - p.hard_mean))


GROUPS = [replace(MAIN, hard_share=share, mean=mean) for share, mean in
          ((0.02, 2.2), (0.03, 2.0), (0.05, 1.9), (0.06, 1.8), (0.08, 1.6))]  # fmt: skip
FALL = np.linspace(4, -0.6, 400)


def one_sided(z: np.ndarray, labels: np.ndarray, u: float) -> ExitCounts:
    """Counts at every t of FALL; an answer 0 exits iff -z >= t, an answer 1 always."""
    answers = z >= u
    return count_exits(np.where(answers, 1e3, -z), answers.astype(int), labels, FALL)


def last_passed(calib: ExitCounts, target: float, delta: float) -> float:
    answer = certify_one_sided(calib, target, delta).answer
    return np.nan if answer is None else float(FALL[answer])


def study_of_groups(rng: np.random.Generator, share_of_delta: float | None) -> tuple[float, float, float]:
    """(worst FNR of any group, coverage, worst FNR of a pooled threshold) of one calibration of five groups.

    share_of_delta: None divides delta among the groups that can pass; else that much for each.
    """
    drawn = [(g.draw(rng, 8000), g.draw(rng, 8000)) for g in GROUPS]
    positives = np.concatenate([z[labels == 1] for (z, labels), _ in drawn])
    u = float(np.quantile(positives, 0.06))
    target, delta = RISK.target_fnr, RISK.delta
    rules = [OneSided(group, u) for group in GROUPS]
    predicted = [predicted_p(one_sided(*select, u), int(calib[1].sum()), target).min() for select, calib in drawn]
    kept, each = group_delta(predicted, delta) if share_of_delta is None else (np.ones(5, dtype=bool), share_of_delta)
    worst, coverage = 0.0, 0.0
    for keep, rule, (_, calib) in zip(kept, rules, drawn, strict=True):
        t = last_passed(one_sided(*calib, u), target, each) if keep else np.nan
        if not np.isnan(t):
            worst, coverage = max(worst, rule.fnr(t)), coverage + rule.coverage(t) / 5
    z, labels = (np.concatenate([calib[part] for _, calib in drawn]) for part in (0, 1))
    pooled = last_passed(one_sided(z, labels, u), target, delta)
    return worst, coverage, max(rule.fnr(pooled) for rule in rules)


def test_groups_with_a_share_of_delta_each_hold_and_a_pooled_threshold_breaks() -> None:
    """Five groups, 40,000 calibration cases: coverage .85 or more, no group violated but with delta."""
    rng = np.random.default_rng(24)
    found = np.array([study_of_groups(rng, None) for _ in range(150)])
    demand_valid(Outcomes(found[:, 0], found[:, 1]), RISK)
    assert found[:, 1].mean() >= 0.85
    with BROKEN:
        demand_valid(Outcomes(found[:, 2], None), RISK)


def test_control_delta_for_each_group() -> None:
    rng = np.random.default_rng(25)
    found = np.array([study_of_groups(rng, RISK.delta)[0] for _ in range(400)])
    with BROKEN:
        demand_valid(Outcomes(found, None), RISK)


# ---- for another world


def test_prevalence_alone_changes_nothing() -> None:
    """A certificate of one prevalence, in worlds of others; the precision of an answer 0 does change."""
    worlds = [replace(MAIN, positive_share=share) for share in (0.01, 0.05, 0.3, 0.7)]
    assert len({world.fnr(1.5) for world in worlds}) == 1
    rng = np.random.default_rng(26)
    thresholds = [certified(MAIN.draw(rng, 5000), MAIN.draw(rng, 5000)) for _ in range(DRAWS)]
    judged(thresholds, worlds[0].fnr)


def moved(ratio: float) -> Population:
    """MAIN with the density of hard positives as far up and of easy ones as far down as `ratio` allows, roughly."""
    weight = MAIN.hard_share * ratio
    return replace(MAIN, hard_share=weight / (weight + 1 - MAIN.hard_share))


def test_a_margin_survives_the_move_that_it_was_made_for() -> None:
    target = robust_target(RISK.target_fnr, 1.5)
    world = moved(1.5)
    assert fnr_after_ratio(target, 1.5) == pytest.approx(RISK.target_fnr)
    rng = np.random.default_rng(27)

    def thresholds(risk: Risk) -> list[float]:
        return [certified(MAIN.draw(rng, 8000), MAIN.draw(rng, 8000), risk) for _ in range(CONTROL_DRAWS)]

    found = judged(thresholds(Risk(target, RISK.confidence)), world.fnr)
    assert found.none_found < 0.6
    with BROKEN:  # certified at the target itself, there is no margin
        judged(thresholds(RISK), world.fnr)


WEIGHED = 2.9


def weighted(rng: np.random.Generator, names: np.ndarray, *, thinned: bool) -> float:
    """Certify on MAIN for a world with more hard positives, whose weights are known from the kind of each case."""
    target = replace(MAIN, hard_share=0.2)
    halves = []
    for _ in range(2):
        labels = (rng.random(10_000) < MAIN.positive_share).astype(int)
        hard = rng.random(10_000) < MAIN.hard_share
        centre = np.where(labels == 1, np.where(hard, MAIN.hard_mean, MAIN.mean), -MAIN.mean)
        z = centre + rng.standard_normal(10_000)
        easy = (1 - target.hard_share) / (1 - MAIN.hard_share)
        weights = np.where(labels == 1, np.where(hard, target.hard_share / MAIN.hard_share, easy), 1.0)
        kept = kept_for_weights(weights, WEIGHED, hash64(names, rng.bytes(8))) if thinned else np.ones(10_000, bool)
        halves.append((z[kept], labels[kept]))
    return certified(halves[0], halves[1], Risk(0.1, 0.9))


def test_known_weights_hold_in_the_target_world_and_none_break() -> None:
    rng, names, world = np.random.default_rng(28), np.arange(10_000), replace(MAIN, hard_share=0.2)
    judged([weighted(rng, names, thinned=True) for _ in range(DRAWS)], world.fnr, Risk(0.1, 0.9))
    with BROKEN:
        judged([weighted(rng, names, thinned=False) for _ in range(CONTROL_DRAWS)], world.fnr, Risk(0.1, 0.9))


# ---- at a price


PRICES, SECOND = Prices(0.001, 0.5, 20, 5), StageTwo(0.98, 0.99)


def ended(rng: np.random.Generator, how: str) -> float:
    """Where certification ends: no later than val_select's cheapest candidate, or at val_calib's cheapest one."""
    select, calib = MAIN.draw(rng, 5000), MAIN.draw(rng, 5000)
    candidates = thresholds_between(np.abs(select[0]), floor=0.0)
    first, second = counts(*select, candidates), counts(*calib, candidates)
    walk = certify(first, second, RISK.target_fnr, RISK.delta)
    if how == "early":
        last = cheapest(PRICES, first, SECOND)
        passed = np.flatnonzero(walk.certified[: last + 1])
        return np.nan if not passed.size else float(candidates[passed[-1]])
    cost = np.asarray(cost_per_thousand(PRICES, Exits.of(second), SECOND))
    return float(candidates[np.argmin(cost)])


def test_a_certification_that_ends_early_holds() -> None:
    rng = np.random.default_rng(29)
    judged([ended(rng, "early") for _ in range(DRAWS)], MAIN.fnr)


def test_control_the_target_read_off_the_cheapest_threshold_of_val_calib() -> None:
    """alpha := the bound at the threshold where val_calib is cheapest; false where the truth is above that bound."""
    rng, risk, above = np.random.default_rng(30), Risk(0.5, 0.95), []
    smallest = []
    for _ in range(1000):
        select, calib = MAIN.draw(rng, 3000), MAIN.draw(rng, 3000)
        candidates = thresholds_between(np.abs(select[0]), floor=0.0)
        found = counts(*calib, candidates)
        walk = certify(counts(*select, candidates), found, 0.05, risk.delta)
        cost = np.asarray(cost_per_thousand(PRICES, Exits.of(found), SECOND))
        pick, least = int(np.argmin(cost)), int(np.argmin(walk.upper_bounds))
        above.append(MAIN.fnr(candidates[pick]) > walk.upper_bounds[pick])
        smallest.append(MAIN.fnr(candidates[least]) > walk.upper_bounds[least])
    for wrong in (above, smallest):
        with BROKEN:
            demand_valid(Outcomes(np.array(wrong, dtype=float), None), risk)


@pytest.mark.parametrize(("groups", "frames"), [(1200, 1), (800, 5)])
def test_intervals_of_cost_and_saving_cover_the_truth(groups: int, frames: int) -> None:
    """In 95 % ± 2 of simulated studies, cases alone and in groups, with ten groups missed or more."""
    rng = np.random.default_rng(31)
    prevalence, truth = 0.3, []
    # expected cost of a case: all to stage 2, and half of the cases exiting with errors of their own
    errors, second_errors = 0.08, 0.03
    wrong = prevalence * PRICES.miss + (1 - prevalence) * PRICES.false_alarm
    alone = PRICES.stage1 + PRICES.stage2 + second_errors * wrong
    cascade = PRICES.stage1 + 0.5 * PRICES.stage2 + 0.5 * (errors + second_errors) * wrong
    for _ in range(1000):
        labels = np.repeat((rng.random(groups) < prevalence).astype(int), frames)
        exits = np.repeat(rng.random(groups) < 0.5, frames)
        first = np.where(np.repeat(rng.random(groups) < errors, frames), 1 - labels, labels)
        second = np.where(rng.random(labels.size) < second_errors, 1 - labels, labels)
        ways = [way("all to stage 2", np.zeros(labels.size, bool), first, second), way("cascade", exits, first, second)]
        index = group_index(None if frames == 1 else np.repeat(np.arange(groups), frames), labels.size)
        found = measure(PRICES, labels, index, ways, samples=400, confidence=0.95, rng=rng)[1]
        truth.append((found.cost[1] <= 1000 * cascade <= found.cost[2],
                      found.saved[1] <= 1000 * (alone - cascade) <= found.saved[2]))  # fmt: skip
    assert np.mean(truth, axis=0) == pytest.approx([0.95, 0.95], abs=0.02)
