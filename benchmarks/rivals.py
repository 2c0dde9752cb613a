"""The same task for both: certify a threshold of an exit score from a val_select and a val_calib split."""

import warnings
from typing import NamedTuple

import numpy as np
from population import Population

from stage1_pro.core.metrics.exits import count_exits
from stage1_pro.core.policies.certify import certify, threshold_candidates
from stage1_pro.core.policies.softmax import softmax_scores
from stage1_pro.core.run import Risk

RISK = Risk(0.05, 0.9)


class Split(NamedTuple):
    """scores: (N,) float64 softmax scores; answers, labels: (N,) of 0 and 1."""

    scores: np.ndarray
    answers: np.ndarray
    labels: np.ndarray


def draw(population: Population, rng: np.random.Generator, cases: int) -> Split:
    z, labels = population.draw(rng, cases)
    logits = np.column_stack([np.zeros(cases), z]).astype(np.float32)
    return Split(softmax_scores(logits), (z >= 0).astype(np.int64), labels)


def ours(select: Split, calib: Split, thresholds: np.ndarray) -> float | None:
    """The certified threshold; None where nothing is certified."""
    counts = (count_exits(*split, thresholds) for split in (select, calib))
    answer = certify(*counts, RISK.target_fnr, RISK.delta).answer
    return None if answer is None else float(thresholds[answer])


def mapie(select: Split, calib: Split, thresholds: np.ndarray, method, beta_points: int = 1000) -> float | None:
    """The same with MAPIE: an exit is the predicted 1, FNR on exits a custom risk, best is the least abstention.

    method: a name or an instance, as `fwer_method` takes it. beta_points: length of `beta_grid`, by which
    split fixed-sequence testing orders the thresholds; MAPIE's own default is 1000.
    """
    from mapie.risk_control import BinaryClassificationController
    from mapie.risk_control.risks import BinaryRisk

    # A risk sees the label and the prediction alone, so the label carries the answer: label + 2 * answer.
    fnr_on_exits = BinaryRisk(lambda y, exits: y == 1, lambda y, exits: (exits == 1) & (y % 2 == 1), False)
    deferred = BinaryRisk(lambda y, exits: exits == 0, lambda y, exits: np.repeat(True, len(y)), False)
    controller = BinaryClassificationController(
        lambda columns: columns, fnr_on_exits, RISK.target_fnr, RISK.confidence, deferred, thresholds, method
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a risk that is not monotone, and of nothing found
        if method == "split_fixed_sequence":
            beta_grid = np.logspace(-25, 0, beta_points)
            controller.learn_fixed_sequence_order(*_as_mapie(select), beta_grid=beta_grid, binary=True)
        controller.calibrate(*_as_mapie(calib))
    return controller.best_predict_param


def _as_mapie(split: Split) -> tuple[np.ndarray, np.ndarray]:
    return np.column_stack([1 - split.scores, split.scores]), split.labels + 2 * split.answers
