"""ConformalRiskLoss: its threshold against brute force, its gradient against differences, its bank and its state."""

import numpy as np
import pytest
import torch
from test_selective_loss import SETTINGS, WEIGHTS, random_members
from torch import Tensor
from two_ranks import group, on_two_ranks

from stage1_pro.core.losses.conformal import ConformalRiskLoss, Threshold, _of_all_ranks, conformal_threshold
from stage1_pro.core.losses.selective import Parts, SelectiveLoss
from stage1_pro.core.models.heads import Members, SelectiveHeads, signed_gate

TARGET = SETTINGS.target
HEAT = torch.tensor([[0.4], [0.2], [0.6]])


def gates(seed: int, cases: int = 400, miss: float = 0.06, gap: float = 2.5) -> tuple[Tensor, Tensor]:
    """g (3, N) and f of positives: misses have lower gates by `gap`."""
    rng = np.random.default_rng(seed)
    missed = rng.random((3, cases)) < miss
    gate = rng.normal(2 - gap * missed, 1)
    return torch.tensor(gate, dtype=torch.float32), torch.tensor(missed, dtype=torch.float32)


def constraint(gate: Tensor, missed: Tensor, threshold: float, heat: float) -> float:
    """F, one head, case by case, in float64."""
    total = 1 - TARGET
    for g, f in zip(gate.tolist(), missed.tolist(), strict=True):
        total += (f - TARGET) / (1 + np.exp((threshold - g) / heat))
    return total / (len(gate) + 1)


def threshold(gate: Tensor, missed: Tensor, heat: Tensor = HEAT) -> Threshold:
    return conformal_threshold(gate, missed - TARGET, heat, 1 - TARGET)


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_where_the_constraint_is_met_just_so(seed: int) -> None:
    gate, missed = gates(seed)
    found = threshold(gate, missed)
    assert bool(found.crossing.all())
    for head in range(3):
        at = lambda shift, head=head: constraint(  # noqa: E731
            gate[head], missed[head], float(found.value[head]) + shift, float(HEAT[head])
        )
        assert abs(at(0.0)) < 1e-5
        assert at(-0.02) > 0 > at(0.02)  # feasible above, not below


def test_the_threshold_lies_at_the_foot_of_its_feasible_interval() -> None:
    """Feasible sets are intervals: above the last hits nothing makes up for the one more case."""
    gate, missed = gates(0)
    found = threshold(gate, missed)
    walk = np.linspace(-4, 8, 400)
    for head in range(3):
        feasible = [constraint(gate[head], missed[head], at, float(HEAT[head])) <= 0 for at in walk]
        first, last = np.flatnonzero(feasible)[[0, -1]]
        assert all(feasible[first : last + 1])
        assert last < len(walk) - 1
        assert walk[first - 1] < float(found.value[head]) < walk[first] + 1e-3


def test_of_two_feasible_intervals_the_one_around_the_least_is_taken() -> None:
    """Certification walks down from where it is surest, and does not jump over what fails."""
    gate = torch.cat([torch.full((300,), 6.0), torch.full((12,), 3.0), torch.zeros(200)])[None]
    missed = torch.cat([torch.zeros(300), torch.ones(12), torch.zeros(200)])[None]
    heat = torch.tensor([[0.1]])
    assert constraint(gate[0], missed[0], -2.0, 0.1) < 0 < constraint(gate[0], missed[0], 1.5, 0.1)
    assert constraint(gate[0], missed[0], -2.0, 0.1) > constraint(gate[0], missed[0], 4.5, 0.1)
    found = threshold(gate, missed, heat)
    assert 2.5 < float(found.value) < 4.5


@pytest.mark.parametrize("head", range(3))
def test_the_gradient_is_that_of_finite_differences(head: int) -> None:
    gate, missed = gates(1)
    gate.requires_grad_()
    (gradient,) = torch.autograd.grad(threshold(gate, missed).value[head], gate)
    assert torch.equal(gradient.any(1), torch.arange(3) == head)
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(400, generator=rng)
        moved = []
        for sign in (1, -1):
            other = gate.detach().clone()
            other[head] += sign * 0.01 * direction
            moved.append(float(threshold(other, missed).value[head]))
        assert float(gradient[head] @ direction) == pytest.approx((moved[0] - moved[1]) / 0.02, rel=0.02, abs=2e-3)


