"""Selective metrics: how well a confidence ranks right answers before wrong ones.

Cases of equal confidence stand or fall together, so all is computed from blocks: the cases of one
distinct confidence, reduced to their weight and their loss. The formulas take blocks along the
last axis, hence one code serves the plain metric (weights are counts) and the bootstrap (weights
of shape (R, B), one row a resample).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma

from stage1_pro.core.metrics.arrays import FloatArray, IntArray, NumberArray, ratio

# Covered weight, cumulative loss and risk, each (..., B), may be written into arrays of the
# caller's, which spares a bootstrap fresh memory for each chunk; None makes new ones.
Scratch = tuple[NumberArray | None, NumberArray | None, FloatArray | None]
NO_SCRATCH: Scratch = (None, None, None)


@dataclass(frozen=True, slots=True)
class RiskCoverageCurve:
    """Risk at each distinct confidence (K,), high to low; coverage ends at 1.

    selective_risk: mean loss of the cases covered. generalised_risk: their loss over all cases.
    """

    coverage: FloatArray
    selective_risk: FloatArray
    generalised_risk: FloatArray


@dataclass(frozen=True, slots=True)
class Blocks:
    """Cases sorted from most to least confident, with the starts of the runs of ties.

    order: (N,) case indices. starts: (B,) positions in that order. losses: (N,) in that order.
    """

    order: IntArray
    starts: IntArray
    losses: NumberArray

    @property
    def untied(self) -> bool:
        return self.starts.size == self.order.size

    def sums(self, values: NumberArray) -> NumberArray:
        """Sum values (..., N), in sorted order, over each block: (..., B)."""
        return values if self.untied else np.add.reduceat(values, self.starts, axis=-1)


def tie_blocks(confidence: ArrayLike, losses: ArrayLike) -> Blocks:
    """Sort once. confidence, losses: (N,); a confidence that is not finite counts as the least."""
    confidence = np.asarray(confidence, dtype=np.float64)
    descending = -np.where(np.isfinite(confidence), confidence, -np.inf)
    order = np.argsort(descending)
    ordered = descending[order]
    first = np.ones(order.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    losses = np.asarray(losses)
    # Whole numbers stay so: numpy's cumsum is four times faster on int64 than on float64.
    losses = losses.astype(np.int64 if losses.dtype.kind in "biu" else np.float64)
    return Blocks(order, np.flatnonzero(first), losses[order])


def _block_sums(confidence: ArrayLike, losses: ArrayLike) -> tuple[NumberArray, NumberArray]:
    blocks = tie_blocks(confidence, losses)
    return blocks.sums(np.ones(blocks.order.size, dtype=np.int64)), blocks.sums(blocks.losses)


def augrc(confidence: ArrayLike, losses: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve, in [0, 1/2]; NaN without cases.

    confidence: (N,); losses: (N,) in [0, 1]. Equals n^-2 sum of loss * (n - r + 1/2), r the
    mid-rank from the most confident. Traub et al., NeurIPS 2024 (arXiv 2407.01032).
    """
    return float(block_areas(*_block_sums(confidence, losses))[0])


def aurc(confidence: ArrayLike, losses: ArrayLike) -> float:
    """Area under the risk-coverage curve by trapezoid, its first risk held toward coverage 0."""
    return float(block_areas(*_block_sums(confidence, losses))[1])


def block_areas(
    weights: NumberArray, lost: NumberArray, scratch: Scratch = NO_SCRATCH
) -> tuple[FloatArray, FloatArray]:
    """AUGRC and AURC from whole-number weights and losses of blocks, (..., B) -> (...,) each.

    Both are trapezoid areas over coverage: under the cumulative loss (by parts, the sum over
    mid-ranks) and under the selective risk. scratch: arrays to work in, see NO_SCRATCH.
    """
    covered = np.cumsum(weights, axis=-1, out=scratch[0])
    cumulative = np.cumsum(lost, axis=-1, out=scratch[1])
    total = weights.sum(axis=-1)
    augrc = ratio(_dot(weights, cumulative) - _dot(weights, lost) / 2, total**2)
    # A block that a resample left out has width 0; the maximum only spares its 0/0.
    risk = np.divide(cumulative, np.maximum(covered, 1, out=covered), out=scratch[2])
    held = _first(weights, weights) * _first(weights, risk)
    area = _dot(weights, risk) + _dot(weights[..., 1:], risk[..., :-1]) + held
    return augrc, ratio(area / 2, total)


