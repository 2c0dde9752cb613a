"""What choosing a nested boundary costs at 300 and at 3,000 positives, against 50 ms and 1 s.

CPU time, so that what else runs does not count. The windows are made anew each time: in use they are made once for a
number of positives.
"""

from time import process_time

import numpy as np
from population import MAIN
from result import Result
from rivals import RISK, draw

from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.nested_boundary import choose_window, windows

LIMITS = {300: 0.05, 3000: 1.0}
"""Seconds by positives of val_calib."""


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    select = draw(MAIN, rng, 10**4)
    counts = select.counts(thresholds_between(select.scores, 0.5), select.labels == 1)
    rows = []
    for positives, limit in LIMITS.items():
        taken = []
        for _ in range(3):
            windows.cache_clear()
            start = process_time()
            boundary = choose_window(counts, counts.coverage, positives, RISK.target_fnr, RISK.delta)
            taken.append(process_time() - start)
        note = f"{min(taken) * 1e3:.0f} ms of CPU; it ends at {boundary.rises.size - 1} misses"
        rows.append(Result(f"boundary, {positives} positives / {limit:g} s", min(taken) / limit, 1, "at most", note))
    return rows
