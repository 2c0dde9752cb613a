"""Distances between embeddings scaled to unit length, in float64, a block at a time, on the CPU or a GPU."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

BLOCK = 4096
"""Rows that are in float64 at a time: a pool of a million embeddings has no room for all of them, or for pairs."""
LEAST_NORM = 1e-12

Product = Callable[[np.ndarray, FloatArray, FloatArray, FloatArray], FloatArray]
"""(rows (m, D) float32, 1 / norms (m,), unit rows (p, D), their squared lengths (p,)) → (m,) largest l·r − |r|²/2."""


class Distances:
    """Euclidean distances of `queries` to `known` cases and to those of the queries that were added as picks.

    embedding: (N, D) float32; queries: (E,), known: (A,) rows of it. device: "cpu" for numpy, else a torch device
    with float64. A row of zeros stays one. Nothing of size E × A or E × E exists at any time.
    """

    def __init__(self, embedding: np.ndarray, queries: IntArray, known: IntArray, device: str = "cpu"):
        self.embedding, self.queries, self.known = embedding, queries, known
        self.inverse, self.square = np.empty(len(queries)), np.empty(len(queries))
        for part in self.blocks(np.arange(len(queries))):
            _, self.inverse[part], self.square[part] = _unit(embedding[queries[part]])
        self.picked = np.empty((0, embedding.shape[1])), np.empty(0)
        self.product: Product = _product if device == "cpu" else _product_on(device)

    def to_known(self) -> FloatArray:
        """(E,) distance to the nearest known case. Raises ValueError where there is none to measure from."""
        if not len(self.known) and len(self.queries):
            raise ValueError("no case to measure distances from")
        found = np.full(len(self.queries), np.inf)
        for targets in self.blocks(self.known):
            rows, _, square = _unit(self.embedding[targets])
            for part in self.blocks(np.arange(len(self.queries))):
                found[part] = np.minimum(found[part], self._nearest(part, rows, square))
        return found

    def add(self, pick: int) -> None:
        """Make the query at this position one of the picks."""
        row, _, square = _unit(self.embedding[self.queries[[pick]]])
        self.picked = np.concatenate([self.picked[0], row]), np.concatenate([self.picked[1], square])

    def to_picks(self, part: IntArray, first: int) -> FloatArray:
        """(m,) distance of the queries at positions `part` to the nearest pick from number `first` on."""
        rows, square = self.picked
        return self._nearest(part, rows[first:], square[first:])

    @staticmethod
    def blocks(positions: IntArray) -> Iterator[IntArray]:
        return (positions[start : start + BLOCK] for start in range(0, len(positions), BLOCK))

    def _nearest(self, part: IntArray, rows: FloatArray, square: FloatArray) -> FloatArray:
        closest = self.product(self.embedding[self.queries[part]], self.inverse[part], rows, square)
        return np.sqrt(np.maximum(self.square[part] - 2 * closest, 0.0))


def _unit(rows: np.ndarray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(unit rows (m, D), 1 / norm (m,), squared length of the unit row (m,): 1, or 0 for zeros) in float64."""
    rows = rows.astype(np.float64)  # in float32 the expansion below puts a case .001 away from itself
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    inverse = np.where(norm > LEAST_NORM, 1 / np.maximum(norm, LEAST_NORM), 0.0)
    return rows * inverse[:, None], inverse, (inverse > 0).astype(np.float64)


def _product(left: np.ndarray, inverse: FloatArray, right: FloatArray, square: FloatArray) -> FloatArray:
    # the nearest by largest l·r − |r|²/2: one product, and a square root only of the winner
    gram = left.astype(np.float64) @ right.T
    gram *= inverse[:, None]
    gram -= square / 2
    return gram.max(axis=1)


def _product_on(device: str) -> Product:
    """The same by torch on a device."""
    import torch

    def product(left: np.ndarray, inverse: FloatArray, right: FloatArray, square: FloatArray) -> FloatArray:
        arrays: list[Any] = [torch.from_numpy(array).to(device) for array in (left, inverse, right, square)]
        rows, scale, others, lengths = arrays
        return ((rows.double() @ others.T) * scale[:, None] - lengths / 2).amax(1).cpu().numpy()

    return product
