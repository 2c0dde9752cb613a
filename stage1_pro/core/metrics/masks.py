"""Figures of masks, from one row of sums a case.

    dice_c = 2 I_c / (P_c + Y_c)                       no voxel of c in either: c is left out; only predicted: 0
    Dice   = mean of dice_c                            no class left: 1
    SDC_c  = 2 Σ p_c ŷ_c / (Σ p_c + Σ ŷ_c)             mean over the classes that are predicted
    SDC    = 1 − max p over foreground                 where none is predicted

SDC is the soft Dice confidence of Borges et al. (arXiv 2402.10665) for one class; its mean over classes, and its value
for an empty prediction, are ours. Mean voxel entropy mostly counts border voxels and does not rank cases by their Dice.

Sums are taken on the whole map of a case, never a window: windows overlap. They are exact: int64 and float64. What
nobody has decided is in no sum with the true mask, I, P and Y. It is in those of the network alone, ŷ and p, by which a
case exits: a new case, which nobody has marked, has the whole of itself to be sure of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray, ratio

LEAST = 2.0**-20
"""Confidences are kept this far from 0 and 1, so that the sign of a log-odds says the answer."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskSums:
    """Sums of N cases.

    Of the F foreground classes, (N, F): both, predicted and true int64 voxels of I, P, Y where the truth is decided;
    drawn Σ ŷ int64, chance Σ p and agreed Σ p ŷ float64 of the whole case. Of the positive class the same, (N,), with
    its largest probability. entropy: (N,) sum over voxels in units of log C; largest: (N,) largest foreground
    probability; voxels: (N,); all three of the whole case.
    """

    both: IntArray
    predicted: IntArray
    true: IntArray
    drawn: IntArray
    chance: FloatArray
    agreed: FloatArray
    positive_both: IntArray
    positive_predicted: IntArray
    positive_true: IntArray
    positive_drawn: IntArray
    positive_chance: FloatArray
    positive_agreed: FloatArray
    positive_largest: FloatArray
    entropy: FloatArray
    largest: FloatArray
    voxels: IntArray

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> "MaskSums":
        """rows: (N, 6 F + 10) float64, the fields in their order; counts in them are exact up to 2**53."""
        classes = (rows.shape[1] - 10) // 6
        finite = np.where(np.isfinite(rows), rows, 0)  # counts of a case that is not finite are of no use
        sums, rest = _blocks(rows, classes), rows[:, 6 * classes :].T
        counts, whole = _blocks(finite.astype(np.int64), classes), finite[:, 6 * classes :].T.astype(np.int64)
        fields = [*counts[:4], *sums[4:], *whole[:4], *rest[4:9], whole[9]]
        return cls(*fields)

    def dice(self) -> FloatArray:
        """(N, F) Dice of each class, NaN where neither mask has it."""
        return ratio(2 * self.both, self.predicted + self.true)

    def case_dice(self) -> FloatArray:
        """(N,) mean over the classes that either mask has; 1 where there is none.

        >>> sums = MaskSums.of_rows(np.array([[8, 11, 10, 11, 0, 0, 8, 11, 10, 11, 0, 0, 0, 0, 0, 64.0]]))
        >>> round(float(sums.case_dice()[0]), 7)
        0.7619048
        """
        return _mean(self.dice(), 1.0)

    def positive_dice(self) -> FloatArray:
        """(N,) Dice of the positive class; 1 where neither mask has it."""
        dice = ratio(2 * self.positive_both, self.positive_predicted + self.positive_true)
        return np.where(np.isnan(dice), 1.0, dice)

    def marked_dice(self, decided: ArrayLike) -> FloatArray:
        """(N,) Dice of the positive class of a mask that marks every voxel. decided: (N,) voxels that nobody ignores.

        What takes no network: masks that are hardly better are of no use, whatever rule they pass.
        """
        return ratio(2 * self.positive_true, np.asarray(decided) + self.positive_true)

    def soft_dice(self) -> FloatArray:
        """(N,) SDC: how sure the network is of its own mask. NaN where its outputs are not finite."""
        each = np.where(self.drawn > 0, ratio(2 * self.agreed, self.chance + self.drawn), np.nan)
        found = np.where((self.drawn == 0).all(axis=1), 1 - self.largest, _mean(each, np.nan))
        return np.where(self.finite, found, np.nan)

    def mean_entropy(self) -> FloatArray:
        """(N,) mean over all voxels, in units of log C."""
        return ratio(self.entropy, self.voxels)

    @property
    def finite(self) -> BoolArray:
        """(N,) whether the network's outputs are."""
        return np.isfinite(self.entropy) & np.isfinite(self.largest)

    def answers(self, least: int) -> IntArray:
        """(N,) 1 where the mask has at least this many voxels of the positive class."""
        return (self.positive_drawn >= least).astype(np.int64)

    def positive_confidence(self, least: int) -> FloatArray:
        """(N,) of the answer: SDC of the positive class, or 1 less its largest probability; clipped, NaN stays."""
        sure = ratio(2 * self.positive_agreed, self.positive_chance + self.positive_drawn)
        confidence = np.where(self.answers(least) == 1, sure, 1 - self.positive_largest)
        return np.where(self.finite, np.clip(confidence, LEAST, 1 - LEAST), np.nan)

    def case_logits(self, least: int) -> np.ndarray:
        """(N, 2) float32 logits of a case: their argmax is the answer, their largest softmax (1 + confidence) / 2.

        So every policy for two classes reads a case with a mask as it reads an image.
        """
        confidence = self.positive_confidence(least)
        margin = np.log1p(confidence) - np.log1p(-confidence)
        signed = np.where(self.answers(least) == 1, margin, -margin)
        return np.column_stack([np.zeros(len(signed)), signed]).astype(np.float32)


