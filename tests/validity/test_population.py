"""The truth that the validity suite measures against."""

import numpy as np
import pytest
from population import EVEN, MAIN, NULL, RARE, TIED, Population

pytestmark = pytest.mark.mc


@pytest.mark.parametrize(("threshold", "fnr"), [(1, 0.0536), (2, 0.0286), (3, 0.0148)])
def test_closed_form_has_the_published_values(threshold: float, fnr: float) -> None:
    assert MAIN.fnr(threshold) == pytest.approx(fnr, abs=5e-5)
    assert RARE.fnr(threshold) == EVEN.fnr(threshold) == MAIN.fnr(threshold)


@pytest.mark.parametrize("population", [MAIN, TIED, EVEN, NULL])
def test_closed_form_is_what_cases_show(population: Population) -> None:
    z, labels = population.draw(np.random.default_rng(0), 10**6)
    for threshold in (0, 0.3, 0.5, 1, 2):
        exits = np.abs(z) >= threshold
        exited_positives = exits & (labels == 1)
        share = population.fnr(threshold)
        spread = np.sqrt(share * (1 - share) / exited_positives.sum())
        assert (z[exited_positives] < 0).mean() == pytest.approx(share, abs=4 * spread)
        assert exits.mean() == pytest.approx(population.coverage(threshold), abs=0.002)


def test_oracle_and_null() -> None:
    assert MAIN.oracle_coverage(0.05) == pytest.approx(0.6856, abs=1e-4)
    assert min(NULL.fnr(t) for t in np.linspace(0, 6, 100)) > 0.05
