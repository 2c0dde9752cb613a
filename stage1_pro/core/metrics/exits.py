"""Counting exits: what an exit threshold, or a set of decisions, lets out and gets wrong.

Binary: label 1 is the positive class. A case exits iff its score is finite and >= the threshold,
compared in float64; NaN and both infinities never exit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import FloatArray, IntArray, ratio
from stage1_pro.core.metrics.steps import Steps, blocks


@dataclass(frozen=True, slots=True)
class ExitCounts:
    """Counts over exited cases, one entry for each of J candidates, and the totals beside them.

    misses: exited positives answered 0. false_alarms: exited negatives answered 1.
    The shares are (J,) float64, NaN where their denominator is 0.
    """

    exited: IntArray
    exited_positives: IntArray
    misses: IntArray
    exited_negatives: IntArray
    false_alarms: IntArray
    cases: int
    positives: int

    @property
    def coverage(self) -> FloatArray:
        """Share of all cases that exit."""
        return ratio(self.exited, self.cases)

    @property
    def fnr(self) -> FloatArray:
        """FNR on exits: share of exited positives, not of all positives, answered 0."""
        return ratio(self.misses, self.exited_positives)

    @property
    def fpr(self) -> FloatArray:
        """FPR on exits: share of exited negatives answered 1."""
        return ratio(self.false_alarms, self.exited_negatives)

    @property
    def accuracy(self) -> FloatArray:
        """Share of exited cases answered rightly."""
        return ratio(self.exited - self.misses - self.false_alarms, self.exited)

    @property
    def right_exits(self) -> FloatArray:
        """Share of all cases that exit and are answered rightly."""
        return ratio(self.exited - self.misses - self.false_alarms, self.cases)

    @property
    def precision(self) -> FloatArray:
        """Share of positives among the exited cases answered 1."""
        hits = self.exited_positives - self.misses
        return ratio(hits, hits + self.false_alarms)


@dataclass(frozen=True, slots=True)
class FnrCoverageCurve:
    """Coverage and FNR on exits (K,) at thresholds (K,), strictest first."""

    thresholds: FloatArray
    coverage: FloatArray
    fnr: FloatArray


def count_exits(scores: ArrayLike, answers: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> ExitCounts:
    """Count exits at each threshold.

    scores: (N,) float; answers, labels: (N,) of 0 and 1; thresholds: (J,) in any order.
    O(N): every case falls between two thresholds once, then the bins are summed.
    """
    scores = np.asarray(scores, dtype=np.float64)
    thresholds = np.asarray(thresholds, dtype=np.float64)
    answered, positive = np.asarray(answers) == 1, np.asarray(labels) == 1
    order = np.argsort(thresholds, kind="stable")
    steps = Steps.of(thresholds[order], scores.size)
    bins = np.zeros(4 * (thresholds.size + 1), dtype=np.int64)
    for block in blocks(scores.size):
        cell = steps.reached(scores[block]) * 4 + positive[block] * 2 + answered[block]
        finite = np.isfinite(scores[block])
        bins += np.bincount(cell if finite.all() else cell[finite], minlength=bins.size)
    reached = bins.reshape(-1, 4)[::-1].cumsum(axis=0)[::-1][1:]
    exited = np.empty_like(reached)
    exited[order] = reached
    return _counts(
        hits=exited[:, 3],
        misses=exited[:, 2],
        false_alarms=exited[:, 1],
        true_negatives=exited[:, 0],
        cases=scores.size,
        positives=int(np.count_nonzero(positive)),
    )


def count_decisions(exits: ArrayLike, answers: ArrayLike, labels: ArrayLike) -> ExitCounts:
    """Count exits of decisions already taken, J = 1. exits: (N,) bool; answers, labels: (N,)."""
    scores = np.where(np.asarray(exits, dtype=bool), 1.0, 0.0)
    return count_exits(scores, answers, labels, [1.0])


def _counts(
    hits: IntArray,
    misses: IntArray,
    false_alarms: IntArray,
    true_negatives: IntArray,
    cases: int,
    positives: int,
) -> ExitCounts:
    exited_positives, exited_negatives = hits + misses, false_alarms + true_negatives
    return ExitCounts(
        exited=exited_positives + exited_negatives,
        exited_positives=exited_positives,
        misses=misses,
        exited_negatives=exited_negatives,
        false_alarms=false_alarms,
        cases=cases,
        positives=positives,
    )


def fnr_coverage_curve(
    scores: ArrayLike, answers: ArrayLike, labels: ArrayLike, max_points: int = 1000
) -> FnrCoverageCurve:
    """FNR on exits against coverage at the distinct finite scores, high to low.

    Above max_points distinct scores, that many evenly spread ones stand for all, ends included,
    so that a figure of a million cases stays light. FNR is NaN before the first positive exits.
    """
    scores = np.asarray(scores, dtype=np.float64)
    distinct = np.unique(scores[np.isfinite(scores)])[::-1]
    kept = np.linspace(0, distinct.size - 1, min(max_points, distinct.size)).round().astype(int)
    exits = count_exits(scores, answers, labels, distinct[kept])
    return FnrCoverageCurve(distinct[kept], exits.coverage, exits.fnr)
