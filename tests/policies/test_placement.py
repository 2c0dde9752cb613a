"""Where answers are placed: against a brute-force twin, at ties, at few positives and at 1 % prevalence."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies import placement as subject
from stage1_pro.core.policies.placement import Part, Placement, Prices, one_sided_scores, place_answers

SEED = 7


def population(seed: int, cases: int, prevalence: float, separation: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds and labels; one positive in ten is answered 0, less surely than negatives are."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(cases) < round(cases * prevalence)).astype(np.int64)
    centre = np.where(labels == 1, np.where(rng.random(cases) < 0.1, -0.5, 1.0), -1.0)
    return separation * centre + rng.normal(size=cases), labels


def placed(z: np.ndarray, labels: np.ndarray, calib: int = 150, target: float = 0.05, **changes: float) -> Placement:
    return place_answers(z, labels, np.ones(len(z), bool), calib, Risk(target, 0.95), Prices(**changes), SEED)


@cache
def passes(misses: int, exited: int, target: float) -> bool:
    return exited > 0 and binom.cdf(misses, exited, target) <= 0.05


def twin(z: np.ndarray, labels: np.ndarray, shift: float, calib: int, target: float, prices: Prices) -> float:
    """Utility of a shift, set by set and threshold by threshold, as a calibration would find it."""
    answers = (z + shift >= 0).astype(int)
    probability = 1 / (1 + np.exp(-(z + shift)))
    scores = np.where(answers == 1, 1.0, np.maximum(probability, 1 - probability))
    distinct = np.unique(np.append(scores, 1.0))
    thresholds = [*(distinct[1:] + distinct[:-1]) / 2, 0.5]
    positives = sorted(z[labels == 1])
    lowest = positives[0] - (positives[min(2, len(positives) - 1)] - positives[0])
    everyone = np.array([lowest, *positives])
    worth = []
    for counts in subject.resampled(len(positives), calib, SEED):
        found, least = 0.0, 1.0
        sample = np.repeat(everyone, counts) + shift
        confidence = np.where(sample >= 0, 1.0, 1 / (1 + np.exp(sample)))
        for threshold in thresholds:
            exited = int(np.sum(confidence >= threshold))
            missed = int(np.sum((confidence >= threshold) & (sample < 0)))
            if passes(missed, exited, target) and threshold < least:
                least, out = threshold, scores >= threshold
                alarms, misses = out & (answers == 1) & (labels == 0), out & (answers == 0) & (labels == 1)
                found = out.mean() - prices.false_alarm * alarms.mean() - prices.miss * misses.mean()
        worth.append(found)
    return float(np.mean(worth))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(("cases", "prevalence", "calib"), [(150, 0.3, 120), (200, 0.1, 80), (120, 0.05, 60)])
def test_utilities_are_those_of_a_calibration_set_by_set(
    cases: int, prevalence: float, calib: int, rounded: bool
) -> None:
    z, labels = population(cases, cases, prevalence)
    z = z.round(1) if rounded else z  # many ties, also of positives with negatives
    prices = Prices(3.0, 1.5)
    found = place_answers(z, labels, np.ones(cases, bool), calib, Risk(0.1, 0.95), prices, SEED)
    some = [0, 2, 5, 8, 11]
    expected = [twin(z, labels, found.shifts[index], calib, 0.1, prices) for index in some]
    assert found.utility[some] == pytest.approx(expected, abs=1e-12)
    assert len({round(value, 3) for value in expected}) >= 3  # the candidates differ
    assert found.utility[found.chosen] == found.utility.max()


@pytest.mark.parametrize("offset", [-2.5, 2.5])
@pytest.mark.parametrize("prevalence", [0.5, 0.1, 0.01])
def test_placed_answers_are_worth_more_than_answers_that_stand_wrong(prevalence: float, offset: float) -> None:
    z, labels = population(3, 20_000, prevalence)
    found = placed(z + offset, labels)
    predicted = found.predicted()
    assert found.shifts[0] == 0
    assert predicted["utility"] > max(0.3, found.utility[0] + 0.1)
    assert predicted["certified"] > 0.9
    wrong = predicted["false_alarms"] + predicted["misses"]
    assert predicted["right_exits"] == pytest.approx(predicted["coverage"] - wrong)


def test_the_placement_does_not_depend_on_a_constant_that_training_adds() -> None:
    z, labels = population(4, 5_000, 0.1)
    found, moved = placed(z, labels), placed(z + 4, labels)
    assert moved.shift == pytest.approx(found.shift - 4)
    assert moved.utility[1:] == pytest.approx(found.utility[1:], abs=1e-12)


def test_a_dearer_false_alarm_moves_the_answers_up() -> None:
    z, labels = population(5, 20_000, 0.1, separation=1.5)
    by_price = [placed(z, labels, false_alarm=price) for price in (2.0, 5.0, 50.0)]
    alarms = [found.predicted()["false_alarms"] for found in by_price]
    assert alarms[0] > alarms[1] > alarms[2]
    assert by_price[0].shift > by_price[2].shift


def test_perfect_answers_stay_where_they_are() -> None:
    """Many candidates let everything exit there; those that answer positives 0 are no better."""
    labels = (np.arange(4_000) % 5 == 0).astype(np.int64)
    z = np.where(labels == 1, 6.0, -6.0) + np.random.default_rng(0).normal(size=4_000)
    found = placed(z, labels)
    assert found.shift == 0
    assert found.predicted() == {
        "utility": 1.0,
        "coverage": 1.0,
        "right_exits": 1.0,
        "false_alarms": 0.0,
        "misses": 0.0,
        "certified": 1.0,
    }


def test_no_case_lies_on_the_cut() -> None:
    """Neither do rounded scores, of which the positives' quantiles are some."""
    z, labels = population(6, 2_000, 0.1)
    z = z.round(1)
    found = placed(z, labels)
    distance = np.abs(z[:, None] + found.shifts[1:]).min(axis=0)
    assert (distance > 1e-3).all()


