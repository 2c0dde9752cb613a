"""Certifying 200 candidate thresholds at ten million scores, against one np.argsort of the same scores.

Timed is the whole calibration: exits of both splits at every candidate, the walk, the bounds.
"""

import numpy as np
from population import MAIN
from result import Result, fastest
from rivals import draw, ours

from stage1_pro.core.policies.fixed_sequence import threshold_candidates

CASES = 10**7


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    select, calib = draw(MAIN, rng, 10**5), draw(MAIN, rng, CASES)
    thresholds = threshold_candidates(select.scores)

    def certification() -> None:
        assert ours(select, calib, thresholds) is not None

    seconds = fastest({"ours": certification, "argsort": lambda: np.argsort(calib.scores)}, rounds=3)
    note = f"{len(thresholds)} candidates, {CASES:.0e} scores"
    return [Result("certify / argsort", seconds["ours"] / seconds["argsort"], 0.5, "at most", note)]
