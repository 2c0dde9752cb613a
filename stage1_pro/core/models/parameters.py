"""Which of the parameters of a model are trained, and how many they are."""

from collections.abc import Iterable

from torch import nn


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Named parameters that training moves."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count the numbers that the model has, and those that training moves."""
    moving = sum(parameter.numel() for _, parameter in trainable(model))
    return {"trainable": moving, "total": sum(parameter.numel() for parameter in model.parameters())}


def is_adapter(name: str) -> bool:
    """Return whether the tensor of this name is part of an adapter."""
    return "lora_" in name
