"""A calibrated run at prices: what each way to run the cascade costs, misses, and asks of stage 2.

Nothing here changes what is certified: prices say what a certificate is worth, never where its threshold lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1_pro.core.cascade.bench import WAYS, Bench
from stage1_pro.core.cascade.capacity import Capacity, against_capacity, deferrals, smallest_target
from stage1_pro.core.cascade.prices import Exits, Prices, StageTwo, break_even, certified_recall, cheapest
from stage1_pro.core.cascade.stage_two import Assumed, Predictions, errors_of, measured_range
from stage1_pro.core.cascade.study import Cases, Interval, Measured, case_costs, measure
from stage1_pro.core.metrics.arrays import BoolArray, FloatArray
from stage1_pro.core.metrics.bootstrap import group_index
from stage1_pro.core.metrics.exits import count_decisions
from stage1_pro.core.policies.evidence import in_expectation
from stage1_pro.core.policies.independence import independence
from stage1_pro.core.seeds import rng_of

CURVE_POINTS = 60


@dataclass(frozen=True, slots=True)
class Demand:
    """What the cascade meets. prevalence: share of positives, None for that of the test split; volume: cases a day;
    capacity: cases a day that stage 2 takes; None where it was not said."""

    prevalence: float | None = None
    volume: int | None = None
    capacity: int | None = None


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
    index = group_index(bench.test.group.astype(str), len(bench.labels))
    cases = Cases(bench.labels, index, bench.independent, demand.prevalence)
    pricing = _Pricing(bench, prices, demand, second, cases)
    exits = pricing.exits()
    measured = pricing.measured(exits)
    rows = {key: pricing.row(key, exits[key], measured.get(key)) for key in WAYS}
    capacity, smallest = pricing.capacity(rows["certified"].coverage)
    return Cascade(
        bench=bench,
        prices=prices,
        demand=demand,
        prevalence=cases.positive_share,
        second=second,
        on_deferred=pricing.on_deferred(),
        rows=rows,
        curve=pricing.curve(),
        capacity=capacity,
        smallest=smallest,
        **pricing.options,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pricing:
    """One run at prices, under way. cases: of the test split, as costs are weighed with them."""

    bench: Bench
    prices: Prices
    demand: Demand
    second: Assumed | Predictions
    cases: Cases

    @property
    def options(self) -> dict[str, Any]:
        """How intervals are drawn."""
        config = self.bench.run.config
        return {"samples": config.bootstrap_samples, "confidence": config.bootstrap_confidence}

    def on_deferred(self) -> dict[str, Interval]:
        """Stage 2's sensitivity and specificity on the cases that the certified policy defers."""
        if isinstance(self.second, Predictions):
            bench, confidence = self.bench, self.options["confidence"]
            return measured_range(self.second, ~bench.decisions.exits, bench.labels, bench.independent, confidence)
        middle = self.second.middle
        return {
            "sensitivity": (middle.sensitivity, *self.second.sensitivity),
            "specificity": (middle.specificity, *self.second.specificity),
        }

    def exits(self) -> dict[str, BoolArray]:
        """(N,) by way the cases that stage 1 answers."""
        select = self.bench.ladder.counts(self.bench.run.scores("val_select"))
        candidate = cheapest(self.prices, select, _typical(self.on_deferred()), self.cases.prevalence)
        return {key: self.bench.exits_of(key, candidate) for key in WAYS}

    def errors(self) -> list[FloatArray]:
        """(N,) probabilities that stage 2 is wrong: its answers, or first the middle of the range, then its corners."""
        if isinstance(self.second, Predictions):
            return [self.second.wrong]
        middle = self.second.middle
        corners = [corner for corner in self.second.corners() if corner != middle]
        return [errors_of(one, self.bench.labels) for one in (middle, *corners)]

    def measured(self, exits: Mapping[str, BoolArray]) -> dict[str, Measured]:
        """By key the ways of which stage 2's part is known; intervals span the range of stage 2."""
        errors, seed = self.errors(), self.bench.run.config.seed
        known = [key for key in WAYS if not np.isnan(errors[0][~exits[key]]).any()]
        found = []
        for wrong in errors:
            ways = [self.bench.way(key, exits[key], wrong) for key in known]
            found.append(measure(self.prices, self.cases, ways, **self.options, rng=rng_of(seed, "cascade")))
        spanned = {key: _spanned([ways[at] for ways in found]) for at, key in enumerate(known)}
        if "stage2_alone" in known:
            return spanned
        unknown = (float("nan"),) * 3
        return {key: replace(one, saved=unknown) for key, one in spanned.items()}

    def row(self, key: str, exits: BoolArray, measured: Measured | None) -> Row:
        coverage = float(self.cases.mean(exits.astype(np.float64)))
        counted = exits & self.cases.independent
        fnr = count_decisions(counted, self.bench.decisions.predictions, self.bench.labels).fnr[0]
        even = self.break_even(exits) if exits.any() else None
        a_day = None if self.demand.volume is None else deferrals(self.demand.volume, coverage)
        return Row(key, coverage, float(fnr), measured, a_day, even)

    def break_even(self, exits: BoolArray) -> tuple[float, float] | None:
        """Against stage 2 on the cases that exit; None where its answers to them are not known, or no positive
        exits."""
        bench, second = self.bench, self.second
        if isinstance(second, Assumed):
            on_exited = second.middle
        elif np.isnan(second.wrong[exits]).any():
            return None
        else:
            confidence = bench.artifact["fnr_confidence"]
            on_exited = _typical(measured_range(second, exits, bench.labels, np.ones_like(exits), confidence))
        of_exits = Exits.of(count_decisions(exits, bench.decisions.predictions, bench.labels), self.cases.prevalence)
        found = [
            float(np.ravel(break_even(self.prices, of_exits, on_exited, stage1_runs=runs))[0]) for runs in (True, False)
        ]
        return None if np.isnan(found).any() else (found[0], found[1])

    def capacity(self, coverage: float) -> tuple[Capacity | None, float | None]:
        """The certified coverage against the capacity, and the smallest target at the coverage that it needs."""
        bench, demand = self.bench, self.demand
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

    def curve(self) -> FloatArray:
        """(K, 3) coverage, lowest and highest cost per 1,000 cases of candidates, were each threshold in force."""
        bench, cases, errors, points = self.bench, self.cases, self.errors(), []
        candidates = len(bench.ladder.rows)
        for at in np.unique(np.linspace(0, candidates - 1, min(candidates, CURVE_POINTS)).round().astype(int)):
            exits = bench.ladder.at(int(at)).decide(bench.test).exits
            costs = [
                1000 * float(cases.mean(case_costs(self.prices, cases.labels, bench.way("cheapest", exits, wrong))))
                for wrong in errors
            ]
            points.append((float(cases.mean(exits.astype(np.float64))), min(costs), max(costs)))
        return np.array(points).reshape(-1, 3)


def _typical(on_deferred: Mapping[str, Interval]) -> StageTwo:
    """Stage 2 as the cheapest threshold is chosen with; a rate of no case at all is taken for 1."""
    return StageTwo(
        *(1.0 if np.isnan(on_deferred[name][0]) else on_deferred[name][0] for name in ("sensitivity", "specificity"))
    )


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
