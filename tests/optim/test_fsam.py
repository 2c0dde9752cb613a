"""SAM and F-SAM against plain loops over the formulas, and what a step leaves behind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stage1_pro.core.errors import UserError
from stage1_pro.core.optim.fsam import SharpnessAware, forget, perturbed_parameters

STEPS, RHO = 6, 0.3
Direction = Callable[[Tensor, Tensor, Tensor], Tensor]


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def loss_of(model: nn.Module, step: int) -> Tensor:
    drawn = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 4, generator=drawn, dtype=torch.float64).to(next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(inputs), torch.randint(3, (8,), generator=drawn))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def wrapped(model: nn.Module, **settings: float) -> SharpnessAware:
    return SharpnessAware(adamw(model), model.parameters(), **{"rho": RHO, **settings})


def steps(model: nn.Module, optimizer: SharpnessAware, which: range) -> None:
    for step in which:
        loss_of(model, step).backward()
        with optimizer.perturbed():
            loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def flat(tensors: object) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def plain_loop(model: nn.Module, lambda_: float, direction: Direction) -> None:
    """direction: of g, the average before the step and the average after it."""
    optimizer, average = adamw(model), None
    for step in range(STEPS):
        parameters = list(model.parameters())
        gradient = flat(torch.autograd.grad(loss_of(model, step), parameters))
        before = torch.zeros_like(gradient) if average is None else average
        average = gradient if average is None else lambda_ * average + (1 - lambda_) * gradient
        way = direction(gradient, before, average)
        way = gradient if not way.any() else way
        weights = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            nn.utils.vector_to_parameters(flat(parameters) + RHO * way / way.square().sum().sqrt(), parameters)
        found = torch.autograd.grad(loss_of(model, step), parameters)
        for parameter, value, one in zip(parameters, weights, found, strict=True):
            parameter.data, parameter.grad = value, one
        optimizer.step()


@pytest.mark.parametrize(
    ("settings", "direction"),
    [
        ({"sigma": 1.0, "lambda_": 0.9}, lambda gradient, before, after: gradient - before),
        ({"sigma": 1.0, "lambda_": 0.6}, lambda gradient, before, after: gradient - after),  # as the paper has it
        ({"sigma": 0.4, "lambda_": 0.9}, lambda gradient, before, after: gradient - 0.4 * before),
        ({"sigma": 0.0}, lambda gradient, before, after: gradient),  # SAM
    ],
)
def test_steps_are_those_of_a_plain_loop(settings: dict[str, float], direction: Direction) -> None:
    found, expected, sam = network(), network(), network()
    steps(found, wrapped(found, **settings), range(STEPS))
    plain_loop(expected, settings.get("lambda_", 0.9), direction)
    torch.testing.assert_close(flat(found.parameters()), flat(expected.parameters()), rtol=1e-9, atol=1e-12)
    steps(sam, wrapped(sam, sigma=0.0), range(STEPS))
    same = torch.allclose(flat(found.parameters()), flat(sam.parameters()), rtol=1e-4)
    assert same == (settings["sigma"] == 0)


def test_without_a_radius_it_is_the_inner_optimizer_bit_for_bit() -> None:
    found, expected = network(dtype=torch.float32), network(dtype=torch.float32)
    steps(found, wrapped(found, rho=0.0), range(STEPS))
    optimizer = adamw(expected)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(expected, step).backward()
        optimizer.step()
    assert torch.equal(flat(found.parameters()), flat(expected.parameters()))


def test_weights_come_back_bit_for_bit_and_move_by_one_norm() -> None:
    model = network(dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.logspace(-9, 3, parameter.numel()).view_as(parameter)
    before, optimizer = flat(model.parameters()), wrapped(model)
    loss_of(model, 0).backward()
    with optimizer.perturbed():
        moved = flat(model.parameters()) - before
        assert all(parameter.grad is None for parameter in model.parameters())
    assert moved.double().norm() == pytest.approx(RHO, rel=1e-3)
    assert not torch.equal(before + moved - moved, before)  # subtracting the offset again would not do
    assert torch.equal(flat(model.parameters()), before)
    with pytest.raises(KeyError), optimizer.perturbed():
        raise KeyError
    assert torch.equal(flat(model.parameters()), before)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e30])
def test_a_gradient_without_a_direction_perturbs_nothing(value: float) -> None:
    model = network(dtype=torch.float32)
    optimizer = wrapped(model)
    steps(model, optimizer, range(2))
    before, average = flat(model.parameters()), optimizer.average.clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].bias.grad[2] = value
    optimizer.sigma = 0.0 if value == 0 else 1.0  # else the average alone is a direction
    with optimizer.perturbed():
        assert torch.equal(flat(model.parameters()), before)
    assert optimizer.average.isfinite().all()
    assert value == 0 or torch.equal(optimizer.average, average)


def test_the_figures_are_norm_and_cosine() -> None:
    model = network()
    optimizer = wrapped(model)
    gradients = []
    for step in range(2):
        loss_of(model, step).backward()
        gradients.append(flat(parameter.grad for parameter in model.parameters()))
        with optimizer.perturbed():
            pass
        assert float(optimizer.figures["gradient_norm"]) == pytest.approx(float(gradients[-1].norm()))
        assert ("cosine" in optimizer.figures) == (step > 0)
    expected = nn.functional.cosine_similarity(*gradients, dim=0)
    assert float(optimizer.figures["cosine"]) == pytest.approx(float(expected))


def test_a_resumed_optimizer_goes_on_where_it_stopped() -> None:
    whole, first = network(), network()
    steps(whole, wrapped(whole), range(STEPS))
    stopped = wrapped(first)
    steps(first, stopped, range(3))
    second = network(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = wrapped(second)
    schedule = torch.optim.lr_scheduler.LambdaLR(resumed, lambda step: 1.0)
    resumed.load_state_dict(stopped.state_dict())
    steps(second, resumed, range(3, STEPS))
    assert torch.equal(flat(second.parameters()), flat(whole.parameters()))
    schedule.base_lrs = [0.0]
    schedule.step()
    assert resumed.inner.param_groups[0]["lr"] == 0.0


def test_to_forget_is_to_begin_anew() -> None:
    found, expected = network(), network()
    optimizer = wrapped(found)
    steps(found, optimizer, range(3))
    found.load_state_dict(expected.state_dict())
    forget(optimizer)
    for model, one in ((found, optimizer), (expected, wrapped(expected))):
        steps(model, one, range(2))
    assert torch.equal(flat(found.parameters()), flat(expected.parameters()))


def test_the_second_loss_is_that_of_the_moved_weights_under_autocast_too() -> None:
    """Autocast caches weights in bfloat16 for as long as it is in force."""
    model = network(dtype=torch.float32)
    optimizer = wrapped(model, rho=5.0)
    with torch.autocast("cpu", torch.bfloat16):
        first = loss_of(model, 0)
        first.backward()
        with optimizer.perturbed():
            second = loss_of(model, 0)
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        third = loss_of(model, 0)
    moved = network(dtype=torch.float32)
    moved.load_state_dict(weights)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_of(moved, 0)
    assert second == expected
    assert second > first
    assert third == first


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"qkv": nn.Linear(2, 2), "lora_A": nn.Linear(2, 2)})
        self.heads = nn.Linear(2, 2)


def test_targets_are_parts_of_what_is_trained() -> None:
    model = Named()
    model.backbone["qkv"].requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        target: [names[id(one)] for one in perturbed_parameters(model, target)]
        for target in ("all", "heads", "adapter")
    }
    adapter, heads = ["backbone.lora_A.weight", "backbone.lora_A.bias"], ["heads.weight", "heads.bias"]
    assert found == {"all": adapter + heads, "heads": heads, "adapter": adapter}
    with pytest.raises(UserError, match=r"is 'adapter', and the model trains no such.*set peft_type, or fsam_target"):
        perturbed_parameters(network(), "adapter")
