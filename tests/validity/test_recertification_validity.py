"""A certificate out of audited labels holds, as long as their probabilities are known and the window was fixed."""

from collections.abc import Callable

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid
from population import MAIN

from stage1_pro.core.metrics.error_budget import attempt_delta
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.monitor.recertify import resample
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


def loosest(thresholds: list[float]) -> float:
    return float(np.nanmin(thresholds)) if not np.isnan(thresholds).all() else np.nan


CASES = 16_000
IDS = np.arange(CASES).astype(str)


def audited(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, labels and audit probabilities of audited cases: confident ones were audited more often."""
    z, labels = MAIN.draw(rng, 2 * CASES)
    probability = np.where(np.abs(z) > 1.5, 0.9, 0.3)
    chosen = np.flatnonzero(rng.random(z.size) < probability)[:CASES]
    return z[chosen], labels[chosen], probability[chosen]


def halves(z: np.ndarray, labels: np.ndarray, select: np.ndarray, calib: np.ndarray) -> float:
    return certified((z[select], labels[select]), (z[calib], labels[calib]))


def recertified(draw: int, rng: np.random.Generator) -> float:
    z, labels, probability = audited(rng)
    ids, times = IDS[: z.size], np.arange(z.size)
    kept = resample(ids, times, probability, np.ones(z.size, dtype=bool), b"salt %d" % draw, since=0)
    return halves(z, labels, kept.select, kept.calib)


def test_recertified_from_audited_labels() -> None:
    rng = np.random.default_rng(20)
    found = judged([recertified(draw, rng) for draw in range(DRAWS)], MAIN.fnr)
    assert found.none_found < 0.5


def skewed(rng: np.random.Generator) -> float:
    z, labels, _ = audited(rng)
    middle = z.size // 2
    return halves(z, labels, np.arange(middle), np.arange(middle, z.size))


def test_control_audited_labels_without_their_probabilities() -> None:
    rng = np.random.default_rng(21)
    with BROKEN:
        judged([skewed(rng) for _ in range(CONTROL_DRAWS)], MAIN.fnr)


def test_control_a_window_whose_start_was_picked_by_its_labels() -> None:
    """Of eight starts the one whose labels certify most."""

    def picked(rng: np.random.Generator) -> float:
        z, labels = MAIN.draw(rng, 16_000)
        cut = [[(z[s : s + 4000], labels[s : s + 4000]) for s in (t, t + 4000)] for t in range(0, 8001, 1000)]
        return loosest([certified(select, calib) for select, calib in cut])

    rng = np.random.default_rng(22)
    with BROKEN:
        judged([picked(rng) for _ in range(CONTROL_DRAWS)], MAIN.fnr)


def test_attempts_without_end_spend_delta_together() -> None:
    """Twelve attempts, of which the last that certified is in force; false if any was."""
    rng = np.random.default_rng(23)
    ever = []
    for _ in range(DRAWS // 4):
        thresholds = []
        for attempt in range(1, 13):
            risk = Risk(RISK.target_fnr, 1 - attempt_delta(RISK.delta, attempt))
            thresholds.append(certified(MAIN.draw(rng, 3000), MAIN.draw(rng, 3000), risk))
        ever.append(loosest(thresholds))
    judged(ever, MAIN.fnr)
