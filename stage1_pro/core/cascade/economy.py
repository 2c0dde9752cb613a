"""A calibrated run at prices: what each way to run the cascade costs, misses, and asks of stage 2.

Nothing here changes what is certified: prices say what a certificate is worth, never where its threshold lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.cascade.capacity import Capacity, against_capacity, deferrals, smallest_target
from stage1_pro.core.cascade.ladder import Ladder
from stage1_pro.core.cascade.prices import Exits, Prices, StageTwo, break_even, certified_recall, cheapest
from stage1_pro.core.cascade.stage_two import Assumed, Predictions, errors_of, measured_range
from stage1_pro.core.cascade.study import Cases, Interval, Measured, Way, case_costs, measure, way
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.policies.base import ExitDecisions
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.independence import independence
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.seeds import rng_of

WAYS = {
    "stage2_alone": "All to stage 2",
    "stage2": "All to stage 2, stage 1 running",
    "certified": "Certified",
    "cheapest": "Cheapest uncertified",
    "all_exit": "All exit",
}
CURVE_POINTS = 60


@dataclass(frozen=True, slots=True)
class Demand:
    """What the cascade meets. prevalence: share of positives, None for that of the test split; volume: cases a day;
    capacity: cases a day that stage 2 takes; None where it was not said."""

    prevalence: float | None = None
    volume: int | None = None
    capacity: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The test split of a run. artifact: its policy file; decisions: of the certified policy; labels: (N,);
    independent: (N,) bool, of each group's positives one."""

    run: Run
    artifact: dict[str, Any]
    ladder: Ladder
    test: Scores
    decisions: ExitDecisions
    labels: IntArray
    independent: BoolArray

    @classmethod
    def of(cls, run: Run, artifact: dict[str, Any]) -> Bench:
        ladder, test = Ladder.of(run.policy_row.name, artifact), run.scores("val_test")
        labels = np.asarray(test.labels, np.int64)
        decided = ladder.policy.decide(test)
        counted = replace(decided, predictions=test.counted(decided.predictions))
        return cls(run, artifact, ladder, test, counted, labels, independence(test)[0])

    @property
    def groups(self) -> int:
        """How many groups the test cases come in."""
        return len(np.unique(self.test.group.astype(str)))

    def exits_of(self, key: str, candidate: int) -> BoolArray:
        """(N,) the cases that stage 1 answers. candidate: of the cheapest way; an unreadable case never exits."""
        if key == "certified":
            return self.decisions.exits
        if key == "cheapest":
            return self.ladder.at(candidate).decide(self.test).exits
        return np.isfinite(self.decisions.scores) & (key == "all_exit")

    def way(self, key: str, exits: BoolArray, second: FloatArray) -> Way:
        """second: (N,) probability that stage 2 is wrong."""
        first = (self.decisions.predictions != self.labels).astype(np.float64)
        return way(WAYS[key], exits, first, second, stage1=key != "stage2_alone")


@dataclass(frozen=True, slots=True)
class Row:
    """One way with its figures. measured: None where stage 2's answers to its cases are not known; deferrals: a day,
    the mean and what 99 of 100 days do not exceed; break_even: the FNR on exits at which it costs as much as sending
    everything to stage 2, with stage 1 running there and without."""

    key: str
    coverage: float
    fnr: float
    measured: Measured | None
    deferrals: tuple[float, int] | None
    break_even: tuple[float, float] | None

    @property
    def name(self) -> str:
        return WAYS[self.key]


