"""Margins of a certificate, against worlds that are shifted as far as they allow."""

import numpy as np
import pytest
from scipy.optimize import linprog

from stage1_pro.core.metrics.margins import (
    fnr_after_exit_ratio,
    fnr_after_ratio,
    margins,
    robust_target,
    survived_ratio,
)


@pytest.mark.parametrize(
    ("target", "expected"), [(0.02, [0.01342, 0.0101, 0.00508]), (0.05, [0.0339, 0.02564, 0.01299])]
)
def test_the_level_to_certify_at(target: float, expected: list[float]) -> None:
    levels = [robust_target(target, ratio) for ratio in (1.5, 2, 4)]
    np.testing.assert_allclose(levels, expected, atol=5e-6)
    for ratio, level in zip((1.5, 2, 4), levels, strict=True):
        assert fnr_after_ratio(level, ratio) == pytest.approx(target)
        assert survived_ratio(target, level) == pytest.approx(ratio)
    assert robust_target(target, 1) == pytest.approx(target)


def test_the_bound_for_exited_positives() -> None:
    assert round(fnr_after_exit_ratio(0.0101, 2**0.5), 4) == 0.0143


@pytest.mark.parametrize("gamma", [1.1, 1.5, 3.0])
@pytest.mark.parametrize("missed", [0.005, 0.02, 0.3])
def test_no_shift_within_the_margin_reaches_further_and_one_reaches_it(gamma: float, missed: float) -> None:
    """The worst density ratios over kinds of exited positives, by linear programming."""
    mass = np.array([missed, 1 - missed])
    worst = linprog(-mass * [1, 0], A_eq=[mass], b_eq=[1], bounds=[(1 / gamma, gamma)] * 2)
    assert -worst.fun == pytest.approx(fnr_after_exit_ratio(missed, gamma), rel=1e-6)
    # of all positives, which need not stay in balance among those that exit
    hits, misses = (1 - missed) / gamma, missed * gamma
    assert misses / (misses + hits) == pytest.approx(fnr_after_ratio(missed, gamma**2))


@pytest.mark.parametrize("ratio", [1.0, 1.5, 4.0])
def test_margins_are_what_the_certificate_survives(ratio: float) -> None:
    level = robust_target(0.02, ratio)
    found = margins(0.02, level)
    assert found["total_variation"] == pytest.approx(0.02 - level)
    assert fnr_after_ratio(level, found["ratio"]) == pytest.approx(0.02)
    assert fnr_after_exit_ratio(level, found["exit_gamma"]) == pytest.approx(0.02)
    assert found["ratio"] == pytest.approx(ratio)


def test_a_certificate_at_the_edge_has_no_margin() -> None:
    assert margins(0.02, 0.02) == {"total_variation": 0.0, "ratio": 1.0, "exit_gamma": 1.0}
