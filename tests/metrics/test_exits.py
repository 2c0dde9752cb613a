"""Counting exits, against a loop over thresholds."""

import numpy as np
import pytest

from stage1_pro.core.metrics.exits import ExitCounts, count_decisions, count_exits, fnr_coverage_curve

COUNTS = ("exited", "exited_positives", "misses", "exited_negatives", "false_alarms")


def count_by_hand(exits: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    triples = list(zip(exits.tolist(), answers.tolist(), labels.tolist(), strict=True))
    return {
        "exited": sum(e for e, _, _ in triples),
        "exited_positives": sum(e and y == 1 for e, _, y in triples),
        "misses": sum(e and y == 1 and a == 0 for e, a, y in triples),
        "exited_negatives": sum(e and y == 0 for e, _, y in triples),
        "false_alarms": sum(e and y == 0 and a == 1 for e, a, y in triples),
    }


def counts_of(exits: ExitCounts, at: int) -> dict[str, int]:
    return {name: int(getattr(exits, name)[at]) for name in COUNTS}


@pytest.fixture
def population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 12, 300) / 10
    scores[:9] = [np.nan, np.inf, -np.inf] * 3
    return scores, rng.integers(0, 2, 300), rng.integers(0, 2, 300)


def test_count_exits_matches_a_loop(population) -> None:
    scores, answers, labels = population
    thresholds = np.array([0.5, 1.1, -np.inf, 0.35, 0.5, np.inf, np.nan, 0.0])
    exits = count_exits(scores, answers, labels, thresholds)
    for at, threshold in enumerate(thresholds):
        taken = np.isfinite(scores) & (scores >= threshold)
        assert counts_of(exits, at) == count_by_hand(taken, answers, labels)
        assert counts_of(count_decisions(taken, answers, labels), 0) == counts_of(exits, at)
    assert (exits.cases, exits.positives) == (300, labels.sum())
    assert exits.exited.dtype == np.int64


def test_rates_name_their_denominators() -> None:
    exits = np.array([1, 1, 1, 1, 1, 1, 0, 0], dtype=bool)
    labels = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    answers = np.array([1, 1, 0, 0, 0, 1, 0, 1])
    counts = count_decisions(exits, answers, labels)
    rates = [counts.coverage, counts.fnr, counts.fpr, counts.accuracy, counts.precision, counts.right_exits]
    np.testing.assert_allclose(np.ravel(rates), [6 / 8, 1 / 3, 1 / 3, 4 / 6, 2 / 3, 4 / 8])


def test_nothing_exits() -> None:
    nothing = count_exits([0.2, np.nan], [0, 1], [1, 1], [0.9])
    assert nothing.coverage == 0
    shares = np.ravel([nothing.fnr, nothing.fpr, nothing.accuracy, nothing.precision])
    assert np.isnan(shares).all()
    assert np.isnan(count_exits([], [], [], [0.5]).coverage).all()


def test_equality_exits_in_float64() -> None:
    score = np.float32(0.1)
    assert count_exits([score], [0], [0], [float(score)]).exited == 1
    assert count_exits([score], [0], [0], [np.nextafter(float(score), 1)]).exited == 0


def test_curve_stands_at_every_distinct_score(population) -> None:
    scores, answers, labels = population
    curve = fnr_coverage_curve(scores, answers, labels)
    distinct = sorted(set(scores[np.isfinite(scores)].tolist()), reverse=True)
    assert curve.thresholds.tolist() == distinct
    exits = count_exits(scores, answers, labels, distinct)
    np.testing.assert_array_equal(curve.coverage, exits.coverage)
    np.testing.assert_array_equal(curve.fnr, exits.fnr)


def test_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(5000), rng.integers(0, 2, 5000)
    curve = fnr_coverage_curve(scores, 1 - labels, labels, max_points=50)
    assert curve.thresholds.size == 50
    assert (curve.thresholds[0], curve.thresholds[-1]) == (scores.max(), scores.min())
    assert curve.coverage[-1] == 1
    assert fnr_coverage_curve([np.nan], [0], [1]).thresholds.size == 0


@pytest.mark.parametrize("floor", [1e-17, 1e-6, 0.1, 1e6])
def test_many_scores_are_counted_as_one_by_one(floor: float) -> None:
    """Crowded below 1 or far apart, at thresholds and a float beside them: the table of many scores misses none."""
    rng = np.random.default_rng(4)
    scores = 1 - np.geomspace(floor, 10 * floor + 0.5, 20_000) * rng.random(20_000)
    thresholds = rng.choice(scores, 150)
    near = (thresholds, np.nextafter(thresholds, 2), np.nextafter(thresholds, -np.inf), np.full(150, thresholds.max()))
    scores[:600] = rng.permutation(np.concatenate(near))
    scores[-9:] = [np.nan, np.inf, -np.inf, 1e308, -1e308, 2.0, -2.0, 1.0, 0.0]
    scores = rng.permutation(scores)
    answers, labels = rng.integers(0, 2, (2, 20_000))
    exits = count_exits(scores, answers, labels, thresholds)
    for at, threshold in enumerate(thresholds):
        taken = np.isfinite(scores) & (scores >= threshold)
        assert (exits.exited[at], exits.misses[at]) == (taken.sum(), (taken & (labels == 1) & (answers == 0)).sum())
        assert exits.false_alarms[at] == (taken & (labels == 0) & (answers == 1)).sum()