def test_a_shift_of_all_gates_shifts_the_threshold() -> None:
    gate, missed = gates(2)
    gate.requires_grad_()
    threshold(gate, missed).value.sum().backward()
    torch.testing.assert_close(gate.grad.sum(1), torch.ones(3), rtol=1e-4, atol=1e-4)


def test_where_everything_may_exit_the_threshold_is_the_grids_end_without_gradient() -> None:
    gate, missed = gates(3, miss=0.0)
    gate.requires_grad_()
    found = threshold(gate, missed)
    assert found.feasible.all()
    assert not found.crossing.any()
    assert (found.value < gate.amin(1)).all()
    found.value.sum().backward()
    assert not gate.grad.any()


@pytest.mark.parametrize("cases", [0, 5, 20])
def test_few_positives_or_misses_on_top_make_nothing_feasible(cases: int) -> None:
    gate, missed = gates(4, max(cases, 1), miss=0.0)
    found = conformal_threshold(gate, (missed - TARGET) * (cases > 0), HEAT, 1 - TARGET)
    assert not found.feasible.any()
    assert torch.isfinite(found.value).all()
    gate, _ = gates(4)
    on_top = (gate > gate.median(1, keepdim=True).values).float()
    assert not threshold(gate, on_top).feasible.any()


# ---- the loss


def batches(count: int, cases: int = 64) -> list[tuple[Members, Tensor]]:
    """Answers that are right more often where the gate is high."""
    made = []
    for seed in range(count):
        members, labels = random_members(seed, cases=cases)
        z = 2.0 * (2 * labels - 1) + torch.randn(2, cases, generator=torch.Generator().manual_seed(seed))
        made.append((members._replace(logits=torch.stack([-z, z], -1), evidence=1.5 * z), labels))
    return made


def filled(bank: int = 1000, positives: int = 600, seed: int = 5) -> ConformalRiskLoss:
    """A loss whose bank holds positives of which one in twenty is a miss with a low gate."""
    loss = ConformalRiskLoss(2, WEIGHTS, SETTINGS, bank)
    rng = torch.Generator().manual_seed(seed)
    gate, missed, held = of_bank(loss)
    missed[:, -positives:] = (torch.rand(2, positives, generator=rng) < 0.05).float()
    gate[:, -positives:] = torch.randn(2, positives, generator=rng) + 3
    gate -= 3 * missed
    held[-positives:] = 1.0
    loss.start_epoch(0.3, 1)
    return loss


