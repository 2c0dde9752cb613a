"""Calibration metrics, against loops over bins and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from stage1_pro.core.metrics import calibration
from stage1_pro.core.metrics.calibration import reliability_bins

METRICS = (
    calibration.ece,
    calibration.adaptive_ece,
    calibration.debiased_calibration_error,
    calibration.classwise_ece,
    calibration.nll,
    calibration.brier,
)


def draw(classes: int, seed: int = 0, cases: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), cases)
    probabilities[::7] = probabilities[0]
    return probabilities, rng.integers(0, classes, cases)


def gap_by_hand(confidence: np.ndarray, correct: np.ndarray) -> float:
    total = 0.0
    for i in range(15):
        members = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if members.any():
            gap = abs(confidence[members].mean() - correct[members].mean())
            total += members.mean() * gap
    return total


def equal_mass_by_hand(confidence: np.ndarray) -> list[np.ndarray]:
    ordered, n = sorted(confidence), len(confidence)
    bins = [sum(c >= ordered[i * n // 15] for i in range(1, 15)) for c in confidence]
    return [np.array(bins) == b for b in set(bins)]


@pytest.mark.parametrize("classes", [2, 4])
def test_ece_and_classwise_ece(classes: int) -> None:
    probabilities, labels = draw(classes)
    correct = probabilities.argmax(1) == labels
    expected = gap_by_hand(probabilities.max(1), correct)
    assert calibration.ece(probabilities, labels) == pytest.approx(expected)
    per_class = [gap_by_hand(probabilities[:, c], labels == c) for c in range(classes)]
    assert calibration.classwise_ece(probabilities, labels) == pytest.approx(np.mean(per_class))


@pytest.mark.parametrize("cases", [5, 16, 400])
def test_equal_mass_metrics(cases: int) -> None:
    probabilities, labels = draw(3, seed=2, cases=cases)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    adaptive = debiased = 0.0
    for members in equal_mass_by_hand(confidence):
        gap = confidence[members].mean() - correct[members].mean()
        adaptive += members.mean() * abs(gap)
        if members.sum() > 1:
            debiased += members.mean() * (gap**2 - correct[members].var() / (members.sum() - 1))
    assert calibration.adaptive_ece(probabilities, labels) == pytest.approx(adaptive)
    assert calibration.debiased_calibration_error(probabilities, labels) == pytest.approx(debiased)


def test_debiasing_removes_the_bias_of_a_calibrated_model() -> None:
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(200):
        positive = rng.uniform(0, 1, 300)
        labels = (rng.random(300) < positive).astype(int)
        probabilities = np.stack([1 - positive, positive], axis=1)
        estimates.append(calibration.debiased_calibration_error(probabilities, labels))
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / np.sqrt(200)
    assert min(estimates) < 0


@pytest.mark.parametrize("classes", [2, 4])
def test_proper_scores_match_scikit_learn(classes: int) -> None:
    probabilities, labels = draw(classes)
    every = list(range(classes))
    assert calibration.nll(probabilities, labels) == pytest.approx(log_loss(labels, probabilities, labels=every))
    scored = probabilities[:, 1] if classes == 2 else probabilities
    assert calibration.brier(probabilities, labels) == pytest.approx(brier_score_loss(labels, scored, labels=every))


def test_nll_is_clipped() -> None:
    certain = np.array([[1.0, 0.0]])
    assert calibration.nll(certain, np.array([1])) == pytest.approx(-math.log(1e-7))


def test_order_of_the_cases_does_not_matter() -> None:
    probabilities, labels = draw(2)
    shuffle = np.random.default_rng(9).permutation(len(labels))
    for metric in METRICS:
        there = metric(probabilities, labels)
        assert metric(probabilities[shuffle], labels[shuffle]) == pytest.approx(there, abs=1e-14)


def test_reliability_bins_leave_empty_bins_open() -> None:
    bins = reliability_bins([0.0, 0.05, 1.0, 1.0], [0, 1, 1, 0], bins=10)
    assert bins.count.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert np.isnan(bins.accuracy).sum() == 8
    assert bins.mean_confidence[[0, 9]].tolist() == [0.025, 1.0]
    assert bins.accuracy[[0, 9]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_is_nan(metric) -> None:
    assert math.isnan(metric(np.zeros((0, 2)), np.zeros(0, dtype=int)))
    assert math.isnan(metric(np.full((3, 2), np.nan), np.array([0, 1, 0])))
    tied = metric(np.full((4, 2), 0.5), np.zeros(4, dtype=int))
    assert math.isfinite(tied)