def test_only_independent_positives_are_evidence_and_every_case_counts_in_the_utility() -> None:
    """Ten copies of each case as one group: the same evidence, the same utility."""
    z, labels = population(8, 1_000, 0.2)
    first = np.arange(10_000) % 10 == 0
    found = place_answers(z.repeat(10), labels.repeat(10), first, 150, Risk(0.05, 0.95), Prices(), SEED)
    once = placed(z, labels)
    assert found.positives == once.positives == 200
    assert found.utility == pytest.approx(once.utility, abs=1e-12)


def test_cases_without_a_finite_score_never_exit_and_still_count() -> None:
    z, labels = population(9, 3_000, 0.2)
    found = placed(z, labels)
    with_broken = np.concatenate([z, np.full(1_000, np.nan), np.full(500, np.inf)])
    broken = placed(with_broken, np.concatenate([labels, np.ones(1_500, int)]))
    assert broken.shift == found.shift
    assert broken.coverage == pytest.approx(found.coverage * 3_000 / 4_500)


def test_without_positives_it_is_refused() -> None:
    with pytest.raises(UserError, match="val_select holds no positives"):
        placed(np.linspace(-1, 1, 50), np.zeros(50, int))


@pytest.mark.parametrize(("positives", "warned"), [(1, True), (29, True), (30, False)])
def test_few_positives_are_warned_of(positives: int, warned: bool) -> None:
    z, labels = population(2, 1_000, positives / 1_000, separation=9)
    found = placed(z, labels)
    assert any("independent positives" in line for line in found.warnings()) == warned
    assert np.isfinite(found.shift)


def test_where_nothing_can_be_certified_the_answers_stay_as_trained() -> None:
    z, labels = population(1, 2_000, 0.1)
    found = placed(z, labels, calib=58)  # 59 are needed without a miss
    assert found.shift == 0
    assert found.predicted()["certified"] == 0
    assert any("no placement" in line for line in found.warnings())


def test_a_model_that_tells_nothing_is_said_to_be_worth_nothing() -> None:
    rng = np.random.default_rng(0)
    found = placed(rng.normal(size=4_000), (rng.random(4_000) < 0.1).astype(int))
    assert found.predicted()["utility"] <= 0
    assert any("deferring every case" in line for line in found.warnings())


def test_one_sided_scores_let_every_answer_1_exit_and_nothing_that_is_not_finite() -> None:
    confidence = np.array([0.5, 0.97, 0.97, np.nan, np.nan])
    scores = one_sided_scores(confidence, np.array([1, 1, 0, 1, 0]))
    assert scores[:3].tolist() == [1.0, 1.0, 0.97]
    assert np.isnan(scores[3:]).all()


def test_parts_with_certificates_of_their_own_are_worth_what_each_is_at_its_part_of_delta() -> None:
    """Two cameras of equal size and one that holds too few positives, where every case defers."""
    draws = [population(seed, cases, 0.3) for seed, cases in ((1, 800), (2, 800), (3, 100))]
    z, labels = (np.concatenate(column) for column in zip(*draws, strict=True))
    camera = np.repeat([0, 1, 2], [800, 800, 100])
    parts = [Part(camera == at, count) for at, count in enumerate((200, 200, 5))]
    found = place_answers(z, labels, np.ones(1700, bool), 0, Risk(0.05, 0.95), Prices(), SEED, parts)
    cuts = -found.shifts
    for at, cut in enumerate(cuts):
        alone = [alone_at(z[camera == one], labels[camera == one], cut) for one in (0, 1)]
        assert found.utility[at] == pytest.approx(sum(alone) * 800 / 1700, abs=0.02)
    pooled = place_answers(z, labels, np.ones(1700, bool), 405, Risk(0.05, 0.95), Prices(), SEED)
    assert (found.coverage <= pooled.coverage + 0.02).all()


def alone_at(z: np.ndarray, labels: np.ndarray, cut: float) -> float:
    """Predicted utility of one camera by itself, its answers moved to the cut, at half of delta."""
    return float(
        place_answers(z - cut, labels, np.ones(len(z), bool), 200, Risk(0.05, 0.975), Prices(), SEED).utility[0]
    )
