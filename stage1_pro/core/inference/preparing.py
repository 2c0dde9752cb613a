"""From images to inputs of a forward pass: the preprocessing of a model, on the CPU or on a GPU."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, islice, pairwise
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from stage1_pro.core.data.batches import ahead, quiet_worker
from stage1_pro.core.data.decoding import ImageContract, decode
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.transforms import Preprocessing

Prepared = tuple[Tensor, np.ndarray, dict[int, str]]
"""(inputs (R, 3, S, S) float32 of the R images that can be read, readable (N,) bool, position → reason)."""


class OnCpu:
    """Pillow decodes and resizes."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        self.contract, self.transform = preprocessing.images, preprocessing.transform()
        self.pin = device.type == "cuda"

    def one(self, image: Any, contract: ImageContract) -> Tensor:
        """The input (3, S, S) of one image; safe in several threads. Raises BadImage."""
        return self.transform(decode(image, contract))

    def batches(self, images: Sequence[Any], batch_size: int, workers: int) -> Iterator[Prepared]:
        """Inputs of so many images at a time, in order. workers: processes that decode, 0 for this one."""
        return self.parts(images, _cut([len(images)], batch_size), workers)

    def parts(self, images: Sequence[Any], parts: list[range], workers: int) -> Iterator[Prepared]:
        """Inputs of these parts of the images, one after the other."""
        dataset = _Read(images, partial(decode, contract=self.contract), self.transform)
        return iter(_loader(dataset, parts, workers, _stacked, self.pin))


class OnGpu:
    """nvJPEG decodes, torch resizes. Raises UserError where the device cannot."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        from stage1_pro.core.data import on_device

        self.read, self.packed = partial(on_device.encoded, contract=preprocessing.images), on_device.packed
        self.collate = on_device.packed_readable
        self.decoder, self.alone = on_device.gpu_decoder(preprocessing, device), Lock()

    def one(self, image: Any, contract: ImageContract) -> Tensor:
        """The input (3, S, S) of one image, on the GPU; safe in several threads. Raises BadImage."""
        encoded = self.read(image, contract=contract)
        with self.alone:
            inputs, bad = self.decoder(self.packed([encoded]))
        for reason in bad.values():
            raise reason
        return inputs[0]

    def batches(self, images: Sequence[Any], batch_size: int, workers: int) -> Iterator[Prepared]:
        """Inputs of so many images at a time, on the GPU, in order. workers: processes that read files."""
        return self.parts(images, _cut([len(images)], batch_size), workers)

    def parts(self, images: Sequence[Any], parts: list[range], workers: int) -> Iterator[Prepared]:
        """Inputs of these parts of the images, one after the other."""
        loader = _loader(_Read(images, self.read, None), parts, workers, self.collate, False)
        return ahead(iter(loader), self._decoded)

    def _decoded(self, batch: tuple[Any, dict[int, str]]) -> Prepared:
        packed, reasons = batch
        count = len(packed.images) + len(reasons)
        places = [at for at in range(count) if at not in reasons]
        inputs, bad = self.decoder(packed)
        reasons = reasons | {places[at]: str(reason) for at, reason in bad.items()}
        return inputs, np.array([at not in reasons for at in range(count)]), dict(sorted(reasons.items()))


class Announced:
    """Images of several lists that are read one after the other by processes which go on when a list is done.

    preparing: what prepares them; lists: in the order in which they will be asked for; images that were not announced
    are read when they are asked for; batch_size: of these parts, whatever `batches` is told.
    """

    def __init__(self, preparing: OnCpu | OnGpu, lists: Sequence[list[Any]], batch_size: int, workers: int):
        self.preparing, self.lists = preparing, deque(lists)
        parts = _cut([len(images) for images in lists], batch_size)
        self.reading = preparing.parts([image for images in lists for image in images], parts, workers)
        self.count = [-(-len(images) // batch_size) for images in lists]

    def one(self, image: Any, contract: ImageContract) -> Tensor:
        return self.preparing.one(image, contract)

    def batches(self, images: Sequence[Any], batch_size: int, workers: int) -> Iterator[Prepared]:
        if not self.lists or self.lists[0] != list(images):
            return self.preparing.batches(images, batch_size, workers)
        self.lists.popleft()
        return self._announced(self.count.pop(0))

    def _announced(self, parts: int) -> Iterator[Prepared]:
        yield from islice(self.reading, parts)
        if not self.lists:
            next(self.reading, None)  # past the last one, where the processes end; else the exit would kill them


Preparing = OnCpu | OnGpu | Announced

PREPARING: dict[str, Callable[[Preprocessing, torch.device], OnCpu | OnGpu]] = {"cpu": OnCpu, "gpu": OnGpu}


def preparing_of(preprocessing: Preprocessing, device: torch.device) -> OnCpu | OnGpu:
    """What prepares images as the preprocessing says. Raises UserError where the device cannot."""
    return PREPARING[preprocessing.images.decode](preprocessing, device)


class _Read(Dataset):
    """Images that are read and then transformed, or the reason why one cannot be read."""

    def __init__(self, images: Sequence[Any], read: Callable[[Any], Any], transform: Callable[[Any], Any] | None):
        self.images, self.read, self.transform = list(images), read, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Any:
        try:
            image = self.read(self.images[position])
        except BadImage as bad:
            return str(bad)
        # outside of the try: an error in there is a bug, never a bad image
        return image if self.transform is None else self.transform(image)


def _cut(sizes: Sequence[int], batch_size: int) -> list[range]:
    """Positions of lists of these sizes, one list after the other, in parts that hold images of one list only."""
    ends = list(accumulate(sizes, initial=0))
    return [
        range(at, min(at + batch_size, end)) for start, end in pairwise(ends) for at in range(start, end, batch_size)
    ]


def _loader(dataset: _Read, parts: list[range], workers: int, collate: Callable[..., Any], pin: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=parts,  # pyright: ignore[reportArgumentType]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=quiet_worker,
    )


def _stacked(items: list[Tensor | str]) -> Prepared:
    images = [item for item in items if isinstance(item, Tensor)]
    reasons = {position: item for position, item in enumerate(items) if isinstance(item, str)}
    readable = np.array([isinstance(item, Tensor) for item in items])
    return default_collate(images) if images else torch.empty(0), readable, reasons
