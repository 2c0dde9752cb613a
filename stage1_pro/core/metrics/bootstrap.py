"""Percentile intervals by resampling groups, vectorised over resamples.

A resample draws as many groups as there are, with replacement; all cases of a group come along as
often as it was drawn. Nothing is copied or sorted again: a resample is a row of whole-number
weights over groups, and a statistic is a function of such rows. Statistics computed from the same
rows are paired, so the interval of a difference between two runs is that of a statistic which
subtracts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import FloatArray, IntArray, ratio
from stage1_pro.core.metrics.selective import block_areas, excess, perfect_aurc, tie_blocks

# Weights over groups (R, G) in, replicates (R,) by name out.
Statistic = Callable[[IntArray], dict[str, FloatArray]]

# Entries of one chunk of weights: half a megabyte an array, to stay in cache.
CHUNK_ENTRIES = 2**16


def group_index(groups: ArrayLike | None, cases: int) -> IntArray:
    """Number the group of each case, (N,) in [0, G). Without groups each case is its own."""
    if groups is None:
        return np.arange(cases)
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def _group_count(index: IntArray) -> int:
    return int(index.max(initial=-1)) + 1


def ratios(index: IntArray, shares: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Statistic:
    """Statistic of sums over sums: name -> (part, whole), each (N,) values of the cases.

    index: (N,) from group_index. A resample in which a whole is 0 gives NaN.
    """
    columns = [np.asarray(column, float) for share in shares.values() for column in share]
    sums = np.stack([np.bincount(index, weights=column) for column in columns], axis=1)

    def statistic(weights: IntArray) -> dict[str, FloatArray]:
        totals = weights @ sums
        return {name: ratio(totals[:, 2 * i], totals[:, 2 * i + 1]) for i, name in enumerate(shares)}

    return statistic


def ranking(index: IntArray, confidence: ArrayLike, wrong: ArrayLike) -> Statistic:
    """Statistic of augrc, aurc and e_aurc; equal to the plain metrics on the repeated cases.

    index: (N,) from group_index; confidence: (N,); wrong: (N,) bool, the 0/1 loss. Sorts once.
    """
    wrong = np.asarray(wrong, dtype=bool)
    blocks, kept = tie_blocks(confidence, wrong), _Kept()
    group_of = index[blocks.order]
    sizes = np.stack([np.bincount(index, ~wrong), np.bincount(index, wrong)], axis=1)

    def statistic(weights: IntArray) -> dict[str, FloatArray]:
        by_case = (len(weights), group_of.size)
        # mode="clip" lets take write into out directly; no index is out of range.
        cases = np.take(weights, group_of, axis=1, out=kept.array("cases", by_case), mode="clip")
        wrongs = np.multiply(cases, blocks.losses, out=kept.array("wrongs", by_case))
        covered, lost = blocks.sums(cases), blocks.sums(wrongs)
        names = ("covered", "cumulative", "risk")
        work = [kept.array(name, covered.shape) for name in names]
        augrc, aurc = block_areas(covered, lost, (work[0], work[1], work[2].view(np.float64)))
        right_wrong = weights @ sizes
        best = perfect_aurc(right_wrong, right_wrong * [0.0, 1.0])
        return {"augrc": augrc, "aurc": aurc, "e_aurc": excess(aurc, best)}

    return statistic


class _Kept:
    """Arrays kept from chunk to chunk: asking the system for memory again costs more than sums."""

    def __init__(self) -> None:
        self._arrays: dict[str, IntArray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> IntArray:
        """An int64 array of this shape with arbitrary content, the same memory each time."""
        size = math.prod(shape)
        if name not in self._arrays or self._arrays[name].size < size:
            self._arrays[name] = np.empty(size, dtype=np.int64)
        return self._arrays[name][:size].reshape(shape)


def weight_chunks(index: IntArray, samples: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Weights of `samples` resamples, in chunks (R, G) whose rows each sum to G.

    index: (N,) from group_index. The draws do not depend on the size of the chunks.
    """
    groups = _group_count(index)
    rows = max(1, CHUNK_ENTRIES // max(1, index.size))
    for start in range(0, samples, rows):
        size = min(rows, samples - start)
        drawn = rng.integers(0, max(groups, 1), size=(size, groups))
        # An offset for each row lets one bincount serve them all; rng.multinomial is slower.
        drawn += np.arange(size)[:, np.newaxis] * groups
        counts = np.bincount(drawn.reshape(-1), minlength=size * groups)
        yield counts.reshape(size, groups)


def bootstrap_replicates(
    statistics: Sequence[Statistic], index: IntArray, samples: int, rng: np.random.Generator
) -> dict[str, FloatArray]:
    """Each statistic's values (samples,) by name, all computed on the same resamples."""
    parts: dict[str, list[FloatArray]] = {}
    for weights in weight_chunks(index, samples, rng):
        for statistic in statistics:
            for name, values in statistic(weights).items():
                parts.setdefault(name, []).append(values)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}


def percentile_interval(replicates: FloatArray, confidence: float) -> tuple[float, float]:
    """Percentile interval of replicates (R,); NaN ones are left out, all NaN gives (NaN, NaN)."""
    known = replicates[~np.isnan(replicates)]
    if known.size == 0:
        return float("nan"), float("nan")
    tail = 50 * (1 - confidence)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def bootstrap_intervals(
    statistics: Sequence[Statistic],
    index: IntArray,
    samples: int,
    confidence: float,
    rng: np.random.Generator,
) -> dict[str, tuple[float, float]]:
    """Percentile interval (low, high) of each statistic, by name.

    index: (N,) from group_index. Time O(samples * N); memory is about ten rows of N, or of a chunk
    where that is larger.
    """
    replicates = bootstrap_replicates(statistics, index, samples, rng)
    return {name: percentile_interval(values, confidence) for name, values in replicates.items()}


def point_values(statistics: Sequence[Statistic], index: IntArray) -> dict[str, float]:
    """The statistics on the data themselves: every group once."""
    once = np.ones((1, _group_count(index)), dtype=np.int64)
    return {name: float(v[0]) for statistic in statistics for name, v in statistic(once).items()}
