"""Dice, entropy and embedding of a case, against scikit-learn and scipy."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from stage1_pro.core.training.modules.base import case_metrics


@pytest.mark.parametrize("classes", [2, 5])
def test_dice_is_the_overlap_of_probabilities_and_label(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (50, classes)).astype(np.float32), rng.integers(0, classes, 50)
    dice, spread, embedding = case_metrics(torch.from_numpy(logits), torch.from_numpy(labels), torch.ones(50, 3).half())
    p, y = softmax(logits.astype(np.float64), axis=1), np.eye(classes)[labels]
    np.testing.assert_allclose(dice, 2 * (p * y).sum(1) / (p.sum(1) + y.sum(1)), rtol=1e-12)
    np.testing.assert_allclose(spread, entropy(p, axis=1) / np.log(classes), rtol=1e-9)
    assert embedding.dtype == torch.float32


def test_certainty_has_no_entropy_and_what_is_not_finite_stays_so() -> None:
    logits = torch.tensor([[900.0, -900.0], [0.0, 0.0], [torch.nan, 0.0]])
    dice, spread, _ = case_metrics(logits, torch.tensor([1, 0, 0]), torch.ones(3, 1))
    assert (dice[0], spread[0], spread[1]) == (0, 0, 1)
    assert torch.isnan(dice[2])
    assert torch.isnan(spread[2])
