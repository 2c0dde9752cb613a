"""Small score splits and counts for the policy tests."""

import numpy as np

from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.scores import Scores


def split_of(logits: np.ndarray, labels: np.ndarray, groups: list[str] | None = None) -> Scores:
    """logits (N, 2), labels (N,); without groups every case is its own."""
    names = np.array([f"case{i:06d}" for i in range(len(labels))], dtype=object)
    group = names if groups is None else np.array(groups, dtype=object)
    return Scores("val_calib", names, group, np.asarray(labels, np.int8), np.asarray(logits, np.float32), None, "", "")


def from_z(z: np.ndarray, labels: np.ndarray, groups: list[str] | None = None) -> Scores:
    z = np.asarray(z)
    return split_of(np.column_stack([np.zeros(len(z)), z]), labels, groups)


def population(rng: np.random.Generator, cases: int, separation: float = 2.0, step: float = 0.0) -> Scores:
    """Two normals, a third of the cases positive; z rounded to multiples of step."""
    labels = (rng.random(cases) < 1 / 3).astype(np.int8)
    z = rng.normal(np.where(labels == 1, separation, -separation), 1)
    return from_z(np.round(z / step) * step if step else z, labels)


def counts_of(exited_positives: list[int], misses: list[int], positives: int, cases: int = 10**6) -> ExitCounts:
    """Counts of candidates whose exited cases are all positives."""
    exited, missed = np.array(exited_positives, dtype=np.int64), np.array(misses, dtype=np.int64)
    none = np.zeros_like(exited)
    return ExitCounts(exited, exited, missed, none, none, cases, positives)
