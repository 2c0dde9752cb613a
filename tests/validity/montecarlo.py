"""Repeated calibration on fresh draws, and the assertion that every certificate has to meet."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from population import Population, z_threshold
from scipy.stats import binom

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import Calibration
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.scores import Scores

Draw = tuple[Scores, Scores]
Choice = Callable[[Calibration], float | None]


@dataclass(frozen=True)
class Outcomes:
    """fnr, coverage: (R,) true values of the policy of each draw, NaN where nothing was certified; coverage
    None where its truth is not known. oracle: the largest coverage that a softmax threshold may have, NaN where
    it is not known."""

    fnr: np.ndarray
    coverage: np.ndarray | None
    oracle: float = np.nan

    @property
    def none_found(self) -> float:
        return float(np.isnan(self.fnr).mean())

    @property
    def mean_coverage(self) -> float:
        """Mean over all draws; a draw without a certificate covers nothing."""
        return np.nan if self.coverage is None else float(np.nan_to_num(self.coverage).mean())

    def violations(self, target_fnr: float) -> int:
        return int((self.fnr > target_fnr).sum())


@dataclass(frozen=True)
class Measured:
    """One assertion of validity: what it was made on, and how many false certificates it lets pass."""

    found: Outcomes
    risk: Risk
    allowed: int

    @property
    def false(self) -> int:
        return self.found.violations(self.risk.target_fnr)


MEASURED: list[Measured] = []
"""What the running test has asserted so far; conftest collects it for the summary."""


def certified_threshold(calibration: Calibration) -> float | None:
    answer = calibration.walk.answer
    return None if answer is None else calibration.parameters[answer]["threshold"]


def naive_threshold(calibration: Calibration) -> float | None:
    """Largest coverage whose empirical FNR on exits meets the target."""
    met = np.flatnonzero(calibration.walk.calib.fnr <= calibration.risk.target_fnr)
    return calibration.parameters[met[-1]]["threshold"] if met.size else None


def repeat(draws: Iterable[Draw], risk: Risk, population: Population, choose: Choice = certified_threshold) -> Outcomes:
    """Calibrate the softmax policy on each (val_select, val_calib) and look up what it truly does."""
    thresholds = [choose(calibrate_softmax(select, calib, risk)) for select, calib in draws]
    return outcomes(population, thresholds, softmax_oracle(population, risk.target_fnr))


def softmax_oracle(population: Population, target_fnr: float) -> float:
    """Coverage of the loosest softmax threshold that meets the target; 0 where none does, NaN with tied scores."""
    if population.step:
        return np.nan
    return population.oracle_coverage(target_fnr) if population.fnr(10) < target_fnr else 0.0


def outcomes(population: Population, thresholds: list[float | None], oracle: float = np.nan) -> Outcomes:
    z = [None if threshold is None else z_threshold(threshold) for threshold in thresholds]
    return Outcomes(
        np.array([np.nan if t is None else population.fnr(t) for t in z]),
        np.array([np.nan if t is None else population.coverage(t) for t in z]),
        oracle,
    )


def demand_valid(outcomes: Outcomes, risk: Risk) -> None:
    """At most delta of the certificates may be false, give or take the luck of these draws."""
    draws = outcomes.fnr.size
    measured = Measured(outcomes, risk, int(binom.ppf(0.999, draws, risk.delta)))
    MEASURED.append(measured)
    assert measured.false <= measured.allowed, (
        f"{measured.false} false certificates in {draws} draws; {measured.allowed} allowed at delta {risk.delta:g}"
    )
