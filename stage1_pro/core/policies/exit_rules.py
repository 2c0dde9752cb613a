"""Which cases may exit, and how such exits are certified: one row a rule.

one_sided: every answer 1 exits, an answer 0 exits where its score reaches the threshold. symmetric: either answer exits
where its score reaches the threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray, IntArray
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidates import MOST, thresholds_between
from stage1_pro.core.policies.fixed_sequence import Walk, predicted_end, predicted_p
from stage1_pro.core.policies.nested_boundary import certify_nested
from stage1_pro.core.policies.one_sided import certify_one_sided
from stage1_pro.core.policies.placement import one_sided_scores

METHODS = {
    "one_sided": "One exact binomial test: along one-sided exits FNR on exits can only grow with coverage, so the last "
    "threshold that passes is certified at the full confidence",
    "boundary": "Nested boundary: every threshold is tested at once, against a bound on misses that a random walk at "
    "the target crosses with probability at most 1 - fnr_confidence",
    "walk": "Learn-then-Test: split fixed-sequence testing with exact binomial p-values",
    "groups": "One certificate for each group at an equal part of 1 - fnr_confidence (Bonferroni), by exact binomial "
    "tests on its own cases; groups that val_select predicts to fail always defer and have no part",
}
"""`guarantee.method` of a policy file."""


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """walk: the evidence and which candidates are certified; method: a key of METHODS; facts: what the policy file
    records so that the evidence can be checked again."""

    walk: Walk
    method: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExitRule:
    """One rule.

    compares: answers whose exits a threshold decides; exit_scores: (score, answer) (N,) each → (N,) what is compared
    with a threshold; candidates: scores (N,), answers (N,) and the least value of a score → (J,) thresholds, high to
    low; certify: counts on val_select's independent positives, on val_calib's, coverage (J,) of val_select, and the
    risk; predict: counts on val_select's positives, the number of val_calib's, and the risk → (index of the candidate
    that would be certified, whether any would be).
    """

    name: str
    compares: tuple[int, ...]
    exit_scores: Callable[[FloatArray, IntArray], FloatArray]
    candidates: Callable[[FloatArray, IntArray, float], FloatArray]
    certify: Callable[[ExitCounts, ExitCounts, FloatArray, Risk], Certified]
    predict: Callable[[ExitCounts, int, Risk], tuple[int, bool]]


def _every_score(scores: FloatArray, _: IntArray) -> FloatArray:
    return scores


def _of_either_answer(scores: FloatArray, _: IntArray, floor: float) -> FloatArray:
    return thresholds_between(scores, floor)


def _of_answers_0(scores: FloatArray, answers: IntArray, floor: float) -> FloatArray:
    """Return thresholds between the scores of answers 0 alone.

    The strictest lets none of them exit, where any float lies between them and 1: a miss among the surest answers 0
    must not cost the certificate of the answers 1.
    """
    own = scores[(answers == 0) & np.isfinite(scores)]
    found = thresholds_between(np.append(own, 1.0), floor, MOST - 1)
    top = own.max(initial=floor)
    above = top + (1 - top) / 2
    return np.append(above, found) if max(top, found[0]) < above < 1 else found


def _certify_one_sided(_: ExitCounts, calib: ExitCounts, __: FloatArray, risk: Risk) -> Certified:
    return Certified(certify_one_sided(calib, risk.target_fnr, risk.delta), "one_sided")


def _certify_nested(select: ExitCounts, calib: ExitCounts, coverage: FloatArray, risk: Risk) -> Certified:
    found = certify_nested(select, calib, coverage, risk.target_fnr, risk.delta)
    facts: dict[str, Any] = {"start_passes": found.start_passes}
    if found.boundary is None:
        return Certified(found.walk, "walk", facts)
    boundary = {"lo": found.boundary.lo, "hi": found.boundary.hi, "rises": found.boundary.rises.tolist()}
    return Certified(found.walk, "boundary", {**facts, "boundary": boundary})


def _predict_one_sided(select: ExitCounts, positives: int, risk: Risk) -> tuple[int, bool]:
    passed = np.flatnonzero(predicted_p(select, positives, risk.target_fnr) <= risk.delta)
    return (int(passed[-1]), True) if passed.size else (0, False)


def _predict_walk(select: ExitCounts, positives: int, risk: Risk) -> tuple[int, bool]:
    return predicted_end(select, positives, risk.target_fnr, risk.delta)


EXIT_RULES = {
    row.name: row
    for row in (
        ExitRule("one_sided", (0,), one_sided_scores, _of_answers_0, _certify_one_sided, _predict_one_sided),
        ExitRule("symmetric", (0, 1), _every_score, _of_either_answer, _certify_nested, _predict_walk),
    )
}
