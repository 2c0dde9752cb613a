"""From an image file to a tensor: one preprocessing for training, scoring and inference hosts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from stage1_pro.core.data.decoding import CONTRACT, CONTRACTS, ImageContract

if TYPE_CHECKING:
    from torch import Tensor

AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "moderate": {"scale": (0.5, 1.0), "hflip": 0.5, "re_prob": 0.1, "color_jitter": None},
    "aggressive": {"scale": (0.2, 1.0), "hflip": 0.5, "re_prob": 0.25, "color_jitter": 0.4},
}
"""timm's training recipe per level; `none` is the evaluation transform."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What the backbone expects: decode, resize the shorter side to size / crop_pct, centre crop, normalise.

    size: pixels; mean, std: per RGB channel of images scaled to 0–1; images: how files become pixels. As a mapping the
    fields of `images` stand beside the others; what it leaves out is as in CONTRACT.
    """

    name: ClassVar[str] = "preprocessing"
    """Of the field that records it."""
    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color_order: str = "RGB"
    images: ImageContract = CONTRACT

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        del plain["images"]
        return plain | self.images.to_dict()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocessing":
        """Raises ValueError or TypeError for images that this version cannot read as the mapping says."""
        own = {field.name for field in fields(cls)} - {"images"}
        images = CONTRACT.to_dict() | {name: value for name, value in data.items() if name not in own}
        rest = {name: value for name, value in data.items() if name in own}
        tuples = {"mean": tuple(data["mean"]), "std": tuple(data["std"])}
        return cls(**{**rest, **tuples}, images=ImageContract.from_dict(images))

    def decoded_by(self, decode: str) -> "Preprocessing":
        """The same with the images of a new run. decode: cpu or gpu."""
        return replace(self, images=CONTRACTS[decode])

    def transform(self, augmentation: str = "none") -> Callable[..., Any]:
        """timm's transform: PIL image in, float32 tensor (3, size, size) out."""
        from timm.data.transforms import MaybeToTensor
        from timm.data.transforms_factory import create_transform

        level = AUGMENTATIONS.get(augmentation)
        whole: Any = create_transform(
            input_size=(3, self.size, self.size),
            is_training=level is not None,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            **(level or {}),
        )
        at = [type(step) for step in whole.transforms].index(MaybeToTensor)
        whole.transforms[at : at + 2] = [Normalised(self.mean, self.std)]
        return whole


class Normalised:
    """Makes a tensor of an RGB image: the bits of timm's MaybeToTensor and Normalize in half of their time.

    They copy at each step, and training waits for the processes that decode.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self.mean, self.std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (mean, std))

    def __call__(self, image: Image.Image) -> "Tensor":
        from torch import from_numpy  # which whoever only reads a preprocessing does without

        values = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
        values /= np.float32(255)
        values -= self.mean
        values /= self.std
        return from_numpy(values)
