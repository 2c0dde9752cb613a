"""Figures of masks against values worked out by hand."""

import numpy as np
import pytest

from stage1_pro.core.metrics.masks import LEAST, MaskSums, components, hd95, least_overlap, missed, uncertainty


def sums(
    *classes: tuple[int, int, int], positive: tuple[int, int, int] | None = None, largest: float = 0.9
) -> MaskSums:
    """One case: (I, P, Y) of each foreground class; probabilities are those of a network that is sure."""
    both, predicted, true = zip(*classes, strict=True)
    first = positive or classes[0]
    row = [*both, *predicted, *true, *predicted * 3, *first, *first[1:2] * 3, largest, 0.0, largest, 1000]
    return MaskSums.of_rows(np.array([row], dtype=np.float64))


@pytest.mark.parametrize(
    ("classes", "dice"),
    [
        ([(8, 11, 10)], 0.7619048),
        ([(8, 11, 10), (0, 0, 0)], 0.7619048),
        ([(8, 11, 10), (0, 5, 0)], 0.3809524),
        ([(0, 0, 0)], 1.0),
        ([(0, 0, 7)], 0.0),
    ],
)
def test_dice_of_a_case(classes: list[tuple[int, int, int]], dice: float) -> None:
    assert float(sums(*classes).case_dice()[0]) == pytest.approx(dice, abs=1e-7)


def test_a_class_that_neither_mask_has_is_left_out_and_an_invented_one_counts_as_zero() -> None:
    np.testing.assert_allclose(sums((0, 0, 0), (0, 5, 0)).dice(), [[np.nan, 0.0]])


def test_an_empty_mask_is_as_sure_as_its_largest_probability_is_small() -> None:
    empty = sums((0, 0, 4), largest=0.3)
    assert float(empty.soft_dice()[0]) == pytest.approx(0.7)
    assert float(empty.positive_confidence(1)[0]) == pytest.approx(0.7)
    assert empty.answers(1).tolist() == [0]


@pytest.mark.parametrize("largest", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predicted", [0, 5])
def test_logits_of_a_case_say_answer_and_confidence(predicted: int, largest: float) -> None:
    case = sums((0, predicted, 4), largest=largest)
    confidence = float(case.positive_confidence(1)[0])
    logits = case.case_logits(1).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum()
    assert LEAST <= confidence <= 1 - LEAST
    assert int(p.argmax()) == int(predicted > 0)
    assert float(p.max()) == pytest.approx((1 + confidence) / 2, abs=1e-6)


def test_outputs_that_are_not_finite_are_nothing_to_exit_on() -> None:
    row = np.full((1, 16), np.nan)
    broken = MaskSums.of_rows(row)
    assert np.isnan(broken.case_logits(1)[0, 1])
    assert np.isnan(uncertainty(broken, "soft_dice")[0])
    assert np.isnan(uncertainty(broken, "entropy")[0])


def test_counts_of_large_volumes_are_exact() -> None:
    many = 2**40 + 1
    assert sums((many, many, many)).positive_both.tolist() == [many]


def test_miss_rules_on_two_lesions_of_which_one_is_hit() -> None:
    truth, mask = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[2:6, 2:6] = truth[12:14, 12:14] = mask[2:6, 2:6] = True
    overlap = least_overlap(truth, mask)
    case = sums((16, 16, 20))
    assert overlap == 0
    rules = {rule: missed(case, [overlap], rule, 0.5, 0.1, 1).tolist() for rule in ("empty", "lesion", "dice")}
    assert rules == {"empty": [0], "lesion": [1], "dice": [0]}
    mask[12, 12] = True  # a quarter of the second
    assert least_overlap(truth, mask) == 0.25
    assert least_overlap(np.zeros((3, 3)), mask[:3, :3]) == 1


def test_what_is_a_miss() -> None:
    assert missed(sums((0, 0, 9)), [1.0], "empty", 0.5, 0.1, 1).tolist() == [1]  # answer 0 on a positive case
    assert missed(sums((0, 5, 0)), [1.0], "dice", 0.5, 0.1, 1).tolist() == [-1]  # a negative case misses nothing
    assert missed(sums((2, 9, 9)), [1.0], "dice", 0.5, 0.1, 1).tolist() == [1]
    assert missed(sums((3, 9, 9)), [1.0], "empty", 0.5, 0.1, 10).tolist() == [-1]  # too small to be positive


def test_distances_are_in_the_unit_of_the_spacing() -> None:
    truth, mask = np.zeros((9, 4, 5), bool), np.zeros((9, 4, 5), bool)
    truth[2], mask[5] = True, True
    assert hd95(truth, mask, (2.0, 1.0, 1.0)) == 6.0
    assert hd95(truth, mask, (0.5, 9.0, 9.0)) == 1.5
    assert hd95(truth, truth, (2.0, 1.0, 1.0)) == 0.0
    assert np.isnan(hd95(truth, np.zeros_like(mask), (1.0, 1.0, 1.0)))


def test_a_stray_voxel_is_more_than_the_95th_percentile_leaves_out_and_one_of_many_is_not() -> None:
    truth = np.zeros((40, 40), bool)
    truth[5:25, 5:25] = True
    mask = truth.copy()
    mask[35, 35] = True
    assert hd95(truth, mask, (1.0, 1.0)) == 0.0  # one of 77 surface voxels
    mask[30:36, 30:36] = True
    assert hd95(truth, mask, (1.0, 1.0)) > 5


def test_components_touch_by_corners() -> None:
    assert components(np.eye(3)) == 1
    assert components(np.array([[1, 0, 1], [0, 0, 0], [1, 0, 1]])) == 4
