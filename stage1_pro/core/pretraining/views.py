"""Random views of a batch of images: crops, flips, colours and blur, whole batches at a time on the device.

Every image has its own draw, from a generator that the caller seeds: what a step sees depends on (seed, step, rank)
alone. The recipe is DINO's (arXiv 2104.14294, section 3 and its released code) but for hue and solarisation.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

GRAY = (0.299, 0.587, 0.114)
ASPECT = 4 / 3
JITTER, SATURATION, GRAY_SHARE = 0.4, 0.2, 0.2
BLUR_RADIUS = 4
GLOBAL_SCALE, LOCAL_SCALE = (0.32, 1.0), (0.05, 0.32)
"""Share of the image that a crop shows, of DINOv2 (arXiv 2304.07193)."""
MAE_SCALE = (0.2, 1.0)
LOCAL_SIDE = 3 / 7
"""Side of a local crop over that of a global one: 96 pixels to 224."""


def crops(images: Tensor, size: int, scale: tuple[float, float], draw: torch.Generator) -> Tensor:
    """(B, C, H, W) → (B, C, size, size): one random crop of each image, of this share of its area, flipped half
    of the time."""
    count = len(images)
    area, aspect, flip = _uniform(count, draw, *scale), _uniform(count, draw, -1, 1), _uniform(count, draw)
    aspect = torch.exp(aspect * math.log(ASPECT))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = _uniform(count, draw, -1, 1) * (1 - width), _uniform(count, draw, -1, 1) * (1 - height)
    zero, sign = torch.zeros(count), torch.where(flip < 0.5, -1.0, 1.0)
    rows = torch.stack([torch.stack([sign * width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
    grid = functional.affine_grid(rows.to(images.device), [count, images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def recoloured(images: Tensor, strength: float, draw: torch.Generator) -> Tensor:
    """(B, 3, H, W) in 0–1: brightness, contrast and saturation of each image drawn anew, one in five grey.

    strength: 0 leaves the colours alone, 1 is the full recipe.
    """
    if not strength:
        return images
    count, device = len(images), images.device

    def factor(spread: float) -> Tensor:
        drawn = _uniform(count, draw, 1 - spread * strength, 1 + spread * strength)
        jittered = _uniform(count, draw) < 0.8
        return torch.where(jittered, drawn, torch.ones(count)).to(device)[:, None, None, None]

    images = (images * factor(JITTER)).clamp(0, 1)
    means = _gray(images).mean(dim=(2, 3), keepdim=True)
    images = (means + (images - means) * factor(JITTER)).clamp(0, 1)
    saturation = factor(SATURATION)
    grey = (_uniform(count, draw) < GRAY_SHARE * strength).to(device)[:, None, None, None]
    gray = _gray(images)
    return (gray + (images - gray) * torch.where(grey, 0.0, saturation)).clamp(0, 1)


def blurred(images: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """(B, C, H, W) with this share of the images blurred, by a Gaussian of .1 to 2 pixels."""
    count, channels = images.shape[:2]
    sigma = _uniform(count, draw, 0.1, 2.0)
    sigma = torch.where(_uniform(count, draw) < share, sigma, torch.full((count,), 1e-3))
    places = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernel = torch.softmax(-(places**2) / (2 * sigma[:, None] ** 2), dim=1).to(images)
    kernel = kernel.repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, *images.shape[2:])
    for shape, pad in (
        ((-1, 1, 1, places.numel()), (BLUR_RADIUS, BLUR_RADIUS, 0, 0)),
        ((-1, 1, places.numel(), 1), (0, 0, BLUR_RADIUS, BLUR_RADIUS)),
    ):
        flat = functional.conv2d(
            functional.pad(flat, pad, mode="replicate"), kernel.reshape(shape), groups=count * channels
        )
    return flat.reshape(images.shape)


def multi_crop(
    images: Tensor, size: int, local_size: int, local_crops: int, colour: float, draw: torch.Generator
) -> list[Tensor]:
    """Two global views, then the local ones, of images (B, 3, H, W) in 0–1."""
    plan = [(size, GLOBAL_SCALE, 1.0), (size, GLOBAL_SCALE, 0.1)] + [(local_size, LOCAL_SCALE, 0.5)] * local_crops
    return [
        blurred(recoloured(crops(images, side, scale, draw), colour, draw), blur, draw) for side, scale, blur in plan
    ]


def local_side(size: int, patch: int) -> int:
    """Pixels of a local crop's side: a multiple of the patch, two patches at least, as near to 3/7 as can be."""
    return min(size, patch * max(2, round(LOCAL_SIDE * size / patch)))


def _gray(images: Tensor) -> Tensor:
    return (images * images.new_tensor(GRAY)[:, None, None]).sum(dim=1, keepdim=True)


def _uniform(count: int, draw: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=draw)
