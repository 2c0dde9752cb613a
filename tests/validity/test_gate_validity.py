"""The certificate of the gate policy holds with every calibrator, whatever the gate knows.

Answers come from MAIN's z; the gate is drawn beside it, so that the truth of any pair of thresholds on the
gate, one per answer, is known in closed form.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
from montecarlo import Draw, Outcomes, demand_valid, softmax_oracle
from population import MAIN, NULL, Population, scores
from scipy.special import ndtr

from stage1_pro.core.errors import UserError
from stage1_pro.core.policies.calibrators import calibrated
from stage1_pro.core.policies.gate import GateCalibration, calibrate_gate
from stage1_pro.core.run import Risk

pytestmark = pytest.mark.mc

DRAWS = 1000
CONTROL_DRAWS = 300
CASES = 4000
RISK = Risk(0.05, 0.9)
Thresholds = tuple[float, float]
"""Least gate logit that exits, for answer 0 and answer 1."""


@dataclass(frozen=True)
class Gate:
    """g = margin·|z| + knowledge·(±1, right or wrong) + spread·noise; truth: (fnr, coverage) at thresholds."""

    population: Population = MAIN
    margin: float = 0.0
    knowledge: float = 0.0
    spread: float = 1.0

    def draws(self, count: int, seed: int = 0, cases: int = CASES) -> Iterator[Draw]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            z, labels = self.population.draw(rng, 2, cases)
            right = (z >= 0) == (labels == 1)
            gate = self.margin * np.abs(z) + self.knowledge * (2 * right - 1)
            gate = (gate + self.spread * rng.standard_normal(z.shape)).astype(np.float32)
            yield tuple(replace(scores(z[i], labels[i]), gate_logit=gate[i]) for i in range(2))

    def truth(self, thresholds: Thresholds) -> tuple[float, float]:
        """By integrating over z; with margin 0 the gate is independent of z given right or wrong."""
        share = self.population.positive_share
        threshold = np.where(GRID < 0, *thresholds)
        right, wrong = self._reach(threshold, 1), self._reach(threshold, -1)
        positive, negative = self._densities()
        missed, found = (positive * wrong)[GRID < 0].sum(), (positive * right)[GRID >= 0].sum()
        cleared, alarmed = (negative * right)[GRID < 0].sum(), (negative * wrong)[GRID >= 0].sum()
        total = missed + found
        return float(missed / total) if total else np.nan, float(share * total + (1 - share) * (cleared + alarmed))

    def _reach(self, threshold: np.ndarray, side: int) -> np.ndarray:
        """P(g >= threshold) at each z of the grid, for answers that are right (1) or wrong (-1)."""
        above = self.margin * np.abs(GRID) + self.knowledge * side - threshold
        return ndtr(above / self.spread) if self.spread else (above >= 0).astype(float)

    def _densities(self) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each cell of the grid, for positives and for negatives."""
        p, edges = self.population, np.append(GRID - STEP / 2, GRID[-1] + STEP / 2)
        below = (1 - p.hard_share) * ndtr(edges - p.mean) + p.hard_share * ndtr(edges - p.hard_mean)
        return np.diff(below), np.diff(ndtr(edges + p.mean))


STEP = 0.005
GRID = np.arange(-9, 9, STEP) + STEP / 2


def certified(gate: GateCalibration) -> Thresholds | None:
    """The certified threshold of the score, as least gate logit for each answer."""
    answer = gate.calibration.walk.answer
    return None if answer is None else thresholds_of(gate, answer)


def naive(gate: GateCalibration) -> Thresholds | None:
    met = np.flatnonzero(gate.calibration.walk.calib.fnr <= gate.calibration.risk.target_fnr)
    return thresholds_of(gate, int(met[-1])) if met.size else None


def thresholds_of(gate: GateCalibration, index: int) -> Thresholds:
    """By bisection: the maps rise."""
    threshold = gate.calibration.parameters[index]["threshold"]
    low, high = np.full(2, -60.0), np.full(2, 60.0)
    for _ in range(60):
        middle = (low + high) / 2
        exits = calibrated(gate.params, middle, np.array([0, 1])) >= threshold
        low, high = np.where(exits, low, middle), np.where(exits, middle, high)
    return float(high[0]), float(high[1])


Choice = Callable[[GateCalibration], Thresholds | None]


def repeat(gate: Gate, kind: str, risk: Risk, draws: Iterator[Draw], choose: Choice = certified) -> Outcomes:
    """A refusal to calibrate (an anti-informative or constant gate) is a draw without a certificate."""
    found = []
    for select, calib in draws:
        try:
            thresholds = choose(calibrate_gate(select, calib, risk, kind))
        except UserError:
            thresholds = None
        found.append((np.nan, np.nan) if thresholds is None else gate.truth(thresholds))
    fnr, coverage = np.array(found).T
    return Outcomes(fnr, coverage, softmax_oracle(gate.population, risk.target_fnr))


INFORMATIVE = Gate(margin=0.5, knowledge=0.7)
GATES = {
    "informative": INFORMATIVE,
    "independent of z": Gate(knowledge=1.0),
    "knows nothing": Gate(),
    "constant": Gate(spread=0.0),
    "2 % positives": Gate(replace(MAIN, positive_share=0.02), 0.5, 0.7),
    "50 % positives": Gate(replace(MAIN, positive_share=0.5), 0.5, 0.7),
    "target out of reach": Gate(NULL, margin=1.0, spread=0.3),
}


def test_closed_form_is_what_cases_show() -> None:
    for gate in (INFORMATIVE, GATES["independent of z"], GATES["target out of reach"]):
        ((split, _),) = gate.draws(1, cases=10**6)
        z = split.logits[:, 1]
        for thresholds in ((0.3, -0.2), (1.0, 1.5)):
            exits = split.gate_logit >= np.where(z >= 0, thresholds[1], thresholds[0])
            exited = exits & (split.labels == 1)
            fnr, coverage = gate.truth(thresholds)
            assert exits.mean() == pytest.approx(coverage, abs=0.002)
            assert (z[exited] < 0).mean() == pytest.approx(fnr, abs=0.003)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*product(GATES, ("platt", "isotonic")), ("informative", "quantile"), ("knows nothing", "quantile")],
)
def test_certificates_hold(name: str, kind: str) -> None:
    gate = GATES[name]
    demand_valid(repeat(gate, kind, RISK, gate.draws(DRAWS)), RISK)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_certificates_are_worth_having(kind: str) -> None:
    """What the gate knows is worth more than the softmax oracle of the same population."""
    found = repeat(INFORMATIVE, kind, RISK, INFORMATIVE.draws(100, 1, 10_000))
    demand_valid(found, RISK)
    assert found.none_found <= 0.10
    assert found.mean_coverage >= 0.7 * MAIN.oracle_coverage(RISK.target_fnr)


def test_control_naive_threshold() -> None:
    found = repeat(INFORMATIVE, "platt", RISK, INFORMATIVE.draws(CONTROL_DRAWS), naive)
    with pytest.raises(AssertionError, match="false certificates"):
        demand_valid(found, RISK)