def perfect_aurc(weights: NumberArray, lost: NumberArray) -> FloatArray:
    """AURC if every case had a confidence of its own and they were sorted by loss.

    weights, lost: (..., B) over blocks of equal loss, least loss first, weights whole numbers.
    Inside such a block the risk at position j is l + (S - l * before) / j, so sums over j are
    differences of digamma and the cases need not be laid out one by one.
    """
    loss = lost / np.maximum(weights, 1)
    before = np.cumsum(weights, axis=-1) - weights
    gap = np.cumsum(lost, axis=-1) - lost - loss * before
    risks = lost + gap * (digamma(before + weights + 1) - digamma(before + 1))
    total = weights.sum(axis=-1)
    last_risk = ratio(lost.sum(axis=-1), total)
    return ratio(risks.sum(axis=-1) + (_first(weights, loss) - last_risk) / 2, total)


def excess(area: ArrayLike, best: ArrayLike) -> FloatArray:
    """area - best, not below 0: the chord over a tie of wrong answers lies under any order."""
    return np.maximum(np.subtract(area, best), 0.0)


def _dot(left: NumberArray, right: NumberArray) -> NumberArray:
    return np.einsum("...b,...b->...", left, right)


def _first(weights: NumberArray, values: NumberArray) -> NumberArray:
    """The value (...,) of the first block with weight; 0 where there are no blocks at all."""
    if weights.shape[-1] == 0:
        return np.zeros(weights.shape[:-1])
    at = np.argmax(weights > 0, axis=-1)[..., np.newaxis]
    return np.take_along_axis(values, at, axis=-1)[..., 0]


def risk_coverage_curve(confidence: ArrayLike, losses: ArrayLike) -> RiskCoverageCurve:
    """The curve at distinct confidences. confidence, losses: (N,). O(N log N)."""
    weights, lost = _block_sums(confidence, losses)
    covered, lost, cases = np.cumsum(weights), np.cumsum(lost), weights.sum()
    return RiskCoverageCurve(ratio(covered, cases), ratio(lost, covered), ratio(lost, cases))


def risk_at_coverage(curve: RiskCoverageCurve, coverage: float) -> float:
    """Selective risk of the ceil(coverage * n) most confident cases, ties included; NaN if none."""
    # The least j/n >= coverage is ceil(coverage * n)/n; the slack forgives the last bit of j/n.
    at = np.searchsorted(curve.coverage, coverage * (1 - 1e-12), side="left")
    return float(curve.selective_risk[at]) if at < curve.coverage.size else float("nan")


def coverage_at_risk(curve: RiskCoverageCurve, risk: float) -> float:
    """Largest coverage whose selective risk is <= risk; 0 if there is none."""
    return float(np.max(curve.coverage, where=curve.selective_risk <= risk, initial=0.0))


def auroc(scores: FloatArray, event: np.ndarray) -> float:
    """P(a case of the event scores above one without), ties half; NaN where one side is empty."""
    from scipy.stats import rankdata  # deferred: whoever loads a policy does not pay for it

    inside, outside = np.count_nonzero(event), np.count_nonzero(~event)
    if not inside or not outside:
        return float("nan")
    return float((rankdata(scores)[event].sum() - inside * (inside + 1) / 2) / (inside * outside))


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Rank correlation; NaN where either is constant."""
    from scipy.stats import rankdata  # deferred: whoever loads a policy does not pay for it

    ranks = rankdata(first), rankdata(second)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
