"""Research: how many misses each rule of SCRC allows (arXiv 2512.12844): published, released, corrected.

m of n calibration cases are kept by the selection. A rule says how many of the m may have their true class
outside their set; the sets are then the smallest that miss no more. Negative: not even none will do, so the
sets hold every class. None of these rules certifies a bundle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.binomial import p_value
from stage1_pro.core.seeds import rng_of

DELTAS = (0.01, 0.05, 0.1)
GRID_1, GRID_2 = 11, 100
"""Pairs over which the second version's bound holds at once: selection cuts times set thresholds."""


def transductive_published(m: IntArray, n: int, alpha: float, _: float) -> IntArray:
    """Wrong: one miss too many wherever (m + 1)·alpha is no integer."""
    return np.ceil(product(m + 1, alpha)).astype(np.int64) - 1


def transductive_corrected(m: IntArray, n: int, alpha: float, _: float) -> IntArray:
    """Conformal risk control (arXiv 2208.02814): (misses + 1) / (m + 1) <= alpha."""
    return np.floor(product(m + 1, alpha)).astype(np.int64) - 1


def released(m: IntArray, n: int, alpha: float, delta: float) -> IntArray:
    """Wrong: delta is spent on the share kept (Dvoretzky-Kiefer-Wolfowitz), nothing on the misses."""
    kept = np.maximum(m / n - deviation(2 / delta, n), 0)
    return np.ceil(product(alpha * (n + 1), kept)).astype(np.int64) - 1


def hoeffding_grid(m: IntArray, n: int, alpha: float, delta: float) -> IntArray:
    """Sound: misses / n and m / n, each off by no more than its bound over all pairs of the grid at once."""
    kept = m / n - deviation(4 / delta, n)
    return np.floor(n * (alpha * kept - deviation(4 * GRID_1 * GRID_2 / delta, n))).astype(np.int64)


def exact(m: IntArray, n: int, alpha: float, delta: float) -> IntArray:
    """Sound: the most misses that the exact binomial test of "risk > alpha" still rejects, -1 where none."""
    sizes, where = np.unique(m, return_inverse=True)
    allowed = [np.count_nonzero(p_value(np.arange(size + 1), size, alpha) <= delta) - 1 for size in sizes]
    return np.array(allowed, dtype=np.int64)[where]


def deviation(events: float, n: int) -> float:
    """Hoeffding's bound on |mean of n - truth| that fails with probability at most 2 / events, over n in [0, 1]."""
    return float(np.sqrt(np.log(events) / (2 * n)))


def product(count: FloatArray | IntArray | float, share: FloatArray | float) -> FloatArray:
    return np.round(np.asarray(count * share), 9)  # 30 · .1 is 3, not 3.0000000000000004


@dataclass(frozen=True, slots=True)
class Rule:
    """on_grid: its sets take one of GRID_2 sizes; deltas: those it depends on, (nan,) where it has none."""

    name: str
    promise: str
    allowed: Callable[[IntArray, int, float, float], IntArray]
    deltas: tuple[float, ...] = DELTAS
    on_grid: bool = False


NO_DELTA = (np.nan,)
RULES = (
    Rule("SCRC-T published, ceil((m+1)a)-1", "mean risk; broken", transductive_published, NO_DELTA),
    Rule("SCRC-T corrected, floor((m+1)a)-1", "mean risk; kept", transductive_corrected, NO_DELTA),
    Rule("SCRC-I released, coverage only", "1 - delta; broken", released),
    Rule("SCRC-I published v2, Hoeffding grid", "1 - delta; kept", hoeffding_grid, on_grid=True),
    Rule("SCRC-I corrected, exact binomial", "1 - delta; kept", exact),
)


def ceil_example(m: int, alpha: float, draws: int, seed: int) -> dict[str, tuple[int, float, float]]:
    """Mean risk and its standard error of the published and the corrected count, on continuous scores."""
    scores = rng_of(seed, "ceil example").random((draws, m))
    found = {}
    for name, rule in (("ceil", transductive_published), ("floor", transductive_corrected)):
        allowed = int(rule(np.array(m), m, alpha, np.nan))
        risk = 1 - np.partition(scores, m - 1 - allowed, axis=1)[:, m - 1 - allowed]
        found[name] = allowed, float(risk.mean()), float(risk.std() / np.sqrt(draws))
    return found


def cases_needed(alpha: float, xi: float, delta: float) -> int:
    """Fewest calibration cases from which on the Hoeffding grid allows any set but the full one, without a miss."""
    root = deviation(4 * GRID_1 * GRID_2 / delta, 1) + alpha * deviation(4 / delta, 1)
    return int(np.ceil((root / (alpha * xi)) ** 2))