@dataclass(frozen=True, slots=True, eq=False)
class Cascade:
    """A run at prices. prevalence: share of positives that costs are weighed with; on_deferred: stage 2's sensitivity
    and specificity on the cases that the certified policy defers; rows: by key of WAYS; curve: (K, 3) coverage of
    candidates, their lowest and highest cost, NaN where it is not known; smallest: the smallest target that
    val_calib's counts would certify at the coverage that the capacity needs, None where it is not asked for."""

    bench: Bench
    prices: Prices
    demand: Demand
    prevalence: float
    second: Assumed | Predictions
    on_deferred: Mapping[str, Interval]
    rows: Mapping[str, Row]
    curve: FloatArray
    capacity: Capacity | None
    smallest: float | None
    confidence: float
    samples: int

    @property
    def certified(self) -> Measured:
        """The certified way, of which stage 2's part is always known."""
        found = self.rows["certified"].measured
        assert found is not None
        return found

    @property
    def least_recall(self) -> float:
        """What the certificate holds of the cascade's recall, at the lower end of stage 2's sensitivity."""
        lowest = StageTwo(self.on_deferred["sensitivity"][1], 1.0)
        return certified_recall(self.bench.artifact["target_fnr_exit"], lowest)


def price_run(bench: Bench, prices: Prices, demand: Demand, second: Assumed | Predictions) -> Cascade:
    """Measure every way to run the cascade on the test split, at these prices."""
    config = bench.run.config
    index = group_index(bench.test.group.astype(str), len(bench.labels))
    cases = Cases(bench.labels, index, bench.independent, demand.prevalence)
    on_deferred = _on_deferred(bench, second, config.bootstrap_confidence)
    candidate = cheapest(
        prices, bench.ladder.counts(bench.run.scores("val_select")), _typical(on_deferred), cases.prevalence
    )
    exits = {key: bench.exits_of(key, candidate) for key in WAYS}
    options = {"samples": config.bootstrap_samples, "confidence": config.bootstrap_confidence}
    measured = _measured(bench, prices, cases, second, exits, options)
    rows = {key: _row(bench, prices, demand, cases, second, key, exits[key], measured.get(key)) for key in WAYS}
    capacity, smallest = _capacity(bench, demand, rows["certified"].coverage)
    curve = _curve(bench, prices, cases, second)
    return Cascade(
        bench=bench,
        prices=prices,
        demand=demand,
        prevalence=cases.positive_share,
        second=second,
        on_deferred=on_deferred,
        rows=rows,
        curve=curve,
        capacity=capacity,
        smallest=smallest,
        **options,
    )


def _on_deferred(bench: Bench, second: Assumed | Predictions, confidence: float) -> dict[str, Interval]:
    if isinstance(second, Predictions):
        return measured_range(second, ~bench.decisions.exits, bench.labels, bench.independent, confidence)
    middle = second.middle
    return {
        "sensitivity": (middle.sensitivity, *second.sensitivity),
        "specificity": (middle.specificity, *second.specificity),
    }


def _typical(on_deferred: Mapping[str, Interval]) -> StageTwo:
    """Stage 2 as the cheapest threshold is chosen with; a rate of no case at all is taken for 1."""
    return StageTwo(
        *(1.0 if np.isnan(on_deferred[name][0]) else on_deferred[name][0] for name in ("sensitivity", "specificity"))
    )


def _errors(second: Assumed | Predictions, labels: IntArray) -> list[FloatArray]:
    """(N,) probabilities that stage 2 is wrong: its answers, or first the middle of the range and then its corners."""
    if isinstance(second, Predictions):
        return [second.wrong]
    corners = [corner for corner in second.corners() if corner != second.middle]
    return [errors_of(one, labels) for one in (second.middle, *corners)]


def _measured(
    bench: Bench,
    prices: Prices,
    cases: Cases,
    second: Assumed | Predictions,
    exits: Mapping[str, BoolArray],
    options: dict[str, Any],
) -> dict[str, Measured]:
    """By key the ways of which stage 2's part is known; intervals span the range of stage 2."""
    errors = _errors(second, bench.labels)
    known = [key for key in WAYS if not np.isnan(errors[0][~exits[key]]).any()]
    found = []
    for wrong in errors:
        ways = [bench.way(key, exits[key], wrong) for key in known]
        found.append(measure(prices, cases, ways, **options, rng=rng_of(bench.run.config.seed, "cascade")))
    spanned = {key: _spanned([ways[at] for ways in found]) for at, key in enumerate(known)}
    if "stage2_alone" in known:
        return spanned
    unknown = (float("nan"),) * 3
    return {key: replace(one, saved=unknown) for key, one in spanned.items()}


