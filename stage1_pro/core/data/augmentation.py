"""What augmentation does to one image, drawn before the image is decoded: timm's recipe for images on a GPU."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Box = tuple[int, int, int, int]
"""top, left, height, width, in pixels."""

TRIES = 10
RATIO = math.log(3 / 4), math.log(4 / 3)
ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (math.log(0.3), math.log(1 / 0.3))
JITTERS = ("brightness", "contrast", "saturation")


@dataclass(frozen=True, slots=True)
class Chance:
    """One draw. box: of the upright image, which is resized to the input; flip: left to right; jitter: (name of a
    colour adjustment, factor) in order; erased: of the input, set to the mean colour, or None."""

    box: Box
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    erased: Box | None


def drawn(size: tuple[int, int], side: int, recipe: Mapping[str, Any], rng: np.random.Generator) -> Chance:
    """Draw for an upright image of this (height, width) and an input of side × side.

    recipe: a value of AUGMENTATIONS. The distributions are those of timm's RandomResizedCropAndInterpolation, flip,
    ColorJitter and RandomErasing.
    """
    box = _crop(size, recipe["scale"], rng)
    flip = bool(rng.random() < recipe["hflip"])
    strength = recipe["color_jitter"]
    factors = {} if strength is None else {name: float(rng.uniform(1 - strength, 1 + strength)) for name in JITTERS}
    names = rng.permutation(list(factors)).tolist() if factors else []
    erased = _patch((side, side), rng) if rng.random() < recipe["re_prob"] else None
    return Chance(box, flip, tuple((name, factors[name]) for name in names), erased)


def _crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A part of an image by area and ratio; where none fits, the largest one in the middle with a ratio allowed."""
    height, width = size
    for _ in range(TRIES):
        area, ratio = rng.uniform(*scale) * height * width, math.exp(rng.uniform(*RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return _placed((h, w), size, rng)
    ratio = min(max(width / height, math.exp(RATIO[0])), math.exp(RATIO[1]))
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def _patch(size: tuple[int, int], rng: np.random.Generator) -> Box | None:
    for _ in range(TRIES):
        area, ratio = rng.uniform(*ERASED_AREA) * size[0] * size[1], math.exp(rng.uniform(*ERASED_RATIO))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < size[0] and w < size[1]:
            return _placed((h, w), size, rng)
    return None


def _placed(part: tuple[int, int], size: tuple[int, int], rng: np.random.Generator) -> Box:
    top, left = (int(rng.integers(0, whole - own + 1)) for own, whole in zip(part, size, strict=True))
    return top, left, *part
