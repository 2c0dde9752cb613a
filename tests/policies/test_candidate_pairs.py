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


def path_by_hand(split: RankedPairs, positives: int, target: float, levels: int) -> list[tuple[float, float]]:
    """Each threshold of the gate, or the best pair near it, in the order of growing coverage."""
    total, everyone = int(split.labels.sum()), split.labels.size
    grid = []
    for a in sorted({0.0, *threshold_candidates(split.gate).tolist()}):
        for b in confidence_levels(split.confidence, levels).tolist():
            counts = by_hand(split, a, b)
            one = ExitCounts(*(np.array([number]) for number in counts), everyone, total)
            fpr = counts[4] / counts[3] if counts[3] else 0.0
            grid.append((a, b, counts[0], float(predicted_p(one, positives, target)[0]), fpr))
    path = set()
    for a, b, exited, p, fpr in grid:
        if b != 0.5 or a not in threshold_candidates(split.gate):
            continue
        near = [row for row in grid if 400 * abs(row[2] - exited) <= everyone and row[4] <= fpr + 1e-12]
        best = min(near, key=lambda row: (row[3], row[2]))
        path.add(best[:3] if best[3] < 0.1 * p else (a, b, exited))
    return [row[:2] for row in sorted(path, key=lambda row: (row[2], row[0], row[1]))]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("step", [0.05, 1e-4])
def test_the_path_is_the_gates_own_but_for_clearly_better_pairs(seed: int, step: float) -> None:
    split = ranked(seed, 300, step)
    found = frontier_pairs(split, 150, 0.1, levels=8)
    assert found.tolist() == [list(pair) for pair in path_by_hand(split, 150, 0.1, 8)]


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
