"""The nested boundary: its error recomputed by other means, its proof on small cases, and what it certifies."""

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np
import pytest
from policy_cases import counts_of
from scipy.special import gammaln
from scipy.stats import betabinom, binom

from stage1_pro.core.metrics.exits import ExitCounts
from stage1_pro.core.policies.fixed_sequence import certify, power_aware_start
from stage1_pro.core.policies.nested_boundary import (
    certify_nested,
    choose_window,
    crossing,
    start_passes,
    uniform_boundary,
    windows,
)

EXITED = [60, 120, 180, 240, 300]


def nested(select: ExitCounts, calib: ExitCounts, target: float = 0.05, delta: float = 0.1):
    return certify_nested(select, calib, select.coverage, target, delta)


# ---- the crossing probability


def crossing_by_enumeration(rises: list[int], rate: float, steps: int) -> float:
    """The same by all 2^steps walks, one after the other."""
    total = 0.0
    for walk in product((0, 1), repeat=steps):
        sums = np.cumsum(walk)
        if any(sums[m - 1] <= sum(rise <= m for rise in rises) - 1 for m in range(1, steps + 1)):
            total += rate ** sum(walk) * (1 - rate) ** (steps - sum(walk))
    return total


@pytest.mark.parametrize("rises", [[3], [1], [9], [2, 3, 4], [2, 5, 9], [4, 5, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9], []])
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_crossing_is_that_of_all_walks(rises: list[int], rate: float) -> None:
    assert crossing(np.array(rises), rate) == pytest.approx(crossing_by_enumeration(rises, rate, 9), abs=1e-13)


@pytest.mark.parametrize(("positives", "target"), [(300, 0.02), (300, 0.05), (1000, 0.1)])
def test_random_walks_cross_as_often_as_computed(positives: int, target: float) -> None:
    boundary = uniform_boundary(positives, target, 0.05)
    walks = np.cumsum(np.random.default_rng(0).random((20_000, positives)) < target, axis=1)
    crossed = (walks <= boundary.allowed(np.arange(1, positives + 1))).any(axis=1).mean()
    expected = crossing(boundary.rises, target)
    assert crossed == pytest.approx(expected, abs=4 * np.sqrt(expected / 20_000))


# ---- boundaries


@pytest.mark.parametrize(
    ("positives", "target", "delta", "rises", "error"),
    [
        (300, 0.02, 0.05, [170, 262], 0.0497),
        (300, 0.05, 0.05, [81, 120, 154, 185, 215, 244, 273], 0.0484),
        (1000, 0.02, 0.05, [215, 314, 400, 480, 557, 631, 702, 773, 842, 910], 0.0500),
        (1000, 0.05, 0.1, [79, 117, 150, 182, 212, 240], 0.1000),
        (59, 0.05, 0.05, [59], 0.0485),
        (58, 0.05, 0.05, [], 0.0),
    ],
)
def test_check_values(positives: int, target: float, delta: float, rises: list[int], error: float) -> None:
    found = uniform_boundary(positives, target, delta).rises
    assert found[: len(rises)].tolist() == rises
    assert positives == 1000 or len(found) == len(rises)
    assert crossing(found, target) == pytest.approx(error, abs=5e-5)


@pytest.mark.parametrize(("target", "delta"), [(0.02, 0.05), (0.05, 0.1), (0.1, 0.5), (0.013, 0.001)])
@pytest.mark.parametrize("positives", [1, 60, 149, 331, 1207])
def test_every_window_keeps_delta_and_rises_by_one(positives: int, target: float, delta: float) -> None:
    for boundary in windows(positives, target, delta):
        allowed = boundary.allowed(np.arange(positives + 1))
        assert allowed[0] == -1
        assert set(np.diff(allowed).tolist()) <= {0, 1}
        assert crossing(boundary.rises, target) <= delta
        assert boundary.rises.size == 0 or boundary.rises[-1] <= boundary.hi <= positives


def test_a_window_spends_one_level_between_its_ends_and_nothing_outside() -> None:
    target, delta, m = 0.05, 0.05, np.arange(1001)
    options = windows(1000, target, delta)
    widths = [option.hi - option.lo for option in options]
    assert options[0].lo == 59
    assert options[0].hi == 1000 == max(widths) + 59
    for option in options:
        allowed, inside = option.allowed(m), (m >= option.lo) & (m <= option.hi)
        level = binom.cdf(allowed, m, target)[inside].max()
        assert (binom.cdf(allowed + 1, m, target)[inside] > level).all()
        at_lo = allowed[option.lo]
        assert (allowed == np.maximum(-1, at_lo - (option.lo - m)))[m <= option.lo].all()
        assert (allowed == allowed[option.hi])[m >= option.hi].all()
        if option.lo == option.hi:  # one fixed test
            assert binom.cdf(at_lo, option.lo, target) <= delta < binom.cdf(at_lo + 1, option.lo, target)
    assert sum(width == 0 for width in widths) == 9


