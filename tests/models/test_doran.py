"""DoRAN against its formula, and against the merge of plain DoRA, which forgets τ."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear, softplus

from stage1_pro.core.models.doran import SHARED, DoranLinear, inject_doran


class Block(nn.Module):
    def __init__(self, width: int = 12):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])


@pytest.fixture
def net() -> Net:
    made = Net()
    layers = {name: layer for name, layer in made.named_modules() if isinstance(layer, nn.Linear)}
    inject_doran(made, layers, rank=2, alpha=6.0)
    return made


def disturb(net: nn.Module, by: float = 0.3) -> None:
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if ".lora_" in name:
                tensor.add_(by * torch.randn_like(tensor))


def adapted_weight(layer: DoranLinear) -> torch.Tensor:
    """W′ by its formula, row by row."""
    a, b = layer.matrices()
    sum_of_both = layer.base_layer.weight + 3.0 * b @ a
    tau = softplus(layer.lora_tau)
    rows = [
        m * row / (row.square().sum().sqrt() + tau) for m, row in zip(layer.lora_magnitude, sum_of_both, strict=True)
    ]
    return torch.stack(rows).detach()


def test_step_0_is_the_identity(net: Net) -> None:
    inputs = torch.randn(5, 12)
    for name in ("qkv", "proj"):
        layer = getattr(net.blocks[0], name)
        torch.testing.assert_close(layer(inputs), layer.base_layer(inputs), rtol=0, atol=1e-6)


def test_forward_and_merge_follow_the_formula(net: Net) -> None:
    disturb(net)
    inputs = torch.randn(5, 12)
    for name in ("qkv", "proj"):
        layer = getattr(net.blocks[1], name)
        expected, trained = adapted_weight(layer), layer(inputs).detach()
        torch.testing.assert_close(trained, linear(inputs, expected, layer.base_layer.bias), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.merged().weight.detach(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.base_layer(inputs).detach(), trained, rtol=1e-4, atol=1e-5)


def test_the_merge_of_plain_dora_would_be_wrong(net: Net) -> None:
    """peft's own merge on the same A, B and m: without τ it is off by far more than rounding."""
    from peft import LoraConfig, inject_adapter_in_model

    disturb(net)
    layer = net.blocks[0].proj
    expected = adapted_weight(layer)
    other = nn.Sequential(nn.Linear(12, 12, bias=False))
    other[0].weight.data = layer.base_layer.weight.detach().clone()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6.0, target_modules=["0"], use_dora=True), other)
    a, b = layer.matrices()
    other[0].lora_A["default"].weight.data = a.detach()
    other[0].lora_B["default"].weight.data = b.detach()
    other[0].lora_magnitude_vector["default"].weight.data = layer.lora_magnitude.detach()
    other[0].merge()
    error = (other[0].get_base_layer().weight - expected).norm() / expected.norm()
    assert error > 0.3


def test_the_norm_is_detached(net: Net) -> None:
    """The gradient of B is that of W₀ + sBA under a constant scale; through the norm it would be another one."""
    disturb(net)
    layer, inputs = net.blocks[0].proj, torch.randn(5, 12)
    layer(inputs).square().sum().backward()
    found = layer.lora_last_b.grad.clone()
    a, b = layer.matrices()
    scale = layer.row_scale(a, b).detach()
    layer.zero_grad()
    (linear(inputs, layer.base_layer.weight + 3.0 * b @ a) * scale).square().sum().backward()
    torch.testing.assert_close(found, layer.lora_last_b.grad, rtol=1e-4, atol=1e-5)


def test_first_layers_are_one_set_a_block_and_every_projection_has_matrices_of_its_own(net: Net) -> None:
    names = {name for name, _ in net.named_parameters() if SHARED in name}
    assert names == {f"blocks.{block}.{SHARED}.lora_first_{part}" for block in (0, 1) for part in ("a.12", "b")}
    assert len(net.state_dict()) == len({id(tensor) for tensor in net.state_dict(keep_vars=True).values()})
    disturb(net)
    qkv = net.blocks[0].qkv
    a, b = qkv.matrices()
    assert (a.shape, b.shape) == ((6, 12), (36, 6))
    delta = b @ a
    for part in range(3):  # q reads only its own rows of A
        rows = slice(12 * part, 12 * (part + 1))
        own = b[rows, 2 * part : 2 * part + 2] @ a[2 * part : 2 * part + 2]
        torch.testing.assert_close(delta[rows], own)
    shared = getattr(net.blocks[0], SHARED)
    (qkv(torch.randn(4, 12)).sum() + net.blocks[0].proj(torch.randn(4, 12)).sum()).backward()
    assert shared.lora_first_b.grad.any()


def test_half_precision_keeps_step_0_the_identity(net: Net) -> None:
    inputs = torch.randn(64, 12)
    layer = net.blocks[0].proj
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = layer(inputs), layer.base_layer(inputs)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
