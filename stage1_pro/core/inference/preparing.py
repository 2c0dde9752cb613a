"""From images to inputs of a forward pass: the preprocessing of a model, on the CPU or on a GPU."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
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


class _Preparing:
    """Inputs of images on their way to a model: read and transformed by processes, put together in this one."""

    read: Callable[..., Any]
    transform: Any = None
    collate: Callable[..., Any]
    pin = False

    def batches(self, images: Sequence[Any], batch_size: int, workers: int) -> Iterator[Prepared]:
        """Inputs of so many images at a time, in order. workers: processes that read, 0 for this one."""
        return self.inputs(self.loader(_cut([images], batch_size), workers))

    def loader(self, parts: list[list[Any]], workers: int, stay: bool = False) -> DataLoader:
        """What reads these images, part after part.

        Its processes are forked with the images. To send one means to pickle it, and torch waits for ever for one that
        raises then, as an image does that Pillow has opened and whose file is half there. stay: its processes are there
        for the next look at `parts`, whose images are sent: paths, bytes, BadImage.
        """
        images, numbers = None if stay else list(chain.from_iterable(parts)), count()
        asked = parts if stay else [list(islice(numbers, len(part))) for part in parts]
        return DataLoader(
            _Read(self.read, self.transform, images),
            batch_sampler=asked,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            collate_fn=self.collate,
            pin_memory=self.pin,
            worker_init_fn=quiet_worker,
            persistent_workers=stay and workers > 0,
        )

    def inputs(self, loader: DataLoader) -> Iterator[Prepared]:
        """Inputs of each part that a loader reads."""
        return iter(loader)


class OnCpu(_Preparing):
    """Pillow decodes and resizes."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        self.transform, self.collate, self.pin = preprocessing.transform(), _stacked, device.type == "cuda"
        self.read = partial(decode, contract=preprocessing.images)

    def one(self, image: Any, contract: ImageContract) -> Tensor:
        """The input (3, S, S) of one image; safe in several threads. Raises BadImage."""
        return self.transform(decode(image, contract))


class OnGpu(_Preparing):
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

    def inputs(self, loader: DataLoader) -> Iterator[Prepared]:
        """Inputs of each part that a loader reads, on the GPU."""
        return ahead(iter(loader), self._decoded)

    def _decoded(self, batch: tuple[Any, dict[int, str]]) -> Prepared:
        packed, reasons = batch
        count = len(packed.images) + len(reasons)
        places = [at for at in range(count) if at not in reasons]
        inputs, bad = self.decoder(packed)
        reasons = reasons | {places[at]: str(reason) for at, reason in bad.items()}
        return inputs, np.array([at not in reasons for at in range(count)]), dict(sorted(reasons.items()))


class Staying:
    """Images of one list after another, read by processes that stay: to start them anew takes longer than a list of
    some thousand."""

    def __init__(self, preparing: OnCpu | OnGpu, workers: int):
        self.preparing, self.parts = preparing, list[list[Any]]()
        self.loader = preparing.loader(self.parts, workers, stay=True)

    def one(self, image: Any, contract: ImageContract) -> Tensor:
        return self.preparing.one(image, contract)

    def batches(self, images: Sequence[Any], batch_size: int, workers: int) -> Iterator[Prepared]:
        """As those of `preparing`, by its own processes, whatever `workers` says; one list at a time."""
        self.parts[:] = _cut([images], batch_size)
        return self.preparing.inputs(self.loader)


class Announced:
    """Images of several lists that are read one after the other by processes which go on when a list is done.

    preparing: what prepares them; lists: in the order in which they will be asked for; images that were not announced
    are read when they are asked for; batch_size: of these parts, whatever `batches` is told.
    """

    def __init__(self, preparing: OnCpu | OnGpu, lists: Sequence[list[Any]], batch_size: int, workers: int):
        self.preparing, self.lists = preparing, deque(lists)
        self.reading = preparing.inputs(preparing.loader(_cut(lists, batch_size), workers))
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


Preparing = OnCpu | OnGpu | Staying | Announced

PREPARING: dict[str, Callable[[Preprocessing, torch.device], OnCpu | OnGpu]] = {"cpu": OnCpu, "gpu": OnGpu}


def preparing_of(preprocessing: Preprocessing, device: torch.device) -> OnCpu | OnGpu:
    """What prepares images as the preprocessing says. Raises UserError where the device cannot."""
    return PREPARING[preprocessing.images.decode](preprocessing, device)


class _Read(Dataset):
    """Images that are read and then transformed, or the reason why one cannot be read.

    images: those that the indices count; None: the indices are the images.
    """

    def __init__(
        self, read: Callable[[Any], Any], transform: Callable[[Any], Any] | None, images: Sequence[Any] | None
    ):
        self.read, self.transform, self.images = read, transform, images

    def __getitem__(self, index: Any) -> Any:
        try:
            found = self.read(index if self.images is None else self.images[index])
        except BadImage as bad:
            return str(bad)
        # outside of the try: an error in there is a bug, never a bad image
        return found if self.transform is None else self.transform(found)


def _cut(lists: Sequence[Sequence[Any]], size: int) -> list[list[Any]]:
    """Lists, one after the other, in parts of so many images that hold those of one list only."""
    return [list(images[at : at + size]) for images in lists for at in range(0, len(images), size)]


def _stacked(items: list[Tensor | str]) -> Prepared:
    images = [item for item in items if isinstance(item, Tensor)]
    reasons = {position: item for position, item in enumerate(items) if isinstance(item, str)}
    readable = np.array([isinstance(item, Tensor) for item in items])
    return default_collate(images) if images else torch.empty(0), readable, reasons
