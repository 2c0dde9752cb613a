"""The promise monitor alarms when it should, hardly ever when it should not, and every known trap breaks it.

A "false certificate" of these cells is a false alarm, or a bound that the truth is beyond.
"""

from collections.abc import Callable

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid

from stage1_pro.core.metrics.binomial import fnr_upper_bound, p_value
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.monitor.audit import doubtful_probability
from stage1_pro.core.monitor.drift import DriftWealth, sequential_ranks
from stage1_pro.core.monitor.outcomes import MISS, NOTHING, UNKNOWN, group_outcomes, lower_bound, upper_bound
from stage1_pro.core.monitor.wealth import PromiseTest, delays, first_alarms

pytestmark = pytest.mark.mc

TARGET = 0.02
TEST = PromiseTest(TARGET, 0.05, 2000)
RISK = Risk(TARGET, 0.95)
DRAWS, CONTROL_DRAWS, CHUNK = 1000, 800, 50
POSITIVES = 4000
BROKEN = pytest.raises(AssertionError, match="false certificates")
Stream = Callable[[np.random.Generator], np.ndarray]


def demand_few(false: np.ndarray, risk: Risk = RISK) -> None:
    """false: (R,) whether each run alarmed although the promise held, or its bound was wrong."""
    demand_valid(Outcomes(false.astype(float), None), risk)


def alarms(stream: Stream, runs: int, seed: int = 0, test: PromiseTest = TEST) -> np.ndarray:
    """(R,) whether each run alarms. stream: misses of one run in the order of feeding; runs may differ in length."""
    rng = np.random.default_rng(seed)
    return np.array([np.isfinite(first_alarms(test, stream(rng)[np.newaxis])[0]) for _ in range(runs)])


def independent(rate: float, count: int = POSITIVES) -> Stream:
    return lambda rng: rng.random(count) < rate


# ---- the alarm


def test_false_alarms_ever_at_the_target() -> None:
    """FNR on exits exactly at the target, looked at after each of 5,000 positives."""
    demand_few(alarms(independent(TARGET, 5000), DRAWS))


@pytest.mark.parametrize("target", [0.01, 0.05, 0.1])
def test_false_alarms_ever_at_other_targets(target: float) -> None:
    test = PromiseTest(target, 0.05, 1000)
    demand_few(alarms(independent(target, 2000), DRAWS, 1, test), Risk(target, 0.95))


