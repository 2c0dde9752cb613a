"""Research: calibrate the rules of scrc_rules on draws from a pool of cases, and see what they truly do.

Selection scores (N,) keep the cases where they are high; set scores (N, C) put a class into a case's set where
they are at or below a threshold.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import logsumexp, softmax, xlogy
from scrc_rules import GRID_2, RULES, product

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.seeds import rng_of

ALPHA, XI, CASES = 0.1, 0.7, 2500
COLUMNS = [(rule, delta) for rule in RULES for delta in rule.deltas]

SIGNAL, NOISE = 3.29, 1.77
FITTED = f"""\
logits of a softmax model in place of trained ones: {NOISE} x standard normals, + {SIGNAL} at the true class. It was
fitted to ResNet-18 logits on CIFAR-10 (five epochs): accuracy, mean largest probability, negative log-likelihood,
and on the most confident 70 % accuracy and size of threshold sets at risk .1 are .608 .615 1.094 .715 2.00 there,
.629 .612 1.088 .740 2.05 here"""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The held-out cases of one model, taken for the population. logits: (N, C) float64; labels: (N,) int."""

    logits: FloatArray
    labels: IntArray


def largest(logits: FloatArray) -> FloatArray:
    return softmax(logits, axis=1).max(axis=1)


def margin(logits: FloatArray) -> FloatArray:
    ordered = np.sort(softmax(logits, axis=1), axis=1)
    return ordered[:, -1] - ordered[:, -2]


def negative_entropy(logits: FloatArray) -> FloatArray:
    p = softmax(logits, axis=1)
    return xlogy(p, p).sum(axis=1)


def energy(logits: FloatArray) -> FloatArray:
    return logsumexp(logits, axis=1)


def by_threshold(logits: FloatArray) -> FloatArray:
    return 1 - softmax(logits, axis=1)


def by_cumulative(logits: FloatArray, penalty: float = 0.0) -> FloatArray:
    """Probability of the class and of all likelier ones, plus `penalty` for each rank after the second."""
    p = softmax(logits, axis=1)
    order = np.argsort(-p, axis=1)
    ordered = np.cumsum(np.take_along_axis(p, order, 1), axis=1) + penalty * np.maximum(np.arange(p.shape[1]) - 1, 0)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, ordered, axis=1)
    return scores


def by_penalised(logits: FloatArray) -> FloatArray:
    return by_cumulative(logits, 0.1)


SELECTION = {"largest probability": largest, "margin": margin, "entropy": negative_entropy, "energy": energy}
SETS = {"threshold": by_threshold, "cumulative": by_cumulative, "cumulative, penalised": by_penalised}


def set_thresholds(kept: FloatArray, m: IntArray, n: int, grid: FloatArray) -> FloatArray:
    """(R, K) threshold of the sets by each column. kept: (R, n) set scores of the true classes, highest first,
    -inf where not kept; m: (R,) kept cases; grid: rising thresholds of the rules that have a grid."""
    found = np.empty((len(kept), len(COLUMNS)))
    for k, (rule, delta) in enumerate(COLUMNS):
        allowed = rule.allowed(m, n, ALPHA, delta)
        at = np.take_along_axis(kept, np.clip(allowed, 0, n - 1)[:, None], axis=1)[:, 0]
        if rule.on_grid:
            at = grid[np.minimum(np.searchsorted(grid, at), len(grid) - 1)]
        found[:, k] = np.where(allowed < 0, np.inf, at)
    return found


def draw(pool: Pool, rank: FloatArray, sets: FloatArray, drawn: IntArray) -> tuple[FloatArray, FloatArray]:
    """True risk and mean set size (R, K) after calibration on each row of `drawn` (R, n), indices into the pool.

    rank: (N,) selection scores; sets: (N, C) set scores. The pool is the population, so both are exact.
    """
    n, truth = drawn.shape[1], np.take_along_axis(sets, pool.labels[:, None], axis=1)[:, 0]
    place = n - int(np.ceil(product(n + 1, XI)))
    cut = np.partition(rank[drawn], place, axis=1)[:, place]
    keeps = rank[drawn] > cut[:, None]
    kept = -np.sort(-np.where(keeps, truth[drawn], -np.inf), axis=1)
    grid = sets.max() * np.arange(1, GRID_2 + 1) / GRID_2
    thresholds = set_thresholds(kept, keeps.sum(axis=1), n, grid)
    order = np.argsort(-rank)
    truth, flat, classes = truth[order], sets[order].ravel(), sets.shape[1]
    reach = np.searchsorted(-rank[order], -cut)
    counts = [  # one pass over the kept cases a draw and column: all at once would not fit into memory
        [(np.count_nonzero(truth[:j] > t), np.count_nonzero(flat[: j * classes] <= t)) for t in row]
        for j, row in zip(reach, thresholds, strict=True)
    ]
    risk, size = np.moveaxis(np.array(counts) / reach[:, None, None], 2, 0)
    return risk, size


Cells = dict[tuple[str, str], tuple[FloatArray, FloatArray]]
"""(risk, size), each (models, draws, columns), of a selection score and a kind of sets."""


def measure(pools: list[Pool], draws: int, seed: int) -> Cells:
    """Every score with every kind of sets, all on the same draws."""
    found = {}
    for name, rank in SELECTION.items():
        for kind, sets in SETS.items():
            rng = rng_of(seed, "calibration sets")
            cells = [
                draw(p, rank(p.logits), sets(p.logits), rng.integers(0, len(p.labels), (draws, CASES))) for p in pools
            ]
            found[name, kind] = tuple(np.array(both) for both in zip(*cells, strict=True))
    return found


def pools_from(path: Path) -> list[Pool]:
    """Calibration and test cases of each model in the file, joined."""
    with np.load(path, allow_pickle=False) as data:
        models = sorted(name.removeprefix("calib_logits_") for name in data.files if name.startswith("calib_logits_"))
        if not models:
            raise KeyError("calib_logits_0")

        def joined(kind: str, model: str, dtype: type) -> np.ndarray:
            return np.concatenate([data[f"{split}_{kind}_{model}"] for split in ("calib", "test")]).astype(dtype)

        return [Pool(joined("logits", model, np.float64), joined("labels", model, np.int64)) for model in models]


def fitted_pools(seed: int, count: int = 5, cases: int = 20_000, classes: int = 10) -> list[Pool]:
    rng = rng_of(seed, "fitted softmax model")
    labels = rng.integers(0, classes, (count, cases))
    logits = NOISE * rng.standard_normal((count, cases, classes)) + SIGNAL * (labels[..., None] == np.arange(classes))
    return [Pool(*pair) for pair in zip(logits, labels, strict=True)]
