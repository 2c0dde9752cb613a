"""The truth that the validity suite measures against."""

import numpy as np
import pytest
from population import EVEN, FLAT, HEAVY, LEVELS, MAIN, NULL, RARE, SURE, TIED, Population

pytestmark = pytest.mark.mc


@pytest.mark.parametrize(("threshold", "fnr"), [(1, 0.0536), (2, 0.0286), (3, 0.0148)])
def test_closed_form_has_the_published_values(threshold: float, fnr: float) -> None:
    assert MAIN.fnr(threshold) == pytest.approx(fnr, abs=5e-5)
    assert RARE.fnr(threshold) == EVEN.fnr(threshold) == MAIN.fnr(threshold)


@pytest.mark.parametrize("population", [MAIN, TIED, EVEN, NULL, HEAVY, LEVELS, SURE])
@pytest.mark.parametrize("shift", [0.0, 0.7, -0.55])
@pytest.mark.parametrize("rule", ["symmetric", "one_sided"])
def test_closed_form_is_what_cases_show(population: Population, rule: str, shift: float) -> None:
    z, labels = population.stratified(np.random.default_rng(0), 10**6)
    u = z + shift
    for threshold in (0, 0.3, 0.6, 1.1, 2.1):
        exits = (u >= (0 if rule == "one_sided" else threshold)) | ((u < 0) & (u <= -threshold))
        exited_positives = exits & (labels == 1)
        share = population.fnr(threshold, rule, shift)
        spread = np.sqrt(share * (1 - share) / exited_positives.sum())
        assert (u[exited_positives] < 0).mean() == pytest.approx(share, abs=4.5 * spread)
        assert exits.mean() == pytest.approx(population.coverage(threshold, rule, shift), abs=0.002)
        alarms = exits & (u >= 0) & (labels == 0)
        utility = exits.mean() - 5 * alarms.mean()
        assert utility == pytest.approx(population.utility(threshold, rule, shift), abs=0.005)


def test_oracle_and_null() -> None:
    assert MAIN.oracle_coverage(0.05) == pytest.approx(0.6856, abs=1e-4)
    assert min(NULL.fnr(t) for t in np.linspace(0, 6, 100)) > 0.05
    assert all(0.05 < FLAT.fnr(t) < 0.0514 for t in np.linspace(0, 6, 100))
    assert HEAVY.fnr(20) > HEAVY.fnr(3)
    assert SURE.fnr(0) == pytest.approx(0.009, abs=0.0005)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_one_sided_fnr_grows_with_coverage(shift: float) -> None:
    for population in (MAIN, HEAVY, LEVELS):
        fnr = [population.fnr(t, "one_sided", shift) for t in np.linspace(6, 0, 50)]
        assert (np.diff(fnr) >= 0).all()
