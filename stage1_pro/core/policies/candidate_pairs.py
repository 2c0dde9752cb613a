"""Candidates of SCRC: a chain of pairs (lambda1, lambda2) along which both thresholds only ever fall.

Exit sets along a chain are nested, so that one boundary, or with one-sided exits one test, certifies all of its pairs.
A chain lets the class probability reach `slack` further into the cases than the gate: with a slack of 1 the gate alone
decides, with 0 both cut at equal shares. Which chain is taken is decided on val_select alone.
"""

from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.steps import Steps
from stage1_pro.core.policies.certification import predicted_of
from stage1_pro.core.policies.exit_rules import ExitRule
from stage1_pro.core.policies.independence import independence
from stage1_pro.core.records.scores import Scores

SLACKS = (1.0, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0)
"""Chains that are tried, the gate's own first."""


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
    O(N + J1 J2), no loop over pairs.
    """
    rows, columns = len(lambda1) + 1, len(lambda2) + 1
    row, column = Steps.of(lambda1, gate.size).reached(gate), Steps.of(lambda2, gate.size).reached(confidence)
    cell = (row * columns + column) * 4 + (np.asarray(labels) == 1) * 2 + (np.asarray(answers) == 1)
    finite = np.isfinite(gate) & np.isfinite(confidence)
    bins = np.bincount(cell if finite.all() else cell[finite], minlength=rows * columns * 4)
    from_strict = bins.reshape(rows, columns, 4)[::-1, ::-1]
    for axis in (0, 1):
        np.cumsum(from_strict, axis=axis, out=from_strict)  # in place: a third of the time of fresh arrays
    true_negatives, false_alarms, misses, hits = np.moveaxis(from_strict[::-1, ::-1][1:, 1:], -1, 0)
    exited_positives, exited_negatives = hits + misses, true_negatives + false_alarms
    exited, positives = exited_positives + exited_negatives, int(np.count_nonzero(np.asarray(labels) == 1))
    return ExitCounts(exited, exited_positives, misses, exited_negatives, false_alarms, gate.size, positives)


def picked(counts: ExitCounts, index: tuple[IntArray, ...] | slice) -> ExitCounts:
    """The counts (J,) at some cells of a grid, or of a part of the candidates."""
    return ExitCounts(
        counts.exited[index],
        counts.exited_positives[index],
        counts.misses[index],
        counts.exited_negatives[index],
        counts.false_alarms[index],
        counts.cases,
        counts.positives,
    )


def chain_pairs(select: RankedPairs, positives: int, risk: Risk, rule: ExitRule) -> FloatArray:
    """Return the chain (J, 2) of growing val_select coverage that promises most right exits; the gate's own on ties.

    positives: how many val_calib counts, all that is used of it. All chains are counted together: O(N log N).
    """
    chains = _chains(select, rule)
    every = np.concatenate(chains)
    counts = select.counts(every)
    evidence = counts if select.independent.all() else select.counts(every, select.independent)
    ends = np.cumsum([len(chain) for chain in chains])
    parts = [slice(end - len(chain), end) for chain, end in zip(chains, ends, strict=True)]
    worth = [predicted_of(picked(counts, p), picked(evidence, p), positives, risk, rule).right_exits for p in parts]
    return chains[int(np.argmax(worth))]


def _chains(select: RankedPairs, rule: ExitRule) -> list[FloatArray]:
    """Return the chains (J, 2) that are tried: one a slack, and last the one without a gate."""
    gates = rule.candidates(select.gate, select.answers, 0.0)
    levels = rule.candidates(select.confidence, select.answers, 0.5)
    decided = np.isfinite(select.gate) & np.isfinite(select.confidence) & np.isin(select.answers, rule.compares)
    reached_gates, reached_levels = _reached(select.gate[decided], gates), _reached(select.confidence[decided], levels)
    found = []
    for slack in SLACKS:
        last = np.searchsorted(reached_levels, reached_gates + slack, side="left")
        last[reached_gates + slack >= 1] = levels.size  # the class probability has no say any more
        found.append(np.column_stack([gates, np.append(levels, 0.5)[last]]))
    return [*found, np.column_stack([np.zeros_like(levels), levels])]


def _reached(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Return the share (J,) of scores (N,) at or above each threshold."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / max(1, scores.size)
