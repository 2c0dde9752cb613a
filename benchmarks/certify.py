"""Certifying 200 candidate thresholds at ten million scores, against one np.argsort of the same scores.

Timed is the whole calibration by either exit rule: exits of both splits at every candidate, the tests, the bounds.
np.argsort of float64 is several times faster where the CPU has AVX-512, so the ratio is of the machine as well: where
it has, a second process measures what numpy does without.
"""

import json
import os
import subprocess
import sys
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
    rows = _rows("", seconds())
    wide = avx512()
    return [*rows, *_rows(" without AVX-512", _seconds_without(wide))] if wide else rows


def _rows(suffix: str, taken: dict[str, float]) -> list[Result]:
    argsort = taken.pop("argsort")
    note = f"200 candidates, {CASES:.0e} scores, argsort {argsort:.2f} s"
    return [
        Result(f"certify, {rule} / argsort{suffix}", own / argsort, 0.5, "at most", note) for rule, own in taken.items()
    ]


def seconds() -> dict[str, float]:
    """Least seconds of np.argsort and of a calibration by each exit rule."""
    rng = np.random.default_rng(0)
    select, calib = draw(MAIN, rng, 10**5), draw(MAIN, rng, CASES)
    jobs: dict[str, Callable[[], object]] = {"argsort": lambda: np.argsort(calib.scores)}
    for rule in EXIT_RULES.values():
        splits = [replace(split, scores=rule.exit_scores(split.scores, split.answers)) for split in (select, calib)]
        thresholds = rule.candidates(splits[0].scores, select.answers, 0.5)
        jobs[rule.name] = partial(ours, *splits, thresholds, rule)
        assert jobs[rule.name]() is not None
    return fastest(jobs, rounds=3)


def avx512() -> list[str]:
    """Names of the AVX-512 features that numpy uses on this CPU; older numpy calls them by other names."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if name.startswith(("AVX512", "X86_V4")) and __cpu_features__[name]]


def _seconds_without(features: list[str]) -> dict[str, float]:
    """The same, by a process whose numpy was told to leave those features alone."""
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(features),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    program = "import certify, json; assert not certify.avx512(); print(json.dumps(certify.seconds()))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)
