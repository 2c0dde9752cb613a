"""Selective metrics, against the definitions written out case by case."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from stage1_pro.core.metrics.bootstrap import group_index, point_values, ranking
from stage1_pro.core.metrics.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    risk_at_coverage,
    risk_coverage_curve,
)

ERRORS = [0, 1, 0, 0, 1]


def augrc_by_rank(confidence: np.ndarray, losses: np.ndarray) -> float:
    n = len(losses)
    return float(np.sum(losses * (n - rankdata(-confidence) + 0.5)) / n**2)


def points_by_hand(confidence: np.ndarray, losses: np.ndarray) -> list[tuple[float, float, float]]:
    points = []
    for level in sorted(set(confidence.tolist()), reverse=True):
        covered = losses[confidence >= level]
        n = len(losses)
        points.append((len(covered) / n, covered.mean(), covered.sum() / n))
    return points


def aurc_by_hand(confidence: np.ndarray, losses: np.ndarray) -> float:
    points = points_by_hand(confidence, losses)
    area, last_coverage, last_risk = 0.0, 0.0, points[0][1]
    for coverage, risk, _ in points:
        area += (coverage - last_coverage) * (risk + last_risk) / 2
        last_coverage, last_risk = coverage, risk
    return area


def draw(seed: int, levels: int, real: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    losses = rng.random(n).round(1) if real else rng.integers(0, 2, n)
    return rng.integers(0, levels, n) / levels, losses


@pytest.mark.parametrize(
    ("confidence", "errors", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6, 0.5], ERRORS, 0.16),
        ([0.9, 0.8, 0.8, 0.6, 0.5], ERRORS, 0.14),
        ([0.9, 0.8, 0.8, 0.6, 0.5], [0, 0, 1, 0, 1], 0.14),
        ([0.5] * 5, ERRORS, 0.20),
    ],
)
def test_augrc_check_values(confidence: list, errors: list, expected: float) -> None:
    assert augrc(confidence, errors) == pytest.approx(expected, abs=1e-15)


def e_aurc(confidence: list | np.ndarray, errors: list | np.ndarray) -> float:
    """As the report has it."""
    index = group_index(None, len(errors))
    return point_values([ranking(index, confidence, errors)], index)["e_aurc"]


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_metrics_match_their_definitions(levels: int, real: bool) -> None:
    for seed in range(30):
        confidence, losses = draw(seed, levels, real)
        assert augrc(confidence, losses) == pytest.approx(augrc_by_rank(confidence, losses))
        assert aurc(confidence, losses) == pytest.approx(aurc_by_hand(confidence, losses))
        if not real:
            best = aurc_by_hand(-np.arange(len(losses)), np.sort(losses))
            excess = max(aurc_by_hand(confidence, losses) - best, 0)
            assert e_aurc(confidence, losses) == pytest.approx(excess, abs=1e-12)
        curve = risk_coverage_curve(confidence, losses)
        columns = curve.coverage, curve.selective_risk, curve.generalised_risk
        np.testing.assert_allclose(np.stack(columns, 1), points_by_hand(confidence, losses))


def test_augrc_closed_form_for_errors() -> None:
    rng = np.random.default_rng(5)
    confidence = rng.integers(0, 20, 500) / 20
    errors = rng.random(500) > 0.4 + 0.5 * confidence
    accuracy = 1 - errors.mean()
    auroc = roc_auc_score(~errors, confidence)
    closed = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(confidence, errors) == pytest.approx(closed)


def test_a_perfect_order_has_no_excess() -> None:
    assert e_aurc([5, 4, 3, 2, 1], [0, 0, 0, 1, 1]) == pytest.approx(0, abs=1e-15)
    assert e_aurc([2, 2, 2, 1, 1], [0, 0, 0, 1, 1]) == 0
    assert e_aurc([1] * 5, ERRORS) > 0.2


def test_operating_points() -> None:
    curve = risk_coverage_curve([0.9, 0.8, 0.8, 0.6, 0.5], ERRORS)
    assert [risk_at_coverage(curve, c) for c in (0.1, 0.2, 0.21, 0.8, 1.0)] == pytest.approx(
        [0, 0, 1 / 3, 1 / 4, 2 / 5]
    )
    assert [coverage_at_risk(curve, r) for r in (0, 0.25, 0.3, 0.4)] == [0.2, 0.8, 0.8, 1]
    assert coverage_at_risk(risk_coverage_curve([1, 1], [1, 0]), 0.1) == 0


def test_risk_at_coverage_counts_cases_exactly() -> None:
    for n in range(1, 200):
        curve = risk_coverage_curve(-np.arange(n), np.arange(n) % 2)
        for percent in (1, 7, 10, 29, 57, 80, 90, 100):
            covered = math.ceil(percent * n / 100 - 1e-9)
            expected = (covered // 2) / covered
            assert risk_at_coverage(curve, percent / 100) == pytest.approx(expected)


def test_confidence_that_is_not_finite_comes_last() -> None:
    odd = augrc([0.9, np.nan, np.inf, -np.inf], [0, 1, 0, 1])
    assert odd == augrc([0.9, 0.1, 0.1, 0.1], [0, 1, 0, 1])


def test_without_cases_there_is_no_value() -> None:
    assert all(math.isnan(metric([], [])) for metric in (augrc, aurc))
    assert math.isnan(risk_at_coverage(risk_coverage_curve([], []), 0.8))
