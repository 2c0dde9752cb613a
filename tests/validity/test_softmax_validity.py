"""The certificate of the softmax policy holds, is worth having, and can be broken in the ways it should.

Certificates come from the same path as in script 25; truth comes from closed forms.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from montecarlo import (
    DRAWS,
    Draw,
    Outcomes,
    certified_threshold,
    demand_broken,
    demand_valid,
    naive_threshold,
    outcomes,
    repeat,
    walked_threshold,
)
from population import EVEN, FLAT, HEAVY, LEVELS, MAIN, NULL, RARE, SURE, TIED, Population, case_names, scores
from sklearn.linear_model import LogisticRegression

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.certification import Calibration
from stage1_pro.core.policies.exit_rules import EXIT_RULES
from stage1_pro.core.policies.nested_boundary import windows
from stage1_pro.core.policies.softmax import answers, calibrate_softmax
from stage1_pro.core.records.scores import Scores

pytestmark = pytest.mark.mc

CONTROL_DRAWS = 300
RISK = Risk(0.05, 0.9)
POWER_DRAWS = 200
SURER = Risk(0.05, 0.95)
LOOSE = Risk(0.1, 0.9)
STRICT = Risk(0.02, 0.95)
FEW = 1000
"""Cases of a split with 300 positives, where the walk's start is not sure and the boundary is taken."""


