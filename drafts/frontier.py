"""Candidates of SCRC-I: a path of pairs (lambda1, lambda2), fixed on val_select alone.

The path is the gate's own (lambda2 = 1/2, one pair per threshold candidate), and leaves it only
where another pair of about that coverage and no more false alarms has a clearly smaller predicted p.
"""

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.certify import predicted_p, threshold_candidates

LAMBDA2 = 20
BINS = 200
CLEARLY = 0.1  # a pair must promise a tenth of the gate's p


def count_pairs(
    gate: FloatArray, confidence: FloatArray, answers: IntArray, labels: IntArray, lambda1: FloatArray, lambda2: FloatArray
) -> ExitCounts:
    """Counts (J1, J2) of exits gate >= lambda1 and confidence >= lambda2; both thresholds ascending.

    Every case falls into one cell of the grid, then the cells are summed from the strict corner:
    O(N log J + J1 J2), no loop over pairs.
    """
    rows, columns = len(lambda1) + 1, len(lambda2) + 1
    cell = np.searchsorted(lambda1, gate, side="right") * columns + np.searchsorted(lambda2, confidence, side="right")
    finite = np.isfinite(gate) & np.isfinite(confidence)
    kind = labels * 2 + answers
    table = np.bincount((cell * 4 + kind)[finite], minlength=rows * columns * 4).reshape(rows, columns, 4)
    table = table[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1][1:, 1:]
    true_negatives, false_alarms, misses, hits = np.moveaxis(table, -1, 0)
    exited_positives, exited_negatives = hits + misses, true_negatives + false_alarms
    return ExitCounts(
        exited_positives + exited_negatives, exited_positives, misses, exited_negatives, false_alarms, gate.size, int(labels.sum())
    )


def frontier_pairs(
    gate: FloatArray, confidence: FloatArray, answers: IntArray, labels: IntArray, calib_positives: int, target_fnr: float
) -> FloatArray:
    """(J, 2) pairs (lambda1, lambda2) in the order of growing val_select coverage. All arrays of val_select."""
    lambda1 = threshold_candidates(gate)[::-1]
    levels = np.arange(1, LAMBDA2) / LAMBDA2
    lambda2 = np.unique(np.concatenate([[0.5], np.quantile(confidence, levels, method="higher")]))
    counts = count_pairs(gate, confidence, answers, labels, lambda1, lambda2)
    p, coverage = predicted_p(counts, calib_positives, target_fnr), counts.coverage
    fpr, bins = np.nan_to_num(counts.fpr), np.ceil(coverage * BINS - 1e-9).astype(np.int64)
    chosen = []
    for row in range(len(lambda1)):  # at most 200
        near = (bins == bins[row, 0]) & (coverage >= coverage[row, 0] - 0.5 / BINS) & (fpr <= fpr[row, 0] + 1e-12)
        best = np.unravel_index(np.argmin(np.where(near, p, np.inf)), p.shape)
        chosen.append(best if p[best] < CLEARLY * p[row, 0] else (row, 0))
    i, j = np.unique(np.array(chosen), axis=0).T
    order = np.argsort(counts.exited[i, j], kind="stable")
    return np.column_stack([lambda1[i], lambda2[j]])[order]
