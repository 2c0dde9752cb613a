"""The figures of metrics.csv: what one epoch's validation logits say. Monitoring only; nothing is certified by it."""

import numpy as np
from scipy.special import softmax

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.summary import selective_summary


def epoch_metrics(logits: FloatArray, labels: IntArray, exit_threshold: float) -> dict[str, float]:
    """accuracy, ece, augrc, nll, and exit_coverage, exit_accuracy, exit_fnr at one softmax threshold.

    logits: (N, C) float64; labels: (N,). exit_fnr is NaN unless C = 2; shares of nothing are NaN.
    """
    probabilities = softmax(logits, axis=1)
    answers = probabilities.argmax(axis=1)
    exits = probabilities.max(axis=1) >= exit_threshold
    exited_positives = exits & (labels == 1)
    misses = exited_positives & (answers == 0)
    binary = logits.shape[1] == 2
    return {
        **selective_summary(probabilities, labels),
        "exit_coverage": float(exits.mean()),
        "exit_accuracy": _share(exits & (answers == labels), exits),
        "exit_fnr": _share(misses, exited_positives) if binary else float("nan"),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return np.count_nonzero(part) / np.count_nonzero(whole) if whole.any() else float("nan")
