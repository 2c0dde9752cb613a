"""Cases with masks as batches: patches or whole cases to train on, whole cases one by one to score."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from stage1_pro.core.data.batches import Draw, quiet_worker
from stage1_pro.core.data.image_files import BadImage, read_file
from stage1_pro.core.data.masks.augment import augmented
from stage1_pro.core.data.masks.files import labels_of, picture_of, read_contents
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.seeds import rng_of

CACHED_BYTES = 1 << 30
"""Prepared cases that a process keeps."""


class MaskBatch(NamedTuple):
    """inputs: (B, C, *S); labels: (B, *S) int64, −1 is ignored; positions: (B,) in the split."""

    inputs: Tensor
    labels: Tensor
    positions: Tensor


class Cases(NamedTuple):
    """Whole cases of their own sizes. inputs: each (C, *S); labels: each (*S) int64; positions: (B,)."""

    inputs: list[Tensor]
    labels: list[Tensor]
    positions: Tensor


class MaskDataset(Dataset):
    """Prepared cases; patches and augmentation depend on (seed, epoch, position) alone.

    augmentation: None gives whole cases as they are; patches: how many of a case; centred: share of those on
    foreground.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        facts: MaskFacts,
        preprocessing: MaskPreprocessing,
        seed: int,
        augmentation: str | None = None,
        patches: int = 1,
        centred: float = 0.0,
    ):
        self.paths, self.masks = list(frame["path"]), list(frame["mask"])
        self.facts, self.preprocessing, self.seed = facts, preprocessing, seed
        self.augmentation, self.patches, self.centred = augmentation, patches, centred
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.paths)

    def prepared(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """(image (C, *S) float32, labels (*S) int64) on the network's grid; kept where there is room."""
        if position in self._kept:
            return self._kept[position]
        try:
            picture = picture_of(read_contents(self.paths[position]))
            values, grid = labels_of(read_file(self.masks[position]))
        except BadImage as bad:
            raise UserError(
                f"{self.paths[position]} or its mask cannot be read any more ({bad}). Restore the files and run again."
            ) from None
        labels = self.preprocessing.resampled_labels(self.facts.coded(values), grid)
        case = self.preprocessing.inputs(picture), labels.astype(np.int8 if labels.max() < 128 else np.int64)
        size = sum(part.nbytes for part in case)
        if self._bytes + size <= CACHED_BYTES:
            self._kept[position], self._bytes = case, self._bytes + size
        return case

    def __getitem__(self, draw: Draw) -> list[tuple[Tensor, Tensor, int]]:
        epoch, position = draw
        image, labels = self.prepared(position)
        if self.augmentation is None:
            return [_tensors(image, labels, position)]
        rng = rng_of(self.seed, "augment", epoch, position)
        cut = [
            self._patch(image, labels, rng) if self.preprocessing.patch else (image, labels)
            for _ in range(self.patches)
        ]
        return [_tensors(*augmented(*part, self.augmentation, rng), position) for part in cut]

    def _patch(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        assert self.preprocessing.patch is not None
        patch = self.preprocessing.patch
        image, labels = padded(image, labels, patch)
        spare = [have - want for have, want in zip(labels.shape, patch, strict=True)]
        begin = [int(rng.integers(room + 1)) for room in spare]
        if rng.random() < self.centred:
            classes = np.unique(labels[labels > 0])
            if len(classes):
                inside = np.flatnonzero(labels == rng.choice(classes))
                at = np.unravel_index(int(rng.choice(inside)), labels.shape)
                begin = [
                    int(np.clip(place - want // 2, 0, room)) for place, want, room in zip(at, patch, spare, strict=True)
                ]
        window = tuple(slice(start, start + want) for start, want in zip(begin, patch, strict=True))
        return image[(slice(None), *window)], labels[window]


def network_size(shape: Sequence[int], divisor: int) -> tuple[int, ...]:
    """The least size that the network takes a case of this shape in: norms need two voxels a side at the bottleneck."""
    return tuple(max(2 * divisor, -(-side // divisor) * divisor) for side in shape)


def padded(image: np.ndarray, labels: np.ndarray, least: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Fill a case up to a size at the far end of each axis, with zeros and background.

    Only training sees it. A network that is told nothing of what it sees there draws false masks along the edge.
    """
    lack = [(0, max(0, want - have)) for want, have in zip(least, labels.shape, strict=True)]
    if not any(after for _, after in lack):
        return image, labels
    return np.pad(image, [(0, 0), *lack]), np.pad(labels, lack)


def _tensors(image: np.ndarray, labels: np.ndarray, position: int) -> tuple[Tensor, Tensor, int]:
    return (
        torch.from_numpy(np.ascontiguousarray(image)),
        torch.from_numpy(np.ascontiguousarray(labels).astype(np.int64)),
        position,
    )


class Together:
    """Collate patches or whole cases into one MaskBatch, padded to the largest and to the network's divisor."""

    def __init__(self, divisor: int):
        self.divisor = divisor

    def __call__(self, items: list[list[tuple[Tensor, Tensor, int]]]) -> MaskBatch:
        flat = [part for item in items for part in item]
        largest = np.max([labels.shape for _, labels, _ in flat], axis=0)
        size = network_size(largest.tolist(), self.divisor)
        filled = [padded(image.numpy(), labels.numpy(), size) for image, labels, _ in flat]
        return MaskBatch(
            torch.from_numpy(np.stack([image for image, _ in filled])),
            torch.from_numpy(np.stack([labels for _, labels in filled])),
            torch.tensor([position for *_, position in flat]),
        )


def apart(items: list[list[tuple[Tensor, Tensor, int]]]) -> Cases:
    """Collate whole cases as they are."""
    flat = [part for item in items for part in item]
    return Cases(
        [image for image, *_ in flat], [labels for _, labels, _ in flat], torch.tensor([at for *_, at in flat])
    )


def make_mask_loader(
    dataset: MaskDataset, sampler: Sampler, batch_size: int, workers: int, pin_memory: bool, divisor: int
) -> DataLoader:
    """A DataLoader of `MaskBatch`es where the dataset augments, of `Cases` where it does not."""
    collate: Any = apart if dataset.augmentation is None else Together(divisor)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),
    )
