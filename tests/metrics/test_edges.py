"""Intervals where all cases agree: against scipy, and against draws of groups whose large ones are harder."""

import numpy as np
import pytest
from scipy.stats import binomtest

from stage1_pro.core.metrics.edges import Share, unanimous_intervals, unseen_share


@pytest.mark.parametrize("cases", [1, 7, 500])
@pytest.mark.parametrize("seen", [0, 1])
def test_cases_by_themselves_get_the_exact_interval(cases: int, seen: int) -> None:
    whole = np.append(np.ones(cases), 0)  # the last one is not looked at
    share = Share(np.full(cases + 1, seen) * whole, whole)
    (interval,) = unanimous_intervals(np.arange(cases + 1), {"share": share}, 0.9).values()
    exact = binomtest(seen * cases, cases).proportion_ci(0.9, method="exact")
    assert interval == pytest.approx((exact.low, exact.high))


def test_a_figure_goes_from_its_least_to_its_most_and_one_case_that_differs_leaves_it_to_resampling() -> None:
    index, every = np.arange(50), np.ones(50)
    others = unseen_share(index, every, 0.95)
    shares = {
        "all": Share(every, every, least=-4),
        "none": Share(0 * every, every, least=-4),
        "some": Share(every - (index == 3), every),
        "undefined": Share(every, 0 * every),
    }
    assert unanimous_intervals(index, shares, 0.95) == {
        "all": pytest.approx((1 - 5 * others, 1)),
        "none": pytest.approx((-4 * others, others)),
    }


def test_copies_of_cases_are_no_evidence() -> None:
    one_each = unseen_share(np.arange(80), np.ones(80), 0.95)
    assert unseen_share(np.repeat(np.arange(80), 30), np.ones(2400), 0.95) == pytest.approx(one_each)
    assert unseen_share(np.arange(2400), np.ones(2400), 0.95) < one_each / 20


def test_groups_of_all_sizes_are_held_to_the_truth_and_counting_their_cases_breaks() -> None:
    """Groups of 1 to 50 cases that are alike; a group is an event with a chance that grows with its size."""
    rng, sizes, draws = np.random.default_rng(0), np.arange(1, 51), 4000
    found = {}
    for rate in (0.02, 0.05):
        chance = rate * sizes * sizes.sum() / np.square(sizes).sum()  # so that `rate` of all cases are events
        drawn = rng.integers(0, 50, (draws, 100))
        none_seen = drawn[~(rng.random(drawn.shape) < chance[drawn]).any(axis=1)]
        for name, by_group in (("groups", True), ("cases", False)):
            ends = [
                unseen_share(
                    np.repeat(np.arange(100), row) if by_group else np.arange(row.sum()), np.ones(row.sum()), 0.95
                )
                for row in sizes[none_seen]
            ]
            found[name, rate] = np.sum(np.array(ends) < rate) / draws
    allowed = 0.025 + 3 * np.sqrt(0.025 * 0.975 / draws)
    assert max(found["groups", 0.02], found["groups", 0.05]) <= allowed
    assert found["groups", 0.05] > 0.005  # and it is not held by being far too wide
    assert found["cases", 0.02] > 5 * allowed
