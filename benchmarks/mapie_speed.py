"""Split fixed-sequence testing of 200 thresholds at 10^5 cases a split: ours against MAPIE 1.6.

Both start from the scores, answers and labels of two splits and the same 200 thresholds, and end with
the certified one. MAPIE's time hardly depends on the cases: most of it is a Python loop of 1,000 x 200
steps that orders the thresholds.
"""

import numpy as np
from population import MAIN
from result import Result, fastest
from rivals import draw, mapie, ours

from stage1_pro.core.policies.candidates import thresholds_between

CASES = 10**5


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    select, calib = (draw(MAIN, rng, CASES) for _ in range(2))
    thresholds = thresholds_between(select.scores, 0.5)
    jobs = {
        "ours": lambda: ours(select, calib, thresholds),
        "mapie": lambda: mapie(select, calib, thresholds, "split_fixed_sequence"),
    }
    seconds = fastest(jobs, rounds=5)
    note = f"{CASES:.0e} cases a split, {len(thresholds)} thresholds"
    return [Result("MAPIE / ours, time", seconds["mapie"] / seconds["ours"], 100, "at least", note)]