def draws(population: Population, cases: int, count: int, seed: int = 0) -> Iterator[Draw]:
    """(val_select, val_calib) pairs of fresh cases, with fixed numbers of positives."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        z, labels = population.stratified(rng, 2, cases)
        yield scores(z[0], labels[0]), scores(z[1], labels[1])


CELLS = [
    pytest.param(MAIN, FEW, RISK, id="main"),
    pytest.param(MAIN, FEW, SURER, id="main, delta .05"),
    pytest.param(TIED, FEW, RISK, id="tied scores"),
    pytest.param(RARE, 10_000, LOOSE, id="2 % positives"),
    pytest.param(EVEN, FEW, RISK, id="50 % positives"),
    pytest.param(NULL, FEW, RISK, id="target out of reach"),
    pytest.param(NULL, FEW, SURER, id="target out of reach, delta .05"),
    pytest.param(FLAT, FEW, RISK, id="above the target by a hair"),
    pytest.param(HEAVY, FEW, LOOSE, id="heavy tails"),
    pytest.param(LEVELS, FEW, RISK, id="ten score levels"),
    pytest.param(SURE, FEW, STRICT, id="nearly sure"),
]
"""Every population, with evidence as scarce as users have it."""
MANY = [
    pytest.param(MAIN, 4000, RISK, id="main, many"),
    pytest.param(TIED, 4000, RISK, id="tied scores, many"),
    pytest.param(NULL, 4000, RISK, id="target out of reach, many"),
]


@pytest.mark.parametrize(("population", "cases", "risk"), [*CELLS, *MANY])
def test_symmetric_certificates_hold(population: Population, cases: int, risk: Risk) -> None:
    """By the nested boundary or by the walk, whichever val_select chooses."""
    demand_valid(repeat(draws(population, cases, DRAWS), risk, population), risk)


@pytest.mark.parametrize(("population", "cases", "risk"), [*CELLS, *MANY])
def test_one_sided_certificates_of_placed_answers_hold(population: Population, cases: int, risk: Risk) -> None:
    demand_valid(repeat(draws(population, cases, DRAWS), risk, population, rule="one_sided", place=True), risk)


@pytest.mark.parametrize(("population", "cases", "risk"), [CELLS[0], CELLS[3], *MANY[:2]])
def test_one_sided_certificates_of_answers_as_trained_hold(population: Population, cases: int, risk: Risk) -> None:
    demand_valid(repeat(draws(population, cases, DRAWS), risk, population, rule="one_sided"), risk)


def test_certificates_are_worth_having() -> None:
    """Always deferring is valid too; with 3,000 positives it is no longer an excuse."""
    found = repeat(draws(MAIN, 10_000, POWER_DRAWS, seed=1), RISK, MAIN)
    demand_valid(found, RISK)
    assert found.none_found <= 0.10
    assert found.mean_coverage >= 0.7 * MAIN.oracle_coverage(RISK.target_fnr)


def test_the_boundary_certifies_where_the_walk_fails_at_its_start() -> None:
    """300 positives, a true rate of .9 % and a target of 2 %: every case may exit."""
    found = repeat(draws(SURE, FEW, POWER_DRAWS), STRICT, SURE)
    walked = repeat(draws(SURE, FEW, POWER_DRAWS), STRICT, SURE, walked_threshold)
    assert found.none_found <= 0.10
    assert walked.none_found >= found.none_found + 0.1
    assert found.mean_coverage >= walked.mean_coverage + 0.1


@pytest.mark.parametrize(
    ("population", "risk", "gain"), [(MAIN, RISK, 0.2), (SURE, STRICT, 0.02), (TIED, RISK, 0.2), (HEAVY, LOOSE, 0.1)]
)
def test_one_sided_exits_are_worth_more_than_symmetric_ones(population: Population, risk: Risk, gain: float) -> None:
    """At five deferrals for each false alarm, with 300 positives."""
    one_sided = repeat(draws(population, FEW, POWER_DRAWS), risk, population, rule="one_sided", place=True)
    symmetric = repeat(draws(population, FEW, POWER_DRAWS), risk, population)
    assert one_sided.none_found <= 0.02
    assert one_sided.mean_utility >= symmetric.mean_utility + gain


def test_target_out_of_reach_certifies_nothing() -> None:
    """With 60 positives a target of .02 needs more evidence than there is, at any model."""
    found = repeat(draws(MAIN, 200, 100), Risk(0.02, 0.95), MAIN)
    assert found.none_found == 1


# ---- groups


def tracks(count: int, frames: int, correlation: float, seed: int = 0) -> Iterator[Draw]:
    """Pairs of splits whose cases are frames of tracks: one label a track, correlated scores.

    Each frame alone is a case of MAIN, so FNR on exits is still known.
    """
    rng = np.random.default_rng(seed)
    names = np.repeat(case_names(1500), frames)
    for _ in range(count):
        shape = (2, 1500, frames)
        labels = np.broadcast_to(rng.random((2, 1500, 1)) < MAIN.positive_share, shape)
        hard = rng.random((2, 1500, 1)) < MAIN.hard_share
        noise = np.sqrt(correlation) * rng.standard_normal((2, 1500, 1)) + np.sqrt(
            1 - correlation
        ) * rng.standard_normal(shape)
        z = np.where(labels, np.where(hard, MAIN.hard_mean, MAIN.mean), -MAIN.mean) + noise
        yield tuple(scores(z[i].ravel(), labels[i].ravel(), names) for i in range(2))


def ungrouped(split: Scores) -> Scores:
    return replace(split, group=split.case_id)


@pytest.mark.parametrize("correlation", [1.0, 0.7])
def test_certificates_hold_on_correlated_frames(correlation: float) -> None:
    found = repeat(tracks(DRAWS, 6, correlation), RISK, MAIN)
    demand_valid(found, RISK)
    assert found.none_found <= 0.9


@pytest.mark.parametrize("rule", EXIT_RULES)
def test_certificates_hold_on_groups_of_1_to_50(rule: str) -> None:
    """A frame of a long track is as good a draw as one of a short track; one of each counts."""
    found = repeat(uneven_tracks(DRAWS), LOOSE, MAIN, rule=rule)
    demand_valid(found, LOOSE)
    assert found.none_found <= 0.5


def uneven_tracks(count: int, seed: int = 0) -> Iterator[Draw]:
    """Pairs of splits of 300 tracks of 1 to 50 frames, of which 90 are positive; frames are strongly correlated."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        splits = []
        for _ in range(2):
            track = np.repeat(np.arange(300), rng.integers(1, 51, 300))
            hard, noise = rng.random(300) < MAIN.hard_share, rng.standard_normal(300)
            centre = np.where(np.arange(300) < 90, np.where(hard, MAIN.hard_mean, MAIN.mean), -MAIN.mean)
            z = centre[track] + np.sqrt(0.9) * noise[track] + np.sqrt(0.1) * rng.standard_normal(track.size)
            splits.append(scores(z, (track < 90).astype(np.int64), case_names(300)[track]))
        yield splits[0], splits[1]


@pytest.mark.parametrize("correlation", [1.0, 0.7])
def test_control_frames_counted_as_independent(correlation: float) -> None:
    pairs = (tuple(map(ungrouped, pair)) for pair in tracks(CONTROL_DRAWS, 6, correlation))
    demand_broken(repeat(pairs, RISK, MAIN), RISK)


