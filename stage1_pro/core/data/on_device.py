"""Images decoded, resized and augmented on an NVIDIA GPU: what `decode: gpu` of a run's preprocessing means.

Processes read files and decode what is no plain JPEG; a batch of bytes is one tensor, which is cheap to send. A thread
then decodes it while the model computes with the batch before.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from stage1_pro.core.data.augmentation import Chance, drawn
from stage1_pro.core.data.batches import Batch, Draw
from stage1_pro.core.data.decoding import ImageContract, PlainJpeg, decode, silenced, undecoded
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.data.transforms import AUGMENTATIONS, Preprocessing
from stage1_pro.core.errors import UserError
from stage1_pro.core.seeds import rng_of

DECODED_AT_ONCE = 2**28
"""Bytes of decoded pixels that one call of nvjpeg may give."""

RESIZED_AT_ONCE = 2**26
"""Values of decoded pixels that are resized in one go, as float32."""

LARGEST_SCALE = 32
"""By which a side is shrunk on the GPU; its kernel has not the memory for much more, and the CPU's gives the same."""

_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda image: image.flip(2),
    3: lambda image: image.flip(1, 2),
    4: lambda image: image.flip(1),
    5: lambda image: image.transpose(1, 2),
    6: lambda image: image.flip(1).transpose(1, 2),
    7: lambda image: image.flip(1, 2).transpose(1, 2),
    8: lambda image: image.flip(2).transpose(1, 2),
}
"""EXIF orientation → the image (3, H, W) turned upright."""

_ADJUST: dict[str, Callable[..., Tensor]] = {
    "brightness": pixels.adjust_brightness,
    "contrast": pixels.adjust_contrast,
    "saturation": pixels.adjust_saturation,
}
_REMARKS = ("ignore", re.compile(".*TorchCodec", re.DOTALL), DeprecationWarning, None, 0)


class Encoded(NamedTuple):
    """One image on its way to the device.

    content: (n,) uint8, the bytes of a plain JPEG of this size (height, width) and orientation, or (H, W, 3) uint8, an
    upright image; chance: its augmentation, or None.
    """

    content: np.ndarray
    size: tuple[int, int]
    orientation: int
    chance: Chance | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) when turned upright."""
        height, width = self.size
        return (height, width) if self.orientation < 5 else (width, height)


class Packed(NamedTuple):
    """A batch of Encoded in one tensor, which costs one file handle between processes.

    data: (n,) uint8, the contents one after the other; images: the same without content; shapes: of each content.
    """

    data: Tensor
    images: list[Encoded]
    shapes: list[tuple[int, ...]]

    def contents(self) -> list[Tensor]:
        parts = self.data.split([int(np.prod(shape)) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def encoded(source: Any, contract: ImageContract) -> Encoded:
    """Read one image. source, errors: as of `decode`."""
    found = undecoded(source, contract)
    if isinstance(found, PlainJpeg):
        width, height = found.size
        return Encoded(np.frombuffer(found.content, dtype=np.uint8), (height, width), found.orientation)
    return Encoded(np.asarray(found), (found.height, found.width), 1)


def packed(images: Sequence[Encoded]) -> Packed:
    flat = [image.content.reshape(-1) for image in images]
    data = torch.from_numpy(np.concatenate(flat)) if flat else torch.empty(0, dtype=torch.uint8)
    bare = [image._replace(content=image.content[:0]) for image in images]
    return Packed(data, bare, [image.content.shape for image in images])


def packed_readable(items: Sequence[Encoded | str]) -> tuple[Packed, dict[int, str]]:
    """Those that could be read, and position → reason of the others."""
    reasons = {position: item for position, item in enumerate(items) if isinstance(item, str)}
    return packed([item for item in items if not isinstance(item, str)]), reasons


class EncodedImages(Dataset):
    """Images of a training as they are in their files, with their augmentation, of (seed, epoch, position) alone."""

    def __init__(
        self, paths: Sequence[str], labels: np.ndarray, preprocessing: Preprocessing, augmentation: str, seed: int
    ):
        self.paths, self.labels, self.seed = list(paths), labels.astype(np.int64), seed
        self.preprocessing, self.recipe = preprocessing, AUGMENTATIONS.get(augmentation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> tuple[Encoded, int, int]:
        epoch, position = draw
        try:
            image = encoded(self.paths[position], self.preprocessing.images)
        except BadImage as bad:
            raise no_more(self.paths[position], bad) from None
        if self.recipe is not None:
            rng = rng_of(self.seed, "augmentation", epoch, position)
            image = image._replace(chance=drawn(image.upright, self.preprocessing.size, self.recipe, rng))
        return image, int(self.labels[position]), position

    @staticmethod
    def collate(items: list[tuple[Encoded, int, int]]) -> tuple[Packed, Tensor, Tensor]:
        images, labels, positions = zip(*items, strict=True)
        return packed(images), torch.tensor(labels), torch.tensor(positions)

    def decoded_on(self, device: torch.device) -> Callable[[tuple[Packed, Tensor, Tensor]], Batch]:
        """What makes a step's batch of one that `collate` made. Raises UserError unless the device is a GPU."""
        decoder = gpu_decoder(self.preprocessing, device)

        def finish(batch: tuple[Packed, Tensor, Tensor]) -> Batch:
            images, labels, positions = batch
            inputs, bad = decoder(images)
            for at, reason in bad.items():
                raise no_more(self.paths[int(positions[at])], reason)
            return Batch(inputs, labels, positions)

        return finish


