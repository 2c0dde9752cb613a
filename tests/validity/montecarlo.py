"""Repeated calibration on fresh draws, and the assertion that every certificate has to meet."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from population import Population, z_threshold
from scipy.stats import binom

from stage1_pro.core.policies.calibration import Calibration
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.run import Risk
from stage1_pro.core.scores import Scores

Draw = tuple[Scores, Scores]
Choice = Callable[[Calibration], float | None]


@dataclass(frozen=True)
class Outcomes:
    """fnr, coverage: (R,) true values of the policy of each draw, NaN where nothing was certified."""

    fnr: np.ndarray
    coverage: np.ndarray

    @property
    def none_found(self) -> float:
        return float(np.isnan(self.fnr).mean())

    @property
    def mean_coverage(self) -> float:
        """Mean over all draws; a draw without a certificate covers nothing."""
        return float(np.nan_to_num(self.coverage).mean())

    def violations(self, target_fnr: float) -> int:
        return int((self.fnr > target_fnr).sum())


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
    return outcomes(population, thresholds)


def outcomes(population: Population, thresholds: list[float | None]) -> Outcomes:
    z = [None if threshold is None else z_threshold(threshold) for threshold in thresholds]
    return Outcomes(
        np.array([np.nan if t is None else population.fnr(t) for t in z]),
        np.array([np.nan if t is None else population.coverage(t) for t in z]),
    )


def demand_valid(outcomes: Outcomes, risk: Risk) -> None:
    """At most delta of the certificates may be false, give or take the luck of these draws."""
    allowed = binom.ppf(0.999, outcomes.fnr.size, risk.delta)
    found = outcomes.violations(risk.target_fnr)
    draws = outcomes.fnr.size
    assert found <= allowed, (
        f"{found} false certificates in {draws} draws; {allowed:.0f} allowed at delta {risk.delta:g}"
    )
