"""Dividing delta among groups and attempts."""

import numpy as np
import pytest

from stage1_pro.core.metrics.error_budget import attempt_delta, group_delta, group_sample_sizes

SIZES = {
    (0.02, 2): [183, 277, 359],
    (0.02, 5): [228, 330, 418],
    (0.02, 10): [263, 369, 461],
    (0.02, 20): [297, 407, 503],
    (0.05, 2): [72, 110, 142],
    (0.05, 5): [90, 130, 165],
    (0.05, 10): [104, 146, 182],
    (0.05, 20): [117, 161, 199],
}


@pytest.mark.parametrize(("target", "groups"), SIZES)
def test_exited_positives_that_each_group_needs(target: float, groups: int) -> None:
    assert group_sample_sizes(target, 0.05, groups) == SIZES[target, groups]


def test_groups_that_cannot_pass_leave_their_share_to_the_others() -> None:
    kept, each = group_delta([0.3, 0.001, 0.024, np.nan, 0.9], 0.05)
    assert kept.tolist() == [False, True, True, False, False]
    assert each == 0.025  # .024 would not have passed at a fifth
    assert group_delta([0.01, 0.01], 0.05)[1] == 0.025
    nobody, each = group_delta([0.9, np.nan], 0.05)
    assert not nobody.any()
    assert each <= 0.05


def test_all_attempts_there_will_ever_be_spend_delta_together() -> None:
    spent = sum(attempt_delta(0.05, attempt) for attempt in range(1, 20_000))
    assert 0.0499 < spent < 0.05
    with pytest.raises(ValueError, match="attempt"):
        attempt_delta(0.05, 0)
