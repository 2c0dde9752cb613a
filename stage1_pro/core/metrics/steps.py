"""How many thresholds each of many scores reaches: np.searchsorted by a table, several times faster.

Every comparison of a binary search is a coin toss, which the processor guesses wrongly half of the time. Here the
leading bits of a score's distance from the highest threshold name a cell, and a table says how many thresholds lie
below that cell. Cells are fine where distances are small, since that is where scores crowd: near 1. Only scores that
share a cell with a threshold are searched for, so the answer is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1_pro.core.metrics.arrays import FloatArray

Whole = NDArray[np.integer]

FEW = 1 << 13
"""Scores below which making the table costs more than it saves."""
BLOCK = 1 << 16
"""Scores at a time: what is computed of them stays in the processor's cache."""
COARSE = 12
"""Last bits of a float32 that a cell leaves out: 2,048 cells remain to each power of two."""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """thresholds: (J,) float64 ascending; table: by cell the thresholds below it, -1 where one shares it; None where
    every score is searched for."""

    thresholds: FloatArray
    table: Whole | None

    @classmethod
    def of(cls, thresholds: FloatArray, scores: int) -> "Steps":
        """scores: how many will be looked up, which says whether a table is worth making."""
        tabled = scores >= FEW and thresholds.size and np.isfinite(thresholds).all()
        return cls(thresholds, _table(_cells(thresholds, thresholds[-1])) if tabled else None)

    def reached(self, scores: FloatArray) -> Whole:
        """Return how many thresholds each score reaches, score >= threshold in float64: (N,) whole numbers, 0 to J.

        scores: (N,) float64. Equals np.searchsorted(thresholds, scores, side="right"), except that a score that is not
        finite may be given any of these numbers.

        Example: Steps.of(np.array([.5, .7]), 3).reached(np.array([.4, .7, .9])) is [0, 2, 2].
        """
        if self.table is None:
            return np.searchsorted(self.thresholds, scores, side="right")
        cells = np.clip(_cells(scores, self.thresholds[-1]), -1, self.table.size - 2)
        found = self.table[cells]
        shared = np.flatnonzero(found < 0)
        found[shared] = np.searchsorted(self.thresholds, scores[shared], side="right")
        return found


def blocks(scores: int) -> Iterator[slice]:
    """Yield slices of BLOCK scores."""
    return (slice(start, start + BLOCK) for start in range(0, scores, BLOCK))


def _cells(scores: FloatArray, top: float) -> Whole:
    """Return the cell (N,) of each score, which grows with its distance below `top`; negative above it.

    No rounding here changes the order, and floats that are not negative stand in the order of their bits: of two scores
    in different cells the one in the higher cell is lower.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return (top - scores).astype(np.float32).view(np.int32) >> COARSE


def _table(cells: Whole) -> Whole:
    """Return the thresholds below each cell, of the cells (J,) of falling thresholds' distances.

    The last entry but one stands for every cell beyond the lowest threshold, the last, at index -1, for scores above
    the highest.
    """
    below = np.append(np.arange(cells.size, -1, -1), cells.size).astype(np.int32)
    ends = np.concatenate([cells[::-1], [cells[0] + 2, cells[0] + 3]])
    table = np.repeat(below, np.diff(ends, prepend=0))
    table[cells] = -1
    return table
