"""The figures of metrics.csv: what the validation logits of one epoch say. Nothing is certified by them."""

import numpy as np
from scipy.special import expit, softmax

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray, ratio
from stage1_pro.core.metrics.selective import augrc, auroc, spearman
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


def gate_metrics(logits: FloatArray, labels: IntArray, gate_logit: FloatArray) -> dict[str, float]:
    """Measure what the gate does to one epoch's validation cases: soft exits are sigma(g), hard ones g >= 0.

    logits: (N, 2) float64; labels, gate_logit: (N,). Shares of nothing, and correlations with a
    constant, are NaN.
    """
    z = logits[:, 1] - logits[:, 0]
    positive, right = labels == 1, (z >= 0) == (labels == 1)
    soft, hard = expit(gate_logit), gate_logit >= 0
    exited_positives = hard & positive
    misses = exited_positives & ~right
    return {
        "gate_augrc": augrc(gate_logit, ~right),
        "gate_soft_coverage_pos": float(soft[positive].mean()) if positive.any() else float("nan"),
        "gate_soft_coverage_neg": float(soft[~positive].mean()) if (~positive).any() else float("nan"),
        "gate_coverage_pos": _share(exited_positives, positive),
        "gate_coverage_neg": _share(hard & ~positive, ~positive),
        "gate_exited_positives": float(np.count_nonzero(exited_positives)),
        "gate_misses": float(np.count_nonzero(misses)),
        "gate_fnr": _share(misses, exited_positives),
        "gate_auroc": auroc(gate_logit, right),
        "gate_spearman": spearman(gate_logit, np.abs(z)),
        "gate_std": float(np.std(gate_logit)),
    }


def _share(part: BoolArray, whole: BoolArray) -> float:
    return float(ratio(np.count_nonzero(part), np.count_nonzero(whole)))
