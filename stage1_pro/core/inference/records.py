"""What stage 1 says of one image, as a record that callers and tables share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stage1_pro.core.policies.base import ExitDecisions

NO_ANSWER = ""
REACHED, BELOW = "score reaches the certified threshold", "score below the certified threshold"
OPEN_SET = "the prediction set holds more than one class"
UNCOVERED = "no certificate covers its certificate group"


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one image.

    answer: name of a class, "" for an image that cannot be read; probability: of that answer; decision: "exit", where
    stage 1 answers, or "defer", where stage 2 has to; score: what the threshold is compared with; reason: why, in
    words; prediction_set: the classes that remain possible, None for a policy without such sets.
    """

    answer: str
    probability: float
    decision: str
    score: float
    reason: str
    prediction_set: tuple[str, ...] | None = None


def decision_records(
    decisions: ExitDecisions, unreadable: Mapping[int, str], class_names: Sequence[str]
) -> list[Decision]:
    """One record an image, in their order; unreadable: position → reason."""
    names = np.array(class_names, dtype=object)
    answers, reasons = names[decisions.predictions], _reasons(decisions)
    for position, reason in unreadable.items():
        answers[position], reasons[position] = NO_ANSWER, reason
    words = np.where(decisions.exits, "exit", "defer").tolist()
    columns = answers.tolist(), decisions.probabilities.tolist(), words, decisions.scores.tolist(), reasons.tolist()
    return [Decision(*row) for row in zip(*columns, _sets(decisions, names), strict=True)]


def _reasons(decisions: ExitDecisions) -> np.ndarray:
    """(N,) why each case exits or defers."""
    reasons = np.where(decisions.exits, REACHED, BELOW)
    if decisions.prediction_sets is not None:
        reasons = np.where(decisions.prediction_sets.sum(axis=1) > 1, OPEN_SET, reasons)
    if decisions.covered is not None:
        reasons = np.where(decisions.covered, reasons, UNCOVERED)
    return reasons.astype(object)


def _sets(decisions: ExitDecisions, names: np.ndarray) -> list[tuple[str, ...] | None]:
    if decisions.prediction_sets is None:
        return [None] * len(decisions.exits)
    known = {tuple(row): tuple(names[row]) for row in np.unique(decisions.prediction_sets, axis=0)}
    return [known[tuple(row)] for row in decisions.prediction_sets]
