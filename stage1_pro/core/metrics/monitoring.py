"""The figures of metrics.csv: what one epoch's validation logits say. Monitoring only; nothing is certified by it."""

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import rankdata

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.selective import augrc
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


def auroc(scores: FloatArray, event: np.ndarray) -> float:
    """P(a case of the event scores above one without), ties half; NaN where one side is empty."""
    inside, outside = np.count_nonzero(event), np.count_nonzero(~event)
    if not inside or not outside:
        return float("nan")
    return float((rankdata(scores)[event].sum() - inside * (inside + 1) / 2) / (inside * outside))


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Rank correlation; NaN where either is constant."""
    ranks = rankdata(first), rankdata(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return np.count_nonzero(part) / np.count_nonzero(whole) if whole.any() else float("nan")
