"""DoRAN, experimental: DoRA with a learnable term in the denominator, and generated low-rank matrices.

Diep et al. (2025), arXiv 2510.04331. No reference code exists; what the paper leaves open is chosen here: one τ per
layer that begins at softplus(0), GELU, and a hidden width of twice the rank.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, softplus

from stage1_pro.core.models.adapter_targets import block_of

PARTS = {"qkv": 3}
"""Projections that a fused layer holds side by side; each has matrices of its own."""
SHARED = "lora_shared"
"""Name of the generator's first layers, as a child of their block."""


class SharedLayers(nn.Module):
    """The first layers of the networks that generate A and B, one set for all adapted projections of a block.

    first_a: input width → (h, input width); first_b: (h, r), with h = 2r.
    """

    def __init__(self, widths: set[int], rank: int):
        super().__init__()
        self.lora_first_a = nn.ParameterDict({str(width): torch.randn(2 * rank, width) for width in sorted(widths)})
        self.lora_first_b = nn.Parameter(torch.randn(2 * rank, rank))


class DoranLinear(nn.Module):
    """W′ = m · (W₀ + sBA) / (‖W₀ + sBA‖ + τ) per output row, the norm detached, τ = softplus(raw).

    m begins at ‖W₀‖ + τ and the last layer that makes B at zero, so that step 0 is the identity. parts: projections
    fused in the layer, P. A is (P·r, in), B is (out, P·r) and block-diagonal.
    """

    def __init__(self, base_layer: nn.Linear, shared: SharedLayers, rank: int, alpha: float, parts: int):
        super().__init__()
        self.base_layer, self.scale, self.parts = base_layer.requires_grad_(False), alpha / rank, parts
        self._shared = (shared,)  # in a tuple, or every layer of the block would list its tensors as its own
        hidden, inputs, outputs = 2 * rank, base_layer.in_features, base_layer.out_features
        self.lora_last_a = nn.Parameter(torch.randn(parts, rank, hidden) / math.sqrt(hidden * inputs))
        self.lora_last_b = nn.Parameter(torch.zeros(parts, outputs // parts, hidden))
        self.lora_tau = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self.lora_magnitude = nn.Parameter(base_layer.weight.norm(dim=1) + softplus(self.lora_tau))

    @property
    def weight(self) -> Tensor:
        """The base layer's, as peft has it: a backbone that reads it past the layer is found out by its gradients."""
        return self.base_layer.weight

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (P·r, in) and B (out, P·r) as the generator makes them now."""
        shared = self._shared[0]
        a = self.lora_last_a @ gelu(shared.lora_first_a[str(self.base_layer.in_features)])
        b = self.lora_last_b @ gelu(shared.lora_first_b)
        return a.flatten(0, 1), torch.block_diag(*b)

    def row_scale(self, a: Tensor, b: Tensor) -> Tensor:
        """(out,) m / (‖W₀ + sBA‖ + τ), float32."""
        with torch.no_grad():
            norm = (self.base_layer.weight + self.scale * (b @ a)).norm(dim=1)
        return self.lora_magnitude / (norm + softplus(self.lora_tau))

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):  # norms in half precision are off by a percent
            a, b = self.matrices()
            scale = self.row_scale(a, b)
        direction = linear(inputs, self.base_layer.weight) + self.scale * linear(linear(inputs, a), b)
        outputs = (direction * scale).to(direction.dtype)
        bias = self.base_layer.bias
        return outputs if bias is None else outputs + bias.to(outputs.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with W′ as its weight."""
        a, b = self.matrices()
        self.base_layer.weight.copy_(self.row_scale(a, b)[:, None] * (self.base_layer.weight + self.scale * (b @ a)))
        return self.base_layer


def inject_doran(net: nn.Module, layers: Mapping[str, nn.Linear], rank: int, alpha: float) -> None:
    """Put DoRAN in place of these layers of a net, and the shared first layers into their blocks.

    layers: path → linear layer.
    """
    by_block: dict[str, dict[str, nn.Linear]] = {}
    for path, layer in layers.items():
        by_block.setdefault(str(block_of(path)), {})[path] = layer
    for block, members in by_block.items():
        shared = SharedLayers({layer.in_features for layer in members.values()}, rank)
        net.get_submodule(block).add_module(SHARED, shared)
        for path, layer in members.items():
            parts = PARTS.get(path.rpartition(".")[2], 1)
            net.set_submodule(path, DoranLinear(layer, shared, rank, alpha, parts))
