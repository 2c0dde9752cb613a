"""A certificate out of audited labels holds, as long as their probabilities are known and the window was fixed."""

import numpy as np
import pytest
from population import MAIN
from walks import BROKEN, CONTROL_DRAWS, DRAWS, RISK, certified, judged

from stage1_pro.core.metrics.error_budget import attempt_delta
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.monitor.audit import resample

pytestmark = pytest.mark.mc


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
