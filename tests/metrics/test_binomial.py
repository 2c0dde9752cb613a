"""Exact binomial evidence, against scipy.stats and the tables of the methods."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from stage1_pro.core.metrics.binomial import (
    fnr_interval,
    fnr_upper_bound,
    minimum_positives,
    p_value,
    positives_for_power,
)

GRID = np.array([(k, m) for m in range(13) for k in range(m + 1)]).T


@pytest.mark.parametrize("target", [0.001, 0.02, 0.1])
def test_p_value_is_the_binomial_test(target: float) -> None:
    pairs = [(k, m) for k, m in [*GRID.T.tolist(), [3, 400], [999, 21200]] if m > 0]
    expected = [binomtest(k, m, target, alternative="less").pvalue for k, m in pairs]
    np.testing.assert_allclose(p_value(*np.array(pairs).T, target), expected, rtol=1e-11)
    assert p_value(0, 0, target) == 1


@pytest.mark.parametrize("positives", [10**4, 10**6, 10**9])
def test_p_value_holds_at_large_counts(positives: int) -> None:
    spread = np.sqrt(positives * 0.02 * 0.98)
    misses = (positives * 0.02 + spread * np.linspace(-5, 5, 41)).astype(np.int64)
    expected = binom.cdf(misses, positives, 0.02)
    np.testing.assert_allclose(p_value(misses, positives, 0.02), expected, rtol=1e-9)


def test_upper_bound_is_where_the_p_value_reaches_delta() -> None:
    bound = fnr_upper_bound(*GRID, 0.05)
    all_missed = GRID[0] == GRID[1]
    assert (bound[all_missed] == 1).all()
    open_cases = GRID[:, ~all_missed]
    np.testing.assert_allclose(binom.cdf(*open_cases, bound[~all_missed]), 0.05, rtol=1e-9)
    np.testing.assert_allclose(fnr_upper_bound(0, 149, 0.05), 1 - 0.05 ** (1 / 149))


def test_upper_bound_where_scipy_inverts_wrongly() -> None:
    bound = fnr_upper_bound(999, 21200, 0.05)
    assert bound == pytest.approx(0.0496, abs=5e-5)
    others = np.arange(1000, 60000, 7)
    bounds = fnr_upper_bound(999, 999 + others, 0.05)
    np.testing.assert_allclose(binom.cdf(999, 999 + others, bounds), 0.05, rtol=1e-9)


def test_bound_and_p_value_take_the_same_decision() -> None:
    misses, positives = (np.ravel(a) for a in np.meshgrid(np.arange(40), np.arange(40, 2500, 9)))
    certified = p_value(misses, positives, 0.02) <= 0.05
    assert 0 < certified.sum() < certified.size
    assert np.array_equal(certified, fnr_upper_bound(misses, positives, 0.05) <= 0.02)


@pytest.mark.parametrize(("misses", "positives"), [(0, 10), (3, 10), (10, 10), (2, 900)])
def test_interval_is_clopper_pearson(misses: int, positives: int) -> None:
    expected = binomtest(misses, positives).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(fnr_interval(misses, positives, 0.95), expected, atol=1e-12)


def test_interval_without_exited_positives_is_everything() -> None:
    assert fnr_interval(0, 0, 0.95) == (0, 1)


@pytest.mark.parametrize(
    ("target", "delta", "expected"),
    [
        (0.02, 0.05, [149, 236, 313]),
        (0.02, 0.10, [114, 194, 265]),
        (0.05, 0.05, [59, 93, 124]),
        (0.10, 0.05, [29, 46, 61]),
    ],
)
def test_minimum_positives(target: float, delta: float, expected: list[int]) -> None:
    assert [minimum_positives(target, delta, misses) for misses in range(3)] == expected


def test_minimum_positives_refuses_the_impossible() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        minimum_positives(0.0, 0.05)


@pytest.mark.parametrize(("true_fnr", "about"), [(0.002, 240), (0.005, 390), (0.01, 1100), (0.015, 4600)])
def test_positives_for_power(true_fnr: float, about: int) -> None:
    needed = positives_for_power(true_fnr, 0.02, 0.05)
    assert needed == pytest.approx(about, rel=0.03)
    positives = np.arange(1, 3 * needed)
    allowed = binom.ppf(0.05, positives, 0.02)  # least k with cdf >= delta: one too many ...
    allowed -= binom.cdf(allowed, positives, 0.02) > 0.05  # ... unless the cdf meets it exactly
    power = binom.cdf(allowed, positives, true_fnr)
    assert (power[needed - 1 :] >= 0.8).all()
    assert power[needed - 2] < 0.8


def test_power_is_out_of_reach_at_the_target_and_next_to_it() -> None:
    assert positives_for_power(0.02, 0.02, 0.05) is None
    assert positives_for_power(0.0199999, 0.02, 0.05) is None
    assert positives_for_power(0.0, 0.02, 0.05) == 149
