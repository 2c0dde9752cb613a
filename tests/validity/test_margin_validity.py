"""A certificate in other worlds: prevalence changes nothing, and a margin survives the move that it was made for."""

from dataclasses import replace

import numpy as np
import pytest
from population import MAIN, Population
from walks import BROKEN, CONTROL_DRAWS, DRAWS, RISK, certified, judged

from stage1_pro.core.metrics.margins import fnr_after_ratio, robust_target
from stage1_pro.core.metrics.risk import Risk

pytestmark = pytest.mark.mc


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