# ---- negative controls: what must not be done breaks the same assertion


def test_control_naive_threshold() -> None:
    demand_broken(repeat(draws(MAIN, 4000, CONTROL_DRAWS), RISK, MAIN, naive_threshold), RISK)


def test_control_best_of_twenty_checkpoints_by_val_calib() -> None:
    """Equally good checkpoints with errors of their own: the luckiest on val_calib is chosen."""
    rng, chosen = np.random.default_rng(0), []
    labels = np.broadcast_to(np.arange(4000) < 4000 * MAIN.positive_share, (2, 4000))
    for _ in range(CONTROL_DRAWS // 5):
        splits = [[scores(MAIN.logits(rng, split), split) for split in labels] for _ in range(20)]
        tried = [calibrate_softmax(select, calib, RISK) for select, calib in splits]
        covered = [c.every.coverage[c.walk.answer] if c.walk.answer is not None else -1.0 for c in tried]
        chosen.append(certified_threshold(tried[int(np.argmax(covered))]))
    demand_broken(outcomes(MAIN, chosen), RISK)


def windowed_threshold(calibration: Calibration) -> float | None:
    """What the best of all windows certifies, chosen with val_calib at hand."""
    counts, risk = calibration.walk.calib, calibration.risk
    options = windows(counts.positives, risk.target_fnr, risk.delta)
    within = [np.flatnonzero(counts.misses <= option.allowed(counts.exited_positives)) for option in options]
    last = max(int(found[-1]) if found.size else -1 for found in within)
    return calibration.parameters[last]["threshold"] if last >= 0 else None


def test_control_boundary_fixed_after_looking_at_val_calib() -> None:
    demand_broken(repeat(draws(FLAT, FEW, CONTROL_DRAWS), RISK, FLAT, windowed_threshold), RISK)


def test_control_labels_replaced_by_predictions() -> None:
    pairs = (
        tuple(replace(split, labels=answers(split.logits)) for split in pair)
        for pair in draws(MAIN, 4000, CONTROL_DRAWS)
    )
    demand_broken(repeat(pairs, RISK, MAIN), RISK)


NOISE_FEATURES = 100


def features(rng: np.random.Generator, cases: int) -> tuple[np.ndarray, np.ndarray]:
    """One feature that says what z of MAIN says, and many that say nothing."""
    z, labels = MAIN.stratified(rng, cases)
    return np.column_stack([z, rng.standard_normal((cases, NOISE_FEATURES))]), labels


def linear_fnr(model: LogisticRegression, threshold: float | None) -> float:
    """True FNR on exits of |w x + b| >= t: along w the population is again a mixture of two normals."""
    if threshold is None:
        return np.nan
    signal, noise = model.coef_[0, 0], np.linalg.norm(model.coef_)
    as_population = Population(
        mean=(signal * MAIN.mean + model.intercept_[0]) / noise,
        hard_mean=(signal * MAIN.hard_mean + model.intercept_[0]) / noise,
    )
    return as_population.fnr(np.log(threshold / (1 - threshold)) / noise)


@pytest.fixture(scope="module")
def fitted() -> np.ndarray:
    """(2, R) true FNR of what 60 fitted classifiers certify on their training split, and on fresh splits."""
    rng, found = np.random.default_rng(0), []
    for _ in range(CONTROL_DRAWS // 5):
        train_x, train_y = features(rng, 1500)
        model = LogisticRegression(C=100.0).fit(train_x, train_y)
        fresh = [features(rng, 4000) for _ in range(2)]
        select, calib = (scores(model.decision_function(x), y) for x, y in fresh)
        train = scores(model.decision_function(train_x), train_y)
        pairs = (train, train), (select, calib)
        calibrated = [certified_threshold(calibrate_softmax(*pair, LOOSE)) for pair in pairs]
        found.append([linear_fnr(model, threshold) for threshold in calibrated])
    return np.array(found).T


def test_control_certified_on_the_training_split(fitted: np.ndarray) -> None:
    demand_broken(Outcomes(fitted[0], None), LOOSE)


def test_fresh_splits_of_the_same_classifiers_hold(fitted: np.ndarray) -> None:
    demand_valid(Outcomes(fitted[1], None), LOOSE)
    assert np.isnan(fitted[1]).mean() <= 0.2
