"""Drift without labels: ranks, wealth and PSI against plain loops and published values."""

import math

import numpy as np
import pytest

from stage1_pro.core.monitor.drift import DriftWealth, psi, psi_noise, sequential_ranks


def test_published_rank() -> None:
    assert sequential_ranks([1, 2, 3], [2.5], [0.5]).tolist() == [0.375]


@pytest.mark.parametrize("past", [0, 1, 40])
def test_ranks_are_those_of_a_plain_loop(past: int) -> None:
    rng = np.random.default_rng(past)
    known, scores, ties = rng.integers(0, 25, past), rng.integers(0, 25, 257), rng.random(257)
    expected = []
    for place, score in enumerate(scores):
        before = np.concatenate([known, scores[:place]])
        above, equal = (before > score).sum(), (before == score).sum()
        expected.append((above + ties[place] * (equal + 1)) / (before.size + 1))
    np.testing.assert_allclose(sequential_ranks(known, scores, ties), expected, rtol=1e-12)
    assert sequential_ranks(known, [], []).shape == (0,)


def test_wealth_is_the_product_of_its_bets() -> None:
    """Bet by bet, with a restart at every 500th case, whatever the days are that the cases come in."""
    ranks = np.random.default_rng(1).random(1730) ** 1.1
    bets, expected = [], []
    for place, rank in enumerate(ranks):
        if place % 500 == 0:
            bets.append((1.0, np.zeros(10)))
        case = int(rank * 10)
        bets = [
            (worth * 10 * (seen[case] + 20) / (seen.sum() + 200), seen + (np.arange(10) == case))
            for worth, seen in bets
        ]
        expected.append(sum(bet[0] / (j * (j + 1)) for j, bet in enumerate(bets, 1)) + 1 / (len(bets) + 1))
    wealth = DriftWealth.initial()
    for day in np.split(ranks, [300, 500, 501, 1500]):
        largest, wealth = wealth.feed(day)
        assert math.exp(wealth.log_wealth()) == pytest.approx(expected[wealth.cases - 1])
        assert math.exp(largest) == pytest.approx(
            max(
                expected[case - 1]
                for case in range(wealth.cases - day.size + 1, wealth.cases + 1)
                if case % 100 == 0 or case == wealth.cases
            )
        )
    assert wealth.feed(np.zeros(0))[1] is wealth


def test_published_psi() -> None:
    first = np.arange(1, 101) / 100
    second = np.tile(np.arange(1, 51) / 100, 2)
    assert psi(first, second) == pytest.approx(1.7683677, abs=5e-8)
    assert psi(first, first) == 0


def test_psi_of_equal_populations_is_within_its_noise_in_nineteen_of_twenty_samples() -> None:
    """Where the folk limit of .10 fires on noise."""
    rng = np.random.default_rng(0)
    values = np.array([psi(rng.random(1000), rng.random(200)) for _ in range(400)])
    assert (values > psi_noise(1000, 200)).mean() == pytest.approx(0.05, abs=0.03)
    assert psi_noise(200, 200) > 0.1
