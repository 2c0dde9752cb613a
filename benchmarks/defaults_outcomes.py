"""From log-odds to the rows of the study: the epoch that a monitor keeps, placed answers, certificates over re-splits.

val_select keeps the checkpoint and places the answers; the pool is split ten times at random into val_calib and
val_test. Each row is the mean over those ten.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np
from scipy.special import expit

from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.metrics.exits import ExitCounts, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.selective import augrc, auroc
from stage1_pro.core.policies.candidates import thresholds_between
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.fixed_sequence import certify
from stage1_pro.core.policies.one_sided import certify_one_sided
from stage1_pro.core.policies.placement import Prices, one_sided_scores, place_answers

RESPLITS, SEED, CONFIDENCE = 10, 20261129, 0.95
PRICES = Prices()
TARGETS = (0.05, 0.02)
LARGE, SMALL = (200, 300), (40, 80)
"""Positives of val_select and of val_calib, at most."""
PATIENCES = (3, 10)


@dataclass(frozen=True, slots=True)
class Held:
    """Held-out cases of one split. labels_select, labels_pool: (N,) and (P,)."""

    cell: str
    split: int
    labels_select: np.ndarray = field(compare=False)
    labels_pool: np.ndarray = field(compare=False)


# ---- which epoch a monitor keeps


def placed(z: np.ndarray, labels: np.ndarray, calib_positives: int, risk: Risk):
    return place_answers(z, labels, np.ones(len(z), bool), calib_positives, risk, PRICES, SEED)


def monitor_values(z: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What each monitor says of one epoch's (N,) log-odds of val_select, smaller being better. augrc: at argmax;
    augrc_placed: once answers are placed; nll: class-weighted; utility: predicted by the placement."""
    if not np.isfinite(z).all():
        return dict.fromkeys(MONITORS, np.inf)
    placement = placed(z, labels, LARGE[1], Risk(TARGETS[0], CONFIDENCE))
    moved = z + placement.shift
    weights = (len(labels) / (2 * np.bincount(labels, minlength=2)))[labels]
    return {
        "augrc": augrc(np.abs(z), (z >= 0) != labels),
        "augrc_placed": augrc(np.abs(moved), (moved >= 0) != labels),
        "auroc": -auroc(z, labels == 1),
        "nll": float((weights * np.logaddexp(0, np.where(labels == 1, -z, z))).mean()),
        "utility": -placement.predicted()["utility"],
    }


MONITORS = ("augrc", "augrc_placed", "auroc", "nll", "utility")


def kept_epochs(z: np.ndarray, labels: np.ndarray) -> dict[tuple[str, int], int]:
    """(monitor, patience) → epoch kept, for (E, N) log-odds of val_select; `augrc_first` keeps the first of a tie, the
    others the last."""
    each = [monitor_values(epoch, labels) for epoch in z]
    found = {}
    for patience in PATIENCES:
        for monitor in MONITORS:
            found[monitor, patience] = _kept([values[monitor] for values in each], patience, last=True)
        found["augrc_first", patience] = _kept([values["augrc"] for values in each], patience, last=False)
    return found


def _kept(values: list[float], patience: int, *, last: bool) -> int:
    """The best epoch until none was better for so many; ties do not extend the training."""
    best, kept, waited = np.inf, len(values) - 1, 0
    for epoch, value in enumerate(values):
        if value < best or (last and value == best):
            kept = epoch
        waited = 0 if value < best else waited + 1
        best = min(best, value)
        if waited >= patience:
            break
    return kept


# ---- what is certified, and what it is worth


@dataclass(frozen=True, slots=True)
class Evidence:
    """How many positives val_select and val_calib hold, and the target."""

    select: int
    calib: int
    target: float

    @property
    def risk(self) -> Risk:
        return Risk(self.target, CONFIDENCE)


def evidences(labels_select: np.ndarray, labels_pool: np.ndarray) -> list[Evidence]:
    """The sizes and targets that a cell can show: a third of the pool's positives is left for the test."""
    available = np.count_nonzero(labels_select), int(np.count_nonzero(labels_pool) * 2 / 3)
    sizes = {(min(a, available[0]), min(b, available[1])) for a, b in (LARGE, SMALL)}
    found = [Evidence(*size, target) for size in sorted(sizes, reverse=True) for target in TARGETS]
    return [one for one in found if one.calib >= minimum_positives(one.target, 1 - CONFIDENCE)]


@cache
def resplits(held: Held, calib_positives: int) -> list[np.ndarray]:
    """Ten (P,) bool: the cases of the pool that are val_calib, with the pool's share of positives."""
    labels, found = held.labels_pool, []
    for number in range(RESPLITS):
        rng = np.random.default_rng([SEED, crc32(held.cell.encode()), held.split, number])
        chosen = np.zeros(len(labels), bool)
        positives, negatives = (np.flatnonzero(labels == label) for label in (1, 0))
        size = round(len(negatives) * calib_positives / len(positives))
        chosen[rng.permutation(positives)[:calib_positives]] = chosen[rng.permutation(negatives)[:size]] = True
        found.append(chosen)
    return found


@cache
def kept_of_select(held: Held, positives: int) -> np.ndarray:
    """(K,) indices of a part of val_select with so many positives."""
    labels = held.labels_select
    rng = np.random.default_rng([SEED, positives])
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
    share = positives / len(members[1])
    return np.sort(np.concatenate([part[: round(len(part) * share)] for part in members]))


