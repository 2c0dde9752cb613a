"""Several frames of one group, one decision: which frames are looked at, and what they say together.

A group is a track, a place, a patient: whatever has one answer. The rule is fixed before anything is calibrated:
`count` frames of each group, all where it has fewer, and the mean of their log-odds S. The group is answered 1 where
S >= 0, and exits as one image with the log-odds S would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray

GROUP, CASE = "group", "case"
"""Values of `decide_by`."""


@dataclass(frozen=True, slots=True)
class Views:
    """count: frames of a group that are looked at, None for all; rule: key of VIEW_RULES."""

    count: int | None = None
    rule: str = "mean"

    @property
    def words(self) -> str:
        """The frames in words."""
        return "all of its frames" if self.count is None else VIEW_WORDS[self.rule].format(count=self.count)

    def positions(self, size: int) -> list[int]:
        """Places, from 0 on, of the frames that are looked at in a group of this size.

        >>> Views(3).positions(10), Views(3).positions(2)
        ([0, 4, 9], [0, 1])
        """
        if self.count is None or size <= self.count:
            return list(range(size))
        return VIEW_RULES[self.rule](np.array([size]), self.count)[0].tolist()

    def record(self) -> dict[str, Any]:
        """The fields of a policy file and of bundle.json."""
        return {"decide_by": GROUP, "views": self.count, "view_rule": self.rule}


def views_of(data: Mapping[str, Any]) -> Views | None:
    """The views that a policy file or a manifest records, None where it decides image by image."""
    if data.get("decide_by", CASE) == CASE:
        return None
    return Views(data.get("views"), data.get("view_rule", "mean"))


def evenly_spaced(sizes: IntArray, count: int) -> IntArray:
    """(G, count) positions of evenly spaced frames, the first and the last among them, rounded half to even.

    sizes: (G,) frames of each group, each above count. For one frame the first.

    >>> evenly_spaced(np.array([6, 10]), 4).tolist()
    [[0, 2, 3, 5], [0, 3, 6, 9]]
    """
    return np.rint(np.linspace(np.zeros(len(sizes)), sizes - 1, count, axis=1)).astype(np.int64)


def first(sizes: IntArray, count: int) -> IntArray:
    """(G, count) positions of the first frames."""
    return np.broadcast_to(np.arange(count), (len(sizes), count))


VIEW_RULES: dict[str, Callable[[IntArray, int], IntArray]] = {"mean": evenly_spaced, "first": first}
"""`view_rule`: whose mean decides."""
VIEW_WORDS = {"mean": "{count} of its frames, evenly spaced", "first": "its first {count} frames"}


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Frames sorted by group and order. index: (N,) positions of the frames, group by group, each in its order;
    starts: (G,) where each group begins in it; names: (G,)."""

    index: IntArray
    starts: IntArray
    names: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray, order: FloatArray | None) -> Frames:
        """groups: (N,) str or int; order: (N,), None where all frames are looked at."""
        groups = np.asarray(groups)
        names, codes = np.unique(groups.astype(str) if groups.dtype == object else groups, return_inverse=True)
        keys = (codes.ravel(),) if order is None else (order, codes.ravel())
        index = np.lexsort(keys)
        return cls(index, np.searchsorted(codes.ravel()[index], np.arange(len(names))), names)

    @property
    def sizes(self) -> IntArray:
        """(G,) frames of each group."""
        return np.diff(np.append(self.starts, len(self.index)))

    def looked_at(self, views: Views) -> BoolArray:
        """(N,) the frames that decide, as the frames were given."""
        seen = np.ones(len(self.index), dtype=bool)
        if views.count is not None:
            larger = np.flatnonzero(self.sizes > views.count)
            seen = np.repeat(self.sizes <= views.count, self.sizes)
            chosen = VIEW_RULES[views.rule](self.sizes[larger], views.count) + self.starts[larger, None]
            seen[chosen.ravel()] = True
        found = np.empty(len(seen), dtype=bool)
        found[self.index] = seen
        return found

    def mean(self, z: FloatArray, seen: BoolArray) -> FloatArray:
        """(G,) mean of z (N,) over the frames that were looked at; NaN where one of them is.

        Equal frames give equal bits in whatever order they come: they are summed from the least up.
        """
        codes = np.repeat(np.arange(len(self.names)), self.sizes)
        kept = seen[self.index]
        codes, values = codes[kept], z[self.index][kept]
        order = np.lexsort((values, codes))
        starts = np.searchsorted(codes, np.arange(len(self.names)))
        return np.add.reduceat(values[order], starts) / np.bincount(codes, minlength=len(self.names))


@dataclass(frozen=True, slots=True, eq=False)
class Fused:
    """One row a group, sorted by name, as a softmax policy takes them.

    logits: (G, 2) float32, minus and plus half of the mean log-odds; names: (G,) str; lengths: (G,) frames of each
    group; used: (G,) those that were looked at.
    """

    logits: np.ndarray
    names: np.ndarray
    lengths: IntArray
    used: IntArray
    gate_logit: None = None


def fuse(logits: np.ndarray, groups: np.ndarray, order: FloatArray | None, views: Views) -> Fused:
    """Join the outputs of frames: logits (N, 2), groups (N,) str or int, order (N,) within each group or None.

    A group of which one frame that decides could not be read (NaN) has NaN, and never exits. Raises ValueError where
    some but not all frames are to be looked at, and no order says which.
    """
    if views.count is not None and order is None:
        raise ValueError("views names a number of frames, so the frames need an order")
    frames = Frames.of(groups, order)
    seen = frames.looked_at(views)
    wide = np.asarray(logits, dtype=np.float64)
    finite = np.asarray(np.isfinite(wide).all(axis=1))
    wide = np.where(finite.reshape(-1, 1), wide, 0.0)
    z = np.where(finite, wide[:, 1] - wide[:, 0], np.nan)
    mean = frames.mean(z, seen) if len(frames.names) else np.zeros(0)
    used = np.add.reduceat(seen[frames.index].astype(np.int64), frames.starts) if len(frames.names) else frames.sizes
    halves = np.column_stack([-mean / 2, mean / 2]).astype(np.float32)
    return Fused(halves, frames.names, frames.sizes, used)
