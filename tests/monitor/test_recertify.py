"""A uniform sample out of audited labels, halved by time."""

import numpy as np
import pytest

from stage1_pro.core.errors import UserError
from stage1_pro.core.monitor.audit import resample

SALT = b"sixteen bytes or more"
RNG = np.random.default_rng(0)
N = 6000
GROUPS = np.repeat([f"track-{number}" for number in range(N // 2)], 2)
TIMES = np.arange(N) // 2 * 60.0
ALL = np.ones(N, dtype=bool)


def test_audited_cases_are_thinned_to_a_uniform_sample_of_whole_groups() -> None:
    probability = np.repeat(np.where(np.arange(N // 2) % 3 == 0, 0.5, 0.1), 2)
    found = resample(GROUPS, TIMES, probability, ALL, SALT, since=0)
    kept = np.sort(np.concatenate([found.select, found.calib]))
    assert kept.size + found.thinned == N
    assert (probability[kept] == 0.1).sum() == (probability == 0.1).sum()  # the rarest are all kept
    assert (probability[kept] == 0.5).mean() == pytest.approx(0.5 * 0.2 / (0.5 * 0.2 + 1), abs=0.03)
    assert (kept[0::2] + 1 == kept[1::2]).all()  # both cases of each group
    assert TIMES[found.select].max() < TIMES[found.calib].min()
    assert abs(found.select.size - found.calib.size) <= 2
    again = resample(GROUPS, TIMES, probability, ALL, b"another salt of 28 characters", since=0)
    assert not np.array_equal(again.select, found.select)


def test_the_window_starts_where_it_was_fixed() -> None:
    found = resample(GROUPS, TIMES, np.full(N, 0.1), ALL, SALT, since=TIMES[N // 2])
    assert found.select.min() == N // 2
    assert found.thinned == 0


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_jobs_whose_cases_have_one_time_are_halved_too(jobs: int) -> None:
    times = np.minimum(np.arange(N) // 1000, jobs - 1) * 86400.0  # the last one is the largest
    found = resample(GROUPS, times, np.full(N, 0.1), ALL, SALT, since=0)
    assert found.select.size == found.calib.size == N // 2
    assert times[found.select].max() <= times[found.calib].min()
    assert not set(GROUPS[found.select]) & set(GROUPS[found.calib])


@pytest.mark.parametrize(
    ("probability", "labelled", "since", "told"),
    [
        (np.full(N, 0.1), np.arange(N) > 0, 0, "1 audited cases have no label"),
        (np.where(np.arange(N) == 7, 0, 0.1), ALL, 0, "1 cases without an audit probability"),
        (np.where(np.arange(N) == 7, np.nan, 0.1), ALL, 0, "1 cases without an audit probability"),
        (np.full(N, 0.1), ALL, 1e9, "no audited case"),
    ],
)
def test_what_breaks_the_sample_is_refused(
    probability: np.ndarray, labelled: np.ndarray, since: float, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        resample(GROUPS, TIMES, probability, labelled, SALT, since)
