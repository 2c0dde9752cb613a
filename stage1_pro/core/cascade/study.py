"""What the cascade costs on labelled cases: several ways to run it, compared case by case.

All ways are resampled together, group by group, so that an interval of a difference is that of paired costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1_pro.core.cascade.prices import Prices
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray, ratio
from stage1_pro.core.metrics.binomial import fnr_interval
from stage1_pro.core.metrics.bootstrap import weight_chunks

LEAST_MISSED = 7
"""Groups with a miss from which on the bootstrap alone gives the interval of a cost. With three of them it held the
truth in .91 of the studies that promised .95; below, the misses get an exact interval."""
UNKNOWN = (float("nan"), float("nan"), float("nan"))
Interval = tuple[float, float, float]
"""Value, lower end, upper end."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One way to run the cascade. exits: (N,) bool; wrong: (N,) float, probability that the final answer, of stage 1
    or 2, is wrong: 0 or 1 where the answer is known; stage1: whether stage 1 runs at all."""

    name: str
    exits: BoolArray
    wrong: FloatArray
    stage1: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """The labelled cases of a study. labels: (N,); index: (N,) from group_index; independent: (N,) bool, of each
    group's positives one; prevalence: share of positives where the cascade will run, None for that of these cases."""

    labels: IntArray
    index: IntArray
    independent: BoolArray
    prevalence: float | None = None

    @property
    def positive_share(self) -> float:
        """Share of positives that costs are weighed with."""
        return float((self.labels == 1).mean()) if self.prevalence is None else self.prevalence

    def mean(self, values: FloatArray) -> FloatArray:
        """(...,) mean of values (N, ...) at the share of positives."""
        if self.prevalence is None:
            return values.mean(axis=0)
        positive = self.labels == 1
        return self.prevalence * values[positive].mean(axis=0) + (1 - self.prevalence) * values[~positive].mean(axis=0)


@dataclass(frozen=True, slots=True)
class Measured:
    """A way on labelled cases. cost, saved: per 1,000 cases, saved against the first way; recall: over independent
    positives, with an exact interval; precision, misses and false_alarms per 1,000 cases; missed_groups: in which
    any positive may be missed at the end by an answer that was counted."""

    name: str
    coverage: float
    cost: Interval
    saved: Interval
    recall: Interval
    precision: float
    misses: float
    false_alarms: float
    missed_groups: int

    @property
    def too_few_misses(self) -> bool:
        """Whether the misses are so few that they get an exact interval, which is wider."""
        return self.missed_groups < LEAST_MISSED


def way(name: str, exits: BoolArray, first: FloatArray, second: FloatArray, *, stage1: bool = True) -> Way:
    """Stage 1's errors where a case exits, stage 2's elsewhere. first, second: (N,) probabilities of a wrong answer."""
    return Way(name, exits, np.where(exits, first, second).astype(np.float64), stage1)


def case_costs(prices: Prices, labels: IntArray, way: Way) -> FloatArray:
    """(N,) what each case costs, in expectation where the answer is not known."""
    running = prices.stage1 * way.stage1 + prices.stage2 * ~way.exits
    return running + np.where(labels == 1, prices.miss, prices.false_alarm) * way.wrong


def measure(
    prices: Prices, cases: Cases, ways: Sequence[Way], *, samples: int, confidence: float, rng: np.random.Generator
) -> list[Measured]:
    """Every way with its intervals at `confidence`, each per 1,000 cases.

    Costs are skewed, since few misses make most of them: with fewer than LEAST_MISSED groups missed the misses get an
    exact interval and the other costs a bootstrapped one, each at half of the error, and their ends are added.
    """
    costs = 1000 * np.stack([case_costs(prices, cases.labels, way) for way in ways], axis=1)
    columns = np.concatenate([costs, costs[:, :1] - costs], axis=1)
    others = columns - _miss_columns(prices, cases, ways)
    counts = [_missed_groups(way, cases) for way in ways]
    options: dict[str, Any] = {"samples": samples, "rng": rng}
    whole = group_means(columns, cases, confidence=confidence, **options)
    half = 1 - (1 - confidence) / 2
    others = None
    if min(counts) < LEAST_MISSED:
        others = group_means(columns - _miss_columns(prices, cases, ways), cases, confidence=half, **options)
    price = 1000 * prices.miss * cases.positive_share
    found = []
    for at, way in enumerate(ways):
        cost, saved = _interval(whole, at), _interval(whole, len(ways) + at)
        if others is not None and counts[at] < LEAST_MISSED:
            _, low, high = recall_interval(way, cases, half)
            cost = _widest(cost, _added(_interval(others, at), price * (1 - high), price * (1 - low)))
        if others is not None and at and min(counts[0], counts[at]) < LEAST_MISSED:
            first, own = (recall_interval(one, cases, 1 - (1 - confidence) / 4) for one in (ways[0], way))
            rest = _interval(others, len(ways) + at)
            saved = _widest(saved, _added(rest, price * (own[1] - first[2]), price * (own[2] - first[1])))
        found.append(_measured(way, cases, cost, saved, counts[at], confidence))
    return found


