"""Suspect labels: planted ones come first, groups stay whole, and what cannot be judged is left out."""

import numpy as np
import pytest

from stage1_pro.core.training.suspects import LEAST_TELLING, suspicion


def planted(
    classes: int = 2, count: int = 1200, share: float = 0.05, seed: int = 0, group_size: int = 1, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, labels, groups, positions of wrong labels): classes around centres, the first one frequent."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.minimum(rng.geometric(0.6, count // group_size) - 1, classes - 1), group_size)
    own = rng.normal(0, 1, (classes, 64))[true] + noise * rng.normal(0, 2, (count // group_size, 64)).repeat(
        group_size, 0
    )
    features = (own + rng.normal(0, 1, (count, 64))).astype(np.float32)
    wrong = rng.choice(count, round(share * count), replace=False)
    labels = true.copy()
    labels[wrong] = (true[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return features, labels, np.array([f"g{index // group_size}" for index in range(count)]), wrong


@pytest.mark.parametrize(("classes", "group_size"), [(2, 1), (2, 4), (5, 1)])
def test_planted_labels_come_first(classes: int, group_size: int) -> None:
    features, labels, groups, wrong = planted(classes, group_size=group_size)
    order = suspicion(features, labels, groups, 0).order
    hit = np.isin(order, wrong)
    assert hit[: len(wrong) // 2].mean() >= 0.7
    assert hit[: round(1.5 * len(wrong))].sum() >= 0.7 * len(wrong)


def test_what_is_suggested_is_the_right_class() -> None:
    features, labels, groups, wrong = planted(3, noise=0.3)
    true = planted(3, noise=0.3, share=0)[1]
    found = suspicion(features, labels, groups, 0)
    assert (found.suggested[wrong] == true[wrong]).mean() > 0.9
    assert found.contradicted == pytest.approx(len(wrong), rel=0.3)


def test_no_signal_no_list_worth_reading() -> None:
    """The negative control: labels that the features do not tell are found no better than by chance."""
    features, labels, groups, wrong = planted()
    shuffled = features[np.random.default_rng(1).permutation(len(features))]
    first = suspicion(shuffled, labels, groups, 0).order[: round(1.5 * len(wrong))]
    # wrong labels are oftener of the rare class, whose prior is low: a little more than 1.5 * P / N of them
    assert np.isin(wrong, first).mean() < 0.35


@pytest.mark.parametrize(("classes", "group_size"), [(2, 1), (2, 4), (5, 1)])
def test_features_that_tell_nothing_are_told_from_those_that_do(classes: int, group_size: int) -> None:
    for seed in range(5):
        features, labels, groups, _ = planted(classes, group_size=group_size, seed=seed)
        # noise that groups share, as the frames of a track do
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 1, (len(groups) // group_size, 64)).repeat(group_size, 0).astype(np.float32)
        assert (
            suspicion(noise, labels, groups, 0).telling < LEAST_TELLING < suspicion(features, labels, groups, 0).telling
        )


def test_a_case_is_judged_by_what_never_saw_its_group() -> None:
    """Features that tell the group and nothing else: a probe that saw the group would know the labels by heart."""
    rng = np.random.default_rng(0)
    features = np.repeat(50 * rng.normal(0, 1, (60, 64)), 10, axis=0).astype(np.float32)
    labels = np.repeat(rng.integers(0, 2, 60), 10)
    by_group = suspicion(features, labels, np.repeat(np.arange(60), 10), 0)
    by_case = suspicion(features, labels, np.arange(600), 0)
    assert by_case.contradicted < 0.1 * 600 < 0.3 * 600 < by_group.contradicted


def test_order_of_cases_does_not_matter() -> None:
    features, labels, groups, _ = planted(count=300)
    other = np.random.default_rng(2).permutation(300)
    first, second = suspicion(features, labels, groups, 0), suspicion(features[other], labels[other], groups[other], 0)
    np.testing.assert_allclose(second.own, first.own[other], atol=1e-4)


def test_what_cannot_be_judged_is_not_listed() -> None:
    features, labels, groups, _ = planted(count=300)
    features[7, 3] = np.nan
    labels[11] = 2  # a class of one case: whatever judges it has never seen the class
    found = suspicion(features, labels, groups, 0)
    assert sorted(set(range(300)) - set(found.order.tolist())) == [7, 11]
    assert (found.suggested != 2).all()


@pytest.mark.parametrize(("labels", "groups"), [([0, 1, 0, 1], "aabb"), ([0, 0, 0, 0], "abcd")])
def test_there_is_no_list_where_no_fold_can_be_left_out(labels: list[int], groups: str) -> None:
    assert suspicion(np.eye(4), np.array(labels), np.array(list(groups)), 0) is None
