"""Masked reconstruction: 75 % of the patches are hidden, a small decoder paints them (MAE, arXiv 2111.06377)."""

from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from stage1_pro.core.models.backbone import Backbone

MASKED = 0.75
DECODER_WIDTH, DECODER_HEADS, DECODER_DEPTH = 192, 6, 2


class PatchMask(nn.Module):
    """In the place of timm's patch dropout: keeps the patches that `keep` (B, K) names, all where it is None."""

    def __init__(self, prefix: int, with_indices: bool):
        super().__init__()
        self.prefix, self.with_indices = prefix, with_indices
        self.keep: Tensor | None = None

    def forward(self, tokens: Tensor) -> Any:
        if self.keep is not None:
            index = self.keep[..., None].expand(-1, -1, tokens.shape[2])
            tokens = torch.cat([tokens[:, : self.prefix], tokens[:, self.prefix :].gather(1, index)], dim=1)
        return (tokens, self.keep) if self.with_indices else tokens


class Decoder(nn.Module):
    """Tokens of the visible patches → pixels of all of them."""

    places: Tensor

    def __init__(self, width: int, grid: tuple[int, int], pixels: int):
        super().__init__()
        self.enter = nn.Linear(width, DECODER_WIDTH)
        self.hidden = nn.Parameter(torch.zeros(1, 1, DECODER_WIDTH))
        self.register_buffer("places", build_sincos2d_pos_embed(list(grid), DECODER_WIDTH)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(DECODER_WIDTH, DECODER_HEADS, qkv_bias=True) for _ in range(DECODER_DEPTH)))
        self.norm = nn.LayerNorm(DECODER_WIDTH)
        self.paint = nn.Linear(DECODER_WIDTH, pixels)
        nn.init.trunc_normal_(self.hidden, std=0.02)

    def forward(self, visible: Tensor, keep: Tensor) -> Tensor:
        """visible: (B, K, D) at the places keep (B, K) → (B, L, pixels)."""
        seen = self.enter(visible)
        tokens = self.hidden.to(seen.dtype).expand(len(seen), self.places.shape[1], -1)
        tokens = tokens.scatter(1, keep[..., None].expand_as(seen), seen)
        return self.paint(self.norm(self.blocks(tokens + self.places)))


class MaskedReconstruction(nn.Module):
    """The decoder and the loss around a backbone whose patch dropout is replaced by a mask."""

    def __init__(self, backbone: Backbone, size: int):
        super().__init__()
        net: Any = backbone.net
        self.patch = net.patch_embed.patch_size[0]
        self.side = size // self.patch
        self.prefix = getattr(net, "num_prefix_tokens", 0)
        # timm's rotary transformers gather their position embeddings by the indices that come back
        net.patch_drop = PatchMask(self.prefix, with_indices=isinstance(net, Eva))
        self.decoder = Decoder(net.embed_dim, (self.side, self.side), 3 * self.patch**2)

    def forward(self, backbone: Backbone, images: Tensor, draw: torch.Generator) -> Tensor:
        """Mean squared error on the hidden patches, whose pixels are normalised patch by patch."""
        net: Any = backbone.net
        order = torch.rand(len(images), self.side**2, generator=draw).argsort(dim=1).to(images.device)
        shown = shown_patches(self.side**2)
        keep = order[:, :shown].sort(dim=1).values
        net.patch_drop.keep = keep
        try:
            tokens = net.forward_features(images)
        finally:
            net.patch_drop.keep = None
        painted = self.decoder(tokens[:, self.prefix :], keep).float()
        hidden = torch.ones(order.shape, dtype=torch.bool, device=images.device).scatter(1, keep, False)
        return (painted - patches(images, self.patch)).square().mean(dim=2)[hidden].mean()


def shown_patches(count: int) -> int:
    """Return how many of the patches stay visible: a quarter, one at least."""
    return max(1, round(count * (1 - MASKED)))


def patches(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) → (B, L, 3·side²), each patch to mean 0 and variance 1."""
    count, channels, height, width = images.shape
    cut = images.float().reshape(count, channels, height // side, side, width // side, side)
    flat = cut.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * side**2)
    return (flat - flat.mean(dim=2, keepdim=True)) / (flat.var(dim=2, keepdim=True) + 1e-6).sqrt()
