"""Frames of a group: which are looked at, and what they say together."""

import numpy as np
import pytest

from stage1_pro.core.metrics.views import Frames, Views, fuse


def brute(logits, groups, order, views: Views) -> dict[str, float]:
    """Group by group, as the page describes the rule."""
    found = {}
    for name in sorted(set(groups)):
        members = [at for at in range(len(groups)) if groups[at] == name]
        if views.count is not None:
            members.sort(key=lambda at: order[at])
            if len(members) > views.count:
                picks = np.round(np.linspace(0, len(members) - 1, views.count)).astype(int)
                members = [members[at] for at in (picks if views.rule == "mean" else range(views.count))]
        found[name] = float(np.mean([float(logits[at, 1]) - float(logits[at, 0]) for at in members]))
    return found


@pytest.mark.parametrize("views", [Views(), Views(1), Views(3), Views(3, "first"), Views(40)])
def test_against_group_by_group(views: Views) -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"track{at}" for at in rng.integers(0, 60, 700)], dtype=object)
    order, logits = rng.permutation(700).astype(float), rng.normal(size=(700, 2)).astype(np.float32)
    fused, expected = fuse(logits, groups, order, views), brute(logits, groups, order, views)
    assert fused.names.tolist() == list(expected)
    assert np.allclose(fused.logits[:, 1] - fused.logits[:, 0], list(expected.values()), atol=1e-6)
    sizes = [int((groups == name).sum()) for name in fused.names]
    assert fused.lengths.tolist() == sizes
    assert fused.used.tolist() == [len(views.positions(size)) for size in sizes]


def test_equal_frames_give_equal_bits_in_whatever_order_they_come() -> None:
    rng = np.random.default_rng(1)
    groups, order = np.repeat(np.arange(50), 37), np.tile(np.arange(37.0), 50)
    logits = rng.normal(0, 7, (groups.size, 2)).astype(np.float32)
    for views in (Views(), Views(11)):
        once = fuse(logits, groups, order, views).logits
        for _ in range(20):
            turned = rng.permutation(groups.size)
            assert (fuse(logits[turned], groups[turned], order[turned], views).logits == once).all()
    for group in range(50):  # alone, as an inference host sees it
        own = groups == group
        assert (
            fuse(logits[own], np.zeros(37, int), None, Views()).logits
            == fuse(logits, groups, order, Views()).logits[group]
        ).all()


def test_evenly_spaced_is_rounded_half_to_even() -> None:
    assert Views(4).positions(6) == [0, 2, 3, 5]  # 0, 1.67, 3.33, 5
    assert Views(3).positions(4) == [0, 2, 3]  # 1.5 goes to 2
    assert Views(3).positions(6) == [0, 2, 5]  # 2.5 goes to 2
    assert Views(1).positions(9) == [0]
    assert Views(3, "first").positions(9) == [0, 1, 2]
    for size in range(1, 60):
        for count in range(1, 60):
            picks = Views(count).positions(size)
            assert len(set(picks)) == len(picks) == min(size, count)


def test_an_unreadable_frame_that_is_looked_at_defers_its_group() -> None:
    logits = np.zeros((6, 2), np.float32)
    logits[1] = np.nan
    groups, order = np.repeat(["a", "b"], 3), np.tile([0.0, 1.0, 2.0], 2)
    assert np.isnan(fuse(logits, groups, order, Views()).logits[:, 0]).tolist() == [True, False]
    assert not np.isnan(fuse(logits, groups, order, Views(2)).logits).any()  # the first and the last
    with pytest.raises(ValueError, match="order"):
        fuse(logits, groups, None, Views(2))


def test_frames_of_many_groups_are_found_at_once() -> None:
    groups, order = np.repeat(["b", "a"], [4, 2]), np.array([3.0, 1, 2, 0, 5, 4])
    frames = Frames.of(groups, order)
    assert frames.names.tolist() == ["a", "b"]
    assert frames.index.tolist() == [5, 4, 3, 1, 2, 0]
    assert frames.looked_at(Views(2)).tolist() == [True, False, False, True, True, True]
