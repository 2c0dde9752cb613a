"""Parameter groups with rates of their own, and the warm-up + cosine schedule."""

import math
from collections.abc import Callable, Iterable

from torch import nn


def parameter_groups(model: nn.Module, lr_head: float, lr_backbone: float, weight_decay: float) -> list[dict]:
    """Groups of the trainable parameters: head and backbone, each with and without weight decay.

    Biases and norms (one-dimensional tensors) do not decay. Empty groups are left out; each carries
    its `name`.
    """
    buckets: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if name.startswith("backbone.") else "head"
            buckets.setdefault((part, parameter.ndim > 1), []).append(parameter)
    rates = {"head": lr_head, "backbone": lr_backbone}
    return [
        {
            "name": part if decays else f"{part}_no_decay",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in buckets.items()
    ]


def warmup_cosine(warmup_steps: int, total_steps: int) -> Callable[[float], float]:
    """Factor of the peak rate at a step: linear from near 0 over the warm-up, then a cosine to 0."""

    def factor(step: float) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Named parameters that training moves."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """How many numbers the model has, and how many of them training moves."""
    moving = sum(parameter.numel() for _, parameter in trainable(model))
    return {"trainable": moving, "total": sum(parameter.numel() for parameter in model.parameters())}