@pytest.mark.parametrize(
    ("before", "after", "good", "published"),
    [(0.005, 0.05, 0, 202), (0.005, 0.05, 1000, 390), (0.005, 0.1, 1000, 91), (0.01, 0.05, 1000, 360)],
)
def test_delays_until_the_alarm(before: float, after: float, good: int, published: int) -> None:
    rng = np.random.default_rng(2)
    rates = np.where(np.arange(good + 1500) < good, before, after)
    first = np.concatenate([first_alarms(TEST, rng.random((CHUNK, rates.size)) < rates) for _ in range(DRAWS // CHUNK)])
    found = np.median(first[first > good] - good)
    assert published / 1.3 < found < published * 1.3


def test_what_a_share_of_audits_buys() -> None:
    """The table that a user sees before choosing the share: .10, .05 and .04 instead of .02."""
    found = delays(TEST)
    assert [delay.rate for delay in found] == pytest.approx([0.1, 0.05, 0.04])
    for delay, start, change in zip(found, (45, 210, 450), (90, 390, 720), strict=True):
        assert start / 1.3 < delay.from_start < start * 1.3
        assert change / 1.3 < delay.after_change < change * 1.3
    assert found[1].audited(0.05) == pytest.approx(found[1].from_start * 20)
    assert found[1].exits(0.05, 0.05) == pytest.approx(found[1].from_start * 400)


@pytest.mark.parametrize(("block", "published"), [(100, 0.07), (200, 0.13), (500, 0.27)])
def test_a_rate_that_swings_about_the_target_alarms(block: int, published: float) -> None:
    """The alarm says that at some time FNR was above the target; so it is for half of the time here."""
    swing = np.where(np.arange(POSITIVES) // block % 2 == 0, 0.0, 2 * TARGET)
    found = alarms(lambda rng: rng.random(POSITIVES) < swing, CONTROL_DRAWS, 3).mean()
    assert published / 2 < found < published * 2


def test_an_exact_test_repeated_at_every_look_breaks() -> None:
    """The chance that p <= delta at any look, for a test that is right at one look."""
    rng = np.random.default_rng(4)
    misses = np.cumsum(rng.random((200, 2000)) < TARGET, axis=1)
    seen = np.arange(1, 2001)
    above = 1 - p_value(np.maximum(misses - 1, 0), seen, TARGET)
    with BROKEN:
        demand_few(((above <= 0.05) & (misses > 0)).any(axis=1))


# ---- traps


@pytest.mark.parametrize("correlation", [0.1, 0.3, 0.6])
def test_ten_frames_of_a_track_counted_as_ten_break(correlation: float) -> None:
    share = 1 / correlation - 1

    def frames(rng: np.random.Generator) -> np.ndarray:
        rates = rng.beta(TARGET * share, (1 - TARGET) * share, POSITIVES // 10)
        return (rng.random((POSITIVES // 10, 10)) < rates[:, np.newaxis]).reshape(-1)

    with BROKEN:
        demand_few(alarms(frames, CONTROL_DRAWS, 5))
    demand_few(alarms(lambda rng: frames(rng)[::10], CONTROL_DRAWS, 5))  # one of each track


@pytest.mark.parametrize("hits_return", [10, 30])
def test_labels_in_the_order_of_their_arrival_break(hits_return: int) -> None:
    """Twenty positives a day whose misses return after a day on average, hits after ten or thirty."""

    def arriving(rng: np.random.Generator) -> np.ndarray:
        missed = rng.random(POSITIVES) < TARGET
        arrival = np.arange(POSITIVES) / 20 + rng.exponential(np.where(missed, 1, hits_return))
        return missed[np.argsort(arrival)]

    with BROKEN:
        demand_few(alarms(arriving, CONTROL_DRAWS, 6))


@pytest.mark.parametrize("lost", [0.2, 0.5])
def test_hits_that_never_return_break(lost: float) -> None:
    def left(rng: np.random.Generator) -> np.ndarray:
        missed = rng.random(POSITIVES) < TARGET
        return missed[missed | (rng.random(POSITIVES) >= lost)]

    with BROKEN:
        demand_few(alarms(left, CONTROL_DRAWS, 7))


def labelled_exits(rng: np.random.Generator, unknown: float, lost: float = 1.0, count: int = 12_000) -> np.ndarray:
    """Exits as (answers, labels), a third of them positives, FNR at the target, some labels unknown.

    lost: how much more often the label of a hit is lost than that of a miss.
    """
    positive = rng.random(count) < 1 / 3
    missed = rng.random(count) < TARGET
    answers = np.where(positive, ~missed, rng.random(count) < 0.05)
    gone = rng.random(count) < unknown * np.where(answers, lost, 1)
    return np.stack([answers, np.where(gone, UNKNOWN, positive)])


@pytest.mark.parametrize("unknown", [0.005, 0.01, 0.02])
def test_unknown_labels_counted_as_misses_break(unknown: float) -> None:
    with BROKEN:
        demand_few(alarms(independent(TARGET + (1 - TARGET) * unknown), CONTROL_DRAWS, 8))


def imputed(answers: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Misses as fed for the alarm, and for the bound."""
    keys = np.arange(answers.size, dtype=np.uint64)
    _, best, worst = group_outcomes(keys, keys, answers == 1, np.ones(answers.size, dtype=bool), labels)
    return best[best != NOTHING] == MISS, worst[worst != NOTHING] == MISS


@pytest.mark.parametrize("lost", [1.0, 10.0, 0.1], ids=["at random", "mostly answers 1", "mostly answers 0"])
def test_unknown_labels_read_both_ways_hold(lost: float) -> None:
    """Whoever loses labels: the alarm is not raised by it, and the bound stays above the truth."""
    rng, false, wrong = np.random.default_rng(9), [], []
    looks = np.unique(np.geomspace(20, 3900, 60).astype(int))
    for _ in range(CONTROL_DRAWS):
        for_alarm, for_bound = imputed(*labelled_exits(rng, 0.02, lost))
        false.append(np.isfinite(first_alarms(TEST, for_alarm[np.newaxis])[0]))
        misses = np.cumsum(for_bound)
        seen = looks[looks <= misses.size]
        wrong.append((upper_bound(misses[seen - 1], seen, 0.05) < TARGET).any())
    demand_few(np.array(false))
    demand_few(np.array(wrong))


def grouped(rng: np.random.Generator, tracks: int = 3000) -> tuple[np.ndarray, ...]:
    """Tracks of five positives: most exit whole and are hits; a quarter are hard, defer mostly, and are missed more.

    FNR on exits of one drawn positive a track is the target: .263 · .2 · .3 / (.263 · .2 + .737) = .02.
    """
    hard = np.repeat(rng.random(tracks) < 0.263, 5)
    exits = ~hard | (rng.random(hard.size) < 0.2)
    answers = ~(hard & (rng.random(hard.size) < 0.3))
    return np.repeat(np.arange(tracks, dtype=np.uint64), 5), exits, answers


def test_one_drawn_positive_of_each_track_holds_and_one_exited_positive_breaks() -> None:
    def drawn(rng: np.random.Generator) -> np.ndarray:
        groups, exits, answers = grouped(rng)
        keys = rng.permutation(groups.size).astype(np.uint64)
        _, best, _ = group_outcomes(groups, keys, answers, exits, np.ones(groups.size, dtype=np.int64))
        return best[best != NOTHING] == MISS

    def exited(rng: np.random.Generator) -> np.ndarray:
        groups, exits, answers = grouped(rng)
        first = np.unique(groups[exits], return_index=True)[1]
        return ~answers[exits][first]

    demand_few(alarms(drawn, CONTROL_DRAWS, 10))
    with BROKEN:
        demand_few(alarms(exited, CONTROL_DRAWS, 10))


# ---- an audit of doubtful cases


REFERENCE = np.linspace(0, 1, 2001)


def doubtful(rng: np.random.Generator, rate: float, low: float, high: float) -> tuple[np.ndarray, ...]:
    """Exited positives in the order of their exits: misses, audit probabilities, and which are audited, a tenth.

    low, high: range of the doubt of misses, as ranks among all answers 0.
    """
    missed = rng.random(40_000) < rate
    doubt = rng.uniform(low, high, missed.size)
    probability = doubtful_probability(~missed, doubt, REFERENCE, 0.1)
    return missed, probability, np.flatnonzero(rng.random(missed.size) < probability)


WEIGHED = PromiseTest(TARGET, 0.05, 2000, least=0.1)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.0), (0.0, 1.0), (0.0, 0.1)])
def test_doubtful_audits_hold_when_weighed(low: float, high: float) -> None:
    rng, false = np.random.default_rng(11), []
    for _ in range(400):
        missed, probability, audited = doubtful(rng, TARGET, low, high)
        log_wealth, _ = WEIGHED.feed(WEIGHED.initial(), WEIGHED.bets(missed[audited], probability[audited]))
        false.append(log_wealth.max() >= WEIGHED.bar)
    demand_few(np.array(false))


def test_doubtful_audits_break_when_counted_alike() -> None:
    def alike(rng: np.random.Generator) -> np.ndarray:
        missed, _, audited = doubtful(rng, TARGET, 0.9, 1.0)
        return missed[audited]

    with BROKEN:
        demand_few(alarms(alike, CONTROL_DRAWS // 4, 11))


def exits_until_alarm(rng: np.random.Generator, rate: float, low: float, high: float, *, weighed: bool) -> float:
    """Exited positives, audited or not, until the alarm; a tenth of the exits is audited."""
    missed, probability, audited = doubtful(rng, rate, low, high)
    test = WEIGHED if weighed else TEST
    if not weighed:
        audited = np.flatnonzero(rng.random(missed.size) < 0.1)
    log_wealth, _ = test.feed(test.initial(), test.bets(missed[audited], probability[audited]))
    alarmed = np.flatnonzero(log_wealth >= test.bar)
    return float(audited[alarmed[0]]) if alarmed.size else np.inf


@pytest.mark.parametrize("rate", [0.05, 0.1])
def test_doubtful_audits_are_worth_it_where_misses_are_doubtful_only(rate: float) -> None:
    rng = np.random.default_rng(14)

    def median(low: float, high: float, *, weighed: bool) -> float:
        return float(np.median([exits_until_alarm(rng, rate, low, high, weighed=weighed) for _ in range(100)]))

    uniform = median(0.9, 1.0, weighed=False)
    assert median(0.9, 1.0, weighed=True) < uniform / 2
    assert median(0.0, 0.5, weighed=True) > 2 * uniform


# ---- the bounds


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.2])
def test_bounds_hold_at_every_look(rate: float) -> None:
    rng = np.random.default_rng(12)
    looks = np.unique(np.geomspace(5, 3000, 40).astype(int))
    misses = np.cumsum(rng.random((DRAWS, 3000)) < rate, axis=1)[:, looks - 1]
    demand_few((upper_bound(misses, looks, 0.05) < rate).any(axis=1))
    demand_few((lower_bound(misses, looks, 0.05) > rate).any(axis=1))
    with BROKEN:  # the bound of a fixed number of cases, at every look
        demand_few((fnr_upper_bound(misses, looks, 0.05) < rate).any(axis=1))


# ---- drift


def drift_alarms(past: np.ndarray | None, scores: Stream, runs: int, *, fixed: bool = False) -> np.ndarray:
    """(R,) whether a run of scores alarms at delta .005. past: the calibration scores; None: fresh ones each run."""
    rng, found = np.random.default_rng(13), []
    for _ in range(runs):
        known = rng.standard_normal(1000) if past is None else past
        new = scores(rng)
        ties = rng.random(new.size)
        if fixed:
            above = known.size - np.searchsorted(np.sort(known), new, "right")
            ranks = (above + ties) / (known.size + 1)
        else:
            ranks = sequential_ranks(known, new, ties)
        found.append(DriftWealth.initial().feed(ranks)[0] >= -np.log(0.005))
    return np.array(found)


def test_scores_without_drift_do_not_alarm() -> None:
    demand_few(drift_alarms(None, lambda rng: rng.standard_normal(10_000), DRAWS), Risk(0.5, 0.995))


def test_ranks_among_the_calibration_cases_alone_break() -> None:
    with BROKEN:
        demand_few(drift_alarms(None, lambda rng: rng.standard_normal(10_000), 100, fixed=True), Risk(0.5, 0.995))


def test_ten_frames_of_each_track_break_the_drift_alarm() -> None:
    def frames(rng: np.random.Generator) -> np.ndarray:
        shared = np.repeat(rng.standard_normal(1000), 10)
        return np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.standard_normal(10_000)

    with BROKEN:
        demand_few(drift_alarms(None, frames, 100), Risk(0.5, 0.995))


def test_a_shift_of_scores_is_noticed() -> None:
    def shifted(rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal(6000) + 0.5 * (np.arange(6000) >= 3000)

    assert drift_alarms(None, shifted, 100).mean() > 0.95