def no_more(path: str, reason: object) -> UserError:
    """Of an image that could be read when the run began."""
    return UserError(f"{path} cannot be read any more ({reason}). Restore the file and run again.")


def gpu_decoder(preprocessing: Preprocessing, device: torch.device) -> "DeviceDecoder":
    """Raise UserError unless the device is a GPU on which torchvision decodes."""
    demand_gpu(device)
    return DeviceDecoder(preprocessing, device)


def demand_gpu(device: torch.device) -> None:
    """Raise UserError unless torchvision decodes on the device; no other decoder takes its place."""
    if device.type != "cuda":
        raise UserError(
            f"the images of this run are decoded by an NVIDIA GPU (dataset_params.decode: gpu), and the device is "
            f"{device.type}. Use a machine with such a GPU, or train and certify a run with decode: cpu."
        )
    probe = BytesIO()
    Image.new("RGB", (16, 16)).save(probe, "JPEG")
    try:
        _decode_jpegs([torch.frombuffer(probe.getbuffer(), dtype=torch.uint8)], device)
    except RuntimeError as error:
        raise UserError(
            f"decode: gpu needs a torchvision that decodes on the GPU ({' '.join(str(error).split())[:120]}). Install "
            "the build of torchvision for CUDA that fits torch, or train and certify a run with decode: cpu."
        ) from None


