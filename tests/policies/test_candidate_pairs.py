"""The path of pairs against plain loops, with ties and with outputs that are not finite."""

import math
from dataclasses import replace

import numpy as np
import pytest

from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.candidate_pairs import RankedPairs, confidence_levels, count_pairs, frontier_pairs
from stage1_pro.core.policies.fixed_sequence import predicted_p, threshold_candidates


def ranked(seed: int, cases: int = 700, step: float = 0.05, alike: bool = False) -> RankedPairs:
    """Scores rounded to step, so that they tie; one gate and one confidence are NaN."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(cases) < 0.4).astype(np.int64)
    confidence = rng.uniform(0.5, 1, cases)
    answers = np.where(rng.random(cases) < confidence, labels, 1 - labels)
    gate = confidence if alike else np.clip(rng.normal(np.where(answers == labels, 0.7, 0.5), 0.15), 0, 1)
    gate, confidence = np.round(gate / step) * step, np.maximum(np.round(confidence / step) * step, 0.5)
    gate[0], confidence[1] = np.nan, np.nan
    return RankedPairs(gate, confidence, answers, labels, np.ones(cases, dtype=bool), cases)


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


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("step", [0.05, 1e-4])
def test_the_path_is_the_gates_own_but_for_clearly_better_pairs(noise: bool, step: float) -> None:
    """Near is within half a two-hundredth of the cases, clearly better a tenth of p without more false alarms."""
    split, positives, target = ranked(5, 2000, step), 1000, 0.1
    if noise:
        split = replace(split, gate=np.round(np.random.default_rng(0).uniform(0, 1, 2000) / step) * step)
    path = frontier_pairs(split, positives, target, levels=8)
    own = np.array([(threshold, 0.5) for threshold in threshold_candidates(split.gate)])
    grid = np.array([(a, b) for a in {0.0, *own[:, 0]} for b in confidence_levels(split.confidence, 8)])
    of_own, of_grid = split.counts(own), split.counts(grid)
    p, p_of_grid = (predicted_p(counts, positives, target) for counts in (of_own, of_grid))
    near = 400 * abs(of_grid.exited - of_own.exited[:, None]) <= 2000  # (own, grid)
    near &= np.nan_to_num(of_grid.fpr) <= np.nan_to_num(of_own.fpr)[:, None] + 1e-12
    least = np.where(near, p_of_grid, 1.0).min(axis=1)
    left = least < 0.1 * p
    assert among(own[~left], path).all()
    taken = near & among(grid, path) & (p_of_grid == least[:, None])
    assert taken[left].any(axis=1).all()
    explained = taken[left].any(axis=0) | among(grid, own[~left])
    assert explained[among(grid, path)].all()
    assert among(grid, path).sum() == len(path)  # each pair once, all from the grid
    assert left.any() or not noise
    assert not left.all()


def among(pairs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(J,) which pairs (J, 2) are among these others."""
    known = set(map(tuple, others.tolist()))
    return np.array([tuple(pair) in known for pair in pairs.tolist()])


def test_the_path_grows_in_coverage_and_leaves_the_gate_where_it_knows_little() -> None:
    """A gate of noise: the class probability is clearly better, and some pairs have no gate at all."""
    split = ranked(5, 4000, 1e-6)
    noise = replace(split, gate=np.random.default_rng(0).uniform(0, 1, 4000))
    pairs = frontier_pairs(noise, 2000, 0.1)
    assert (np.diff(noise.counts(pairs).exited) >= 0).all()
    assert (pairs[:, 1] > 0.5).mean() > 0.2
    same = frontier_pairs(ranked(5, 4000, 1e-6, alike=True), 2000, 0.1)
    assert (same[:, 1] == 0.5).mean() > 0.95


def test_labels_enter_by_val_select_alone_and_nothing_finite_gives_no_pair() -> None:
    split = ranked(6)
    nothing = replace(split, gate=np.full(700, np.nan))
    assert frontier_pairs(nothing, 100, 0.1).shape == (0, 2)
    assert confidence_levels(np.full(5, np.nan)).tolist() == [0.5]
    levels = confidence_levels(split.confidence, 7)
    assert levels[0] == 0.5
    assert set(levels.tolist()) <= {0.5, *split.confidence[~np.isnan(split.confidence)].tolist()}
    assert not any(math.isnan(level) for level in levels)
