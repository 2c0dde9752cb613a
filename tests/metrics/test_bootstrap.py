"""Group bootstrap: weights against repeated cases, intervals against a plain loop."""

import math

import numpy as np
import pytest

from stage1_pro.core.metrics import bootstrap
from stage1_pro.core.metrics.bootstrap import (
    bootstrap_intervals,
    bootstrap_replicates,
    group_index,
    percentile_interval,
    point_values,
    ranking,
    ratios,
    weight_chunks,
)
from stage1_pro.core.metrics.selective import augrc, aurc


def population(levels: int, cases: int = 200):
    rng = np.random.default_rng(levels)
    groups = rng.integers(0, 40, cases)
    confidence = rng.integers(0, levels, cases) / levels
    confidence[:3] = np.nan, np.inf, -np.inf
    return groups, confidence, rng.random(cases) > 0.5 + 0.4 * rng.random(cases)


def e_aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """AURC above that of a perfect order, in which every case has a confidence of its own."""
    return max(aurc(confidence, wrong) - aurc(-np.arange(len(wrong)), np.sort(wrong)), 0)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("levels", [1, 7, 10**9])
def test_weights_equal_repeated_cases(levels: int, grouped: bool) -> None:
    groups, confidence, wrong = population(levels)
    index = group_index(groups if grouped else None, len(wrong))
    statistics = [
        ranking(index, confidence, wrong),
        ratios(index, {"error": (wrong, np.ones(len(wrong)))}),
    ]
    weights = next(weight_chunks(index, 20, np.random.default_rng(0)))
    # Twice, with fewer rows the second time: memory kept from before must not leak in.
    for rows in (weights, weights[:5]):
        values = {name: v for s in statistics for name, v in s(rows).items()}
        for row, weight in enumerate(rows):
            cases = np.repeat(np.arange(len(wrong)), weight[index])
            again = confidence[cases], wrong[cases]
            for name, metric in {"augrc": augrc, "aurc": aurc, "e_aurc": e_aurc}.items():
                assert values[name][row] == pytest.approx(metric(*again), abs=1e-12)
            assert values["error"][row] == pytest.approx(wrong[cases].mean())


def test_point_values_are_the_metrics() -> None:
    groups, confidence, wrong = population(7)
    points = point_values([ranking(group_index(groups, 200), confidence, wrong)], groups)
    expected = [metric(confidence, wrong) for metric in (augrc, aurc, e_aurc)]
    assert list(points.values()) == pytest.approx(expected)


def test_weights_draw_as_many_groups_as_there_are() -> None:
    index = group_index(["b", "a", "b", "c"], 4)
    assert index.tolist() == [1, 0, 1, 2]
    weights = np.concatenate(list(weight_chunks(index, 3000, np.random.default_rng(0))))
    assert weights.shape == (3000, 3)
    assert (weights.sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(weights.var(axis=0), 3 * (1 / 3) * (2 / 3), atol=0.06)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, confidence, wrong = population(7)
    index = group_index(groups, 200)

    def intervals() -> dict:
        statistics = [ranking(index, confidence, wrong)]
        return bootstrap_intervals(statistics, index, 101, 0.9, np.random.default_rng(4))

    whole = intervals()
    monkeypatch.setattr(bootstrap, "CHUNK_ENTRIES", 600)
    assert intervals() == whole


def test_interval_matches_a_plain_loop_over_groups() -> None:
    groups, confidence, wrong = population(50)
    index, rng = group_index(groups, 200), np.random.default_rng(1)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    plain = []
    for _ in range(4000):
        drawn = rng.integers(0, len(members), len(members))
        cases = np.concatenate([members[g] for g in drawn])
        plain.append(augrc(confidence[cases], wrong[cases]))
    statistics = [ranking(index, confidence, wrong)]
    ours = bootstrap_intervals(statistics, index, 4000, 0.95, rng)["augrc"]
    width = np.std(plain)
    np.testing.assert_allclose(ours, np.percentile(plain, [2.5, 97.5]), atol=0.2 * width)


def test_runs_are_compared_on_the_same_resamples() -> None:
    groups, confidence, wrong = population(50)
    index = group_index(groups, 200)
    one, other = ranking(index, confidence, wrong), ranking(index, confidence**2, wrong)

    def difference(weights):
        return {"gain": one(weights)["augrc"] - other(weights)["augrc"]}

    replicates = bootstrap_replicates([difference], index, 50, np.random.default_rng(0))
    assert replicates["gain"].tolist() == [0] * 50


def test_undefined_resamples_are_left_out() -> None:
    index = group_index(None, 3)
    statistics = [ratios(index, {"some": ([1, 0, 0], [1, 0, 0]), "none": ([0] * 3, [0] * 3)})]
    intervals = bootstrap_intervals(statistics, index, 100, 0.95, np.random.default_rng(0))
    assert intervals["some"] == (1, 1)
    assert all(map(math.isnan, intervals["none"]))
    assert percentile_interval(np.array([np.nan, 1.0, 2.0]), 0.5) == (1.25, 1.75)


def test_without_cases_every_interval_is_undefined() -> None:
    index = group_index(None, 0)
    statistics = [ranking(index, [], []), ratios(index, {"share": ([], [])})]
    intervals = bootstrap_intervals(statistics, index, 10, 0.95, np.random.default_rng(0))
    assert np.isnan(list(intervals.values())).all()
