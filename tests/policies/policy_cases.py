"""Small score splits and counts for the policy tests."""

from dataclasses import replace

import numpy as np

from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.records.scores import Scores


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


def gated_split(seed: int, cases: int = 3000, knowledge: float = 1.5, share: float = 0.5, step: float = 0.0) -> Scores:
    """A share of the cases positive; the gate knows more of right and wrong than z does. step: both rounded to it."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(cases) < share).astype(np.int8)
    z = rng.normal(np.where(labels == 1, 1.2, -1.2), 1)
    right = (z >= 0) == (labels == 1)
    gate = 0.5 * np.abs(z) + rng.normal(np.where(right, knowledge, -knowledge), 1)
    if step:
        z, gate = np.round(z / step) * step, np.round(gate / step) * step
    return replace(from_z(z, labels), gate_logit=gate.astype(np.float32))


def header(risk: Risk) -> dict:
    """The fields of a policy file that its run adds."""
    digests = dict.fromkeys(("model_digest", "splits_digest"), "0" * 64)
    named = {"schema_version": 1, "run_id": "test", "created_at": "2025-01-01T00:00:00Z", "calib_use_count": 1}
    return {**named, **digests, "target_fnr_exit": risk.target_fnr, "fnr_confidence": risk.confidence}
