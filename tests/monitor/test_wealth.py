"""The wealth of the promise test: its published figures, and that splitting a stream changes nothing."""

import numpy as np
import pytest

from stage1_pro.core.monitor.wealth import PromiseTest, Wealth, remaining

TEST = PromiseTest(0.02, 0.05, 2000)


def parts(wealth: Wealth, test: PromiseTest = TEST) -> tuple[float, float]:
    """Start and change part: what the bets of either half are worth, those still waiting included."""
    weights = np.exp(test.log_weights)
    waiting = max(0.0, 1 - wealth.fed / test.planned)
    return float(weights @ np.exp(wealth.start)), float(weights @ np.exp(wealth.change) + waiting)


def fed(missed: list[int], test: PromiseTest = TEST) -> tuple[float, Wealth]:
    bets = test.bets(missed)
    log_wealth, paths = test.feed(test.initial(), bets)
    return float(np.exp(log_wealth[-1])), test.after(test.initial(), paths, len(missed))


@pytest.mark.parametrize(
    ("missed", "start", "change", "wealth"),
    [
        ([1, 1, 1], 356.308344, 1.194912, 178.751628),
        ([0] * 20 + [1, 0, 1, 1], 11.728753, 1.666707, 6.69773),
        ([0] * 100 + [1, 1, 1, 0, 0, 0, 0, 0, 1, 1], 1.848202, 26.141356, 13.994779),
    ],
)
def test_published_values(missed: list[int], start: float, change: float, wealth: float) -> None:
    found, after = fed(missed)
    np.testing.assert_allclose([*parts(after), found], [start, change, wealth], atol=1.5e-6)


def test_rates_and_weights_of_the_bets() -> None:
    np.testing.assert_allclose(TEST.rates[[0, 1, 2, 3, -1]], [0.025, 0.03283, 0.0431, 0.05659, 0.5], atol=5e-6)
    weights = [0.08331, 0.1141, 0.13919, 0.15121, 0.14629, 0.12604, 0.09671]
    np.testing.assert_allclose(np.exp(TEST.log_weights[:7]), weights, atol=5e-6)


def test_published_values_of_an_audit_of_doubtful_cases() -> None:
    test = PromiseTest(0.02, 0.05, 2000, least=0.1)
    _, paths = test.feed(test.initial(), test.bets([0, 0, 1, 0], [0.1, 0.1, 0.05, 0.1]))
    start = np.exp(paths.start[-1])
    np.testing.assert_allclose(start, [5.0585125, 7.8732, 10.5472, 8.6832, 0.6352], rtol=1e-9)
    assert start.mean() == pytest.approx(6.5594625)
    with pytest.raises(ValueError, match="that was fixed"):
        test.bets([0], [0.09])


def test_a_stream_in_pieces_is_the_same_stream() -> None:
    """Also beyond the horizon, where no further change is bet on."""
    test = PromiseTest(0.05, 0.05, 300)
    missed = np.random.default_rng(0).random(900) < 0.05
    whole, paths = test.feed(test.initial(), test.bets(missed))
    wealth, pieces = test.initial(), []
    for piece in np.split(missed, [1, 120, 299, 300, 301, 700]):
        log_wealth, path = test.feed(wealth, test.bets(piece))
        wealth = test.after(wealth, path, piece.size)
        pieces.append(log_wealth)
    np.testing.assert_allclose(np.concatenate(pieces), whole, rtol=1e-9)
    np.testing.assert_allclose(wealth.change, paths.change[-1], rtol=1e-9)
    assert test.log_wealth(wealth) == pytest.approx(whole[-1])
    nothing, same = test.feed(wealth, test.bets(np.zeros(0)))
    assert nothing.size == 0
    assert test.after(wealth, same, 0) is wealth


def test_a_long_stream_stays_a_number() -> None:
    """The product of 200,000 factors is far outside the range of floats."""
    missed = np.random.default_rng(0).random(200_000) < 0.5
    log_wealth, _ = TEST.feed(TEST.initial(), TEST.bets(missed))
    assert np.isfinite(log_wealth).all()
    assert log_wealth[-1] > 1e5
    calm, _ = TEST.feed(TEST.initial(), TEST.bets(np.zeros(200_000)))
    assert np.isfinite(calm).all()


def test_positives_until_a_change_is_noticed_depend_on_where_the_wealth_stands() -> None:
    _, calm = fed([0] * 1000)
    _, suspicious = fed([0] * 20 + [1, 0, 1, 1])
    assert remaining(TEST, suspicious, 0.1) < remaining(TEST, TEST.initial(), 0.1) < remaining(TEST, calm, 0.1)


@pytest.mark.parametrize("wrong", [{"target_fnr": 0.0}, {"delta": 1.0}, {"planned": 0}])
def test_a_test_that_promises_nothing_cannot_be_built(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        PromiseTest(**({"target_fnr": 0.02, "delta": 0.05} | wrong))  # type: ignore[arg-type]
