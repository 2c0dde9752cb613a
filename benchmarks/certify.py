"""Certifying 200 candidate thresholds at ten million scores, against one np.argsort of the same scores.

Timed: counting the exits of val_calib at every candidate, and the walk. The counts of val_select come
from a smaller split, outside the clock.
"""

import numpy as np
from population import MAIN
from result import Result, fastest
from rivals import RISK, draw

from stage1_pro.core.metrics.exits import count_exits
from stage1_pro.core.policies.certify import certify, threshold_candidates

CASES = 10**7


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    select, calib = draw(MAIN, rng, 10**5), draw(MAIN, rng, CASES)
    thresholds = threshold_candidates(select.scores)
    select_counts = count_exits(*select, thresholds)

    def certification() -> None:
        walk = certify(select_counts, count_exits(*calib, thresholds), RISK.target_fnr, RISK.delta)
        assert walk.answer is not None

    seconds = fastest({"ours": certification, "argsort": lambda: np.argsort(calib.scores)}, rounds=3)
    note = f"{len(thresholds)} candidates, {CASES:.0e} scores"
    return [Result("certify / argsort", seconds["ours"] / seconds["argsort"], 0.5, "at most", note)]
