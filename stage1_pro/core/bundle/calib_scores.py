"""calib_scores.json: how the scores of val_calib were distributed, as counts, so that drift is seen without a case."""

from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import CALIB_SCORES
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.hashing import hash64
from stage1_pro.core.metrics.score_bins import answer_bins, centres
from stage1_pro.core.policies.base import ExitDecisions

ANSWERS = ("answered_negative", "answered_positive")


def calib_scores(case_id: np.ndarray, group: np.ndarray, decisions: ExitDecisions) -> dict[str, Any]:
    """The content of calib_scores.json: of each group the case whose id hashes lowest, counted by answer and bin."""
    order = np.lexsort((hash64(case_id), group))
    first = order[np.unique(group[order], return_index=True)[1]]
    first = first[np.isfinite(decisions.probabilities[first])]
    bins, answers = answer_bins(decisions.probabilities[first]), decisions.predictions[first]
    counted = {}
    for answer, name in enumerate(ANSWERS):
        found, counts = np.unique(bins[answers == answer], return_counts=True)
        counted[name] = {"bins": found.tolist(), "counts": counts.tolist()}
    return {"schema_version": artifacts.SCHEMA_VERSION, **counted}


def read_calib_scores(folder: Path) -> FloatArray | None:
    """(N, 2) confidence of the answer and score of the positive class, in log-odds; None where a bundle holds none."""
    path = folder / CALIB_SCORES
    if not path.exists():
        return None
    data = artifacts.read_json(path, "calib_scores")
    parts = []
    for name, side in zip(ANSWERS, (-1, 1), strict=True):
        confidence = np.repeat(centres(data[name]["bins"]), data[name]["counts"])
        parts.append(np.stack([confidence, side * confidence], axis=1))
    return np.concatenate(parts)
