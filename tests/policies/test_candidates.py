"""Candidate thresholds: between two scores, of growing coverage, at the widest gaps."""

import numpy as np
import pytest

from stage1_pro.core.policies.candidates import thresholds_between


def shares(scores: np.ndarray, thresholds: np.ndarray) -> list[int]:
    return [int((scores >= threshold).sum()) for threshold in thresholds]


def test_few_scores_give_every_middle() -> None:
    scores = np.array([0.9, 0.7, np.nan, 0.7, 0.6, np.inf, -np.inf])
    np.testing.assert_allclose(thresholds_between(scores, 0.5), [0.8, 0.65, 0.55], rtol=1e-15)
    assert thresholds_between(np.array([np.nan]), 0.5).size == thresholds_between(np.zeros(0), 0.5).size == 0


@pytest.mark.parametrize("cases", [1, 7, 199, 200, 201, 1000, 4321])
@pytest.mark.parametrize("levels", [1, 3, 50, 10**9])
def test_each_share_of_the_cases_gives_its_widest_gap(cases: int, levels: int) -> None:
    rng = np.random.default_rng([cases, levels])
    scores = 0.5 + 0.5 * rng.integers(1, levels + 1, cases) / levels
    found = thresholds_between(rng.permutation(scores), 0.5)
    distinct = sorted(set(scores.tolist()), reverse=True)
    middles = {}  # share of 1/200 -> (gap, exits, middle), the looser of equal gaps
    for value, below in zip(distinct, [*distinct[1:], 0.5], strict=True):
        exits = int((scores >= value).sum())
        row = (np.inf if below == 0.5 else value - below, exits, below + (value - below) / 2)
        share = -(-exits * 200 // cases)
        middles[share] = max(middles.get(share, row), row)
    assert found.tolist() == [row[2] for _, row in sorted(middles.items())]
    assert shares(scores, found) == [row[1] for _, row in sorted(middles.items())]
    assert shares(scores, found)[-1] == cases
    assert not np.isin(found, scores).any()
    assert (np.diff(found) < 0).all()


def test_neighbouring_floats_are_left_out() -> None:
    """Nothing lies strictly between them, and a threshold on a score depends on its last bit."""
    scores = np.array([0.75, np.nextafter(0.75, 0), 0.6])
    np.testing.assert_allclose(thresholds_between(scores, 0.5), [(0.75 + 0.6) / 2, 0.55])


@pytest.mark.parametrize("least", [0.5, np.nextafter(0.5, 1)])
def test_the_floor_is_the_last_candidate_where_scores_reach_it(least: float) -> None:
    assert thresholds_between(np.array([0.9, least]), 0.5).tolist() == [least + (0.9 - least) / 2, 0.5]


def test_saturated_scores_and_the_floor_of_a_gate() -> None:
    assert thresholds_between(np.ones(5), 0.5).tolist() == [0.75]
    assert thresholds_between(np.array([0.0, 1.0]), 0.0).tolist() == [0.5, 0.0]
    with pytest.raises(AssertionError, match="floor"):
        thresholds_between(np.array([0.4]), 0.5)
