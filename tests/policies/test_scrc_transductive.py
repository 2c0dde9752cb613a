"""SCRC-T against its definition, case by case: who is selected, how many losses, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from policy_cases import gated_split

from stage1_pro.core.errors import NothingCertified
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidate_pairs import RankedPairs
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.scrc_transductive import (
    Selection,
    allowed_losses,
    calibrate_transductive,
    cut,
    least_lambda2,
    selection_of,
)
from stage1_pro.core.records.scores import Scores

RISK = Risk(0.1, 0.9)


def level(selected: int, cases: int) -> Selection:
    return Selection(selected, cases, 1.0, 1.0)


@pytest.mark.parametrize(("selected", "cases"), [(1, 10), (3, 10), (5, 10), (17, 20), (99, 100), (2, 3)])
@pytest.mark.parametrize("size", [7, 20, 61])
def test_the_cut_selects_a_new_case_as_ranking_all_anew_would(selected: int, cases: int, size: int) -> None:
    """By definition: rank the new case among all n + 1, and take the k highest."""
    rng = np.random.default_rng([selected, size])
    gate = rng.uniform(0, 1, size)
    k = math.ceil(selected * (size + 1) / cases - 1e-9)
    found = cut(gate, level(selected, cases))
    for new in np.concatenate([rng.uniform(0, 1, 200), np.nextafter(gate, 1), np.nextafter(gate, 0)]):
        rank = 1 + np.count_nonzero(gate >= new)
        assert (new >= found) == (rank <= k)
    if k <= size:
        assert np.count_nonzero(gate >= found) == k - 1
        assert found == np.nextafter(np.sort(gate)[::-1][k - 1], np.inf)


def test_a_level_of_all_cases_selects_all_that_are_finite() -> None:
    gate = np.array([0.2, np.nan, 0.9])
    assert cut(gate, level(10, 10)) == 0
    assert cut(gate, level(9, 10)) == 0  # the lowest is not finite, and what is finite ranks above it


@pytest.mark.parametrize("tied", [(1, 2), (2, 3)])
def test_ties_at_the_cut_are_refused_and_others_are_not(tied: tuple[int, int]) -> None:
    gate = np.array([0.9, 0.8, 0.7, 0.6, 0.5])  # k = ceil(.5 · 6) = 3
    gate[tied[1]] = gate[tied[0]]
    assert np.isnan(cut(gate, level(1, 2)))
    gate = np.array([0.9, 0.9, 0.7, 0.5, 0.5])
    assert cut(gate, level(1, 2)) == np.nextafter(0.7, 1)


@pytest.mark.parametrize(
    ("selected", "alpha", "losses"),
    [
        (74, 0.02, 0),
        (49, 0.02, 0),
        (48, 0.02, -1),
        (99, 0.02, 1),
        (30, 0.1, 2),
        (29, 0.1, 2),
        (28, 0.1, 1),
        (0, 0.1, -1),
    ],
)
def test_allowed_losses_round_down(selected: int, alpha: float, losses: int) -> None:
    assert allowed_losses(selected, alpha) == losses


def test_lambda2_is_the_smallest_that_keeps_the_losses() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        missed = np.round(rng.uniform(0.5, 1, rng.integers(0, 12)), int(rng.integers(1, 4)))
        allowed = int(rng.integers(0, 6))
        found = least_lambda2(missed, allowed)
        assert np.count_nonzero(missed >= found) <= allowed
        tried = [0.5, *np.nextafter(missed, 2)]
        assert found == min(t for t in tried if np.count_nonzero(missed >= t) <= allowed)


def calibrated_by_hand(select: RankedPairs, calib: RankedPairs, lambda1: float, risk: Risk) -> tuple | None:
    """(lambda1, lambda2) in plain loops over thresholds; None where there is none."""
    chosen = select.gate >= lambda1
    k = -(-int(chosen.sum()) * (calib.gate.size + 1) // chosen.size)
    own = np.sort(calib.gate)[::-1]
    above = calib.gate > own[k - 1] if k <= own.size else np.ones(own.size, dtype=bool)
    positives = np.flatnonzero(chosen & (select.labels == 1))
    most = max(c for c in select.confidence[positives] if (select.confidence[positives] >= c).mean() >= 0.9)
    kept, size = int((select.confidence[positives] >= most).sum()), len(positives)
    from scipy.stats import beta

    rho = beta.ppf(risk.delta, kept, size - kept + 1)
    members = np.flatnonzero(above & (calib.labels == 1))
    allowed = math.floor((len(members) + 1) * risk.target_fnr * rho) - 1
    for lambda2 in sorted({0.5, *np.nextafter(calib.confidence, 2)}):
        losses = sum(calib.answers[i] == 0 and calib.confidence[i] >= lambda2 for i in members)
        if lambda2 <= most and losses <= allowed:
            return (float(np.nextafter(own[k - 1], 2)) if k <= own.size else 0.0), float(lambda2)
    return None


def drawn(rng: np.random.Generator, cases: int, skill: float) -> RankedPairs:
    labels = rng.integers(0, 2, cases)
    confidence = rng.uniform(0.5, 1, cases)
    answers = np.where(rng.random(cases) < skill, labels, 1 - labels)
    return RankedPairs(rng.uniform(0, 1, cases), confidence, answers, labels, np.ones(cases, dtype=bool), cases)


def test_calibration_is_the_definition_in_plain_loops() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(60):
        skill, lambda1 = rng.uniform(0.8, 1.0), rng.uniform(0, 0.8)
        select, calib = drawn(rng, 300, skill), drawn(rng, 200, skill)
        expected = calibrated_by_hand(select, calib, lambda1, RISK)
        made = calibrate_transductive(
            calib, np.ones(200, dtype=bool), selection_of(select, lambda1, RISK.delta), RISK, []
        )
        assert made.certified == (expected is not None)
        if expected:
            assert (made.lambda1, made.lambda2) == expected
            found += 1
    assert 20 < found < 60


def test_labels_of_val_calib_never_move_the_cut() -> None:
    select, calib = gated_split(0), gated_split(1)
    expected = calibrate_scrc(select, calib, RISK, variant="SCRC-T").outcome
    shuffled = replace(calib, labels=np.random.default_rng(0).permutation(calib.labels))
    found = calibrate_scrc(select, shuffled, RISK, variant="SCRC-T").outcome
    assert (found.lambda1, found.selection) == (expected.lambda1, expected.selection)


def test_one_random_case_of_each_group_is_counted() -> None:
    """Repeating every case within its group changes neither the cut nor the losses."""
    select, calib = gated_split(2), gated_split(3, 800)
    single = calibrate_scrc(select, calib, RISK, variant="SCRC-T")

    def repeated(split: Scores, times: int) -> Scores:
        names = [f"{name}/{i}" for name in split.case_id for i in range(times)]
        taken = {name: np.repeat(getattr(split, name), times, axis=0) for name in ("labels", "logits", "gate_logit")}
        return replace(split, case_id=np.array(names, object), group=np.repeat(split.group, times), **taken)

    grouped = calibrate_scrc(select, repeated(calib, 3), RISK, variant="SCRC-T")
    assert (grouped.outcome.lambda1, grouped.outcome.lambda2) == (single.outcome.lambda1, single.outcome.lambda2)
    assert grouped.outcome.selected == single.outcome.selected
    words = grouped.fields()["guarantee"]["words"]
    assert "one case drawn from each group" in words
    assert "drawn from each group" not in single.fields()["guarantee"]["words"]


def test_the_file_says_which_statement_is_exact() -> None:
    fields = calibrate_scrc(gated_split(0), gated_split(1), RISK, variant="SCRC-T").fields()
    assert fields["guarantee"]["label"] == "Set loss: exact, in expectation. FNR on exits: approximate"
    assert "approximately FNR on exits" in fields["guarantee"]["words"]
    facts = fields["transductive"]
    assert facts["alpha_prime"] == RISK.target_fnr * facts["singleton_share_lower_bound"]
    assert (
        fields["misses"] <= facts["allowed_losses"] == allowed_losses(facts["positives_selected"], facts["alpha_prime"])
    )
    assert fields["lambda2"] <= facts["lambda2_max"]
    assert fields["fnr_bound"] == RISK.target_fnr


@pytest.mark.parametrize(
    ("risk", "selection", "words"),
    [
        (Risk(0.01, 0.9), Selection(5, 10, 0.9, 0.9), r"\d+ positives of val_calib are selected, and at least 111 are"),
        (
            Risk(0.1, 0.9),
            Selection(9, 10, 0.9, 0.9),
            r"Of \d+ selected positives of val_calib \d+ may be lost, and \d+",
        ),
        (Risk(0.1, 0.9), Selection(5, 10, 0.5, 0.0), "No positive of val_select is selected"),
        (Risk(0.1, 0.9), Selection(0, 10, 0.5, 0.0), "No positive of val_select is selected"),
    ],
)
def test_nothing_found_says_what_is_missing(risk: Risk, selection: Selection, words: str) -> None:
    guessing = drawn(np.random.default_rng(0), 300, 0.5)
    made = calibrate_transductive(guessing, np.ones(300, dtype=bool), selection, risk, [])
    assert not made.certified
    with pytest.raises(NothingCertified, match=words) as refused:
        made.record()
    assert refused.value.exit_status == 3
    assert "more calibration positives" in str(refused.value)
