"""Repeated calibration on fresh draws, and the assertion that every certificate has to meet."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from population import Population, z_threshold
from scipy.stats import binom

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import Calibration
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.policies.placement import Prices, place_answers
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.scores import Scores

DRAWS = 1000
"""Of each cell; --mc-draws sets another number, to see that all runs."""
Draw = tuple[Scores, Scores]
Choice = Callable[[Calibration], float | None]


@dataclass(frozen=True)
class Outcomes:
    """fnr, coverage: (R,) true values of the policy of each draw, NaN where nothing was certified; coverage
    None where its truth is not known; utility: (R,) likewise, coverage less five for each false alarm. oracle: the
    largest coverage that a symmetric softmax threshold may have, NaN where it is not known."""

    fnr: np.ndarray
    coverage: np.ndarray | None
    oracle: float = np.nan
    utility: np.ndarray | None = None

    @property
    def none_found(self) -> float:
        return float(np.isnan(self.fnr).mean())

    @property
    def mean_coverage(self) -> float:
        """Mean over all draws; a draw without a certificate covers nothing."""
        return np.nan if self.coverage is None else float(np.nan_to_num(self.coverage).mean())

    @property
    def mean_utility(self) -> float:
        return np.nan if self.utility is None else float(np.nan_to_num(self.utility).mean())

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


def walked_threshold(calibration: Calibration) -> float | None:
    """What the walk alone certifies."""
    start, passed = calibration.walk.start, calibration.walk.p_values <= calibration.risk.delta
    run = int(np.logical_and.accumulate(passed[start:]).sum())
    return calibration.parameters[start + run - 1]["threshold"] if run else None


def naive_threshold(calibration: Calibration) -> float | None:
    """Largest coverage whose empirical FNR on exits meets the target."""
    met = np.flatnonzero(calibration.walk.calib.fnr <= calibration.risk.target_fnr)
    return calibration.parameters[met[-1]]["threshold"] if met.size else None


def repeat(
    draws: Iterable[Draw],
    risk: Risk,
    population: Population,
    choose: Choice = certified_threshold,
    rule: str = "symmetric",
    place: bool = False,
) -> Outcomes:
    """Calibrate the softmax policy on each (val_select, val_calib) and look up what it truly does.

    place: with answers placed on val_select, as training places them.
    """
    thresholds, shifts = [], []
    for select, calib in draws:
        shift = placed_shift(select, calib, risk) if place else 0.0
        thresholds.append(choose(calibrate_softmax(moved(select, shift), moved(calib, shift), risk, rule)))
        shifts.append(shift)
    return outcomes(population, thresholds, softmax_oracle(population, risk.target_fnr), rule, shifts)


def placed_shift(select: Scores, calib: Scores, risk: Risk) -> float:
    """Where val_select places the answers; of val_calib only the number of its positives is used."""
    independent = np.ones(len(select), dtype=bool)
    z = class_margin(select.logits)
    return place_answers(z, select.labels, independent, calib.positives, risk, Prices(), 0).shift


def moved(split: Scores, shift: float) -> Scores:
    """The scores of a model whose bias holds the shift."""
    return replace(split, logits=split.logits + np.array([0, shift], np.float32)) if shift else split


def softmax_oracle(population: Population, target_fnr: float) -> float:
    """Coverage of the loosest softmax threshold that meets the target; 0 where none does, NaN with tied scores."""
    if population.step:
        return np.nan
    if population.fnr(0) <= target_fnr:
        return population.coverage(0)
    return population.oracle_coverage(target_fnr) if population.fnr(10) < target_fnr else 0.0


def outcomes(
    population: Population,
    thresholds: Sequence[float | None],
    oracle: float = np.nan,
    rule: str = "symmetric",
    shifts: Sequence[float] | None = None,
) -> Outcomes:
    """What thresholds of the softmax score truly do, each at its shift of the answers."""
    cuts = [
        None if threshold is None else (z_threshold(threshold), rule, shift)
        for threshold, shift in zip(thresholds, shifts or [0.0] * len(thresholds), strict=True)
    ]
    fnr, coverage, utility = (
        np.array([np.nan if cut is None else figure(*cut) for cut in cuts])
        for figure in (population.fnr, population.coverage, population.utility)
    )
    return Outcomes(fnr, coverage, oracle, utility)


def demand_valid(outcomes: Outcomes, risk: Risk) -> None:
    """At most delta of the certificates may be false, give or take the luck of these draws."""
    draws = outcomes.fnr.size
    measured = Measured(outcomes, risk, int(binom.ppf(0.999, draws, risk.delta)))
    MEASURED.append(measured)
    assert measured.false <= measured.allowed, (
        f"{measured.false} false certificates in {draws} draws; {measured.allowed} allowed at delta {risk.delta:g}"
    )


def demand_broken(outcomes: Outcomes, risk: Risk) -> None:
    """What must not be done has to fail the same assertion."""
    with pytest.raises(AssertionError, match="false certificates"):
        demand_valid(outcomes, risk)
