"""The figures of an evaluation, gathered into plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from stage1_pro.core.metrics import calibration
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.binomial import fnr_interval, fnr_upper_bound, p_value
from stage1_pro.core.metrics.bootstrap import Statistic, bootstrap_intervals, group_index, point_values, ranking, ratios
from stage1_pro.core.metrics.edges import Share, unanimous_intervals
from stage1_pro.core.metrics.exits import ExitCounts, count_decisions
from stage1_pro.core.metrics.selective import augrc, coverage_at_risk, risk_at_coverage, risk_coverage_curve

COVERAGES = (0.8, 0.9, 1.0)
RISKS = (0.01, 0.02, 0.05)
CALIBRATION = (
    calibration.ece,
    calibration.adaptive_ece,
    calibration.debiased_calibration_error,
    calibration.classwise_ece,
    calibration.nll,
    calibration.brier,
)


class Decisions(Protocol):
    """What a policy decided for N cases; scores rank them, most confident highest."""

    @property
    def exits(self) -> BoolArray: ...
    @property
    def predictions(self) -> IntArray: ...
    @property
    def scores(self) -> FloatArray: ...


def evaluate(
    logits: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None,
    decisions: Decisions,
    *,
    target_fnr: float,
    delta: float,
    samples: int,
    confidence: float,
    rng: np.random.Generator,
    independent: BoolArray | None = None,
    shift: float = 0.0,
    prices: tuple[float, float] = (5.0, 0.0),
    supported: ArrayLike | None = None,
) -> dict[str, Any]:
    """All figures of decisions on labelled cases, as plain JSON: what is undefined is None.

    logits: (N, C) float; labels: (N,) int, 1 is positive; groups: (N,) or None. Intervals are
    bootstrap percentiles over groups at `confidence`, but for FNR on exits exact ones, and for what
    all cases agree on those of `edges`. Selective metrics rank by decisions.scores with
    0/1 loss; calibration is that of softmax(logits) over the cases whose logits are finite, at the
    log-odds before `shift` was added to place the answers. prices: of a false alarm and of a miss on exits, in
    deferrals; utility is coverage less both, a case. supported: (N,) labels that the probabilities are judged by; None:
    the labels.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    judged = labels if supported is None else np.asarray(supported, np.int64)
    index = group_index(groups, labels.size)
    statistics = decision_statistics(index, labels, decisions, prices)
    intervals = bootstrap_intervals(statistics, index, samples, confidence, rng)
    intervals |= decision_edges(index, labels, decisions, prices, confidence)
    estimates = {
        name: {"value": value, "low": intervals[name][0], "high": intervals[name][1]}
        for name, value in point_values(statistics, index).items()
    }
    counts = count_decisions(decisions.exits, decisions.predictions, labels)
    counted = np.ones(labels.size, bool) if independent is None else independent
    evidence = count_decisions(decisions.exits[counted], decisions.predictions[counted], labels[counted])
    figures = {
        "cases": counts.cases,
        "positives": counts.positives,
        "negatives": counts.cases - counts.positives,
        "groups": int(index.max(initial=-1)) + 1,
        "accuracy": estimates["accuracy"],
        "exits": {
            "fnr_on_exits": fnr_evidence(evidence, target_fnr, delta, confidence),
            **_pick(estimates, "coverage", "fpr_on_exits", "precision_on_exits"),
            **_pick(estimates, "accuracy_on_exits", "right_exits", "utility"),
        },
        "selective": {
            **_pick(estimates, "augrc", "aurc", "e_aurc"),
            **_operating_points(decisions.scores, decisions.predictions != labels),
        },
        "calibration": _calibration(before_placement(logits, shift), judged),
        "confusion": confusion(decisions, labels, logits.shape[1]),
    }
    return _json(figures)


