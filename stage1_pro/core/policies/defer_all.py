"""Decisions of a run for which nothing was certified: no case exits, and its scores still rank the cases."""

from collections.abc import Callable

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.gate import gate_scores
from stage1_pro.core.policies.gate_maps import fit_calibrator
from stage1_pro.core.policies.softmax import answers, softmax_scores
from stage1_pro.core.records.scores import Scores

SOFTMAX = "largest softmax probability"
GATE = "gate, mapped per answer to the quantiles of the softmax probability on val_select"

Ranking = Callable[[Scores, Scores], tuple[FloatArray, str]]
"""(val_select, other cases) -> (N,) scores of the other cases, and what they are in words."""


def decide_without_certificate(
    exit_policy: str, select: Scores, cases: Scores, exit_rule: str = "symmetric"
) -> tuple[ExitDecisions, str]:
    """Everything defers. Returns the decisions and words for the score that ranks `cases`.

    The score is the one that the policy would have compared with a threshold, as far as val_select alone fixes it:
    a policy file, which would say more, does not exist.
    """
    scores, words = RANKINGS[exit_policy](select, cases)
    exits, probabilities = np.zeros(len(cases), dtype=bool), softmax_scores(cases.logits)
    answered = answers(cases.logits)
    return ExitDecisions(exits, answered, EXIT_RULES[exit_rule].exit_scores(scores, answered), probabilities), words


def _softmax(_: Scores, cases: Scores) -> tuple[FloatArray, str]:
    return softmax_scores(cases.logits), SOFTMAX


def _gate(select: Scores, cases: Scores) -> tuple[FloatArray, str]:
    answered, gate = answers(select.logits), np.asarray(select.gate_logit, np.float64)
    right, confidence = answered == select.labels, softmax_scores(select.logits)
    return gate_scores(fit_calibrator("quantile", gate, answered, right, confidence).params, cases), GATE


RANKINGS: dict[str, Ranking] = {"softmax": _softmax, "gate": _gate, "scrc": _gate}
