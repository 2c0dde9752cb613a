"""Scores of groups out of scores of images: what is calibrated and measured where a group gets one decision."""

from dataclasses import replace

import numpy as np

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import IntArray
from stage1_pro.core.metrics.views import Views, fuse
from stage1_pro.core.records.scores import Scores


def in_groups(scores: Scores, views: Views, label: str | None = None) -> Scores:
    """Return one row a group, sorted by name: its id, its label and the mean log-odds of the images looked at.

    label: "majority" where images of a group may differ in theirs. Raises UserError where they do all the same, or
    where `views` needs an order that the scores do not have. The rows have no content and no gate; `lengths` tells them
    from images.
    """
    if views.count is not None and scores.order is None:
        raise UserError(f"{scores.split}: scored without the column that orders the images. Train a new run.")
    fused = fuse(scores.logits, scores.group, scores.order, views)
    return replace(
        scores,
        case_id=fused.names,
        group=fused.names,
        labels=group_labels(scores, fused.names, label),
        logits=fused.logits,
        gate_logit=None,
        content=None,
        order=None,
        lengths=fused.lengths,
    )


def group_labels(scores: Scores, names: np.ndarray, label: str | None) -> np.ndarray:
    """(G,) int8 label of each group, sorted by name; half of the images positive is a majority.

    Raises UserError for groups of two labels, unless the majority counts.
    """
    codes = np.searchsorted(names, scores.group.astype(str))
    sizes, positives = np.bincount(codes, minlength=len(names)), _positives(codes, scores, len(names))
    mixed = (positives > 0) & (positives < sizes)
    if label is None and mixed.any():
        raise UserError(
            f"{scores.split}: group {names[mixed][0]} holds images of both labels. Begin a new run with "
            "dataset_params.group_label: majority."
        )
    return (2 * positives >= sizes).astype(np.int8)


def _positives(codes: IntArray, scores: Scores, groups: int) -> IntArray:
    return np.bincount(codes[scores.labels == 1], minlength=groups)