def selective_summary(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """accuracy, ece, augrc, nll of class probabilities (N, C), C >= 2, for labels (N,).

    Cheap enough for every epoch: one sort. The confidence is the largest probability.
    """
    probabilities = np.asarray(probabilities, np.float64)
    labels = np.asarray(labels, np.int64)
    confidence, correct = calibration.top_label(probabilities, labels)
    return {
        "accuracy": float(correct.mean()) if labels.size else float("nan"),
        "ece": calibration.reliability_bins(confidence, correct).calibration_error,
        "augrc": augrc(confidence, ~correct),
        "nll": calibration.nll(probabilities, labels),
    }


def decision_statistics(
    index: IntArray, labels: IntArray, decisions: Decisions, prices: tuple[float, float] = (5.0, 0.0)
) -> list[Statistic]:
    """Every bootstrapped figure of decisions, by name. index: (N,) from group_index; labels: (N,)."""
    shares = {name: (share.part, share.whole) for name, share in _shares(labels, decisions, prices).items()}
    return [ratios(index, shares), ranking(index, decisions.scores, decisions.predictions != labels)]


def decision_edges(
    index: IntArray, labels: IntArray, decisions: Decisions, prices: tuple[float, float], confidence: float
) -> dict[str, tuple[float, float]]:
    """Return the intervals of those figures of decision_statistics of which resampling knows nothing, by name."""
    found = unanimous_intervals(index, _shares(labels, decisions, prices), confidence)
    if labels.size and (decisions.predictions == labels).all():
        wrong = 1 - found["accuracy"][0]
        # where the wrong answers to come would rank is unknown too: at worst they are the most confident ones
        worst = wrong * (1 - math.log(wrong))
        found |= {"augrc": (0.0, wrong), "aurc": (0.0, worst), "e_aurc": (0.0, worst)}
    return found


def _shares(labels: IntArray, decisions: Decisions, prices: tuple[float, float]) -> dict[str, Share]:
    exits, positive, answered = decisions.exits, labels == 1, decisions.predictions == 1
    correct, every = decisions.predictions == labels, np.ones(labels.size)
    false_alarms, misses = exits & answered & ~positive, exits & ~answered & positive
    worth = exits - prices[0] * false_alarms - prices[1] * misses
    return {
        "accuracy": Share(correct, every),
        "coverage": Share(exits, every),
        "right_exits": Share(exits & correct, every),
        "utility": Share(worth, every, least=min(0.0, 1 - max(prices)), most=1.0),
        "fpr_on_exits": Share(false_alarms, exits & ~positive),
        "precision_on_exits": Share(exits & answered & positive, exits & answered),
        "accuracy_on_exits": Share(exits & correct, exits),
    }


def fnr_evidence(counts: ExitCounts, target_fnr: float, delta: float, confidence: float) -> dict[str, float]:
    """FNR on exits with its two-sided interval at `confidence` and its one-sided bound at 1 - delta."""
    misses, exited_positives = int(counts.misses[0]), int(counts.exited_positives[0])
    low, high = fnr_interval(misses, exited_positives, confidence)
    return {
        "value": float(counts.fnr[0]),
        "low": float(low),
        "high": float(high),
        "misses": misses,
        "exited_positives": exited_positives,
        "upper_bound": float(fnr_upper_bound(misses, exited_positives, delta)),
        "p_value": float(p_value(misses, exited_positives, target_fnr)),
    }


def _operating_points(scores: FloatArray, wrong: BoolArray) -> dict[str, dict[str, float]]:
    curve = risk_coverage_curve(scores, wrong)
    return {
        "risk_at_coverage": {str(share): risk_at_coverage(curve, share) for share in COVERAGES},
        "coverage_at_risk": {str(risk): coverage_at_risk(curve, risk) for risk in RISKS},
    }


def before_placement(logits: FloatArray, shift: float) -> FloatArray:
    """The logits (N, C) before `shift` was added to the log-odds; of a binary task where shift is not 0."""
    return logits - np.array([-shift / 2, shift / 2]) if shift else logits


def _calibration(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    finite = np.isfinite(logits).all(axis=1)
    probabilities, labels = softmax(logits[finite], axis=1), labels[finite]
    return {metric.__name__: metric(probabilities, labels) for metric in CALIBRATION}


def confusion(decisions: Decisions, labels: IntArray, classes: int) -> dict[str, list]:
    """Counts (C, C) of the cases that exit and of those that do not; a row is a label."""
    cell = labels * classes + decisions.predictions

    def table(members: BoolArray) -> list[list[int]]:
        counts = np.bincount(cell[members], minlength=classes * classes)
        return counts.reshape(classes, classes).tolist()

    return {"exits": table(decisions.exits), "deferred": table(~decisions.exits)}


def _pick(figures: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: figures[name] for name in names}


def _json(value: Any) -> Any:
    """The same nested dicts with None for NaN: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
