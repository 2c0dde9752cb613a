"""The walk over candidates: where it starts, where it stops, and what it says when it finds nothing."""

import numpy as np
import pytest
from policy_cases import counts_of
from scipy.stats import binomtest

from stage1_pro.core.metrics.binomial import minimum_positives
from stage1_pro.core.policies.fixed_sequence import (
    Walk,
    certify,
    power_aware_start,
    predicted_p,
    refusal,
)

EXITED = [50, 100, 200, 400, 800, 1600]


def refused(exited: list[int], misses: list[int], positives: int, target: float = 0.05, confidence: float = 0.9) -> str:
    counts = counts_of(exited, misses, positives)
    walk = certify(counts, counts, target, 1 - confidence)
    assert walk.answer is None
    return refusal(walk, target, confidence, [f"threshold {j}" for j in range(len(exited))])


# ---- start


@pytest.mark.parametrize("calib_positives", [1, 300, 977, 5000])
def test_predicted_p_is_the_test_on_scaled_counts(calib_positives: int) -> None:
    select = counts_of([0, 1, 50, 400, 900], [0, 1, 0, 13, 50], positives=1000)
    expected = []
    for exited, missed in zip(select.exited_positives.tolist(), select.misses.tolist(), strict=True):
        scaled = max(1, round(calib_positives / 1000 * exited))
        k = min(scaled, round(calib_positives / 1000 * missed))
        expected.append(binomtest(k, scaled, 0.05, alternative="less").pvalue)
    np.testing.assert_allclose(predicted_p(select, calib_positives, 0.05), expected, rtol=1e-9)


def test_start_is_the_candidate_most_likely_to_pass() -> None:
    select = counts_of(EXITED, [0, 0, 1, 12, 40, 130], positives=2000)
    assert power_aware_start(select, 2000, 0.05) == 2
    assert power_aware_start(select, 200, 0.05) == int(np.argmin(predicted_p(select, 200, 0.05)))


def test_start_takes_only_the_number_of_positives_from_calib() -> None:
    select = counts_of(EXITED, [0, 0, 1, 12, 40, 130], positives=2000)
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        exited = np.sort(rng.integers(0, 1500, len(EXITED)))
        calib = counts_of(exited.tolist(), rng.integers(0, exited + 1).tolist(), positives=1500)
        starts.add(certify(select, calib, 0.05, 0.1).start)
    assert starts == {power_aware_start(select, 1500, 0.05)}


# ---- walk


def test_walk_stops_at_the_first_failure() -> None:
    select = counts_of(EXITED, [0, 0, 0, 10, 36, 80], positives=2000)
    calib = counts_of(EXITED, [0, 0, 0, 4, 60, 40], positives=2000)
    walk = certify(select, calib, 0.05, 0.1)
    assert walk.start == 2
    assert walk.p_values[5] <= 0.1 < walk.p_values[4]
    assert walk.answer == 3
    assert walk.certified.tolist() == [j in range(walk.start, 4) for j in range(6)]


def test_nothing_follows_a_failure_at_the_start() -> None:
    select = counts_of(EXITED, [0, 0, 0, 4, 12, 40], positives=2000)
    calib = counts_of(EXITED, [0, 0, 0, 4, 60, 40], positives=2000)
    assert power_aware_start(select, 2000, 0.05) == 4
    walk = certify(select, calib, 0.05, 0.1)
    assert walk.answer is None
    assert (walk.p_values <= 0.1).sum() == 5


def test_certified_candidates_are_contiguous_and_pass() -> None:
    rng = np.random.default_rng(5)
    seen = 0
    for _ in range(300):
        exited = np.sort(rng.integers(0, 2000, 30))
        select, calib = (counts_of(exited.tolist(), rng.binomial(exited, 0.045).tolist(), 2000) for _ in range(2))
        walk = certify(select, calib, 0.05, 0.1)
        certified = np.flatnonzero(walk.certified)
        if certified.size:
            seen += 1
            assert certified.tolist() == list(range(walk.start, walk.answer + 1))
            assert (walk.p_values[certified] <= 0.1).all()
            assert (walk.upper_bounds[certified] <= 0.05).all()
            assert walk.answer == 29 or walk.p_values[walk.answer + 1] > 0.1
    assert 100 < seen < 300


def test_exactly_enough_evidence_passes() -> None:
    enough = minimum_positives(0.02, 0.05)
    assert enough == 149
    for exited, answer in ((enough - 1, None), (enough, 0)):
        counts = counts_of([exited], [0], positives=exited)
        assert certify(counts, counts, 0.02, 0.05).answer == answer


def test_no_exited_positive_is_no_evidence() -> None:
    counts = counts_of([0, 0], [0, 0], positives=50)
    walk = certify(counts, counts, 0.05, 0.1)
    assert walk.p_values.tolist() == walk.upper_bounds.tolist() == [1, 1]
    assert walk.answer is None


def test_no_candidates_certify_nothing() -> None:
    walk = certify(counts_of([], [], 10), counts_of([], [], 10), 0.05, 0.1)
    assert isinstance(walk, Walk)
    assert walk.answer is None


# ---- refusal


def test_refusal_gives_the_evidence_and_the_remedies() -> None:
    message = refused([30, 44], [0, 4], positives=60)
    for part in (
        "<= 0.05 at confidence 0.9",
        "60 independent positives",
        "threshold 0",
        "30 of them exit with 0 missed",
        f"FNR on exits <= {1 - 0.1 ** (1 / 30):.4f}",
        "observed rate 0.0000 about 30 more calibration positives",  # 45 must exit and half of them do
        "more calibration positives; a larger --target_fnr_exit or a smaller --fnr_confidence",
        "a better model",
    ):
        assert part in message


def test_no_remedy_asks_for_what_is_refused() -> None:
    assert "positives; a smaller --fnr_confidence (run again with it); a better" in refused([9], [0], 9, target=0.1)
    assert "positives; a better model" in refused([3], [0], 3, target=0.1, confidence=0.5)


def test_refusal_says_when_more_positives_would_not_help() -> None:
    message = refused([1000], [100], positives=2000)
    assert "More positives would not help: the observed rate 0.1000" in message
    assert "Remedies: a larger --target_fnr_exit (run again with it); a better model." in message
    assert "observed rate 1.0000" in refused([40], [40], positives=40)


def test_refusal_counts_misses_into_what_is_needed() -> None:
    message = refused([100], [3], positives=200)
    more = int(message.split("about ")[1].split(" more")[0])
    exited = (200 + more) // 2
    assert binomtest(int(exited * 0.03), exited, 0.05, alternative="less").pvalue <= 0.105
    assert binomtest(int(exited * 0.6 * 0.03), int(exited * 0.6), 0.05, alternative="less").pvalue > 0.1


def test_refusal_without_exits_or_candidates() -> None:
    assert "At least 45 positives must exit" in refused([0], [0], positives=20)
    nothing = certify(counts_of([], [], 10), counts_of([], [], 10), 0.05, 0.1)
    assert "No case of val_select has a finite score" in refusal(nothing, 0.05, 0.9, [])


def test_refusal_does_not_contradict_itself() -> None:
    """Where the walk fails at its start, candidates that it never tested may pass on their own."""
    select = counts_of([100, 400], [0, 1], positives=1000)
    calib = counts_of([100, 400], [0, 30], positives=1000)
    message = refusal(certify(select, calib, 0.05, 0.1), 0.05, 0.9, ["threshold 0", "threshold 1"])
    assert "FNR on exits <= 0.0228" not in message
