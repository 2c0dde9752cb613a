"""The class loss: where its optima lie, that small batches are unbiased, and what it costs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stage1_pro.core.losses.cross_entropy import ClassLoss, balanced_weights

SMOOTHING = 0.1
PREVALENCES = (0.5, 0.1, 0.05, 0.02, 0.01)
Loss = Callable[[Tensor, Tensor], Tensor]


def counts(prevalence: float) -> np.ndarray:
    return np.array([round(10_000 * (1 - prevalence)), round(10_000 * prevalence)])


def ours(prevalence: float, smoothing: float = SMOOTHING) -> Loss:
    return ClassLoss(balanced_weights(counts(prevalence)), smoothing)


def torchs(prevalence: float) -> Loss:
    """The weighted, smoothed cross entropy of torch, as a mean over cases."""
    weights = balanced_weights(counts(prevalence))
    each = lambda z, y: cross_entropy(z, y, weights, label_smoothing=SMOOTHING, reduction="none")  # noqa: E731
    return lambda logits, labels: each(logits, labels).mean()


def optimum(loss: Loss, positive_share: float) -> float:
    """P(positive) that minimises the mean loss of cases alike, of which this share is positive."""
    z = torch.zeros((), dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def step() -> Tensor:
        optimizer.zero_grad()
        logits = torch.stack([torch.zeros(()), z])[None]
        shares = ((0, 1 - positive_share), (1, positive_share))
        total = sum(share * loss(logits, torch.tensor([label])) for label, share in shares if share)
        total.backward()
        return total

    optimizer.step(step)
    return float(z.detach().sigmoid())


@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_a_certain_case_has_its_optimum_at_half_of_the_smoothing(prevalence: float) -> None:
    assert optimum(ours(prevalence), 0.0) == pytest.approx(SMOOTHING / 2, abs=1e-4)
    assert optimum(ours(prevalence), 1.0) == pytest.approx(1 - SMOOTHING / 2, abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, SMOOTHING])
@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_a_case_that_says_nothing_has_its_optimum_at_one_half(prevalence: float, smoothing: float) -> None:
    assert optimum(ours(prevalence, smoothing), prevalence) == pytest.approx(0.5, abs=1e-3)


def test_weighting_the_mass_by_the_class_it_falls_on_answers_positive_to_certain_negatives() -> None:
    """The negative control: torch's own order fails the first of these tests, as the formula says."""
    found = [optimum(torchs(prevalence), 0.0) for prevalence in PREVALENCES]
    assert found == pytest.approx([0.05, 0.32, 0.50, 0.72, 0.84], abs=0.005)


def test_small_batches_are_unbiased() -> None:
    """The mean gradient over batches of 64 at 1 % positives is that of all cases at once; with torch's mean, which
    divides by the batch's sum of weights, it is far from it."""
    rng = torch.Generator().manual_seed(5)
    labels = (torch.arange(64_000) % 100 == 0).long()[torch.randperm(64_000, generator=rng)]
    weights = balanced_weights(np.bincount(labels.numpy()))
    z = torch.zeros((), requires_grad=True)
    logits = lambda batch: torch.stack([torch.zeros(()), z]).expand(len(batch), 2)  # noqa: E731

    def gradient(loss: Loss, size: int) -> float:
        parts = [torch.autograd.grad(loss(logits(batch), batch), z)[0] for batch in labels.split(size)]
        return float(torch.stack(parts).mean())

    mean_of_weights = lambda x, y: cross_entropy(x, y, weights)  # noqa: E731
    loss = ClassLoss(weights, 0.0)
    assert gradient(loss, 64) == pytest.approx(gradient(loss, 64_000), abs=1e-4)
    assert abs(gradient(mean_of_weights, 64) - gradient(mean_of_weights, 64_000)) > 0.1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_values_and_gradients_are_those_of_a_plain_loop(classes: int) -> None:
    rng = torch.Generator().manual_seed(classes)
    logits = (3 * torch.randn(2, 5, 20, classes, generator=rng)).requires_grad_()
    labels = torch.randint(classes, (20,), generator=rng)
    weights = torch.rand(classes, generator=rng) + 0.2
    found = ClassLoss(weights, SMOOTHING)(logits, labels)
    plain = torch.zeros(2, 5, dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        log_p = logits[:, :, i].double().log_softmax(-1)
        each = (1 - SMOOTHING) * log_p[..., label] + SMOOTHING * log_p.mean(-1)
        plain = plain - float(weights[label]) * each / 20
    torch.testing.assert_close(found.double(), plain, rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(plain.sum(), logits, retain_graph=True)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_heads_side_by_side_may_have_cases_of_their_own() -> None:
    rng = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(3, 16, 2, generator=rng), torch.randint(2, (3, 16), generator=rng)
    loss = ours(0.1)
    found = loss(logits, labels)
    assert found.tolist() == pytest.approx([float(loss(logits[m], labels[m])) for m in range(3)], rel=1e-6)


@pytest.mark.parametrize("classes", [[900, 100], [980, 20], [50, 30, 20], [700, 0, 300]])
def test_balanced_weights_average_one_over_the_cases(classes: list[int]) -> None:
    each = np.array(classes)
    weights = balanced_weights(each).double().numpy()
    assert (each * weights).sum() / each.sum() == pytest.approx(1, rel=1e-6)
    shares = (each * weights)[each > 0]
    assert shares == pytest.approx(np.full(len(shares), shares[0]), rel=1e-6)


def test_bfloat16_logits_lose_nothing_in_the_loss() -> None:
    logits = torch.tensor([[-300.0, 300.0], [12.0, -12.0]], dtype=torch.bfloat16)
    found = ours(0.5, 0.0)(logits, torch.tensor([0, 0]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx((600 + math.exp(-24)) / 2, rel=1e-6)


def test_the_weights_can_change_and_are_no_part_of_a_checkpoint() -> None:
    loss = ours(0.5)
    loss.weigh(balanced_weights(counts(0.02)))
    logits, labels = torch.randn(30, 2), torch.arange(30) % 2
    assert float(loss(logits, labels)) == pytest.approx(float(ours(0.02)(logits, labels)), rel=1e-6)
    assert not loss.state_dict()