def of_bank(loss: ConformalRiskLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Its gates (2, bank), misses (2, bank), and whether a positive is there (bank,)."""
    return loss.bank[:2], loss.bank[2:4], loss.bank[4]


def first_half(cases: int) -> Tensor:
    """Which cases of the first batch of the epoch of `filled` calibrate."""
    return torch.randperm(cases, generator=torch.Generator().manual_seed(1)) < cases // 2


def test_the_loss_is_the_selective_risk_of_the_other_half_at_the_threshold() -> None:
    ((made, labels),) = batches(1)
    loss, alike = filled(), SelectiveLoss(2, WEIGHTS, SETTINGS)
    found = loss(made, labels)
    gate = signed_gate(made.logits, made.evidence)
    calibrates = first_half(64)
    bank_gate, bank_missed, _ = of_bank(filled())
    kept = calibrates & (labels == 1)
    missed = (made.logits[..., 1] < made.logits[..., 0]).float()
    heat = 0.3 * gate.std(1, correction=0, keepdim=True)
    for head in range(2):
        positives = torch.cat([gate[head, kept], bank_gate[head, -600:]])
        misses = torch.cat([missed[head, kept], bank_missed[head, -600:]])
        at = float(threshold(positives[None], misses[None], heat[head : head + 1]).value)
        assert abs(constraint(positives, misses, at, float(heat[head]))) < 1e-5
        rest = ~calibrates
        exits = ((gate[head] - at) / heat[head]).sigmoid()
        parts = alike.parts(made, labels, None)
        risk = (exits * parts.risk[head])[rest].sum() / exits[rest].sum()
        shares = [float(exits[rest & (labels == label)].mean()) for label in (0, 1)]
        expected = risk - 0.15 * np.log(shares).sum() + parts.answers[head] + parts.anchor[head]
        assert float(found[head]) == pytest.approx(float(expected), rel=1e-4)


def known(loss: ConformalRiskLoss, parts: Parts) -> Tensor:
    return torch.cat([loss.bank, _of_all_ranks(torch.cat([parts.gate, parts.missed, parts.classes[1:]]))], 1)


def test_gradients_flow_into_both_halves() -> None:
    ((made, labels),) = batches(1)
    evidence = made.evidence.clone().requires_grad_()
    loss = filled()
    parts = loss.selective.parts(made._replace(evidence=evidence), labels, None)
    parts = parts._replace(anchor=parts.anchor.detach())
    loss._conformal(parts, known(loss, parts), 1.3).sum().backward()
    calibrates = first_half(64)
    assert evidence.grad[:, ~calibrates].all()
    assert evidence.grad[:, calibrates & (labels == 1)].all()
    assert not evidence.grad[:, calibrates & (labels == 0)].any()


def test_a_head_without_a_feasible_threshold_falls_back_alone() -> None:
    ((made, labels),) = batches(1)
    loss, plain = filled(), SelectiveLoss(2, WEIGHTS, SETTINGS)
    of_bank(loss)[1][0] = 1.0  # the first head has nothing but misses
    found, selective = loss(made, labels), plain(made, labels)
    torch.testing.assert_close(found[0], selective[0])
    assert abs(float(found[1] - selective[1])) > 1e-3
    figures = loss.figures()
    assert figures["conformal_infeasible_share"] == 0.5
    loss.dual_step()
    plain.dual_step()
    assert torch.equal(loss.selective.running, plain.running * torch.tensor([1.0, 0.0]))


def test_figures_count_thresholds() -> None:
    loss = filled()
    of_bank(loss)[1].zero_()
    for made, labels in batches(3):
        correct = torch.ones(64)
        loss(made, labels, correct)
    figures = loss.figures()
    assert figures["conformal_edge_share"] == 1.0
    assert np.isnan(figures["conformal_live_share"])
    assert figures["conformal_temperature"] == 0.3
    loss = filled()
    loss(*batches(1)[0])
    assert 0 < loss.figures()["conformal_live_share"] < 0.2  # the bank holds most of the positives
    assert loss.figures()["conformal_threshold"] != 0
    loss.start_epoch(None, 1)
    assert not [name for name in loss.figures() if name.startswith("conformal")]


def test_out_of_fold_targets_decide_the_misses() -> None:
    ((made, labels),) = batches(1)
    loss = ConformalRiskLoss(2, WEIGHTS, SETTINGS, 1000)
    correct = (torch.rand(64, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    loss(made, labels, correct)
    _, missed, held = of_bank(loss)
    stored = int(held.sum())
    expected = (1 - correct)[labels == 1]
    assert torch.equal(missed[:, -stored:], expected.expand(2, -1))


@pytest.mark.parametrize("cut", [(slice(0, 64),), (slice(0, 20), slice(20, 64))])
def test_the_bank_holds_the_latest_positives_in_order(cut: tuple[slice, ...]) -> None:
    """However the cases come in batches, accumulated or not."""
    loss = ConformalRiskLoss(2, WEIGHTS, SETTINGS, 50)
    arrived = []
    for made, labels in batches(5):
        arrived.append(signed_gate(made.logits, made.evidence)[:, labels == 1])
        for part in cut:
            loss(Members(*(tensor[:, part] for tensor in made)), labels[part])
        latest = torch.cat(arrived, 1)[:, -50:]
        gate, _, held = of_bank(loss)
        assert int(held.sum()) == latest.shape[1]
        assert torch.equal(gate[:, -latest.shape[1] :], latest)
    assert held.all()
    before = loss.bank.clone()
    loss.eval()(*batches(1)[0])
    assert torch.equal(loss.bank, before)


def test_a_resumed_loss_goes_on_as_if_it_had_never_stopped() -> None:
    """Bank and dual state come from the checkpoint, halves from the epoch's seed."""
    whole = filled()
    resumed = ConformalRiskLoss(2, WEIGHTS, SETTINGS, 1000)
    for epoch in range(4):
        whole.start_epoch(0.3, epoch)
        if epoch == 2:
            resumed.load_state_dict(whole.state_dict())
            resumed.generator.manual_seed(99)
        resumed.start_epoch(0.3, epoch)
        for made, labels in batches(3):
            first, second = whole(made, labels), resumed(made, labels)
            assert torch.equal(first, second) == (epoch >= 2)
            whole.dual_step()
            resumed.dual_step()
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_halves_are_new_each_batch_and_each_epoch() -> None:
    loss = filled()
    drawn = []
    for seed in (1, 2):
        loss.start_epoch(0.3, seed)
        drawn += [loss._halves(65) for _ in range(3)]
    assert all(int(half.sum()) == 32 for half in drawn)
    assert len({tuple(half.tolist()) for half in drawn}) == 6


def test_autocast_changes_nothing() -> None:
    ((made, labels),) = batches(1)
    half = Members(*(tensor.bfloat16() for tensor in made))
    single = Members(*(tensor.float() for tensor in half))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(filled()(half, labels), filled()(single, labels))


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("warm", [True, False])
def test_every_parameter_gets_a_gradient(temperature: float | None, warm: bool) -> None:
    torch.manual_seed(0)
    heads = SelectiveHeads(6, 2, 2, 0.0)
    loss = filled()
    loss.start_epoch(temperature, 0)
    features, labels = torch.randn(64, 6), torch.arange(64) % 2
    losses = loss(heads(features), labels, warm=warm)
    losses.sum().backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert bool(parameter.grad.any()) or (warm and name.startswith("gate")), name


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("cases", [1, 2, 40])
def test_a_batch_that_lacks_a_class_has_a_finite_loss(label: int, cases: int) -> None:
    made, _ = random_members(6, cases=cases)
    evidence = made.evidence.requires_grad_()
    for loss in (filled(), ConformalRiskLoss(2, WEIGHTS, SETTINGS, 1000)):
        loss.start_epoch(0.1, 0)
        losses = loss(made._replace(evidence=evidence), torch.full((cases,), label))
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(evidence.grad).all()


# ---- several ranks


def rank_threshold(rank: int) -> tuple[list, list, list]:
    """One of two ranks, each with half of every batch's cases."""
    with group(rank):
        return run_epoch(slice(32 * rank, 32 * rank + 32))


def run_epoch(part: slice) -> tuple[list, list, list]:
    """(figures, bank and dual state, gradient of the thresholds' part of the loss) after two batches."""
    loss = filled()
    gradients = []
    for made, labels in batches(2):
        evidence = made.evidence[:, part].clone().requires_grad_()
        own = Members(made.hidden[:, part], made.logits[:, part], evidence, made.aux[:, part])
        threshold_alone(loss, own, labels[part]).backward()
        gradients.append(evidence.grad.tolist())
        loss(own, labels[part])
        loss.dual_step()
    return list(loss.figures().values()), [tensor.tolist() for tensor in loss.state_dict().values()], gradients


def threshold_alone(loss: ConformalRiskLoss, made: Members, labels: Tensor) -> Tensor:
    """The sum of λ̂ over the heads, of all ranks' positives."""
    cases = known(loss, loss.selective.parts(made, labels, None))
    return loss._threshold(cases, torch.ones_like(cases[0]), torch.full((2, 1), 0.3)).value.sum()


def test_every_rank_has_the_threshold_of_one_process_with_all_cases() -> None:
    figures, state, gradients = run_epoch(slice(0, 64))
    found = on_two_ranks(rank_threshold)
    for own_figures, own_state, _ in found:
        np.testing.assert_allclose(own_figures, figures, rtol=1e-5)
        for own, expected in zip(own_state, state, strict=True):
            np.testing.assert_allclose(own, expected, rtol=1e-5, atol=1e-6)
    joined = np.concatenate([np.array(own) for *_, own in found], axis=-1)
    np.testing.assert_allclose(joined / 2, gradients, rtol=1e-4, atol=1e-7)  # DDP averages what both ranks ask for
