"""Capacity of stage 2 against coverage."""

import pytest
from scipy.stats import binom

from stage1_pro.core.cascade.capacity import against_capacity, coverage_floor, deferrals, smallest_target


def test_published_floor() -> None:
    assert round(coverage_floor(5000, 800), 4) == 0.8517


@pytest.mark.parametrize(("volume", "capacity"), [(5000, 800), (40, 3), (10**6, 10**5), (100, 0)])
def test_at_the_floor_the_capacity_suffices_on_99_days_of_100(volume: int, capacity: int) -> None:
    floor = coverage_floor(volume, capacity)
    assert binom.cdf(capacity, volume, 1 - floor) == pytest.approx(0.99, abs=1e-9)
    assert deferrals(volume, floor + 1e-9)[1] <= capacity
    assert deferrals(volume, floor - 1e-4)[1] >= capacity


def test_a_capacity_for_everything_asks_for_nothing() -> None:
    assert coverage_floor(100, 100) == coverage_floor(100, 5000) == 0


def test_a_conflict_is_told_in_cases() -> None:
    tight = against_capacity(5000, 800, 0.80)
    assert not tight.fits
    assert tight.over == binom.ppf(0.99, 5000, 0.2) - 800
    assert against_capacity(5000, 800, 0.86).fits
    assert against_capacity(5000, 800, 0.86).over == 0
    assert smallest_target(0, 149, 0.05) == pytest.approx(0.02, abs=1e-4)
    with pytest.raises(ValueError, match="allowed"):
        coverage_floor(0, 10)
