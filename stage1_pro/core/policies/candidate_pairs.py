"""Candidates of SCRC-I: a path of pairs (lambda1, lambda2), fixed on val_select alone.

The path is the gate's own (lambda2 = ½, one pair for each threshold of the gate). It leaves that path only where
another pair of about the same coverage and no more false alarms promises a clearly smaller p-value: searching
all pairs freely costs coverage where the second score says nothing new.
"""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.certification import independence
from stage1_pro.core.policies.fixed_sequence import predicted_p, threshold_candidates
from stage1_pro.core.records.scores import Scores

LEVELS = 20
BINS = 200
CLEARLY = 0.1
"""A pair must promise less than this share of the gate's own predicted p."""


@dataclass(frozen=True, slots=True, eq=False)
class RankedPairs:
    """One split as SCRC ranks it. gate: (N,) calibrated gate; confidence: (N,) largest calibrated class probability,
    both float64, NaN where an output is not finite; the rest as in Ranked."""

    gate: FloatArray
    confidence: FloatArray
    answers: IntArray
    labels: IntArray
    independent: BoolArray
    groups: int

    @classmethod
    def of(cls, split: Scores, gate: FloatArray, confidence: FloatArray, answers: IntArray) -> "RankedPairs":
        return cls(gate, confidence, answers, split.labels, *independence(split))

    def counts(self, candidates: FloatArray, kept: BoolArray | None = None) -> ExitCounts:
        """Exits at each pair (J, 2), of all cases or of those kept: by way of the grid that the pairs span."""
        lambda1, row = np.unique(candidates[:, 0], return_inverse=True)
        lambda2, column = np.unique(candidates[:, 1], return_inverse=True)
        cases = slice(None) if kept is None or kept.all() else kept
        ranked = self.gate[cases], self.confidence[cases], self.answers[cases], self.labels[cases]
        return picked(count_pairs(*ranked, lambda1, lambda2), (row.ravel(), column.ravel()))


def count_pairs(
    gate: FloatArray,
    confidence: FloatArray,
    answers: IntArray,
    labels: IntArray,
    lambda1: FloatArray,
    lambda2: FloatArray,
) -> ExitCounts:
    """Counts (J1, J2) of exits gate >= lambda1 and confidence >= lambda2; both thresholds ascending.

    Every case falls into one cell of the grid, then the cells are summed from the strict corner:
    O(N log J + J1 J2), no loop over pairs.
    """
    rows, columns = len(lambda1) + 1, len(lambda2) + 1
    cell = np.searchsorted(lambda1, gate, side="right") * columns + np.searchsorted(lambda2, confidence, side="right")
    cell = cell * 4 + (np.asarray(labels) == 1) * 2 + (np.asarray(answers) == 1)
    finite = np.isfinite(gate) & np.isfinite(confidence)
    table = np.bincount(cell if finite.all() else cell[finite], minlength=rows * columns * 4)
    table = table.reshape(rows, columns, 4)[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1][1:, 1:]
    true_negatives, false_alarms, misses, hits = np.moveaxis(table, -1, 0)
    exited_positives, exited_negatives = hits + misses, true_negatives + false_alarms
    exited, positives = exited_positives + exited_negatives, int(np.count_nonzero(np.asarray(labels) == 1))
    return ExitCounts(exited, exited_positives, misses, exited_negatives, false_alarms, gate.size, positives)


def picked(counts: ExitCounts, index: tuple[IntArray, ...]) -> ExitCounts:
    """The counts (J,) at some cells of a grid."""
    return ExitCounts(
        counts.exited[index],
        counts.exited_positives[index],
        counts.misses[index],
        counts.exited_negatives[index],
        counts.false_alarms[index],
        counts.cases,
        counts.positives,
    )


def frontier_pairs(select: RankedPairs, calib_positives: int, target_fnr: float, levels: int = LEVELS) -> FloatArray:
    """(J, 2) pairs in the order of growing val_select coverage; of val_calib only its number of positives is used.

    levels: of lambda2. The grid holds lambda1 = 0, "no gate", besides the gate's own thresholds.
    """
    own = threshold_candidates(select.gate)[::-1]
    lambda1, lambda2 = np.union1d(own, [0.0]), confidence_levels(select.confidence, levels)
    counts = count_pairs(select.gate, select.confidence, select.answers, select.labels, lambda1, lambda2)
    flat = picked(counts, np.unravel_index(np.arange(counts.exited.size), counts.exited.shape))
    path = np.searchsorted(lambda1, own) * len(lambda2)
    cell = np.unique(_better_cells(path, predicted_p(flat, calib_positives, target_fnr), flat))
    cell = cell[np.argsort(flat.exited[cell], kind="stable")]
    row, column = np.divmod(cell, len(lambda2))
    return np.column_stack([lambda1[row], lambda2[column]])


def confidence_levels(confidence: FloatArray, levels: int = LEVELS) -> FloatArray:
    """(<= levels,) ½ and quantiles of val_select's confidence, ascending; each is one of the confidences."""
    finite = confidence[np.isfinite(confidence)]
    if not finite.size:
        return np.array([0.5])
    inner = np.quantile(finite, np.arange(1, levels) / levels, method="higher")
    return np.union1d(inner, [0.5])


def _better_cells(path: IntArray, p: FloatArray, counts: ExitCounts) -> IntArray:
    """(J,) the cell of each step: the gate's own, or one near it whose predicted p is clearly smaller.

    path: (J,) the gate's cells; p, counts: of all cells of the grid, flat. Cells are sorted by coverage, so that each
    step looks at its own neighbours only.
    """
    exited, fpr = counts.exited, np.nan_to_num(counts.fpr)
    order, reach = np.argsort(exited, kind="stable"), counts.cases // (2 * BINS)
    first = np.searchsorted(exited[order], exited[path] - reach, side="left")
    last = np.searchsorted(exited[order], exited[path] + reach, side="right")
    window = first[:, None] + np.arange(np.max(last - first, initial=1))
    cells = order[np.minimum(window, len(order) - 1)]
    near = (window < last[:, None]) & (fpr[cells] <= fpr[path, None] + 1e-12)
    least = np.argmin(np.where(near, p[cells], np.inf), axis=1)
    best = cells[np.arange(len(path)), least]
    return np.where(p[best] < CLEARLY * p[path], best, path)
