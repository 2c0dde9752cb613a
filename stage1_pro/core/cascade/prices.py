"""One system of prices, and what a cascade costs, misses and may miss at them.

Prices come from outside: what a case costs in stage 1 and in stage 2, what a miss and what a false alarm costs,
all in one currency. The target of FNR on exits comes from outside too: no price changes what is certified.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import numpy as np

from stage1_pro.core.errors import raise_problems
from stage1_pro.core.metrics.arrays import FloatArray, ratio
from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.schemas import did_you_mean

LEAST_PLACING = 2.0
"""Below this false alarms are so cheap against a deferral that every answer would exit."""
NAMES = {
    "c1": "a case in stage 1",
    "c2": "a case in stage 2",
    "cm": "a miss",
    "cf": "a false alarm",
}
"""The prices as prices.yaml has them."""
Number = float | FloatArray


@dataclass(frozen=True, slots=True)
class Prices:
    """stage1, stage2: of a case that passes the stage; miss, false_alarm: of a wrong answer that nobody corrects.

    >>> Prices(0.001, 0.5, 200, 5).false_alarm_price
    10.0
    """

    stage1: float
    stage2: float
    miss: float
    false_alarm: float

    @property
    def false_alarm_price(self) -> float:
        """In deferrals, as answers are placed with."""
        return self.false_alarm / self.stage2

    @property
    def miss_price(self) -> float:
        """In deferrals, as answers are placed with."""
        return self.miss / self.stage2

    @property
    def can_place(self) -> bool:
        """Whether answers can be placed at these prices."""
        return self.false_alarm_price >= LEAST_PLACING


@dataclass(frozen=True, slots=True)
class StageTwo:
    """Sensitivity and specificity of stage 2 on the cases that are deferred, which are the hard ones."""

    sensitivity: float
    specificity: float


@dataclass(frozen=True, slots=True, eq=False)
class Exits:
    """What stage 1 does, as rates (...,): positive_exits, negative_exits: e1, e0, shares of positives and of negatives
    that exit; misses: m1 = P(exit and miss | 1); false_alarms: f0 = P(exit and false alarm | 0)."""

    prevalence: Number
    positive_exits: Number
    negative_exits: Number
    misses: Number
    false_alarms: Number

    @classmethod
    def of(cls, counts: ExitCounts, prevalence: float | None = None) -> Exits:
        """The rates (J,) of counted candidates. prevalence: in place of the share of positives among the cases."""
        negatives = counts.cases - counts.positives
        return cls(
            ratio(counts.positives, counts.cases) if prevalence is None else prevalence,
            ratio(counts.exited_positives, counts.positives),
            ratio(counts.exited_negatives, negatives),
            ratio(counts.misses, counts.positives),
            ratio(counts.false_alarms, negatives),
        )

    @property
    def coverage(self) -> Number:
        """Share of all cases that exit."""
        return self.prevalence * self.positive_exits + (1 - self.prevalence) * self.negative_exits

    def recall(self, second: StageTwo) -> Number:
        """Share of positives that the whole cascade answers 1."""
        return 1 - self.misses - (1 - self.positive_exits) * (1 - second.sensitivity)

    def false_alarm_rate(self, second: StageTwo) -> Number:
        """Share of negatives that the whole cascade answers 1."""
        return self.false_alarms + (1 - self.negative_exits) * (1 - second.specificity)

    def precision(self, second: StageTwo) -> Number:
        """Share of positives among the cascade's answers 1."""
        found = self.prevalence * self.recall(second)
        return found / (found + (1 - self.prevalence) * self.false_alarm_rate(second))


NOTHING_EXITS = {"positive_exits": 0.0, "negative_exits": 0.0, "misses": 0.0, "false_alarms": 0.0}


def cost_per_thousand(prices: Prices, exits: Exits, second: StageTwo) -> Number:
    """Cost of 1,000 cases of the whole cascade, (...,) as the rates."""
    deferred = 1 - exits.coverage
    missed = exits.prevalence * (1 - exits.recall(second))
    alarmed = (1 - exits.prevalence) * exits.false_alarm_rate(second)
    per_case = prices.stage1 + prices.stage2 * deferred + prices.miss * missed + prices.false_alarm * alarmed
    return 1000 * per_case


