"""Two choices that val_select must make: made on val_calib, where chance alone decides between equals, they break.

Truth comes from closed forms, and certificates from the same path as in script 25. In both populations only positives
are drawn. Negatives lie still, since the promise is about positives, whatever the negatives are.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from montecarlo import (
    Draw,
    Outcomes,
    certified_threshold,
    demand_broken,
    demand_valid,
    moved,
    placed_shift,
    walked_threshold,
)
from population import scores, z_threshold

from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.scores import Scores

pytestmark = pytest.mark.mc

RISK = Risk(0.1, 0.9)
ODDS = 1 / 9
"""Misses for each found positive at the target."""


# ---- where answers are placed

POSITIVES, NEGATIVES = 300, 1000
LOW = 0.5
"""Share of the negatives whose z lies where thresholds may."""


def plateau(rng: np.random.Generator) -> Scores:
    """Positives are uniform on 0 to 1. With answers 1 from u on, the target lets answers 0 exit up to ODDS (1 - u).
    Negatives are spread so that a lower u gains as many exits as its false alarms cost, at five deferrals each: in
    truth no u is worth more than another."""
    share = POSITIVES / NEGATIVES
    high = (LOW + share * (1 + ODDS)) / 4 * (1 - ODDS)
    z = np.interp((np.arange(NEGATIVES) + 0.5) / NEGATIVES, [0, 1 - LOW - high, 1 - high, 1], [-0.5, 0, ODDS, 1])
    return scores(np.concatenate([rng.random(POSITIVES), z]), np.arange(POSITIVES + NEGATIVES) < POSITIVES)


def plateau_draws(count: int, seed: int = 0) -> Iterator[Draw]:
    rng = np.random.default_rng(seed)
    return ((plateau(rng), plateau(rng)) for _ in range(count))


def placed(select: Scores, calib: Scores, cut: float) -> tuple[float, float]:
    """What answers from `cut` on are worth on val_calib, and the true FNR of the exits that it certifies."""
    calibration = calibrate_softmax(moved(select, -cut), moved(calib, -cut), RISK, "one_sided")
    threshold, counts, index = certified_threshold(calibration), calibration.every, calibration.walk.answer
    if threshold is None or index is None:
        return -np.inf, np.nan
    missed = float(np.clip(cut - z_threshold(threshold), 0, cut))
    return float(counts.exited[index] - 5 * counts.false_alarms[index]), missed / (missed + 1 - cut)


CUTS = 1 - np.geomspace(1.2 * minimum_positives(0.1, 0.1), 0.98 * POSITIVES * (1 - ODDS), 20) / POSITIVES
"""From those that leave just enough evidence to those that answer nearly all positives rightly."""


def test_control_answers_placed_on_val_calib() -> None:
    best = [max(placed(*pair, cut) for cut in CUTS) for pair in plateau_draws(200)]
    demand_broken(Outcomes(np.array([fnr for _, fnr in best]), None), RISK)


def test_answers_placed_on_val_select_hold_where_no_placement_is_better() -> None:
    found = [placed(*pair, -placed_shift(*pair, RISK))[1] for pair in plateau_draws(400)]
    demand_valid(Outcomes(np.array(found), None), RISK)


# ---- which rule certifies

BLOCKS = np.array([0.1, 0.3, 0.6])
"""Shares of the positives on three levels of the score, the surest first."""
MISSED = np.array([0.1001, 0.3, 0.0])
"""Their miss rates. FNR on exits is .1001, .2500 and .10001 as one level after the other exits: above the target by a
hair first and last, where 60 positives and all 600 may pass, the ones knowing little of the others."""
LEVEL_FNR = np.cumsum(BLOCKS * MISSED) / np.cumsum(BLOCKS)


def levels(positives: list[int] | np.ndarray) -> Scores:
    """positives: (6,) how many are found on each level, then how many are missed."""
    z = np.concatenate([np.repeat([3.0, 2.0, 1.0, -3.0, -2.0, -1.0], positives), np.repeat([-3.0, -2.0, -1.0], 30)])
    return scores(z, np.arange(z.size) < z.size - 90)


@pytest.fixture(scope="module")
def both_rules() -> np.ndarray:
    """(2, R) true FNR of what walk and window certify on fresh positives. One val_select serves all: on its first level
    FNR is .08, where the walk starts, and .098 over all, where the window pays."""
    rng, found = np.random.default_rng(0), []
    select = levels([55, 126, 360, 5, 54, 0])
    chances = np.concatenate([BLOCKS * (1 - MISSED), BLOCKS * MISSED])
    for _ in range(4000):
        calibration = calibrate_softmax(select, levels(rng.multinomial(600, chances)), RISK)
        found.append([level_fnr(choose(calibration)) for choose in (walked_threshold, certified_threshold)])
    return np.array(found).T


def level_fnr(threshold: float | None) -> float:
    return np.nan if threshold is None else LEVEL_FNR[3 - int(np.ceil(z_threshold(threshold)))]


@pytest.mark.parametrize("rule", [0, 1], ids=["walk", "window"])
def test_each_rule_holds_by_itself(both_rules: np.ndarray, rule: int) -> None:
    demand_valid(Outcomes(both_rules[rule], None), RISK)


def test_control_the_better_of_two_rules_by_val_calib(both_rules: np.ndarray) -> None:
    """Whichever certifies; where both do, all thresholds being false, it does not matter which."""
    demand_broken(Outcomes(np.fmax(*both_rules), None), RISK)
