"""Who is admitted: against a brute-force twin, and the properties that make the choice independent of how it is run."""

from dataclasses import replace

import numpy as np
import pytest

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.incremental.acquisition import Admission, CaseMetrics, admit
from stage1_pro.core.incremental.distances import Distances

CASES, FEATURES = 400, 6
PARAMS = IncrementalParams(enabled=True, selection_threshold=0.8)
DIVERSITY_ALONE = replace(PARAMS, w_dice=0, w_uncertainty=0, w_diversity=1)


def pool(seed: int = 0, cases: int = CASES, ties: bool = False) -> CaseMetrics:
    """Random outputs; with ties, a coarse grid on which many cases are equal."""
    rng = np.random.default_rng(seed)
    dice, entropy = rng.random(cases), rng.random(cases)
    embedding = rng.normal(size=(cases, FEATURES))
    if ties:
        dice, entropy, embedding = np.round(dice, 1), np.round(entropy, 1), np.round(embedding[:, :FEATURES] / 2)
    ids = np.array([f"case{index:05d}" for index in range(cases)])
    return CaseMetrics(ids, ids.copy(), dice, entropy, embedding.astype(np.float32))


def chosen(metrics: CaseMetrics, active: np.ndarray, params: IncrementalParams, room: int = 40) -> Admission:
    return admit(metrics, active, params, room, seed=1, stage=2, device="cpu")


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def brute_force(metrics: CaseMetrics, active: np.ndarray, params: IncrementalParams, room: int) -> list[int]:
    """The definition, one pick and one case at a time."""
    held, unit_rows, picks = set(active.tolist()), unit(metrics.embedding), []
    rest = [i for i in range(len(metrics.dice)) if i not in held]
    rest = [i for i in rest if metrics.dice[i] <= params.selection_threshold]
    rest = [i for i in rest if round(1 - metrics.dice[i], 6) <= params.max_difficulty]
    near = {i: min(np.linalg.norm(unit_rows[i] - unit_rows[a]) for a in active) for i in rest}
    scale = max(round(d, 6) for d in near.values())

    def acq(i: int) -> float:
        known = params.w_dice * round(1 - metrics.dice[i], 6) + params.w_uncertainty * round(metrics.entropy[i], 6)
        return known + params.w_diversity * min(round(near[i], 6) / scale, 1.0)

    for _ in range(min(room, len(rest))):
        best = max(rest, key=lambda i: (acq(i), -i))
        picks.append(best)
        rest.remove(best)
        for i in rest:
            near[i] = min(near[i], np.linalg.norm(unit_rows[i] - unit_rows[best]))
    return picks


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "params",
    [PARAMS, DIVERSITY_ALONE, replace(PARAMS, w_diversity=0), replace(PARAMS, max_difficulty=0.6)],
    ids=["defaults", "diversity", "sort", "gated"],
)
def test_the_picks_are_those_of_the_definition(params: IncrementalParams, ties: bool) -> None:
    metrics, active = pool(ties=ties), np.array([3, 50, 200])
    assert chosen(metrics, active, params, 60).picks.tolist() == brute_force(metrics, active, params, 60)


def test_diversity_alone_is_plain_farthest_first() -> None:
    metrics, active = pool(1), np.array([0])
    rows = unit(metrics.embedding)
    near, picks = np.linalg.norm(rows - rows[0], axis=1), []
    near[metrics.dice > 0.8] = -1  # not eligible
    for _ in range(50):
        picks.append(int(np.argmax(near)))
        near = np.where(near < 0, -1, np.minimum(near, np.linalg.norm(rows - rows[picks[-1]], axis=1)))
        near[picks[-1]] = -1
    assert chosen(metrics, active, DIVERSITY_ALONE, 50).picks.tolist() == picks


def test_without_diversity_it_is_a_sort() -> None:
    metrics, active = pool(2), np.arange(10)
    params = replace(PARAMS, w_diversity=0)
    score = 0.5 * (1 - metrics.dice) + 0.3 * metrics.entropy
    order = [i for i in np.argsort(-score, kind="stable") if i >= 10 and metrics.dice[i] <= 0.8]
    assert chosen(metrics, active, params, 30).picks.tolist() == order[:30]