def least_overlap(truth: ArrayLike, mask: ArrayLike) -> float:
    """Share of its voxels in the mask, of the true component that has least; 1 where there is no component.

    truth, mask: (*S) bool. Components hang together by faces, edges and corners.

    >>> least_overlap([[1, 1, 0, 1]], [[1, 1, 0, 0]])
    0.0
    """
    truth = np.asarray(truth, dtype=bool)
    found: Any = ndimage.label(truth, structure=np.ones((3,) * truth.ndim))
    parts, number = found
    if not number:
        return 1.0
    inside = np.bincount(parts.ravel(), weights=np.asarray(mask, dtype=bool).ravel(), minlength=number + 1)
    return float((inside / np.bincount(parts.ravel(), minlength=number + 1))[1:].min())


def components(mask: ArrayLike) -> int:
    """Number of components of (*S) bool, which hang together by faces, edges and corners."""
    mask = np.asarray(mask, dtype=bool)
    found: Any = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return int(found[1])


def hd95(truth: ArrayLike, mask: ArrayLike, spacing: Sequence[float]) -> float:
    """Hausdorff distance of two surfaces at the 95th percentile, the larger of both directions; NaN where one is empty.

    truth, mask: (*S) bool; spacing: size of a voxel along each axis, whose unit the distance has.

    >>> truth, mask = np.zeros((9, 4)), np.zeros((9, 4))
    >>> truth[2], mask[5] = 1, 1
    >>> hd95(truth, mask, (2.0, 2.0))
    6.0
    """
    truth, mask = np.asarray(truth, dtype=bool), np.asarray(mask, dtype=bool)
    if not truth.any() or not mask.any():
        return float("nan")
    of_truth, of_mask = _surface(truth), _surface(mask)
    to_truth: Any = ndimage.distance_transform_edt(~of_truth, sampling=spacing)
    to_mask: Any = ndimage.distance_transform_edt(~of_mask, sampling=spacing)
    return float(max(np.percentile(to_mask[of_truth], 95), np.percentile(to_truth[of_mask], 95)))


def _surface(mask: BoolArray) -> BoolArray:
    return mask & ~ndimage.binary_erosion(mask)


def missed(sums: MaskSums, overlap: ArrayLike, rule: str, dice: float, least_share: float, least: int) -> np.ndarray:
    """(N,) int8: 1 where the mask of a positive case is a miss, 0 where it is none, −1 for a negative case.

    overlap: (N,) of `least_overlap`, with rule lesion; rule: dice, lesion or empty; least: voxels from which on a case
    or an answer is positive. A positive case answered 0 is always missed, and so is one whose outputs are not finite.
    """
    fails = {
        "dice": sums.positive_dice() < dice,
        "lesion": np.asarray(overlap) < least_share,
        "empty": np.zeros(len(sums.voxels), dtype=bool),
    }[rule]
    miss = fails | (sums.answers(least) == 0) | ~sums.finite
    return np.where(sums.positive_true >= least, miss, -1).astype(np.int8)


def uncertainty(sums: MaskSums, kind: str) -> FloatArray:
    """(N,) what ranks cases by doubt, 0 to 1: soft_dice (1 - SDC) or entropy (mean over voxels)."""
    return 1 - sums.soft_dice() if kind == "soft_dice" else np.where(sums.finite, sums.mean_entropy(), np.nan)


def _blocks(rows: np.ndarray, classes: int) -> list[np.ndarray]:
    """The six figures of classes, (N, F) each, at the begin of rows."""
    return [rows[:, at * classes : (at + 1) * classes] for at in range(6)]


def _mean(each: FloatArray, empty: float) -> FloatArray:
    """(N,) mean over what is not NaN of (N, F); `empty` where nothing is."""
    known = ~np.isnan(each)
    return np.where(known.any(axis=1), ratio(np.where(known, each, 0).sum(axis=1), known.sum(axis=1)), empty)
