"""What the figures of a report show, gathered from the files of a run."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.incremental.machine import State
from stage1_pro.core.incremental.state import STATE, read_state
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.calibration import top_label
from stage1_pro.core.metrics.summary import before_placement
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.registry import policy_from_artifact
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores

if TYPE_CHECKING:  # it needs torch
    from stage1_pro.core.report.run.mask_evidence import MaskEvidence


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """What the figures of an incremental training show. paths: case id → image; monitor: column of metrics.csv."""

    state: State
    paths: Mapping[str, str]
    monitor: str


def staged(run: Run, monitor: str, paths: Mapping[str, str] | None) -> Staged | None:
    """The stages of a run, None where it was not trained by stages. paths: case id → image, None: no image is shown."""
    return Staged(read_state(run.path), paths or {}, monitor) if (run.path / STATE).exists() else None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the figures of a report show.

    scores: (N,) float64, what the policy ranks test cases by; answers, labels: (N,) int; confidence (K,), correct (K,)
    of the class probabilities before the answers were placed, where finite; epochs: columns of metrics.csv, NaN in its
    gaps; chosen_epoch: position of the checkpoint's epoch, or None; stages: of an incremental training.
    """

    policy: dict[str, Any]
    evaluation: dict[str, Any]
    scores: FloatArray
    answers: IntArray
    labels: IntArray
    confidence: FloatArray
    correct: BoolArray
    epochs: Mapping[str, FloatArray]
    chosen_epoch: int | None
    stages: Staged | None = None
    masks: "MaskEvidence | None" = None
    """Of a run with masks."""

    @property
    def confidence_level(self) -> float:
        """Of the intervals."""
        return self.evaluation["bootstrap"]["confidence"]


def gather(
    run: Run,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    paths: Mapping[str, str] | None = None,
    roots: Sequence[str] | None = None,
) -> "Evidence":
    """What the figures show: scores and decisions on val_test, and the epochs of training.

    paths: case id → image; roots: NAME=PATH of each source whose images have moved, of which masks are drawn anew.
    """
    scores = run.scores("val_test")
    decisions = policy_from_artifact(run.policy_row.name, policy).decide(scores)
    epochs = read_epochs(run.metrics_path)
    stages = staged(run, run.config.monitor, paths)
    decided = evidence_of(scores, decisions, policy, evaluation)
    of_masks = run.config.task.part("evidence")
    masks = None if of_masks is None else of_masks(run, scores, decisions, roots)
    return replace(decided, epochs=epochs, chosen_epoch=_chosen_epoch(epochs, run.config), stages=stages, masks=masks)


def evidence_of(
    scores: Scores, decisions: ExitDecisions, policy: dict[str, Any], evaluation: dict[str, Any]
) -> "Evidence":
    """What the figures of labelled cases show, without a training."""
    logits, labels = np.asarray(scores.logits, np.float64), np.asarray(scores.labels, np.int64)
    finite = np.isfinite(logits).all(axis=1)
    trained = before_placement(logits[finite], scores.answer_shift)  # where answers stand is no part of calibration
    confidence, correct = top_label(softmax(trained, axis=1), scores.supported(decisions.predictions)[finite])
    return Evidence(
        policy=policy,
        evaluation=evaluation,
        scores=decisions.scores,
        answers=scores.counted(decisions.predictions),
        labels=labels,
        confidence=confidence,
        correct=correct,
        epochs={},
        chosen_epoch=None,
    )


def read_epochs(path: Path) -> dict[str, FloatArray]:
    """Columns of metrics.csv, NaN in its gaps; empty where the file is missing or empty."""
    import pandas as pd

    content = path.read_bytes() if path.exists() else b""
    if not content.strip():
        return {}
    frame = pd.read_csv(io.BytesIO(content)).apply(pd.to_numeric, errors="coerce")
    return {str(name): column.to_numpy(np.float64) for name, column in frame.items()}


def _chosen_epoch(epochs: dict[str, FloatArray], config: Stage1ProConfig) -> int | None:
    """Where the run's monitor is best; the latest of equals, as the checkpoint keeps it."""
    values = epochs.get(config.monitor, np.zeros(0))
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    best = finite.max() if config.monitor_mode == "max" else finite.min()
    return int(np.flatnonzero(values == best)[-1])
