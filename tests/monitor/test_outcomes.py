"""One drawn positive of each group, and what unknown labels may hide: against every way to fill them in."""

from itertools import product

import numpy as np
import pytest

from stage1_pro.core.monitor.outcomes import HIT, MISS, NOTHING, group_outcomes, needs_label


def drawn_outcome(keys: list[int], answered: list[bool], exits: list[bool], labels: tuple[int, ...]) -> int:
    """Of a group whose labels are all known."""
    positives = [case for case in sorted(range(len(keys)), key=keys.__getitem__) if labels[case] == 1]
    if not positives or not exits[positives[0]]:
        return NOTHING
    return HIT if answered[positives[0]] else MISS


@pytest.mark.parametrize("seed", range(5))
def test_outcomes_are_the_extremes_of_all_completions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 120)
    groups = rng.permutation(np.repeat(np.arange(120), sizes)).astype(np.uint64)
    n = groups.size
    keys = rng.permutation(n).astype(np.uint64)
    answered, exits = rng.random(n) < 0.6, rng.random(n) < 0.7
    labels = rng.choice([-1, 0, 1], n, p=[0.3, 0.3, 0.4])
    names, best, worst = group_outcomes(groups, keys, answered, exits, labels)
    assert names.tolist() == sorted(set(groups.tolist()))
    for name, low, high in zip(names, best, worst, strict=True):
        inside = np.flatnonzero(groups == name)
        options = [(0, 1) if labels[case] < 0 else (int(labels[case]),) for case in inside]
        parts = keys[inside].tolist(), answered[inside].tolist(), exits[inside].tolist()
        possible = {drawn_outcome(*parts, completion) for completion in product(*options)}
        assert (low, high) == (min(possible), max(possible))


def test_single_cases_without_a_label() -> None:
    """For the alarm an unlabelled answer 1 is a hit and an unlabelled answer 0 is left out, else the reverse."""
    keys = np.arange(4, dtype=np.uint64)
    answered, exits = np.array([True, False, True, False]), np.array([True, True, False, False])
    _, best, worst = group_outcomes(keys, keys, answered, exits, np.full(4, -1))
    assert best.tolist() == [HIT, NOTHING, NOTHING, NOTHING]
    assert worst.tolist() == [NOTHING, MISS, NOTHING, NOTHING]
    assert needs_label(keys, exits).tolist() == [True, True, False, False]


def test_no_cases() -> None:
    nothing = np.zeros(0, dtype=np.uint64)
    assert [part.size for part in group_outcomes(nothing, nothing, nothing > 0, nothing > 0, nothing.astype(int))] == [
        0
    ] * 3
    assert needs_label(nothing, nothing > 0).size == 0
