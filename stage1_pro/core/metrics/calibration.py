"""Calibration metrics: do probabilities mean what they say?

probabilities: (N, C) float, rows sum to 1; labels: (N,) int. Each metric returns one float, NaN
without cases, and a NaN among the probabilities makes it NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray, ratio

BINS = 15
LEAST_PROBABILITY = 1e-7


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """A reliability diagram: per bin (B,) its mean confidence, accuracy (NaN if empty), count."""

    mean_confidence: FloatArray
    accuracy: FloatArray
    count: IntArray

    @property
    def calibration_error(self) -> float:
        """Mean gap between confidence and accuracy, weighted by count."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy - self.mean_confidence)[filled]
        return float(ratio(gaps @ self.count[filled], self.count.sum()))


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = BINS, equal_mass: bool = False
) -> ReliabilityBins:
    """Group cases by confidence (N,) in [0, 1] and compare it with the event correct (N,).

    Bins are ((i-1)/bins, i/bins], or hold nearly equal numbers of cases (ties stay together, so
    that the order of the cases does not matter).
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if equal_mass:
        places = np.arange(1, bins) * confidence.size // bins
        edges = np.sort(confidence)[places] if confidence.size else np.zeros(bins - 1)
        index = np.searchsorted(edges, confidence, side="right")
    else:
        index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=bins)
    return ReliabilityBins(
        ratio(np.bincount(index, weights=confidence, minlength=bins), count),
        ratio(np.bincount(index, weights=correct, minlength=bins), count),
        count,
    )


def top_label(probabilities: FloatArray, labels: IntArray) -> tuple[FloatArray, BoolArray]:
    """Confidence (N,) in the argmax class, and whether that class is right (N,)."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def ece(probabilities: FloatArray, labels: IntArray) -> float:
    """Expected calibration error of the argmax, 15 bins of equal width. Guo et al. (2017)."""
    return reliability_bins(*top_label(probabilities, labels)).calibration_error


def adaptive_ece(probabilities: FloatArray, labels: IntArray) -> float:
    """As ece, with 15 bins of equal mass. Nguyen & O'Connor (2015)."""
    bins = reliability_bins(*top_label(probabilities, labels), equal_mass=True)
    return bins.calibration_error


def debiased_calibration_error(probabilities: FloatArray, labels: IntArray) -> float:
    """Squared calibration error of the argmax without the bias of noisy bins; can be below 0.

    15 bins of equal mass; the variance of a bin's accuracy, accuracy (1 - accuracy) / (n - 1), is
    subtracted from its squared gap. A bin of one case tells nothing and counts 0. Kumar et al.
    (2019, arXiv 1909.10155).
    """
    bins = reliability_bins(*top_label(probabilities, labels), equal_mass=True)
    known = bins.count >= 2
    accuracy, count = bins.accuracy[known], bins.count[known]
    squared_gaps = (bins.mean_confidence[known] - accuracy) ** 2
    noise = accuracy * (1 - accuracy) / (count - 1)
    return float(ratio((squared_gaps - noise) @ count, bins.count.sum()))


def classwise_ece(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean over classes of the calibration error of its probability. Kull et al. (2019)."""
    errors = [
        reliability_bins(column, labels == label).calibration_error for label, column in enumerate(probabilities.T)
    ]
    return float(np.mean(errors))


def nll(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean negative log of the true class's probability, which is clipped at 1e-7."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(ratio(-np.log(np.maximum(true, LEAST_PROBABILITY)).sum(), true.size))


def brier(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean squared distance from the truth: (p - y)^2 for two classes, summed over classes else.

    The two conventions, as in scikit-learn's brier_score_loss.
    """
    true = probabilities[np.arange(len(labels)), labels]
    distance = (probabilities**2).sum(axis=1) - 2 * true + 1
    scale = 0.5 if probabilities.shape[1] == 2 else 1.0
    return float(ratio(scale * distance.sum(), true.size))