def cost_without_stage1(prices: Prices, prevalence: float, second: StageTwo) -> float:
    """Cost of 1,000 cases where stage 2 answers all of them and stage 1 does not run."""
    running = cost_per_thousand(prices, Exits(prevalence, **NOTHING_EXITS), second)
    return float(running) - 1000 * prices.stage1


def break_even(prices: Prices, exits: Exits, second: StageTwo, *, stage1_runs: bool) -> Number:
    """The FNR on exits at which the cascade costs as much as sending everything to stage 2, (...,) as the rates.

    stage1_runs: whether stage 1 would run there too. NaN where no positive exits, or a miss costs nothing.
    """
    alarms = exits.false_alarms - exits.negative_exits * (1 - second.specificity)
    saved = prices.stage2 * exits.coverage - (1 - exits.prevalence) * prices.false_alarm * alarms
    if not stage1_runs:
        saved = saved - prices.stage1
    return (1 - second.sensitivity) + ratio(saved, exits.prevalence * exits.positive_exits * prices.miss)


def certified_recall(target_fnr: float, second: StageTwo) -> float:
    """Least recall of the cascade that the certificate holds, given stage 2's sensitivity on deferred cases."""
    return 1 - max(target_fnr, 1 - second.sensitivity)


def cheapest(prices: Prices, select: ExitCounts, second: StageTwo, prevalence: float | None = None) -> int:
    """The candidate of val_select that costs least; the one of smaller coverage where several do.

    prevalence: share of positives where the cascade will run, None for that of val_select.

    Where the certification may end early: chosen before val_calib is read, so that the certificate stays valid.
    Chosen by val_calib instead the promise breaks in .110 of the runs at .05.
    """
    return int(np.argmin(np.asarray(cost_per_thousand(prices, Exits.of(select, prevalence), second))))


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """Where prices end a certification: at val_select's cheapest candidate. prevalence: as of `cheapest`."""

    prices: Prices
    second: StageTwo
    prevalence: float | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> EarlyEnd:
        """The end that a policy file records."""
        prices = Prices(*(record[name] for name in NAMES))
        return cls(prices, StageTwo(record["sensitivity"], record["specificity"]), record["prevalence"])

    def __call__(self, select: ExitCounts) -> int:
        return cheapest(self.prices, select, self.second, self.prevalence)

    def record(self) -> dict[str, float | None]:
        """What the policy file says of it."""
        prices = zip(NAMES, (getattr(self.prices, field.name) for field in fields(self.prices)), strict=True)
        return {
            **dict(prices),
            "sensitivity": self.second.sensitivity,
            "specificity": self.second.specificity,
            "prevalence": self.prevalence,
        }


def price_problems(data: Any, where: str) -> list[str]:
    """Everything that keeps a parsed file from being c1, c2, cm and cf."""
    if not isinstance(data, dict):
        return [f"{where}: holds no prices; allowed are lines such as `c1: 0.001`"]
    problems = [f"{where}: {name} is missing ({NAMES[name]})" for name in NAMES if name not in data]
    problems += [
        f"{where}: {name} is not a known price{did_you_mean(str(name), list(NAMES))}"
        for name in data
        if name not in NAMES
    ]
    for name, value in ((name, data[name]) for name in NAMES if name in data):
        if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
            problems.append(f"{where}: {name} is {value!r}; allowed 0 or more")
    if data.get("c2") == 0:
        problems.append(f"{where}: c2 is 0; allowed above 0: where a deferral is free, defer everything")
    return problems


PRICES_MEANT = f"Prices are of one case each, in one currency: {'; '.join(map(': '.join, NAMES.items()))}."


def prices_from(data: Any, where: str) -> Prices:
    """Prices out of a parsed file with c1, c2, cm and cf. Raises UserError with all problems."""
    raise_problems("these prices cannot be used:", price_problems(data, where), PRICES_MEANT)
    return Prices(*(float(data[name]) for name in NAMES))
