"""Augmentation of an image and its mask alike, a function of its generator alone."""

from typing import Any

import numpy as np
from scipy import ndimage

TURN = 15.0
"""Degrees that a volume is turned in plane at most."""
SCALES = (0.85, 1.15)
ALTERED = 0.3
"""Share of cases whose brightness and contrast change."""
ELASTIC = {"aggressive"}


def augmented(
    image: np.ndarray, labels: np.ndarray, level: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return (image (C, *S), labels (*S)) as an epoch sees them. level: none, moderate, aggressive.

    moderate: flips and quarter turns in 2D, up to 15 degrees in plane in 3D, scale, brightness and contrast;
    aggressive adds elastic deformation and noise. Volumes are not flipped: organs have sides, a front and a back.
    """
    if level == "none":
        return image, labels
    flat = labels.ndim == 2
    if flat:
        image, labels = _flipped(image, labels, rng)
        turns = int(rng.integers(4))
        image, labels = np.rot90(image, turns, axes=(1, 2)), np.rot90(labels, turns)
    image, labels = _moved(image, labels, level, 0.0 if flat else float(rng.uniform(-TURN, TURN)), rng)
    if rng.random() < ALTERED:
        spread = float(image.std())
        image = (image - image.mean()) * float(rng.uniform(0.75, 1.25)) + image.mean()
        image = image + float(rng.uniform(-0.2, 0.2)) * spread
    if level in ELASTIC and rng.random() < ALTERED:
        image = image + rng.normal(0, 0.1 * float(image.std()) + 1e-12, image.shape)
    return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)


def _flipped(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    chosen = tuple(axis for axis in range(labels.ndim) if rng.random() < 0.5)
    return np.flip(image, tuple(axis + 1 for axis in chosen)), np.flip(labels, chosen)


def _moved(
    image: np.ndarray, labels: np.ndarray, level: str, degrees: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, turn and, where aggressive, deform: one interpolation for all; what comes in at the edge is a mirror."""
    scale = float(rng.uniform(*SCALES))
    turn = np.eye(labels.ndim)
    angle = np.deg2rad(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn / scale
    middle = (np.array(labels.shape) - 1) / 2
    offset: Any = middle - matrix @ middle
    if level not in ELASTIC or rng.random() >= ALTERED:
        if not degrees:  # no turn: axis by axis, an order of magnitude faster
            matrix = np.diag(matrix)
        parts = [ndimage.affine_transform(part, matrix, offset, order=1, mode="mirror") for part in image]
        return np.stack(parts), ndimage.affine_transform(labels, matrix, offset, order=0, mode="mirror")
    grid = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float64) for size in labels.shape), indexing="ij"))
    bends = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, labels.shape), 8) for _ in labels.shape])
    bends *= 3.0 / max(1e-12, float(np.abs(bends).max()))
    at = np.einsum("ij,j...->i...", matrix, grid) + offset.reshape(-1, *[1] * labels.ndim) + bends
    parts = [ndimage.map_coordinates(part, at, order=1, mode="mirror") for part in image]
    return np.stack(parts), ndimage.map_coordinates(labels, at, order=0, mode="mirror")
