"""The certificate of the gate policy holds with every calibrator, whatever the gate knows.

Answers come from MAIN's z; the gate is drawn beside it, so that the truth of any pair of thresholds on the
gate, one per answer, is known in closed form.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
from gates import GATES, INFORMATIVE, Gate, Thresholds, least_logits
from montecarlo import DRAWS, Draw, Outcomes, demand_valid, softmax_oracle
from montecarlo import repeat as repeat_softmax
from population import MAIN

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.gate import GateCalibration, calibrate_gate

pytestmark = pytest.mark.mc

CONTROL_DRAWS = 300
RISK = Risk(0.05, 0.9)


def certified(gate: GateCalibration) -> Thresholds | None:
    """The certified threshold of the score, as least gate logit for each answer."""
    answer = gate.calibration.walk.answer
    return None if answer is None else thresholds_of(gate, answer)


def naive(gate: GateCalibration) -> Thresholds | None:
    met = np.flatnonzero(gate.calibration.walk.calib.fnr <= gate.calibration.risk.target_fnr)
    return thresholds_of(gate, int(met[-1])) if met.size else None


def thresholds_of(gate: GateCalibration, index: int) -> Thresholds:
    return least_logits(gate.params, gate.calibration.parameters[index]["threshold"], gate.calibration.rule_name)


Choice = Callable[[GateCalibration], Thresholds | None]


def repeat(
    gate: Gate, kind: str, risk: Risk, draws: Iterator[Draw], choose: Choice = certified, rule: str = "symmetric"
) -> Outcomes:
    """A refusal to calibrate (an anti-informative or constant gate) is a draw without a certificate."""
    found = []
    for select, calib in draws:
        try:
            thresholds = choose(calibrate_gate(select, calib, risk, kind, rule))
        except UserError:
            thresholds = None
        found.append((np.nan, np.nan) if thresholds is None else gate.truth(thresholds))
    fnr, coverage = np.array(found).T
    return Outcomes(fnr, coverage, softmax_oracle(gate.population, risk.target_fnr))


def test_closed_form_is_what_cases_show() -> None:
    for gate in (INFORMATIVE, GATES["independent of z"], GATES["target out of reach"], GATES["tied"]):
        ((split, _),) = gate.draws(1, cases=10**6)
        z = split.logits[:, 1]
        for thresholds in ((0.3, -0.2), (1.0, 1.5)):
            exits = split.gate_logit >= np.where(z >= 0, thresholds[1], thresholds[0])
            exited = exits & (split.labels == 1)
            fnr, coverage = gate.truth(thresholds)
            assert exits.mean() == pytest.approx(coverage, abs=0.002)
            assert (z[exited] < 0).mean() == pytest.approx(fnr, abs=0.003)


MAPPED = ("informative", "knows nothing", "tied", "2 % positives")
"""Where the other maps are tried; the pairs of SCRC rest on the quantile map in every population."""


@pytest.mark.parametrize(("name", "kind"), [*product(GATES, ("platt",)), *product(MAPPED, ("isotonic", "quantile"))])
def test_certificates_hold(name: str, kind: str) -> None:
    gate = GATES[name]
    demand_valid(repeat(gate, kind, RISK, gate.draws(DRAWS)), RISK)


@pytest.mark.parametrize("name", GATES)
def test_one_sided_certificates_hold(name: str) -> None:
    """Of the map only the order of answers 0 is left, so one kind stands for all."""
    gate = GATES[name]
    demand_valid(repeat(gate, "quantile", RISK, gate.draws(DRAWS), rule="one_sided"), RISK)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_certificates_are_worth_having(kind: str) -> None:
    """What the gate knows is worth more than the softmax oracle of the same population."""
    found = repeat(INFORMATIVE, kind, RISK, INFORMATIVE.draws(100, 1, 10_000))
    demand_valid(found, RISK)
    assert found.none_found <= 0.10
    assert found.mean_coverage >= 0.7 * MAIN.oracle_coverage(RISK.target_fnr)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "quantile"])
def test_one_sided_certificates_are_worth_having(kind: str) -> None:
    """With 300 positives: more than softmax certifies by the same rule, and more than the symmetric gate."""
    found = repeat(INFORMATIVE, kind, RISK, INFORMATIVE.draws(100, 1, 1000), rule="one_sided")
    demand_valid(found, RISK)
    assert found.none_found <= 0.02
    softmax = repeat_softmax(INFORMATIVE.draws(100, 1, 1000), RISK, MAIN, rule="one_sided")
    assert found.mean_coverage >= softmax.mean_coverage + 0.05
    assert found.mean_coverage >= repeat(INFORMATIVE, kind, RISK, INFORMATIVE.draws(100, 1, 1000)).mean_coverage


def test_control_naive_threshold() -> None:
    found = repeat(INFORMATIVE, "quantile", RISK, INFORMATIVE.draws(CONTROL_DRAWS), naive)
    with pytest.raises(AssertionError, match="false certificates"):
        demand_valid(found, RISK)
