"""Adapters on a frozen backbone: put in, checked to be trained, and merged into plain weights again.

LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353) are those of Hugging Face peft; DoRAN is ours. Their tensors have
`lora_` in their names.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.adapter_targets import block_of, places
from stage1_pro.core.models.backbone import Backbone
from stage1_pro.core.models.doran import SHARED, DoranLinear, inject_doran

CHECKED_IMAGES = 2


def add_adapters(backbone: Backbone, config: Stage1ProConfig, size: int) -> None:
    """Freeze the backbone and train adapters in it, and norms where the config says so.

    size: side of the input, pixels, for one forward and backward pass. Raises UserError for targets or blocks that the
    backbone does not have, and where a tensor would not be trained.
    """
    net = backbone.net
    targets = places(net).chosen(config.peft_targets, config.peft_blocks)
    backbone.requires_grad_(False)
    if config.peft_type == "doran":
        inject_doran(net, _linear(net, targets), config.peft_r, config.peft_alpha)
    else:
        _inject_peft(net, targets, config)
    if config.peft_norms:
        for _, parameter in _norms(net, {block_of(path) for path in targets}):
            parameter.requires_grad_(True)
    demand_trained(backbone, size)


@torch.no_grad()
def merge_adapters(backbone: Backbone) -> None:
    """Put every adapter into the weight that it adapts, so that plain layers under plain names remain.

    Raises UserError where a merged weight is not finite.
    """
    net = backbone.net
    for path, layer in list(net.named_modules()):
        if isinstance(layer, DoranLinear):
            net.set_submodule(path, layer.merged())
        elif hasattr(layer, "lora_A"):
            net.set_submodule(path, _merged(layer))
        elif hasattr(layer, SHARED):
            delattr(layer, SHARED)
    broken = [name for name, tensor in net.named_parameters() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"adapters of {', '.join(broken[:3])} are not finite: training diverged. Lower peft_lr.")


def demand_trained(backbone: Backbone, size: int) -> None:
    """One forward and backward pass over noise: every trainable tensor must get a finite gradient that is not zero.

    Some backbones use a layer's weight without calling the layer, and an adapter on it does nothing, silently. A
    tensor that begins at zero is moved for the pass: behind it no other tensor would get a gradient.
    """
    trained = {name: tensor for name, tensor in backbone.named_parameters() if tensor.requires_grad}
    before = {name: tensor.detach().clone() for name, tensor in trained.items()}
    noise = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in trained.values():
                if not tensor.any():
                    tensor.copy_(0.02 * torch.randn(tensor.shape, generator=noise))
        features = backbone.eval()(torch.randn(CHECKED_IMAGES, 3, size, size, generator=noise))
        gradients = torch.autograd.grad(
            (features * torch.randn(features.shape, generator=noise)).sum(), list(trained.values()), allow_unused=True
        )
    except RuntimeError as error:  # no tensor is part of the graph at all
        if "does not require grad" not in str(error):
            raise
        gradients = [None] * len(trained)
    finally:
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(before[name])
    silent = [name for name, gradient in zip(trained, gradients, strict=True) if not _moves(gradient)]
    if silent:
        raise UserError(_silent_words(silent, len(trained)))


def _silent_words(silent: list[str], count: int) -> str:
    layers = list(dict.fromkeys(name.removeprefix("net.").partition(".lora_")[0] for name in silent))
    shown = ", ".join(layers[:4]) + (", …" if len(layers) > 4 else "")
    return (
        f"$.peft_targets: {len(silent)} of {count} adapter tensors get no finite gradient, so they would never be "
        f"trained ({shown}): the backbone does not call these layers, or what follows them is zero. Where its name "
        "ends in _qkvb, choose the variant without it, or weights with q_proj and v_proj apart (qkv_fused false); "
        "where norms begin at zero, set peft_norms: true; otherwise leave these layers out of peft_targets."
    )


def _moves(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


def _inject_peft(net: nn.Module, targets: tuple[str, ...], config: Stage1ProConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # imports transformers, which takes seconds

    use_dora = config.peft_type == "dora"
    settings: Any = {"r": config.peft_r, "lora_alpha": config.peft_alpha, "use_dora": use_dora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's, about models of transformers
        inject_adapter_in_model(LoraConfig(target_modules=list(targets), **settings), net)
    del net.peft_config
    wrapped = {path: layer for path, layer in net.named_modules() if hasattr(layer, "lora_A")}
    assert set(wrapped) == set(targets), sorted(set(wrapped) ^ set(targets))
    for layer in wrapped.values():
        # peft turns autocast's half precision back into float32 before every adapter; only DoRA's norms need that
        layer.cast_input_dtype_enabled = use_dora  # pyright: ignore[reportArgumentType]


def _merged(layer: Any) -> nn.Module:
    layer.merge()
    return layer.get_base_layer()


def _linear(net: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Linear]:
    """path → layer. Raises UserError for convolutions."""
    layers = {path: net.get_submodule(path) for path in targets}
    others = [path for path, layer in layers.items() if not isinstance(layer, nn.Linear)]
    if others:
        raise UserError(
            f"$.peft_type is 'doran', which is for linear layers, and {others[0]} is a convolution. Set peft_type: "
            "dora or lora."
        )
    return {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear)}


def _norms(net: nn.Module, blocks: set[str | None]) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights and biases of the norms of these blocks."""
    for path, layer in net.named_modules():
        if "norm" in type(layer).__name__.lower() and block_of(path) in blocks:
            yield from ((f"{path}.{name}", parameter) for name, parameter in layer.named_parameters(recurse=False))
