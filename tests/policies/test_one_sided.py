"""The one monotone test of one-sided exits."""

import numpy as np
import pytest
from policy_cases import counts_of
from scipy.stats import binom

from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.policies.fixed_sequence import certify
from stage1_pro.core.policies.one_sided import certify_one_sided


def one_sided(hits: int, misses: list[int], positives: int = 2000):
    return counts_of([hits + k for k in misses], misses, positives)


@pytest.mark.parametrize("seed", range(20))
def test_certified_is_all_that_passes_its_own_exact_test_and_that_is_a_prefix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits, misses = int(rng.integers(1, 900)), np.sort(rng.integers(0, 80, 30))
    target, delta = rng.choice([0.02, 0.05, 0.1]), rng.choice([0.05, 0.1, 0.5])
    calib = one_sided(hits, misses.tolist())
    walk = certify_one_sided(calib, target, delta)
    p = binom.cdf(misses, hits + misses, target)
    assert (np.diff(p) >= 0).all()
    assert walk.certified.tolist() == (p <= delta).tolist()
    assert walk.answer == (int((p <= delta).sum()) - 1 if (p <= delta).any() else None)
    np.testing.assert_allclose(walk.p_values, p, rtol=1e-9)
    assert (walk.upper_bounds[walk.certified] <= target).all()


def test_no_start_is_needed() -> None:
    """Where val_select sends the walk to a candidate that fails, all stricter ones still stand."""
    select, calib = counts_of([100, 200, 400], [0, 0, 1], 400), one_sided(200, [0, 4, 40])
    assert certify(select, calib, 0.05, 0.05).answer is None
    assert certify_one_sided(calib, 0.05, 0.05).answer == 1


@pytest.mark.parametrize("enough", [True, False])
def test_the_answers_one_alone_must_be_the_minimum_evidence(enough: bool) -> None:
    hits = minimum_positives(0.02, 0.05) - (not enough)
    assert certify_one_sided(one_sided(hits, [0, 30]), 0.02, 0.05).answer == (0 if enough else None)


def test_nothing_to_certify() -> None:
    assert certify_one_sided(counts_of([], [], 10), 0.05, 0.1).answer is None
    assert certify_one_sided(one_sided(0, [0, 3]), 0.05, 0.1).answer is None


def test_other_exit_sets_are_refused() -> None:
    with pytest.raises(AssertionError, match="answered 1"):
        certify_one_sided(counts_of([100, 200], [0, 0], 300), 0.05, 0.1)
    with pytest.raises(AssertionError, match="order"):
        certify_one_sided(one_sided(100, [3, 0]), 0.05, 0.1)