def test_the_level_is_the_highest_that_delta_affords() -> None:
    """A level above the largest p-value on the boundary adds a miss somewhere, and then crosses too often."""
    positives, target, delta = 300, 0.05, 0.05
    m = np.arange(1, positives + 1)
    allowed = uniform_boundary(positives, target, delta).allowed(m)
    higher = binom.cdf(allowed + 1, m, target).min()
    passes = [binom.cdf(k, m, target) <= higher * (1 + 1e-12) for k in range(allowed[-1] + 2)]
    raised = np.array([m[np.argmax(passed)] for passed in passes if passed.any()])
    assert crossing(raised, target) > delta


# ---- the proof


def draws_of(positives: int, cells: int) -> np.ndarray:
    """(D, cells) all ways in which so many positives fall into cells."""
    bars = np.array(list(combinations(range(positives + cells - 1), cells - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), positives + cells - 1)])
    return np.diff(edges) - 1


class SmallWorld:
    """Blocks between thresholds, with shares of the positives and miss rates; all outcomes enumerated."""

    def __init__(self, positives: int, blocks: int, allowed: np.ndarray, target: float):
        drawn = draws_of(positives, 2 * blocks + 1)
        self.blocks, self.target, self.drawn = blocks, target, drawn
        self.ways = gammaln(positives + 1) - gammaln(drawn + 1).sum(axis=1)
        missed = drawn[:, :blocks].cumsum(axis=1)
        self.passed = missed <= allowed[missed + drawn[:, blocks:-1].cumsum(axis=1)]

    def false(self, shares: np.ndarray, rates: np.ndarray) -> float:
        """P(some certified threshold has FNR on exits > target). shares: (blocks + 1,); rates: (blocks,)."""
        inside = shares[:-1]
        cells = np.concatenate([inside * rates, inside * (1 - rates), shares[-1:]])
        chance = np.exp(self.ways + self.drawn @ np.log(np.maximum(cells, 1e-300)))
        bad = np.cumsum(inside * rates) > self.target * np.cumsum(inside) * (1 + 1e-12)
        return float(chance[(self.passed & bad).any(axis=1)].sum())

    def climb(self, rng: np.random.Generator, steps: int) -> Iterator[float]:
        """The probability at a random configuration, then at ever worse ones."""
        shares, rates = rng.dirichlet(np.ones(self.blocks + 1)), rng.uniform(0, 2 * self.target, self.blocks)
        worst = self.false(shares, rates)
        for _ in range(steps):
            moved = shares * np.exp(0.5 * rng.standard_normal(shares.size))
            tried = moved / moved.sum(), np.clip(rates + 0.1 * rng.standard_normal(rates.size), 0, 1)
            if (found := self.false(*tried)) >= worst:
                worst, (shares, rates) = found, tried
            yield worst


def worst_of_small_worlds(rises: list[int], target: float) -> float:
    """Over all outcomes of 8 positives in 3 blocks, at random and at ever worse shares and miss rates."""
    rng, allowed = np.random.default_rng(0), np.searchsorted(rises, np.arange(9), side="right") - 1
    world = SmallWorld(8, 3, allowed, target)
    return max(chance for _ in range(6) for chance in world.climb(rng, 150))


@pytest.mark.parametrize("rises", [[4, 7], [3, 6, 8], [2, 4, 6, 8], [5, 6, 7], [8]])
@pytest.mark.parametrize("target", [0.3, 0.5])
def test_no_small_world_is_falsely_certified_more_often_than_the_boundary_is_crossed(
    rises: list[int], target: float
) -> None:
    most = crossing(np.array(rises), target)
    assert most / 2 < worst_of_small_worlds(rises, target) <= most + 1e-12


def test_control_the_largest_error_of_a_single_test_is_no_bound() -> None:
    rises = [2, 4, 6, 8]
    single = max(binom.cdf(k, m, 0.5) for k, m in enumerate(rises))
    assert single < worst_of_small_worlds(rises, 0.5)


# ---- the rule


def test_certified_is_every_candidate_below_the_boundary() -> None:
    """Gaps are allowed: stricter candidates than the answer may stay without a certificate."""
    select = counts_of(EXITED, [1, 3, 5, 6, 7], positives=300)
    calib = counts_of(EXITED, [3, 5, 6, 6, 6], positives=300)
    found = nested(select, calib)
    assert found.boundary is not None
    below = calib.misses <= found.boundary.allowed(calib.exited_positives)
    assert found.walk.certified.tolist() == below.tolist()
    assert not below[0]
    assert found.walk.answer == 4