class DeviceDecoder:
    """Makes inputs of packed images on one device; one thread at a time.

    An image's pixels depend on nothing else in its batch. A JPEG that the device refuses is decoded by Pillow.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device):
        self.preprocessing, self.device = preprocessing, device
        self.mode = InterpolationMode(preprocessing.interpolation)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )

    def __call__(self, batch: Packed) -> tuple[Tensor, dict[int, BadImage]]:
        """Inputs (N, 3, S, S) float32 of those that can be read, in order, and position → reason of the others.

        They are ready when this returns, for the device's default stream.
        """
        if self.stream is None:
            return self._inputs(batch)
        with torch.cuda.stream(self.stream):
            inputs, bad = self._inputs(batch)
            inputs.record_stream(torch.cuda.default_stream(self.device))  # where the model reads them
        self._settle()
        return inputs, bad

    def _settle(self) -> None:
        """Wait for what was computed: nvjpeg writes on a stream of its own, at once, into memory freed on this one."""
        if self.stream is not None:
            self.stream.synchronize()

    def _inputs(self, batch: Packed) -> tuple[Tensor, dict[int, BadImage]]:
        contents, bad, views = batch.contents(), {}, dict[int, Tensor]()
        for part in _parts(batch):
            self._settle()
            upright: dict[int, Tensor] = {}
            for at, image in zip(part, self._decoded([contents[at] for at in part]), strict=True):
                try:
                    upright[at] = self._upright(batch.images[at], image, contents[at])
                except BadImage as reason:
                    bad[at] = reason
            views |= self._views(batch.images, upright)
        made = [views[at] for at in sorted(views)]
        side = self.preprocessing.size
        whole = torch.stack(made) if made else torch.empty(0, 3, side, side, dtype=torch.uint8, device=self.device)
        inputs = (whole.float() / 255 - self.mean) / self.std
        readable = (image for at, image in enumerate(batch.images) if at not in bad)
        for row, image in zip(inputs, readable, strict=True):
            if image.chance is not None and image.chance.erased is not None:
                top, left, height, width = image.chance.erased
                row[:, top : top + height, left : left + width] = 0
        return inputs, bad

    def _decoded(self, contents: Sequence[Tensor]) -> list[Tensor | None]:
        """Each JPEG as (3, H, W) uint8 on the device; None for what is no JPEG, or one that the device refuses."""
        at = [index for index, content in enumerate(contents) if content.ndim == 1]
        found: list[Tensor | None] = [None] * len(contents)
        for index, image in zip(at, self._tried([contents[index] for index in at]), strict=True):
            found[index] = image
        return found

    def _tried(self, jpegs: list[Tensor]) -> Sequence[Tensor | None]:
        try:
            return _decode_jpegs(jpegs, self.device) if jpegs else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of one of them; which, nobody says
            return [None] if len(jpegs) == 1 else [self._tried([one])[0] for one in jpegs]

    def _upright(self, image: Encoded, decoded: Tensor | None, content: Tensor) -> Tensor:
        """(3, H, W) uint8 on the device. Raises BadImage."""
        if decoded is not None and decoded.shape == (3, *image.size):
            return _UPRIGHT.get(image.orientation, lambda whole: whole)(decoded)
        array = content.numpy()
        if content.ndim == 1:
            array = np.array(decode(array.tobytes(), self.preprocessing.images))
        return torch.from_numpy(array).to(self.device).permute(2, 0, 1)

    def _views(self, images: Sequence[Encoded], upright: dict[int, Tensor]) -> dict[int, Tensor]:
        """Position → (3, S, S) uint8 on the device. What is not augmented is resized together with others of its size:
        one by one, the GPU would wait for its kernels to be started."""
        views, alike = dict[int, Tensor](), defaultdict[torch.Size, list[int]](list)
        for at, image in upright.items():
            chance = images[at].chance
            if chance is None:
                alike[image.shape].append(at)
            else:
                views[at] = self._augmented(image, chance)
        for shape, places in alike.items():
            step = max(1, RESIZED_AT_ONCE // shape.numel())
            for part in (places[start : start + step] for start in range(0, len(places), step)):
                views |= zip(part, self._evaluated(torch.stack([upright[at] for at in part])), strict=True)
        return views

    def _evaluated(self, images: Tensor) -> Tensor:
        short = int(self.preprocessing.size / self.preprocessing.crop_pct)
        resized = self._resized(images, [short], min(images.shape[2:]) / short)
        return pixels.center_crop(resized, [self.preprocessing.size] * 2)

    def _augmented(self, image: Tensor, chance: Chance) -> Tensor:
        top, left, height, width = chance.box
        side, part = self.preprocessing.size, image[:, top : top + height, left : left + width]
        view = self._resized(part, [side, side], max(height, width) / side)
        view = view.flip(2) if chance.flip else view
        for name, factor in chance.jitter:
            view = _ADJUST[name](view, factor)
        return view

    def _resized(self, image: Tensor, size: list[int], scale: float) -> Tensor:
        whole = (image.cpu() if scale > LARGEST_SCALE else image).float()
        shrunk = pixels.resize(whole, size, self.mode, antialias=True)
        return shrunk.clamp(0, 255).round().to(torch.uint8).to(self.device)


def _parts(batch: Packed) -> Iterator[list[int]]:
    """Positions of a batch in parts whose decoded pixels fit DECODED_AT_ONCE."""
    part: list[int] = []
    held = 0
    for at, image in enumerate(batch.images):
        own = 3 * image.size[0] * image.size[1]
        if part and held + own > DECODED_AT_ONCE:
            yield part
            part, held = [], 0
        part.append(at)
        held += own
    if part:
        yield part


def _decode_jpegs(contents: list[Tensor], device: torch.device) -> list[Tensor]:
    with silenced(_REMARKS):
        return decode_jpeg(contents, ImageReadMode.RGB, device)  # pyright: ignore[reportReturnType]
