"""The test that may be looked at after every case: a wealth that grows only where the promise is broken.

Audited exited positives come one after the other. On each a dozen bets are placed that FNR on exits is
above the target: some from the first case on, some from a change at any later one. As long as each case is
missed with probability <= target given the past, the wealth M is a non-negative supermartingale that starts
at 1, so it ever reaches 1/delta with probability <= delta, however often one looks (Ville 1939). A test of
fixed size repeated at every look alarms falsely in .44 of all runs.

The alarm says "at some time FNR on exits was above the target". It does not say "the promise is broken": a
rate that swings about a mean of exactly the target, in blocks of 100 to 500 positives, alarms in .07 to .27.

What a share of audits buys is simulated with the same test: look at that table before you choose the share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from stage1_pro.core.metrics.arrays import FloatArray, IntArray

BETS = 12
FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the largest bet that a score-dependent audit allows; all five are placed, a fifth of the wealth each."""


@dataclass(frozen=True, slots=True, eq=False)
class Wealth:
    """Logs of what each of the J bets is worth. start, change: (..., J); fed: cases so far."""

    start: FloatArray
    change: FloatArray
    fed: int


@dataclass(frozen=True)
class PromiseTest:
    """Half of the wealth bets that the rate was wrong from the start, half on a change at any of the first `planned`.

    target_fnr: α; delta: chance of a false alarm, ever; planned: audited exited positives until the certificate
    expires; least: None for a uniform audit, else the smallest audit probability of any exit answered 1 (fixed
    before the first case) of an audit that takes doubtful cases more often. Wrong from the start at .05 instead
    of .02 the alarm comes after 202 cases (median), after a good thousand within 390.

    >>> test = PromiseTest(0.02, 0.05)
    >>> log_wealth, _ = test.feed(test.initial(), test.bets(np.array([1, 1, 1])))
    >>> round(float(np.exp(log_wealth[-1])), 4)
    178.7516
    """

    target_fnr: float
    delta: float
    planned: int = 2000
    least: float | None = None

    def __post_init__(self) -> None:
        if not (0 < self.target_fnr < 0.4 and 0 < self.delta < 1 and self.planned >= 1):
            raise ValueError(f"{self}: allowed target_fnr 0 to 0.4, delta 0 to 1, planned 1 or more")

    @cached_property
    def rates(self) -> FloatArray:
        """(12,) the rates that the bets of a uniform audit are on, 1.25 times the target to one half."""
        return self.target_fnr * np.exp(np.linspace(math.log(1.25), math.log(0.5 / self.target_fnr), BETS))

    @cached_property
    def log_weights(self) -> FloatArray:
        """(J,) logs of the shares of the bets; in a uniform audit most are on about three times the target."""
        if self.least is not None:
            return np.full(len(FRACTIONS), -math.log(len(FRACTIONS)))
        logs = -0.5 * ((np.log(self.rates) - math.log(3 * self.target_fnr)) / 0.8) ** 2
        return logs - np.logaddexp.reduce(logs)

    @property
    def bar(self) -> float:
        """Log of the wealth at which the alarm goes off."""
        return -math.log(self.delta)

    def initial(self) -> Wealth:
        """The wealth before the first case."""
        bets = self.log_weights.size
        return Wealth(np.zeros(bets), np.full(bets, -np.inf), 0)

    def bets(self, missed: ArrayLike, probability: ArrayLike | None = None) -> FloatArray:
        """(..., J) log factors of cases in a fixed order. missed: (...,) 0 and 1; probability: (...,) with which
        each was audited, needed where that differs from case to case.

        Raises ValueError where a hit was audited with less than `least`: its factor could fall below 0.
        """
        missed = np.asarray(missed, dtype=np.float64)
        if self.least is None:
            hit = np.log1p(-self.rates) - math.log1p(-self.target_fnr)
            return np.where(missed[..., np.newaxis] > 0, np.log(self.rates / self.target_fnr), hit)
        audited = np.asarray(probability, dtype=np.float64)
        if np.any(audited[missed == 0] < self.least * (1 - 1e-9)) or np.any(audited <= 0):
            raise ValueError(f"a hit was audited with a probability below {self.least:g}, the least that was fixed")
        sizes = np.array(FRACTIONS) * self.least / self.target_fnr
        return np.log1p(sizes * ((missed - self.target_fnr) / audited)[..., np.newaxis])

    def feed(self, wealth: Wealth, bets: FloatArray) -> tuple[FloatArray, Wealth]:
        """Let n cases follow. bets: (..., n, J) log factors. Returns log M (..., n) after each of them, and the
        worths of the bets as paths (..., n, J), which `after` cuts where it stopped."""
        grown = np.cumsum(bets, axis=-2)
        number = wealth.fed + 1 + np.arange(bets.shape[-2])
        # A bet on a change at case v is worth the product of the factors from v on, so the sum over all v is
        # the running product times a sum of inverse products; in logs, since both leave the range of floats.
        placed = np.where(number <= self.planned, -math.log(self.planned), -np.inf)[:, np.newaxis]
        opened = np.logaddexp.accumulate(placed - (grown - bets), axis=-2)
        start = wealth.start[..., np.newaxis, :] + grown
        change = grown + np.logaddexp(wealth.change[..., np.newaxis, :], opened)
        paths = Wealth(start, change, wealth.fed + bets.shape[-2])
        return self._log_wealth(start, change, number), paths

    def after(self, wealth: Wealth, paths: Wealth, count: int) -> Wealth:
        """The wealth after the first `count` of the cases that `feed` led from `wealth` along `paths`."""
        if count == 0:
            return wealth
        return Wealth(paths.start[..., count - 1, :], paths.change[..., count - 1, :], wealth.fed + count)

    def log_wealth(self, wealth: Wealth) -> float:
        """log M; the alarm goes off where it reaches `bar`."""
        return float(self._log_wealth(wealth.start, wealth.change, np.array(wealth.fed)))

    def _log_wealth(self, start: FloatArray, change: FloatArray, number: IntArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            unplaced = np.log(np.maximum(0.0, 1 - number / self.planned))  # what still waits for a change
        bets = np.logaddexp.reduce(np.logaddexp(start, change) + self.log_weights, axis=-1)
        return np.logaddexp(bets, unplaced) - math.log(2)


# ---- what a share of audits buys: positives until a broken promise is noticed

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
