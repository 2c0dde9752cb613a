"""The confidence sequence: its published values, and its definition at the bound."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from stage1_pro.core.monitor.outcomes import lower_bound, upper_bound

PUBLISHED = {
    (0, 149): (0.02476, 0),
    (0, 300): (0.01246, 0),
    (5, 250): (0.05675, 0.00382),
    (10, 500): (0.04445, 0.00651),
    (20, 1000): (0.03661, 0.0092),
}


@pytest.mark.parametrize(("misses", "exited"), PUBLISHED)
def test_published_values(misses: int, exited: int) -> None:
    found = upper_bound(misses, exited, 0.05), lower_bound(misses, exited, 0.05)
    np.testing.assert_allclose(found, PUBLISHED[misses, exited], atol=5e-6)


@pytest.mark.parametrize(("misses", "least"), [(0, 186), (1, 329), (2, 440), (3, 538)])
def test_fewest_cases_that_are_all_clear(misses: int, least: int) -> None:
    clear = upper_bound(np.full(600, misses), np.arange(1, 601), 0.05) <= 0.02
    assert np.flatnonzero(clear)[0] + 1 == least


@pytest.mark.parametrize(("misses", "exited"), [(2, 40), (7, 900)])
def test_at_the_bounds_the_evidence_is_one_over_delta(misses: int, exited: int) -> None:
    """By integration over the prior, cut off at the bound."""
    prior = beta(0.5, 9.5)
    for bound, low, high in (
        (float(upper_bound(misses, exited, 0.05)), 0.0, None),
        (float(lower_bound(misses, exited, 0.05)), None, 1.0),
    ):
        ends = (bound if low is None else low, bound if high is None else high)

        def ratio(rate: float, at: float = bound) -> float:
            return float(prior.pdf(rate) * (rate / at) ** misses * ((1 - rate) / (1 - at)) ** (exited - misses))

        evidence = quad(ratio, *ends, limit=200, points=[misses / exited])[0] / (
            prior.cdf(ends[1]) - prior.cdf(ends[0])
        )
        assert evidence == pytest.approx(20, rel=1e-4)


def test_bounds_without_evidence() -> None:
    assert upper_bound(0, 0, 0.05) == 1
    assert lower_bound(0, 0, 0.05) == 0
    assert upper_bound(4, 4, 0.05) == 1
    assert lower_bound(0, 10**6, 0.05) == 0
    assert 0 < upper_bound(0, 10**6, 0.05) < 1e-5