def _spanned(found: Sequence[Measured]) -> Measured:
    """The first with intervals that hold those of all."""
    first = found[0]
    wide = {
        name: (
            getattr(first, name)[0],
            min(getattr(one, name)[1] for one in found),
            max(getattr(one, name)[2] for one in found),
        )
        for name in ("cost", "saved", "recall")
    }
    return replace(first, **wide)


def _row(
    bench: Bench,
    prices: Prices,
    demand: Demand,
    cases: Cases,
    second: Assumed | Predictions,
    key: str,
    exits: BoolArray,
    measured: Measured | None,
) -> Row:
    coverage = float(cases.mean(exits.astype(np.float64)))
    counted = exits & cases.independent
    fnr = count_decisions(counted, bench.decisions.predictions, bench.labels).fnr[0]
    even = _break_even(bench, prices, cases, second, exits) if exits.any() else None
    a_day = None if demand.volume is None else deferrals(demand.volume, coverage)
    return Row(key, coverage, float(fnr), measured, a_day, even)


def _break_even(
    bench: Bench, prices: Prices, cases: Cases, second: Assumed | Predictions, exits: BoolArray
) -> tuple[float, float] | None:
    """Against stage 2 on the cases that exit; None where its answers to them are not known, or no positive exits."""
    if isinstance(second, Assumed):
        on_exited = second.middle
    elif np.isnan(second.wrong[exits]).any():
        return None
    else:
        everyone = np.ones_like(exits)
        on_exited = _typical(measured_range(second, exits, bench.labels, everyone, bench.artifact["fnr_confidence"]))
    counts = count_decisions(exits, bench.decisions.predictions, bench.labels)
    of_exits = Exits.of(counts, cases.prevalence)
    found = [float(np.ravel(break_even(prices, of_exits, on_exited, stage1_runs=runs))[0]) for runs in (True, False)]
    return None if np.isnan(found).any() else (found[0], found[1])


def _capacity(bench: Bench, demand: Demand, coverage: float) -> tuple[Capacity | None, float | None]:
    """The certified coverage against the capacity, and the smallest target at the coverage that it needs."""
    if demand.capacity is None or demand.volume is None:
        return None, None
    found = against_capacity(demand.volume, demand.capacity, coverage)
    if found.fits or in_expectation(bench.artifact) or "groups" in bench.artifact:
        return found, None
    calib = bench.run.scores("val_calib")
    reached = Exits.of(bench.ladder.counts(calib), demand.prevalence).coverage
    enough = np.flatnonzero(reached >= found.floor)
    if not enough.size:
        return found, 1.0
    counts = bench.ladder.counts(calib, independence(calib)[0])
    evidence = int(counts.misses[enough[0]]), int(counts.exited_positives[enough[0]])
    return found, smallest_target(*evidence, 1 - bench.artifact["fnr_confidence"])


def _curve(bench: Bench, prices: Prices, cases: Cases, second: Assumed | Predictions) -> FloatArray:
    """(K, 3) coverage, lowest and highest cost per 1,000 cases of candidates, were each threshold in force."""
    candidates = len(bench.ladder.rows)
    errors, points = _errors(second, bench.labels), []
    for at in np.unique(np.linspace(0, candidates - 1, min(candidates, CURVE_POINTS)).round().astype(int)):
        exits = bench.ladder.at(int(at)).decide(bench.test).exits
        costs = [
            1000 * float(cases.mean(case_costs(prices, cases.labels, bench.way("cheapest", exits, wrong))))
            for wrong in errors
        ]
        points.append((float(cases.mean(exits.astype(np.float64))), min(costs), max(costs)))
    return np.array(points).reshape(-1, 3)
