"""What a share of audits buys: how many audited positives, and cases, until a broken promise is noticed.

Only audited positives that exit carry evidence about FNR on exits; deferred cases say nothing about it. Look
at this table before you choose the share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.monitor.wealth import PromiseTest, Wealth

BROKEN = (5.0, 2.5, 2.0)
"""Multiples of the target that the table speaks of: .10, .05 and .04 where the target is .02."""
GOOD = 0.25
"""What the rate was before the change, as a share of the target."""
RUNS, CHUNK = 400, 50


@dataclass(frozen=True, slots=True)
class Delay:
    """Median number of audited exited positives until the alarm, of a rate that is wrong from the start and of
    one that goes wrong after `before` good ones; infinite where fewer than half of the runs alarm."""

    rate: float
    from_start: float
    before: int
    after_change: float

    def audited(self, prevalence: float) -> float:
        """Audited exits that hold so many positives. prevalence: share of positives among exits."""
        return self.from_start / prevalence

    def exits(self, prevalence: float, share: float) -> float:
        """Exits until the alarm, from the start. share: audited share of the exits."""
        return self.audited(prevalence) / share


def delays(test: PromiseTest, seed: int = 0, before: int = 1000) -> list[Delay]:
    """Simulated delays for rates of 5, 2.5 and 2 times the target; takes a few seconds."""
    rng = np.random.default_rng(seed)
    rates = [min(0.9, multiple * test.target_fnr) for multiple in BROKEN]
    return [Delay(rate, _median(test, rate, 0, rng), before, _median(test, rate, before, rng)) for rate in rates]


def remaining(test: PromiseTest, wealth: Wealth, rate: float, seed: int = 0) -> float:
    """Median number of further audited positives until the alarm, if the rate is `rate` from now on."""
    rng = np.random.default_rng(seed)
    cases = _horizon(test, rate)
    runs = [first_alarms(test, rng.random((CHUNK, cases)) < rate, wealth) for _ in range(RUNS // CHUNK)]
    return float(np.median(np.concatenate(runs)))


def first_alarms(test: PromiseTest, missed: np.ndarray, wealth: Wealth | None = None) -> FloatArray:
    """(R,) number of the case at which each run alarms, infinite where it never does.

    missed: (R, n) 0 and 1; wealth: what the runs go on from, else the start.
    """
    log_wealth, _ = test.feed(wealth or test.initial(), test.bets(missed))
    alarmed = log_wealth >= test.bar
    return np.where(alarmed.any(axis=1), alarmed.argmax(axis=1) + 1.0, np.inf)


def _median(test: PromiseTest, rate: float, before: int, rng: np.random.Generator) -> float:
    """Median cases from the change to the alarm; runs that alarmed before the change are left out."""
    cases = before + _horizon(test, rate)
    rates = np.where(np.arange(cases) < before, GOOD * test.target_fnr, rate)
    first = np.concatenate([first_alarms(test, rng.random((CHUNK, cases)) < rates) for _ in range(RUNS // CHUNK)])
    return float(np.median(first[first > before] - before))


def _horizon(test: PromiseTest, rate: float) -> int:
    """Cases that are simulated: 45 misses, or as many cases as were planned."""
    return max(1, min(test.planned, math.ceil(45 / rate)))