def one_sided(select: np.ndarray, labels: np.ndarray, evidence: Evidence) -> tuple[float, float, Callable]:
    """Placed answers and one-sided exits: the shift, the predicted utility, and a certificate of val_calib."""
    placement = placed(select, labels, evidence.calib, evidence.risk)
    moved = select + placement.shift
    thresholds = EXIT_RULES["one_sided"].candidates(_scores(moved), (moved >= 0).astype(int), 0.5)

    def certified(z: np.ndarray, own: np.ndarray) -> float | None:
        counts = count_exits(_scores(z), z >= 0, own, thresholds)
        answer = certify_one_sided(counts, evidence.target, evidence.risk.delta).answer
        return None if answer is None else float(thresholds[answer])

    return placement.shift, placement.predicted()["utility"], certified


def walked(select: np.ndarray, labels: np.ndarray, evidence: Evidence) -> tuple[float, float, Callable]:
    """Answers as trained, a symmetric threshold, and the walk: the rule before."""
    scores = expit(np.abs(select))
    thresholds = thresholds_between(scores, 0.5)
    seen = count_exits(scores, select >= 0, labels, thresholds)

    def certified(z: np.ndarray, own: np.ndarray) -> float | None:
        counts = count_exits(expit(np.abs(z)), z >= 0, own, thresholds)
        answer = certify(seen, counts, evidence.target, evidence.risk.delta).answer
        return None if answer is None else float(thresholds[answer])

    return 0.0, np.nan, certified


def _scores(z: np.ndarray) -> np.ndarray:
    return one_sided_scores(expit(np.abs(z)), (z >= 0).astype(int))


RULES: dict[str, tuple[Callable, Callable]] = {
    "one_sided": (one_sided, _scores),
    "walk": (walked, lambda z: expit(np.abs(z))),
}
"""Rule → how it is fixed on val_select, and the score that it compares."""

FIGURES = ("certified", "coverage", "right_exits", "utility", "fnr", "fpr", "accuracy", "useless", "above_target")


def outcome(rule: str, z_select: np.ndarray, z_pool: np.ndarray, held: Held, evidence: Evidence) -> dict[str, float]:
    """Means over the re-splits, as measured on val_test; what is not certified exits nothing."""
    fix, score = RULES[rule]
    kept = kept_of_select(held, evidence.select)
    shift, predicted, certified = fix(z_select[kept].astype(float), held.labels_select[kept], evidence)
    z, rows = z_pool.astype(float) + shift, []
    scores, answers = score(z), z >= 0
    for calib in resplits(held, evidence.calib):
        threshold = certified(z[calib], held.labels_pool[calib])
        if threshold is None:
            rows.append({**dict.fromkeys(FIGURES, 0.0), "fnr": np.nan, "fpr": np.nan, "accuracy": np.nan})
            continue
        parts = [(scores[part], answers[part], held.labels_pool[part], [threshold]) for part in (calib, ~calib)]
        rows.append(_measured(*(count_exits(*part) for part in parts), evidence))
    means = {name: _mean([row[name] for row in rows]) for name in FIGURES}
    return {**means, "predicted_utility": predicted, "shift": shift}


def _measured(calib: ExitCounts, test: ExitCounts, evidence: Evidence) -> dict[str, float]:
    prevalence = calib.positives / calib.cases
    accuracy = float(calib.accuracy[0])
    return {
        "certified": 1.0,
        "coverage": float(test.coverage[0]),
        "right_exits": right_exits(test),
        "utility": utility(test),
        "fnr": float(test.fnr[0]),
        "fpr": float(test.fpr[0]),
        "accuracy": float(test.accuracy[0]),
        "useless": float(utility(calib) <= 0 or accuracy <= prevalence),
        "above_target": float(test.fnr[0] > evidence.target),
    }


def right_exits(counts: ExitCounts) -> float:
    """Share of all cases that exit and are right."""
    return float(counts.exited[0] - counts.misses[0] - counts.false_alarms[0]) / counts.cases


def utility(counts: ExitCounts) -> float:
    """Coverage less the price of wrong exits, per case."""
    wrong = PRICES.false_alarm * counts.false_alarms[0] + PRICES.miss * counts.misses[0]
    return float(counts.coverage[0] - wrong / counts.cases)


def _mean(values: list[float]) -> float:
    found = [value for value in values if np.isfinite(value)]
    return float(np.mean(found)) if found else np.nan


# ---- the rows of one network


def rows_of_network(
    fields: dict[str, Any], z_select: np.ndarray, z_pool: np.ndarray, held: Held, before: bool
) -> list[dict[str, Any]]:
    """Rows of one network's histories (E, N) and (E, P). fields: what names it; before: with the walk besides."""
    found, known = [], {}
    for (monitor, patience), epoch in kept_epochs(z_select, held.labels_select).items():
        if epoch not in known:
            known[epoch] = rows_of_scores(z_select[epoch], z_pool[epoch], held, before)
        own = {**fields, "monitor": monitor, "patience": patience, "epoch": epoch}
        found += [{**own, **row} for row in known[epoch]]
    return found


def rows_of_scores(z_select: np.ndarray, z_pool: np.ndarray, held: Held, before: bool) -> list[dict[str, Any]]:
    """A row a rule, target and size of the evidence, for (N,) and (P,) log-odds."""
    if not (np.isfinite(z_select).all() and np.isfinite(z_pool).all()):
        return []
    about = {"auroc": auroc(z_pool, held.labels_pool == 1), "saturated": float((np.abs(z_pool) > 36.7).mean())}
    return [
        {
            **{"rule": rule, "target": one.target, "select": one.select, "calib": one.calib},
            **outcome(rule, z_select, z_pool, held, one),
            **about,
        }
        for rule in RULES
        if before or rule != "walk"
        for one in evidences(held.labels_select, held.labels_pool)
    ]
