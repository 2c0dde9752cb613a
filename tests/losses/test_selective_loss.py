"""SelectiveLoss against plain loops, its gradients and its state."""

import functools
import math

import pytest
import torch
from torch import Tensor
from two_ranks import group, on_two_ranks

from stage1_pro.core.losses.selective import SelectiveLoss, SelectiveSettings
from stage1_pro.core.models.heads import Members

WEIGHTS = torch.tensor([0.6, 3.0])
SETTINGS = SelectiveSettings(0.0325, 0.5, 0.3, 1.0, 0.1, penalty=2.0)


def random_members(seed: int, members: int = 2, cases: int = 40) -> tuple[Members, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    labels = (torch.rand(cases, generator=rng) < 0.4).long()
    made = Members(draw(members, cases, 3), 2 * draw(members, cases, 2), draw(members, cases), draw(members, cases, 2))
    return made, labels


def by_hand(member: int, made: Members, labels: Tensor, correct: Tensor | None, multiplier: float) -> float:
    """The formula of the module's docstring for one head whose running constraint is this batch alone."""
    settings = SETTINGS

    def weighted_ce(logits: Tensor, label: int) -> float:
        log_p = torch.log_softmax(logits.double(), 0)
        smooth = settings.label_smoothing
        return float(WEIGHTS[label] * (-(1 - smooth) * log_p[label] - smooth / 2 * log_p.sum()))

    covered = answers = anchor = 0.0
    exits, misses = [], []
    for i, label in enumerate(labels.tolist()):
        z = float(made.logits[member, i, 1] - made.logits[member, i, 0])
        g = (1 if z >= 0 else -1) * 0.5 * (z + float(made.evidence[member, i]))
        s, weight = 1 / (1 + math.exp(-g)), float(WEIGHTS[label])
        covered += s * weighted_ce(made.logits[member, i], label)
        answers += weighted_ce(made.logits[member, i], label) + 0.5 * weighted_ce(made.aux[member, i], label)
        right = float((z >= 0) == (label == 1)) if correct is None else float(correct[i])
        anchor -= weight * (right * math.log(s) + (1 - right) * math.log(1 - s))
        exits.append(s)
        misses.append(float(z < 0))
    shares = [[s for s, label in zip(exits, labels.tolist(), strict=True) if label == wanted] for wanted in (0, 1)]
    reward = sum(0.5 * math.log(max(1e-4, sum(share) / len(share))) for share in shares)
    terms = [s * (f - settings.target) for s, f, y in zip(exits, misses, labels.tolist(), strict=True) if y == 1]
    constraint = sum(terms) / len(terms)
    rho = settings.penalty
    lagrangian = (max(0.0, multiplier + rho * constraint) ** 2 - multiplier**2) / (2 * rho)
    cases = len(labels)
    return answers / cases + covered / sum(exits) + anchor / cases - 0.3 * reward + lagrangian


@pytest.mark.parametrize("given", [True, False])
def test_value_is_that_of_a_plain_loop(given: bool) -> None:
    made, labels = random_members(0)
    correct = (torch.rand(40, generator=torch.Generator().manual_seed(3)) < 0.7).float() if given else None
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
    loss.multiplier.copy_(torch.tensor([0.0, 1.5]))
    expected = [by_hand(m, made, labels, correct, float(loss.multiplier[m])) for m in range(2)]
    assert loss(made, labels, correct).tolist() == pytest.approx(expected, rel=1e-5)


def test_warm_up_is_class_and_auxiliary_loss_alone() -> None:
    made, labels = random_members(1)
    evidence = made.evidence.requires_grad_()
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
    found = loss(made._replace(evidence=evidence), labels, warm=True)
    smoothed = functools.partial(torch.nn.functional.cross_entropy, label_smoothing=0.1, reduction="none")
    plain = [
        sum(
            weight * float((WEIGHTS[labels] * smoothed(part[member], labels)).mean())
            for part, weight in ((made.logits, 1.0), (made.aux, 0.5))
        )
        for member in range(2)
    ]
    assert found.tolist() == pytest.approx(plain, rel=1e-5)
    found.sum().backward()
    assert evidence.grad is not None  # every parameter has a gradient, for DDP
    assert not evidence.grad.any()
    loss.dual_step()
    assert not loss.multiplier.any()


def test_gradient_of_the_evidence_matches_finite_differences() -> None:
    made, labels = random_members(2, cases=12)
    evidence = made.evidence.clone().requires_grad_()
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS).eval()
    loss.multiplier.fill_(1.0)
    loss(made._replace(evidence=evidence), labels).mean().backward()
    step = 0.02
    for place in [(0, 0), (0, 5), (1, 3), (1, 11)]:
        moved = []
        for sign in (1, -1):
            other = made.evidence.clone()
            other[place] += sign * step
            moved.append(float(loss(made._replace(evidence=other), labels).mean()))
        assert float(evidence.grad[place]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=0.02, abs=2e-5)


