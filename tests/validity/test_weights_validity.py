"""Known weights certify for another world; estimated ones and weighted rates do not.

There as many positives are hard as `hard` says, here `bound` times fewer; the truth of a threshold there is in closed
form. Certificates come from the same path as in script 25, on what the weights keep of val_calib.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from montecarlo import certified_threshold, demand_valid, outcomes
from population import MAIN, Population, scores
from scipy.optimize import brentq
from walks import BROKEN, RISK

from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.softmax import calibrate_softmax, softmax_candidates, softmax_ranked
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.weights import Weights

pytestmark = pytest.mark.mc

DRAWS, CONTROL_DRAWS, CASES = 300, 100, 3000
THERE = replace(MAIN, hard_share=0.12)
ORACLE = THERE.coverage(brentq(lambda t: THERE.fnr(t, "one_sided") - RISK.target_fnr, 0, 5), "one_sided")
MILD, STRONG = 2.9, 7.0
ONE_SIDED = EXIT_RULES["one_sided"]


@dataclass(frozen=True)
class World:
    """Cases are drawn here. bound: hard positives are so many times as frequent there; cases: of a split."""

    bound: float
    cases: int = CASES

    @property
    def here(self) -> Population:
        return replace(THERE, hard_share=THERE.hard_share / self.bound)

    @property
    def ratios(self) -> tuple[float, float]:
        """Densities there over densities here, of the other positives and of the hard ones; of negatives it is 1."""
        return (1 - THERE.hard_share) / (1 - self.here.hard_share), self.bound

    def draw(self, rng: np.random.Generator, ratios: tuple[float, float]) -> tuple[Scores, Weights]:
        """One split of cases from here, whose names are other ones in each draw, and their weights at these ratios."""
        labels = (np.arange(self.cases) < MAIN.positive_share * self.cases).astype(np.int64)
        hard = (rng.random(self.cases) < self.here.hard_share) & (labels == 1)
        z = rng.normal(np.where(hard, MAIN.hard_mean, np.where(labels == 1, MAIN.mean, -MAIN.mean)))
        split = replace(scores(z, labels), splits_digest=str(rng.integers(2**62)))
        order = np.argsort(split.case_id.astype(str))
        weight = np.where(labels == 1, np.where(hard, ratios[1], ratios[0]), 1.0)
        return split, Weights(split.case_id[order].astype(str), weight[order], max(self.bound, *ratios, 1.0))


Choice = Callable[[Scores, Scores, Weights], float | None]
"""(val_select, val_calib, weights) → the threshold that is taken."""


def thinned(select: Scores, calib: Scores, weights: Weights) -> float | None:
    return certified_threshold(calibrate_softmax(select, weights.thinned(calib), RISK, "one_sided"))


def unweighted(select: Scores, calib: Scores, _: Weights) -> float | None:
    return certified_threshold(calibrate_softmax(select, calib, RISK, "one_sided"))


def weighted_rate(select: Scores, calib: Scores, weights: Weights) -> float | None:
    """The largest coverage whose weighted FNR on val_calib is at the target."""
    thresholds, ranked, weight = _candidates(select), softmax_ranked(calib, ONE_SIDED), weights.of(calib)
    missed = np.array([weight[_missed(ranked, calib) & (ranked.scores >= t)].sum() for t in thresholds])
    hits = weight[(calib.labels == 1) & (ranked.answers == 1)].sum()
    met = np.flatnonzero(missed <= RISK.target_fnr * (missed + hits))
    return float(thresholds[met[-1]]) if met.size else None


def _candidates(select: Scores) -> np.ndarray:
    return softmax_candidates(softmax_ranked(select, ONE_SIDED), ONE_SIDED)


def _missed(ranked, calib: Scores) -> np.ndarray:
    return (calib.labels == 1) & (ranked.answers == 0)


def judged(world: World, choose: Choice, draws: int, ratios: Callable[[np.random.Generator], tuple[float, float]]):
    """Choose in each draw, hold the true FNR on exits there against the target, and tell what is covered there."""
    rng, found = np.random.default_rng(37), []
    for _ in range(draws):
        believed = ratios(rng)
        (select, _), (calib, weights) = world.draw(rng, believed), world.draw(rng, believed)
        found.append(choose(select, calib, weights))
    found = outcomes(THERE, found, rule="one_sided")
    demand_valid(found, RISK)
    return found


def known(world: World) -> Callable[[np.random.Generator], tuple[float, float]]:
    return lambda _: world.ratios


@pytest.mark.parametrize(("bound", "least"), [(MILD, 0.85), (STRONG, 0.6)])
def test_known_weights_certify_for_the_other_world(bound: float, least: float) -> None:
    """With 900 positives here; least: share of the oracle's coverage there."""
    found = judged(World(bound), thinned, DRAWS, known(World(bound)))
    print(bound, found.violations(RISK.target_fnr) / DRAWS, found.mean_coverage, found.none_found, ORACLE)
    assert found.mean_coverage >= least * ORACLE


@pytest.mark.parametrize("choose", [unweighted, weighted_rate], ids=lambda choose: choose.__name__)
def test_control(choose: Choice) -> None:
    with BROKEN:
        judged(World(MILD), choose, CONTROL_DRAWS, known(World(MILD)))


def test_control_estimated_weights() -> None:
    """The share of hard positives here estimated by 100 of them, although that there is known."""

    def estimated(rng: np.random.Generator) -> tuple[float, float]:
        share = max(1, rng.binomial(100, World(STRONG).here.hard_share)) / 100
        return (1 - THERE.hard_share) / (1 - share), THERE.hard_share / share

    with BROKEN:
        judged(World(STRONG, cases=10_000), thinned, CONTROL_DRAWS, estimated)