@pytest.mark.parametrize("front", [1, 7, 10_000])
def test_how_many_are_looked_at_together_changes_nothing(front: int, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, active = pool(3, ties=True), np.array([7])
    expected = chosen(metrics, active, PARAMS, 100)
    monkeypatch.setattr("stage1_pro.core.incremental.acquisition.FRONT", front)
    monkeypatch.setattr("stage1_pro.core.incremental.distances.BLOCK", 3 * front)
    found = chosen(metrics, active, PARAMS, 100)
    assert found.picks.tolist() == expected.picks.tolist()
    np.testing.assert_array_equal(found.acq, expected.acq)


def test_the_order_of_the_pool_changes_nothing_but_positions() -> None:
    """Rows are sorted by id before anything is chosen, so only noise in the last bits may differ."""
    metrics, active = pool(4, ties=True), np.array([1, 2])
    noise = np.random.default_rng(5).normal(0, 1e-9, CASES)
    shaken = replace(metrics, dice=metrics.dice + noise, entropy=metrics.entropy + noise)
    again = replace(shaken, embedding=(metrics.embedding.astype(np.float64) * (1 + 3e-8)).astype(np.float32))
    params = replace(PARAMS, selection_threshold=0.75)  # no dice of the grid is on it
    assert chosen(metrics, active, params).picks.tolist() == chosen(again, active, params).picks.tolist()


def test_identical_images_count_as_one() -> None:
    metrics, active = pool(6), np.array([0])
    content = metrics.content.copy()
    content[[10, 20, 30]] = "twins"
    content[40] = content[0]  # of a case in training
    metrics = replace(metrics, content=content, dice=np.full(CASES, 0.1))
    found = chosen(metrics, active, PARAMS, CASES)
    assert found.candidates == CASES - 4 == len(found)
    assert 10 in found.picks
    assert not {20, 30, 40} & set(found.picks.tolist())


def test_a_case_has_no_distance_to_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 128)).astype(np.float32)
    everyone = np.arange(500)
    assert Distances(np.vstack([rows, rows]), everyone + 500, everyone).to_known().max() < 1e-6


def test_cases_that_are_not_finite_are_recorded_and_never_picked() -> None:
    metrics, active = pool(7), np.array([0, 1])
    metrics.dice[5], metrics.entropy[6], metrics.embedding[7, 2] = np.nan, np.inf, np.nan
    metrics.dice[1] = np.nan  # in training: it is no landmark
    found = chosen(metrics, active, PARAMS, CASES)
    assert found.nonfinite.tolist() == [1, 5, 6, 7]
    assert not {5, 6, 7} & set(found.picks.tolist())
    assert np.isfinite(found.acq).all()


@pytest.mark.parametrize("strategy", ["acquisition", "random"])
def test_nothing_in_training_is_picked_and_nothing_twice(strategy: str) -> None:
    metrics, active = pool(8), np.arange(0, CASES, 3)
    found = chosen(metrics, active, replace(PARAMS, strategy=strategy), CASES)
    assert len(set(found.picks.tolist())) == len(found) == found.eligible
    assert not set(active.tolist()) & set(found.picks.tolist())


def test_random_admission_sees_no_scores_and_differs_by_stage_and_seed() -> None:
    metrics, active, params = pool(9), np.arange(5), replace(PARAMS, strategy="random")
    first = admit(metrics, active, params, 20, 1, 1, "cpu").picks.tolist()
    assert first == admit(replace(metrics, dice=metrics.dice[::-1]), active, params, 20, 1, 1, "cpu").picks.tolist()
    assert first != admit(metrics, active, params, 20, 1, 2, "cpu").picks.tolist()
    assert first != admit(metrics, active, params, 20, 2, 1, "cpu").picks.tolist()


def test_components_are_those_at_the_time_of_the_pick() -> None:
    metrics, active = pool(10), np.array([0])
    found = chosen(metrics, active, PARAMS, 25)
    rows = unit(metrics.embedding)
    for place, pick in enumerate(found.picks):
        before = np.concatenate([active, found.picks[:place]])
        distance = np.linalg.norm(rows[before] - rows[pick], axis=1).min()
        assert found.diversity[place] == pytest.approx(min(distance / found.scale, 1), abs=2e-6)
    weighed = 0.5 * found.difficulty + 0.3 * found.uncertainty + 0.2 * found.diversity
    np.testing.assert_allclose(found.acq, weighed, atol=1e-12)


@pytest.mark.gpu
def test_a_gpu_picks_the_same() -> None:
    metrics, active = pool(11, cases=5000), np.arange(20)
    expected = admit(metrics, active, PARAMS, 300, 1, 1, "cpu")
    found = admit(metrics, active, PARAMS, 300, 1, 1, "cuda")
    assert found.picks.tolist() == expected.picks.tolist()
    np.testing.assert_array_equal(found.acq, expected.acq)


def test_torch_picks_the_same_as_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the device, run where there is one for certain."""
    from stage1_pro.core.incremental import distances

    metrics, active = pool(12, cases=1000), np.arange(20)
    expected = chosen(metrics, active, PARAMS, 100)
    monkeypatch.setattr(distances, "_product", distances._product_on("cpu"))
    np.testing.assert_array_equal(chosen(metrics, active, PARAMS, 100).picks, expected.picks)


def test_distances_need_a_case_to_start_from() -> None:
    with pytest.raises(ValueError, match="no case to measure distances from"):
        chosen(pool(), np.array([], dtype=np.int64), PARAMS)