def test_what_is_chosen_knows_only_the_number_of_positives_of_val_calib() -> None:
    select, rng = counts_of(EXITED, [1, 3, 5, 6, 7], positives=300), np.random.default_rng(0)
    chosen = set()
    for _ in range(20):
        blocks = rng.multinomial(280, np.ones(5) / 5)
        calib = counts_of(blocks.cumsum().tolist(), rng.binomial(blocks, 0.05).cumsum().tolist(), positives=280)
        found = nested(select, calib)
        assert found.boundary is not None
        chosen.add((found.boundary.lo, found.boundary.hi, *found.boundary.rises.tolist(), found.start_passes))
    assert len(chosen) == 1


@pytest.mark.parametrize(("misses", "surer"), [([0, 0, 0, 0, 0], True), ([0, 2, 8, 11, 14], False)])
def test_the_walk_is_taken_where_its_start_is_sure(misses: list[int], surer: bool) -> None:
    select = counts_of(EXITED, misses, positives=300)
    found = nested(select, select)
    assert (found.start_passes > 0.9) is surer
    assert (found.boundary is None) is surer
    if surer:
        assert found.walk.certified.tolist() == certify(select, select, 0.05, 0.1).certified.tolist()


def test_many_positives_lower_what_is_sure_enough() -> None:
    exited = [20 * m for m in EXITED]
    select = counts_of(exited, [40, 100, 160, 220, 285], positives=6000)
    for positives, walks in ((1900, False), (2100, True), (20_001, True)):
        calib = counts_of([m * positives // 6000 for m in exited], [0] * 5, positives)
        found = nested(select, calib)
        assert 0.5 < found.start_passes < 0.9 or positives == 20_001
        assert (found.boundary is None) is walks


@pytest.mark.parametrize("positives", [10, 300, 5000])
@pytest.mark.parametrize("misses", [0, 4, 40])
def test_chance_of_the_start_is_beta_binomial(positives: int, misses: int) -> None:
    select = counts_of([100, 200], [misses // 2, misses], positives=400)
    start = power_aware_start(select, positives, 0.05)
    k, m = int(select.misses[start]), int(select.exited_positives[start])
    scaled = round(positives / 400 * m)
    passing = np.flatnonzero(binom.cdf(np.arange(scaled + 1), scaled, 0.05) <= 0.1)
    expected = betabinom.cdf(passing[-1], scaled, k + 0.5, m - k + 0.5) if passing.size else 0.0
    assert start_passes(select, positives, 0.05, 0.1) == pytest.approx(expected, abs=1e-9)


def test_the_window_follows_val_select() -> None:
    """Misses among the last positives ask for an early window, even ones for a test of nearly everything."""
    spread = list(range(30, 301, 30))
    late = counts_of(spread, [0, 0, 0, 0, 0, 1, 2, 10, 20, 30], positives=300)
    early = choose_window(late, late.coverage, 300, 0.05, 0.1)
    assert early.hi < 250
    steady = counts_of(spread, [1, 2, 2, 3, 4, 5, 5, 6, 7, 8], positives=300)
    wide = choose_window(steady, steady.coverage, 300, 0.05, 0.1)
    assert wide.allowed(300) > uniform_boundary(300, 0.05, 0.1).allowed(300)
    hopeless = counts_of(spread, [m // 2 for m in spread], positives=300)
    assert choose_window(hopeless, hopeless.coverage, 300, 0.05, 0.1) is uniform_boundary(300, 0.05, 0.1)


@pytest.mark.parametrize(("positives", "answer"), [(58, None), (59, 0)])
def test_minimum_evidence(positives: int, answer: int | None) -> None:
    counts = counts_of([positives], [0], positives)
    assert certify_nested(counts, counts, counts.coverage, 0.05, 0.05).walk.answer == answer


def test_nothing_to_go_by() -> None:
    empty, some = counts_of([], [], 10), counts_of([100], [0], 100)
    assert nested(empty, empty).walk.answer is None
    unseen = nested(counts_of([0], [0], 0), some)  # no positive in val_select: the widest window
    assert unseen.boundary is uniform_boundary(100, 0.05, 0.1)
    assert unseen.walk.answer == 0


def test_families_that_are_not_nested_are_refused() -> None:
    good = counts_of([100, 200], [1, 2], 300)
    for bad in (counts_of([100, 200], [2, 1], 300), counts_of([100, 101], [1, 5], 300)):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(AssertionError, match="not nested"):
                nested(*pair)
