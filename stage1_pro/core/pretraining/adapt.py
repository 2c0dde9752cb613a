"""What ExPLoRA trains of a vision transformer, and how it becomes plain weights again (arXiv 2406.10973).

The last blocks are trained whole; every other block gets a low-rank update of its query and value projections. All
norms and the class token are trained, everything else is frozen.
"""

import math
import re
from collections.abc import Iterator

import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import Backbone, BackboneSpec

NORM = re.compile(r"\.(?!fc_norm)\w*norm\w*\.(weight|bias)$")  # fc_norm follows a pool that the features do without
LOW_RANK = re.compile(r"\.parametrizations\.weight\.0\.(up|down)\.\d$")


class LowRank(nn.Module):
    """W (O, I) → W + UD, for those of `parts` equal row ranges of W that are named; the rest stays as it is.

    As a parametrization of the weight itself it also reaches code that reads `qkv.weight` past the layer's forward
    (timm's attention with separate biases), where a wrapper of the layer would be bypassed in silence. U starts at
    zero, D as LoRA's (arXiv 2106.09685), scale 1.
    """

    def __init__(self, weight: Tensor, rank: int, parts: int, updated: tuple[int, ...]):
        super().__init__()
        rows, columns = weight.shape[0] // parts, weight.shape[1]
        self.parts, self.updated, self.rows = parts, updated, rows
        self.up = nn.ParameterList(weight.new_zeros(rows, rank) for _ in updated)
        self.down = nn.ParameterList(weight.new_empty(rank, columns) for _ in updated)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        still = weight.new_zeros(self.rows, weight.shape[1])
        deltas = {part: up @ down for part, up, down in zip(self.updated, self.up, self.down, strict=True)}
        return weight + torch.cat([deltas.get(part, still).to(weight.dtype) for part in range(self.parts)])


def adaptable(backbone: Backbone, spec: BackboneSpec) -> Backbone:
    """The same weights in a net that takes any image size, since crops have several.

    Raises UserError for anything but a vision transformer of timm.
    """
    _demand_transformer(backbone.net, spec.arch)
    try:  # its position embeddings are interpolated for each size
        net = timm.create_model(spec.arch, num_classes=0, **{**spec.kwargs, "dynamic_img_size": True})
        net.load_state_dict(backbone.net.state_dict())
    except (TypeError, RuntimeError):
        raise _unfit(spec.arch) from None
    return Backbone(net)


def adapt(backbone: Backbone, rank: int, full_blocks: int) -> list[str]:
    """Freeze the backbone but for what ExPLoRA trains; returns the names of those tensors.

    rank: of the updates of query and value; full_blocks: the last blocks that are trained whole.
    Raises UserError where the backbone has no block left for either.
    """
    blocks = list(backbone.net.blocks)  # pyright: ignore[reportArgumentType]
    if full_blocks >= len(blocks):
        raise UserError(
            f"--full_blocks is {full_blocks}; allowed 1 to {len(blocks) - 1}: the backbone has {len(blocks)}."
        )
    backbone.requires_grad_(False)
    for block in blocks[:-full_blocks]:
        for layer, parts, updated in _projections(block.attn):
            _demand_rank(rank, layer.weight, parts)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, parts, updated))
    whole = tuple(f"net.blocks.{index}." for index in range(len(blocks) - full_blocks, len(blocks)))
    trained = [name for name, _ in backbone.named_parameters() if _is_trained(name, whole)]
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name in trained)
    return trained


def merge(backbone: Backbone) -> Backbone:
    """Fold the updates into the weights, in place: plain tensors under timm's own names, equal outputs."""
    for module in list(backbone.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return backbone


def _is_trained(name: str, whole: tuple[str, ...]) -> bool:
    return name.startswith(whole) or name == "net.cls_token" or bool(NORM.search(name) or LOW_RANK.search(name))


def _projections(attention: nn.Module) -> Iterator[tuple[nn.Linear, int, tuple[int, ...]]]:
    """(layer, its equal parts, those that are query or value), fused or apart."""
    fused = getattr(attention, "qkv", None)
    if isinstance(fused, nn.Linear):
        yield fused, 3, (0, 2)
        return
    for name in ("q_proj", "v_proj"):
        layer = getattr(attention, name, None)
        if isinstance(layer, nn.Linear):
            yield layer, 1, (0,)


def _demand_transformer(net: nn.Module, arch: str) -> None:
    blocks, patches = getattr(net, "blocks", None), getattr(net, "patch_embed", None)
    attentions = (
        [getattr(block, "attn", nn.Identity()) for block in blocks]
        if isinstance(blocks, nn.Sequential | nn.ModuleList)
        else []
    )
    found = [[parts for _, parts, _ in _projections(attention)] for attention in attentions]
    if not found or not hasattr(patches, "patch_size") or any(parts not in ([3], [1, 1]) for parts in found):
        raise _unfit(arch)


def _demand_rank(rank: int, weight: Tensor, parts: int) -> None:
    most = min(weight.shape[0] // parts, weight.shape[1])
    if rank > most:
        raise UserError(f"--lora_rank is {rank}; allowed 1 to {most}, the width of this backbone's queries and values.")


def _unfit(arch: str) -> UserError:
    return UserError(
        f"model_path: '{arch}' has no blocks of attention with query and value projections, which ExPLoRA adapts. "
        "Choose a vision transformer, such as vit_small_patch14_dinov2, vit_small_patch16_dinov3 or "
        "vit_base_patch16_224."
    )
