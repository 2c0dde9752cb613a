"""Gates beside z whose policies have a closed-form truth: any pair of thresholds on the gate, one per answer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from montecarlo import Draw
from population import MAIN, NULL, TIED, Population, scores
from scipy.special import ndtr

from stage1_pro.core.policies.gate_maps import calibrated

CASES, LEAST_POSITIVES = 1500, 90
Thresholds = tuple[float, float]
"""Least gate logit that exits, for answer 0 and answer 1."""


@dataclass(frozen=True)
class Gate:
    """g = margin·|z| + knowledge·(±1, right or wrong) + spread·noise; truth: (fnr, coverage) at thresholds."""

    population: Population = MAIN
    margin: float = 0.0
    knowledge: float = 0.0
    spread: float = 1.0

    def draws(self, count: int, seed: int = 0, cases: int = 0) -> Iterator[Draw]:
        """cases: of a split; 0 for as many as give it positives enough for a certificate."""
        cases = cases or max(CASES, round(LEAST_POSITIVES / self.population.positive_share))
        rng = np.random.default_rng(seed)
        for _ in range(count):
            z, labels = self.population.stratified(rng, 2, cases)
            right = (z >= 0) == (labels == 1)
            gate = self.margin * np.abs(z) + self.knowledge * (2 * right - 1)
            gate = (gate + self.spread * rng.standard_normal(z.shape)).astype(np.float32)
            yield tuple(replace(scores(z[i], labels[i]), gate_logit=gate[i]) for i in range(2))

    @property
    def z(self) -> np.ndarray:
        """z of the cells of the grid, as cases have it."""
        return self.population.rounded(GRID)

    def truth(self, thresholds: Thresholds, single: np.ndarray | None = None) -> tuple[float, float]:
        """(FNR on exits, coverage), by integrating over z; with margin 0 the gate is independent of z given right or
        wrong. single: (G,) bool, the cells of the grid whose cases may exit."""
        missed, found, negatives = self._exits(thresholds, single)
        share, total = self.population.positive_share, missed + found
        return float(missed / total) if total else np.nan, float(share * total + (1 - share) * negatives)

    def set_loss(self, thresholds: Thresholds, single: np.ndarray) -> tuple[float, float]:
        """Of positives: (selected and lost, selected)."""
        missed, found, _ = self._exits(thresholds, None)
        return self._exits(thresholds, single)[0], missed + found

    def _exits(self, thresholds: Thresholds, single: np.ndarray | None) -> tuple[float, float, float]:
        """Shares that exit: of positives the missed and the found, of negatives all."""
        low = self.z < 0
        threshold = np.where(low, *thresholds)
        right, wrong = self._reach(threshold, 1), self._reach(threshold, -1)
        positive, negative = (d if single is None else d * single for d in densities(self.population))
        negatives = (negative * np.where(low, right, wrong)).sum()
        return float((positive * wrong)[low].sum()), float((positive * right)[~low].sum()), float(negatives)

    def _reach(self, threshold: np.ndarray, side: int) -> np.ndarray:
        """P(g >= threshold) at each z of the grid, for answers that are right (1) or wrong (-1)."""
        centre = (self.margin * np.abs(self.z) + self.knowledge * side).astype(np.float32)
        above = centre - threshold
        return ndtr(above / self.spread) if self.spread else (above >= -1e-9).astype(float)


@cache
def densities(p: Population) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each cell of the grid, for positives and for negatives."""
    edges = np.append(GRID - STEP / 2, GRID[-1] + STEP / 2)
    below = (1 - p.hard_share) * ndtr(edges - p.mean) + p.hard_share * ndtr(edges - p.hard_mean)
    return np.diff(below), np.diff(ndtr(edges + p.mean))


STEP = 0.005
GRID = np.arange(-9, 9, STEP) + STEP / 2


INFORMATIVE = Gate(margin=0.5, knowledge=0.7)
GATES = {
    "informative": INFORMATIVE,
    "independent of z": Gate(knowledge=1.0),
    "knows nothing": Gate(),
    "constant": Gate(spread=0.0),
    "tied": Gate(TIED, margin=1.0, spread=0.0),
    "2 % positives": Gate(replace(MAIN, positive_share=0.02), 0.5, 0.7),
    "50 % positives": Gate(replace(MAIN, positive_share=0.5), 0.5, 0.7),
    "target out of reach": Gate(NULL, margin=1.0, spread=0.3),
}


def least_logits(params: dict, threshold: float, rule: str = "symmetric") -> Thresholds:
    """The gate logits at which the calibrated gate reaches a threshold, the maps rise: ever finer grids of 64 steps.

    With one-sided exits every answer 1 exits.
    """
    params = {  # arrays once, not from lists at every step
        name: {key: np.asarray(value) for key, value in part.items()} if isinstance(part, dict) else part
        for name, part in params.items()
    }
    low, high, answers = np.full(2, -60.0), np.full(2, 60.0), np.tile([0, 1], 64)
    for _ in range(10):
        grid = np.linspace(low, high, 65)[1:]
        exits = calibrated(params, grid.ravel(), answers).reshape(grid.shape) >= threshold
        first = np.where(exits.any(axis=0), exits.argmax(axis=0), 63)
        high, low = grid[first, [0, 1]], np.where(first, grid[first - 1, [0, 1]], low)
    return float(high[0]), -np.inf if rule == "one_sided" else float(high[1])