def group_means(
    values: FloatArray, cases: Cases, *, samples: int, confidence: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means (K,) of columns over the cases, and the ends (K,) of their intervals by the studentised bootstrap.

    values: (N, K). Each resample is measured in its own standard error: the plain percentile interval held the truth
    in .91 of the studies that promised .95. A mean at a stated prevalence weighs the mean of the positives and that
    of the negatives. Efron & Tibshirani (1993), section 12.5.
    """
    positive = cases.labels == 1
    strata = [(np.ones(len(positive), bool), 1.0)]
    if cases.prevalence is not None:
        strata = [(positive, cases.prevalence), (~positive, 1 - cases.prevalence)]
    groups, columns = int(cases.index.max(initial=-1)) + 1, values.shape[1]
    # of each group and column the sums over a stratum and its number of cases: all that a resample needs
    parts = [_sums(values, cases.index, members, groups) for members, _ in strata]
    facts = np.stack([part for pair in parts for part in pair], axis=2)  # (G, K, 2 strata)
    shares = np.array([share for _, share in strata])
    products = (facts[:, :, :, None] * facts[:, :, None, :]).reshape(groups, -1)
    flat = facts.reshape(groups, -1)

    def mean_and_error(weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        sums = (weights @ flat).reshape(len(weights), columns, len(strata), 2)
        means = ratio(sums[..., 0], sums[..., 1])
        scale = ratio(shares, sums[..., 1])
        slopes = np.stack([scale, -scale * means], axis=-1).reshape(len(weights), columns, -1)
        moments = (weights @ products).reshape(len(weights), columns, 2 * len(strata), 2 * len(strata))
        spread = np.einsum("rki,rkij,rkj->rk", slopes, moments, slopes)
        return means @ shares, np.sqrt(np.maximum(0, spread))

    mean, error = (row[0] for row in mean_and_error(np.ones((1, groups))))
    scores = []
    for weights in weight_chunks(cases.index, samples, rng):
        resampled, its_error = mean_and_error(weights.astype(np.float64))
        scores.append(np.divide(resampled - mean, its_error, out=np.zeros_like(resampled), where=its_error > 0))
    tail = 50 * (1 - confidence)
    below, above = np.nanpercentile(np.concatenate(scores), [tail, 100 - tail], axis=0)
    return mean, mean - above * error, mean - below * error


def recall_interval(way: Way, cases: Cases, confidence: float) -> Interval:
    """Share of independent positives that are answered 1 at the end, with an interval that holds at any size.

    Where stage 2's errors w are known as a rate, recall is (1 - w) (1 - m) + w h, m the share that exits and is
    missed, h the share that exits and is answered 1: both get exact ends, each at half of the error.
    """
    counted = (cases.labels == 1) & cases.independent
    wrong, exits = way.wrong[counted], way.exits[counted]
    if not counted.any() or np.isnan(wrong).any():
        return UNKNOWN
    value, total = float(1 - wrong.mean()), int(counted.sum())
    if np.isin(wrong, (0, 1)).all():
        low, high = fnr_interval(round(total * value), total, confidence)
        return value, float(low), float(high)
    if not exits.any():
        return value, value, value  # of an assumed rate alone
    rate = float(wrong[~exits].mean())
    half = 1 - (1 - confidence) / 2
    missed = [float(end) for end in fnr_interval(round(wrong[exits].sum()), total, half)]
    hits = [float(end) for end in fnr_interval(int((1 - wrong[exits]).sum().round()), total, half)]
    ends = [(1 - rate) * (1 - m) + rate * h for m, h in zip(reversed(missed), hits, strict=True)]
    return value, ends[0], ends[1]


def _sums(values: FloatArray, index: IntArray, members: BoolArray, groups: int) -> tuple[FloatArray, FloatArray]:
    """(G, K) sums of the members' values, and (G, K) how many they are."""
    own, sizes = index[members], np.bincount(index[members], minlength=groups).astype(np.float64)
    columns = [np.bincount(own, column, minlength=groups) for column in values[members].T]
    sums = np.stack(columns, axis=1).astype(np.float64)
    return sums, np.broadcast_to(sizes[:, None], sums.shape)


def _miss_columns(prices: Prices, cases: Cases, ways: Sequence[Way]) -> FloatArray:
    """(N, 2 K) what misses alone cost each way, and the first way more than each."""
    missed = 1000 * prices.miss * np.stack([np.where(cases.labels == 1, way.wrong, 0.0) for way in ways], axis=1)
    return np.concatenate([missed, missed[:, :1] - missed], axis=1)


def _missed_groups(way: Way, cases: Cases) -> int:
    """Groups with a counted miss; where all misses are of an assumed rate, there is nothing to count."""
    missed = (cases.labels == 1) & (way.wrong == 1)
    assumed = not np.isin(way.wrong, (0, 1)).all()
    if assumed and not way.exits.any():
        return LEAST_MISSED
    return np.unique(cases.index[missed]).size


def _interval(found: tuple[FloatArray, FloatArray, FloatArray], at: int) -> Interval:
    value, low, high = (float(part[at]) for part in found)
    return value, low, high


def _added(rest: Interval, low: float, high: float) -> Interval:
    return rest[0], rest[1] + low, rest[2] + high


def _widest(one: Interval, other: Interval) -> Interval:
    return one[0], min(one[1], other[1]), max(one[2], other[2])


def _measured(way: Way, cases: Cases, cost: Interval, saved: Interval, missed: int, confidence: float) -> Measured:
    positive = cases.labels == 1
    share = cases.positive_share
    recall = 1 - float(way.wrong[positive].mean()) if positive.any() else float("nan")
    alarms = float(way.wrong[~positive].mean()) if (~positive).any() else 0.0
    found = share * recall
    return Measured(
        name=way.name,
        coverage=float(cases.mean(way.exits.astype(np.float64))),
        cost=cost,
        saved=saved,
        recall=recall_interval(way, cases, confidence),
        precision=float(ratio(found, found + (1 - share) * alarms)),
        misses=1000 * share * (1 - recall),
        false_alarms=1000 * (1 - share) * alarms,
        missed_groups=missed,
    )
