"""The same task for both: certify a threshold of an exit score from a val_select and a val_calib split."""

import warnings
from typing import Any

import numpy as np
from population import Population

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import Ranked, calibrate
from stage1_pro.core.policies.exit_rules import EXIT_RULES, ExitRule
from stage1_pro.core.policies.softmax import softmax_scores

RISK = Risk(0.05, 0.9)


def draw(population: Population, rng: np.random.Generator, cases: int) -> Ranked:
    z, labels = population.draw(rng, cases)
    logits = np.column_stack([np.zeros(cases), z]).astype(np.float32)
    independent = np.ones(cases, dtype=bool)
    return Ranked(softmax_scores(logits), (z >= 0).astype(np.int64), labels, independent, cases)


def ours(
    select: Ranked, calib: Ranked, thresholds: np.ndarray, rule: ExitRule = EXIT_RULES["symmetric"]
) -> float | None:
    """Return the certified threshold; None where nothing is certified.

    With the symmetric rule, which is MAPIE's task: a threshold on the score of either answer.
    """
    parameters = [{"threshold": threshold} for threshold in thresholds.tolist()]
    answer = calibrate(select, calib, thresholds, parameters, RISK, rule, []).walk.answer
    return None if answer is None else float(thresholds[answer])


def mapie(select: Ranked, calib: Ranked, thresholds: np.ndarray, method: Any) -> float | None:
    """The same with MAPIE: FNR on exits as a custom risk, the least abstention as the choice among valid thresholds.

    method: a name or an instance, as `fwer_method` takes it.
    """
    one_dimensional = method == "fixed_sequence" or not isinstance(method, str)  # all that MAPIE allows it
    form = _by_threshold if one_dimensional else _by_abstention
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a risk that is not monotone, and of nothing found
        controller, data_of = form(thresholds, method)
        if method == "split_fixed_sequence":
            controller.learn_fixed_sequence_order(*data_of(select), binary=True)
        controller.calibrate(*data_of(calib))
    best = controller.best_predict_param
    return best[0] if isinstance(best, tuple) else best


def _by_abstention(thresholds: np.ndarray, method: str):
    """MAPIE's way for any rule: predict 0, 1 or NaN, which abstains."""
    from mapie.risk_control import BinaryClassificationController, abstention_rate
    from mapie.risk_control.risks import BinaryRisk

    def predict(columns: np.ndarray, threshold: float) -> np.ndarray:
        return np.where(columns[:, 0] >= threshold, columns[:, 1], np.nan)

    fnr = BinaryRisk(lambda y, answer: answer == 0, lambda y, answer: (y == 1) & ~np.isnan(answer), False)
    target = (RISK.target_fnr, RISK.confidence, abstention_rate)
    controller = BinaryClassificationController(predict, fnr, *target, thresholds[:, np.newaxis], method)
    return controller, lambda split: (np.column_stack([split.scores, split.answers]), split.labels)


def _by_threshold(thresholds: np.ndarray, method: Any):
    """MAPIE's way for one threshold: an exit is the predicted 1, so the label must carry the answer too."""
    from mapie.risk_control import BinaryClassificationController
    from mapie.risk_control.risks import BinaryRisk

    fnr = BinaryRisk(lambda y, exits: y == 1, lambda y, exits: (exits == 1) & (y % 2 == 1), False)
    deferred = BinaryRisk(lambda y, exits: exits == 0, lambda y, exits: np.ones(len(y), bool), False)
    target = (RISK.target_fnr, RISK.confidence, deferred)
    controller = BinaryClassificationController(lambda columns: columns, fnr, *target, thresholds, method)
    return controller, lambda split: (
        np.column_stack([1 - split.scores, split.scores]),
        split.labels + 2 * split.answers,
    )
