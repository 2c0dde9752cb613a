"""Parameter groups with rates of their own, and the warm-up + cosine schedule."""

import math
from collections.abc import Callable, Mapping

from torch import nn

from stage1_pro.core.errors import UserError
from stage1_pro.core.models.parameters import trainable

BACKBONE = "backbone.net."


def parameter_groups(
    model: nn.Module,
    lr_head: float,
    lr_backbone: float,
    weight_decay: float,
    layers: Mapping[str, int] | None = None,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Groups of the trainable parameters: head and backbone, each with and without weight decay.

    layers: name of each parameter of the bare backbone → layer, from 0 at the input. The rate of the last layer is
    lr_backbone, and falls by layer_decay from each layer to the one below it; it is written into the group, since
    torch's schedulers know no other scale. Biases, norms (one-dimensional tensors) and magnitudes do not decay. Empty
    groups are left out; each carries its `name`.
    """
    last = max(layers.values(), default=0) if layers else 0
    if layer_decay != 1 and not last:
        raise UserError("$.layer_decay: timm knows no layers of this backbone. Set layer_decay: 1.")
    buckets: dict[tuple[str, int | None, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model):
        part = "backbone" if name.startswith("backbone.") else "head"
        layer = (
            layer_of(name.removeprefix(BACKBONE), layers)
            if layers and layer_decay != 1 and part == "backbone"
            else None
        )
        decays = parameter.ndim > 1 and "magnitude" not in name
        buckets.setdefault((part, layer, decays), []).append(parameter)
    rates = {"head": lr_head, "backbone": lr_backbone}
    return [
        {
            "name": part + ("" if layer is None else f"_layer_{layer:02d}") + ("" if decays else "_no_decay"),
            "params": parameters,
            "lr": rates[part] * (1.0 if layer is None else layer_decay ** (last - layer)),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, layer, decays), parameters in sorted(buckets.items(), key=_input_first)
    ]


def _input_first(bucket: tuple[tuple[str, int | None, bool], list[nn.Parameter]]) -> int:
    """Groups of one part by layer; the parts as they come."""
    return -1 if bucket[0][1] is None else bucket[0][1]


def layer_of(name: str, layers: Mapping[str, int]) -> int:
    """The layer of a parameter of a backbone that may hold adapters: that of what it adapts.

    name: within the backbone. An adapter's tensor is below the module that it adapts, the wrapped weight below
    `base_layer`.
    """
    if name in layers:
        return layers[name]
    # adapters wrap the weight and stand beside it; both belong to the layer that they adapt
    owner = name.replace("base_layer.", "").partition(".lora_")[0]
    return max(layer for known, layer in layers.items() if known == owner or known.startswith(f"{owner}."))


def warmup_cosine(warmup_steps: int, total_steps: int) -> Callable[[float], float]:
    """Factor of the peak rate at a step: linear from near 0 over the warm-up, then a cosine to 0."""

    def factor(step: float) -> float:
        if step < warmup_steps:
            # from 0 the first step would change nothing
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
