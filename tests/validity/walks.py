"""Certificates of |z| by the walk, without a model or its files: what the simulations of other worlds share."""

from collections.abc import Callable

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid

from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.fixed_sequence import certify

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
