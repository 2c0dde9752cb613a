"""From a case's files to what the network sees: spacing, intensity, and the way back to the case's own grid."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import interpolate

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.masks.files import Grid, Picture

LEAST_DEVIATION = 1e-6
LINEAR = {2: "bilinear", 3: "trilinear"}
MOST_VOXELS = 1 << 30
"""Of a case on the network's grid: 4 GiB a channel."""
SAME_SPACING = 1e-3
"""Relative difference of spacings that is no difference."""


@dataclass(frozen=True, slots=True)
class MaskPreprocessing:
    """What the network expects of a case.

    dims: 2 or 3; channels: of the image; joint: whether they are colours, scaled together; spacing: mm that volumes are
    resampled to, None: as they are; intensity: zscore, ct or none; low, high, mean, deviation: of the foreground of
    `train`, for ct; patch: of a training patch and of a scoring window, None: whole cases.
    """

    name: ClassVar[str] = "mask_preprocessing"
    """Of the field that records it."""
    dims: int
    channels: int
    joint: bool
    spacing: tuple[float, ...] | None = None
    intensity: str = "zscore"
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0
    patch: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "MaskPreprocessing":
        """Raises TypeError for a mapping of other fields."""
        given: dict[str, Any] = {key: tuple(it) if isinstance(it, list) else it for key, it in data.items()}
        return cls(**given)

    def inputs(self, picture: Picture) -> np.ndarray:
        """Return float32 (C, *S) on the network's grid, scaled."""
        return self.scaled(self.resampled(picture.values, picture.grid))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        if self.intensity == "none":
            return values
        if self.intensity == "ct":
            return ((np.clip(values, self.low, self.high) - self.mean) / self.deviation).astype(np.float32)
        axes = None if self.joint else tuple(range(1, values.ndim))
        wide = values.astype(np.float64)
        mean, deviation = wide.mean(axis=axes, keepdims=True), wide.std(axis=axes, keepdims=True)
        return ((wide - mean) / np.maximum(deviation, LEAST_DEVIATION)).astype(np.float32)

    def shape_of(self, grid: Grid) -> tuple[int, ...]:
        """Size of a case on the network's grid. Raises BadImage where its spacing makes it too large for any."""
        if self.spacing is None:
            return grid.shape
        sizes = zip(grid.shape, grid.spacing, self.spacing, strict=True)
        shape = tuple(
            max(1, round(size * own / wanted)) if _differs(own, wanted) else size for size, own, wanted in sizes
        )
        if math.prod(shape) > MOST_VOXELS:
            raise BadImage("too_large", " × ".join(map(str, shape)))
        return shape

    def resampled(self, values: np.ndarray, grid: Grid) -> np.ndarray:
        """Return an image (C, *S) on the network's grid, linear between its voxels."""
        return linear(values, self.shape_of(grid))

    def resampled_labels(self, labels: np.ndarray, grid: Grid) -> np.ndarray:
        """Return a mask (*S) on the network's grid: of each voxel the nearest one's class."""
        shape = self.shape_of(grid)
        if shape == labels.shape:
            return labels
        sizes = zip(shape, labels.shape, strict=True)
        nearest = [((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in sizes]
        return labels[np.ix_(*nearest)]


def linear(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample (C, *S) to (C, *shape), linear between voxels whose corners coincide."""
    if values.shape[1:] == tuple(shape):
        return values
    resized = interpolate(torch.from_numpy(values)[None], tuple(shape), mode=LINEAR[len(shape)], align_corners=False)
    return resized[0].numpy()


def _differs(own: float, wanted: float) -> bool:
    return abs(own - wanted) > SAME_SPACING * wanted
