"""Certifying 200 candidate thresholds at ten million scores, against one np.argsort of the same scores.

Timed is the whole calibration by either exit rule: exits of both splits at every candidate, the tests, the bounds.
np.argsort of float64 is several times faster where the CPU has AVX-512, so the ratio is of the machine as well.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from population import MAIN
from result import Result, fastest
from rivals import draw, ours

from stage1_pro.core.policies.exit_rules import EXIT_RULES

CASES = 10**7


def measure() -> list[Result]:
    rng = np.random.default_rng(0)
    select, calib = draw(MAIN, rng, 10**5), draw(MAIN, rng, CASES)
    jobs: dict[str, Callable[[], object]] = {"argsort": lambda: np.argsort(calib.scores)}
    for rule in EXIT_RULES.values():
        splits = [replace(split, scores=rule.exit_scores(split.scores, split.answers)) for split in (select, calib)]
        thresholds = rule.candidates(splits[0].scores, select.answers, 0.5)
        jobs[rule.name] = partial(ours, *splits, thresholds, rule)
        assert jobs[rule.name]() is not None
    seconds = fastest(jobs, rounds=3)
    argsort = seconds.pop("argsort")
    note = f"200 candidates, {CASES:.0e} scores, argsort {argsort:.2f} s"
    return [Result(f"certify, {name} / argsort", own / argsort, 0.5, "at most", note) for name, own in seconds.items()]
