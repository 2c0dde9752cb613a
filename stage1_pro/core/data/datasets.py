"""The images of a training, by what decodes them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from stage1_pro.core.data.batches import Batch, ImageDataset
from stage1_pro.core.data.transforms import Preprocessing


def image_dataset(
    paths: Sequence[str], labels: np.ndarray, preprocessing: Preprocessing, augmentation: str, seed: int
) -> Dataset:
    """Images of a training, for `make_loader` with what `finish_of` returns."""
    if preprocessing.images.decode == "cpu":
        return ImageDataset(paths, labels, preprocessing.transform(augmentation), seed)
    from stage1_pro.core.data.on_device import EncodedImages  # which few runs need

    return EncodedImages(paths, labels, preprocessing, augmentation, seed)


def finish_of(dataset: Any, device: torch.device) -> Callable[[Any], Batch] | None:
    """What makes a Batch of what the workers collate: None where that is one, else decoding on the device.

    Raises UserError where the images are decoded on a GPU, and the device is none.
    """
    return dataset.decoded_on(device) if hasattr(dataset, "decoded_on") else None