def test_the_gates_terms_shape_the_gate_only() -> None:
    """The answers have the gradient of the warm-up, whatever the multiplier."""
    made, labels = random_members(3)
    logits = made.logits.clone().requires_grad_()
    gradients = []
    for multiplier, warm in ((0.0, True), (0.0, False), (9.0, False)):
        loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
        loss.multiplier.fill_(multiplier)
        logits.grad = None
        loss(made._replace(logits=logits), labels, warm=warm).sum().backward()
        gradients.append(logits.grad.clone())
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_the_running_constraint_has_its_value_and_the_batchs_gradient() -> None:
    made, labels = random_members(4, members=1)
    loss = SelectiveLoss(1, WEIGHTS, SETTINGS)
    loss.running.copy_(torch.tensor([[40.0], [200.0]]))
    terms = torch.full((1,), -0.1, requires_grad=True)
    loss._lagrangian(terms, torch.tensor(10.0)).sum().backward()
    value = (0.95 * 40 - 0.1) / (0.95 * 200 + 10)
    torch.testing.assert_close(terms.grad, torch.full((1,), SETTINGS.penalty * value / 10))
    assert torch.isfinite(loss(made, labels)).all()


def test_accumulated_batches_count_as_one() -> None:
    whole, halves = (SelectiveLoss(2, WEIGHTS, SETTINGS) for _ in range(2))
    for seed in range(5):
        made, labels = random_members(seed)
        whole(made, labels)
        for part in (slice(0, 13), slice(13, 40)):
            cut = Members(*(tensor[:, part] for tensor in made))
            halves(cut, labels[part])
        whole.dual_step()
        halves.dual_step()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], tensor)
    assert (whole.multiplier > 0).all()
    assert (whole.multiplier <= SETTINGS.largest_multiplier).all()


def rank_steps(rank: int) -> list[Tensor]:
    """One of two ranks: every other case of each batch, four optimizer steps."""
    with group(rank):
        return list(stepped(slice(rank, None, 2)).state_dict().values())


def stepped(part: slice) -> SelectiveLoss:
    """The loss after four steps on these cases; the second batch's positives all go to the first rank."""
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
    for seed in range(4):
        made, labels = random_members(seed)
        labels = 1 - torch.arange(40) % 2 if seed == 1 else labels
        loss(Members(*(tensor[:, part] for tensor in made)), labels[part])
        loss.dual_step()
    return loss


def test_every_rank_has_the_state_of_one_process_with_all_cases() -> None:
    expected = list(stepped(slice(None)).state_dict().values())
    for found in on_two_ranks(rank_steps):
        torch.testing.assert_close(found, expected)
    assert (expected[0] > 0).all()


def test_validation_leaves_the_state_alone_and_a_checkpoint_holds_it() -> None:
    made, labels = random_members(5)
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
    loss(made, labels)
    loss.dual_step()
    before = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    loss.eval()(made, labels)
    loss.dual_step()
    again = SelectiveLoss(2, WEIGHTS, SETTINGS)
    again.load_state_dict(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loss.state_dict().items())
    assert torch.equal(again(made, labels), loss(made, labels))


@pytest.mark.parametrize("label", [0, 1])
def test_a_batch_that_lacks_a_class_skips_its_terms(label: int) -> None:
    made, _ = random_members(6)
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS)
    assert torch.isfinite(loss(made, torch.full((40,), label))).all()
    loss.dual_step()
    assert bool((loss.running[1] > 0).all()) == (label == 1)


def test_autocast_changes_nothing() -> None:
    made, labels = random_members(7)
    half = Members(*(tensor.bfloat16() for tensor in made))
    single = Members(*(tensor.float() for tensor in half))
    loss = SelectiveLoss(2, WEIGHTS, SETTINGS).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(half, labels), loss(single, labels))
