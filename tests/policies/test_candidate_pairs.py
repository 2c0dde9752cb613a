"""Chains of pairs against plain loops, with ties and with outputs that are not finite."""

from dataclasses import replace

import numpy as np
import pytest

from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.policies.candidate_pairs import RankedPairs, chain_pairs, count_pairs
from stage1_pro.core.policies.certification import predicted
from stage1_pro.core.policies.exit_rules import EXIT_RULES

RISK = Risk(0.1, 0.9)


def ranked(
    seed: int, cases: int = 700, step: float = 0.05, alike: bool = False, rule: str = "symmetric"
) -> RankedPairs:
    """Scores rounded to step, so that they tie; one gate and one confidence are NaN."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(cases) < 0.4).astype(np.int64)
    confidence = rng.uniform(0.5, 1, cases)
    answers = np.where(rng.random(cases) < confidence, labels, 1 - labels)
    gate = confidence if alike else np.clip(rng.normal(np.where(answers == labels, 0.7, 0.5), 0.15), 0, 1)
    gate, confidence = np.round(gate / step) * step, np.maximum(np.round(confidence / step) * step, 0.5)
    gate[0], confidence[1] = np.nan, np.nan
    scores = EXIT_RULES[rule].exit_scores
    both = np.isfinite(gate) & np.isfinite(confidence)
    gate = np.where(both, scores(gate, answers), np.nan)
    return RankedPairs(gate, scores(confidence, answers), answers, labels, np.ones(cases, dtype=bool), cases)


def by_hand(split: RankedPairs, lambda1: float, lambda2: float, kept: np.ndarray | None = None) -> tuple[int, ...]:
    """(exited, exited positives, misses, exited negatives, false alarms), case by case."""
    found = [0] * 5
    rows = zip(split.gate, split.confidence, split.answers, split.labels, strict=True)
    for position, (gate, confidence, answer, label) in enumerate(rows):
        if (kept is None or kept[position]) and gate >= lambda1 and confidence >= lambda2:
            found[0] += 1
            found[1] += label == 1
            found[2] += label == 1 and answer == 0
            found[3] += label == 0
            found[4] += label == 0 and answer == 1
    return tuple(int(number) for number in found)


def rows_of(counts: ExitCounts) -> list[tuple[int, ...]]:
    columns = counts.exited, counts.exited_positives, counts.misses, counts.exited_negatives, counts.false_alarms
    return [tuple(row) for row in np.stack([column.ravel() for column in columns], axis=1).tolist()]


def exits(split: RankedPairs, pairs: np.ndarray) -> np.ndarray:
    """(J, N) bool, which cases exit at each pair."""
    return (split.gate >= pairs[:, :1]) & (split.confidence >= pairs[:, 1:])


def test_counts_of_a_grid_are_those_of_every_pair_by_hand() -> None:
    split = ranked(0)
    lambda1, lambda2 = np.array([0.0, 0.35, 0.5, 0.85, 1.0]), np.array([0.5, 0.55, 0.8, 1.0])
    counts = count_pairs(split.gate, split.confidence, split.answers, split.labels, lambda1, lambda2)
    assert counts.exited.shape == (5, 4)
    assert rows_of(counts) == [by_hand(split, a, b) for a in lambda1 for b in lambda2]
    assert (counts.cases, counts.positives) == (700, int(split.labels.sum()))


def test_counts_of_pairs_come_in_their_order_and_of_the_cases_kept() -> None:
    split, rng = ranked(1), np.random.default_rng(0)
    pairs = np.column_stack([rng.choice(split.gate[2:], 40), rng.choice(split.confidence[2:], 40)])
    pairs = np.concatenate([pairs, pairs[:5]])
    kept = rng.random(700) < 0.6
    assert rows_of(split.counts(pairs)) == [by_hand(split, *pair) for pair in pairs]
    assert rows_of(split.counts(pairs, kept)) == [by_hand(split, *pair, kept) for pair in pairs]


@pytest.mark.parametrize("rule", EXIT_RULES)
@pytest.mark.parametrize("step", [0.05, 1e-6])
@pytest.mark.parametrize("seed", range(6))
def test_exit_sets_are_nested_on_any_cases_and_no_threshold_lies_on_a_score(seed: int, step: float, rule: str) -> None:
    """One boundary, or one test, then certifies the chain. The floor alone may be a score."""
    split, fresh = (ranked(number, 900, step, rule=rule) for number in (seed, seed + 100))
    if seed % 2:
        split = replace(split, gate=EXIT_RULES[rule].exit_scores(np.random.default_rng(0).random(900), split.answers))
    pairs = chain_pairs(split, 400, RISK, EXIT_RULES[rule])
    assert (np.diff(pairs, axis=0) <= 0).all()
    for cases in (split, fresh):
        out = exits(cases, pairs)
        assert not (out[:-1] & ~out[1:]).any()
        if rule == "one_sided":
            assert out[:, (cases.answers == 1) & np.isfinite(cases.gate) & np.isfinite(cases.confidence)].all()
    assert not out[0, split.answers == 0].all()
    assert not set(pairs[:, 0].tolist()) & set(split.gate.tolist()) - {0.0}
    assert not set(pairs[:, 1].tolist()) & set(split.confidence.tolist()) - {0.5}


def test_the_strictest_one_sided_pair_lets_no_answer_0_exit() -> None:
    split = ranked(3, 4000, 1e-6, rule="one_sided")
    split = replace(split, gate=np.where(split.answers == 0, 0.9 * split.gate, split.gate))  # none is at 1
    pairs = chain_pairs(split, 400, RISK, EXIT_RULES["one_sided"])
    assert len(pairs) <= 200
    assert not exits(split, pairs)[0, split.answers == 0].any()


@pytest.mark.parametrize("rule", EXIT_RULES)
def test_the_chain_promises_most_and_is_the_gates_own_where_nothing_is_gained(rule: str) -> None:
    """A gate of noise: the class probability promises more. A gate that ranks as it does: nothing to add."""
    split = ranked(5, 4000, 1e-6, rule=rule)
    scores, rng = EXIT_RULES[rule].exit_scores, np.random.default_rng(0)
    noise = replace(split, gate=scores(rng.uniform(0, 1, 4000), split.answers))
    for cases in (split, noise):
        pairs = chain_pairs(cases, 2000, RISK, EXIT_RULES[rule])
        own = np.column_stack([EXIT_RULES[rule].candidates(cases.gate, cases.answers, 0.0), np.full(len(pairs), 0.5)])
        without = EXIT_RULES[rule].candidates(cases.confidence, cases.answers, 0.5)
        others = own, np.column_stack([np.zeros_like(without), without])
        chosen, *rivals = (
            predicted(cases, chain, 2000, RISK, EXIT_RULES[rule]).right_exits for chain in (pairs, *others)
        )
        assert chosen >= max(rivals)
        if cases is noise:
            assert chosen > rivals[0] + 0.01
    same = ranked(5, 4000, 1e-6, alike=True, rule=rule)
    assert (chain_pairs(same, 2000, RISK, EXIT_RULES[rule])[:, 1] == 0.5).all()


@pytest.mark.parametrize("rule", EXIT_RULES)
def test_of_val_calib_it_takes_a_number_and_nothing_finite_exits_nothing(rule: str) -> None:
    split = ranked(6, rule=rule)
    nothing = replace(split, gate=np.full(700, np.nan), confidence=np.full(700, np.nan))
    pairs = chain_pairs(nothing, 100, RISK, EXIT_RULES[rule])
    assert pairs.shape[1] == 2
    assert not exits(nothing, pairs).any()
