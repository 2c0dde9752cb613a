"""A certificate in other worlds: prevalence changes nothing, and a margin survives the move that it was made for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid
from population import MAIN, Population

from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.margins import fnr_after_ratio, robust_target
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.fixed_sequence import certify

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
