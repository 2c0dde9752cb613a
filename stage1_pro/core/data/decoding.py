"""One decoder for training, scoring and inference: what counts as an image, and which pixels it has.

Pillow's own `Image.open` is not used: it tries every plugin that it knows, of which one hands PostScript to
Ghostscript, and its limit on pixels is a warning.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from stage1_pro.core.data.image_files import HEAD, BadImage, file_problem, open_file, read_file, sniff
from stage1_pro.core.data.tiff_headers import MOST_NUMBERS, longest_tag

OPENERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,  # the first picture where phones append previews and depth maps (MPO)
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}
"""The accepted formats. Pillow cannot read HEIC, and of JPEG 2000 it does not read the orientation."""

DECODERS: dict[str, dict[str, Any]] = {
    "cpu": {"decoder": "pillow", "resampler": "pillow"},
    "gpu": {"decoder": "nvjpeg", "resampler": "torch"},
}
"""What `decode` of a contract means: pixels of a file, and of its resized copy, differ between the two."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "La", "PA", "RGBA", "RGBa"}
_SUBFILE, _BITS, _POLARITY, _SAMPLES = 254, 258, 262, 339  # TIFF tags
_PLAIN = {_SUBFILE: (0,), _BITS: (8,), _POLARITY: (1,), _SAMPLES: (1,)}  # their values where absent
_KEY_STEPS = {"L;2": 85, "L;4": 17}  # levels between neighbouring greys of two and four bits
_END_OF_IMAGE = b"\xff\xd9"
_REMARKS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # on metadata


@dataclass(frozen=True, slots=True)
class ImageContract:
    """How the pixels that a model sees come from a file; a host in another language has to do likewise.

    formats: accepted contents. max_pixels, and max_aspect (longer side by shorter side, since a resize makes a thin
    image huge): an image above them is refused. alpha_color: RGB behind transparent pixels, blended as
    round((alpha * color + (255 - alpha) * alpha_color) / 255).

    decode: cpu, or gpu. On a GPU `decoder` nvjpeg reads JPEG files of one or three plain channels, and Pillow all other
    files and what nvjpeg refuses; `resampler` torch then resizes every image (interpolate, with antialias, on 0 to 255)
    and rounds once, after both passes.

    Every other field has one value. `orientation` applies the EXIF tag, or XMP's where EXIF has none; `depth` keeps
    the eight highest bits of a longer sample; `frames` refuses animations and documents; `color_profile` leaves ICC
    profiles and gamma unread. `resize` brings the shorter side to floor(size / crop_pct) and the longer one to the
    truncated proportion; `resampler` pillow with `antialias` rounds to `rounding` after the horizontal and after the
    vertical pass; `crop` cuts size × size from the middle, offsets rounded half to even.
    """

    formats: tuple[str, ...] = tuple(OPENERS)
    max_pixels: int = 100_000_000
    max_aspect: int = 100
    alpha_color: tuple[int, int, int] = (255, 255, 255)
    decode: str = "cpu"
    decoder: str = "pillow"
    orientation: str = "exif"
    depth: str = "high_byte"
    frames: str = "one"
    color_profile: str = "ignored"
    resize: str = "shorter_side"
    resampler: str = "pillow"
    antialias: bool = True
    rounding: str = "uint8"
    crop: str = "center"

    def __post_init__(self) -> None:
        """Raise ValueError for a value that this code cannot keep to."""
        right = {field.name: getattr(self, field.name) == field.default for field in fields(self)} | {
            "formats": bool(self.formats) and set(self.formats) <= set(OPENERS),
            "max_pixels": self.max_pixels >= 1,
            "max_aspect": self.max_aspect >= 1,
            "alpha_color": len(self.alpha_color) == 3 and all(0 <= level <= 255 for level in self.alpha_color),
            "decode": self.decode in DECODERS,
            **{name: getattr(self, name) == value for name, value in DECODERS.get(self.decode, {}).items()},
        }
        wrong = [f"{name} {getattr(self, name)!r}" for name, fits in right.items() if not fits]
        if wrong:
            raise ValueError(f"this version cannot read images with {', '.join(wrong)}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"formats": list(self.formats), "alpha_color": list(self.alpha_color)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ImageContract":
        """The contract that a file records. Raises ValueError or TypeError for one that this version does not know."""
        return cls(**{**data, "formats": tuple(data["formats"]), "alpha_color": tuple(data["alpha_color"])})


CONTRACTS = {decode: ImageContract(decode=decode, **how) for decode, how in DECODERS.items()}
"""Those of new runs. One object each: equal strings that are several objects would change the bytes of a model file."""

CONTRACT = CONTRACTS["cpu"]


def demand_source(source: Any) -> None:
    """Raise TypeError for what `decode` does not take for an image."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
            raise TypeError(f"an array must be uint8 of shape (H, W, 3), not {source.dtype} of shape {source.shape}")
    elif not isinstance(source, str | os.PathLike | bytes | Image.Image | BadImage):
        raise TypeError(f"an image is a path, bytes, a PIL image or a uint8 array, not {type(source).__name__}")


def decode(source: Any, contract: ImageContract = CONTRACT) -> Image.Image:
    """Return one image as upright RGB of its own size.

    source: a path, the bytes of a file, a PIL image, a uint8 array (H, W, 3) in RGB, or the BadImage that fetching it
    ended with, which is raised. Raises BadImage where it cannot be read, and TypeError for any other kind of source.
    `decode("photo.jpg").mode` is "RGB".
    """
    if isinstance(source, BadImage):
        raise source
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, and half a file passes for an image. Turn it off."
        )
    with silenced(_REMARKS):
        if isinstance(source, str | os.PathLike):
            with open_file(source) as stream:
                return _from_stream(stream, contract)
        if isinstance(source, bytes):
            return _from_stream(BytesIO(source), contract)
        return _to_rgb(_from_memory(source, contract), contract)


@dataclass(frozen=True, slots=True, eq=False)
class PlainJpeg:
    """The bytes of a JPEG file that nvjpeg reads as Pillow does.

    size: (width, height) as stored; orientation: 1 to 8.
    """

    content: bytes
    size: tuple[int, int]
    orientation: int


def undecoded(source: Any, contract: ImageContract = CONTRACT) -> PlainJpeg | Image.Image:
    """Return a plain JPEG as it is, checked by its header, and any other image decoded, upright, RGB.

    source, errors: as of `decode`. What is not plain is decoded: four channels, RGB stored as such, a file without an
    end.
    """
    if not isinstance(source, str | os.PathLike | bytes):
        return decode(source, contract)
    content = source if isinstance(source, bytes) else read_file(source)
    return _plain_jpeg(content, contract) or decode(content, contract)


def _plain_jpeg(content: bytes, contract: ImageContract) -> PlainJpeg | None:
    if sniff(content[:HEAD]) != "JPEG":
        return None
    _demand_format("JPEG", contract)
    with silenced(_REMARKS):
        with _pillow_on("JPEG"):
            image = JpegImagePlugin.JpegImageFile(BytesIO(content))
            scan = image.fp.tell() if image.fp else 0
        _demand_size(image.size, contract)
        stored_rgb = image.info.get("adobe_transform") == 0 or [part[0] for part in image.layer] == [*b"RGB"]
        if image.mode not in ("L", "RGB") or stored_rgb or content.find(_END_OF_IMAGE, scan) < 0:
            return None
        return PlainJpeg(content, image.size, _orientation(image))


def samples(content: bytes, contract: ImageContract = CONTRACT) -> np.ndarray:
    """Return what a file stores, upright, (H, W) or (H, W, K) of its own type: indices of a palette, 16 bits as 16.

    For masks, whose numbers are classes, and images of more than eight bits. Raises BadImage.
    """
    with silenced(_REMARKS):
        if not content:
            raise BadImage("empty")
        name = sniff(content[:HEAD])
        if name is None:
            raise BadImage("no_image")
        _demand_format(name, contract)
        image = _opened(name, BytesIO(content))
        _demand_size(image.size, contract)
        with _pillow_on(name):
            several = getattr(image, "is_animated", False)
        if several:
            raise BadImage("frames", name)
        with _pillow_on(name):
            image.load()
            turn = _UPRIGHT.get(_orientation(image))  # of TIFF Pillow has turned the pixels by now
            return np.array(image if turn is None else image.transpose(turn))


def turned(content: bytes) -> bool:
    """Whether EXIF's orientation turns or flips what a file stores; False where it cannot be read."""
    with silenced(_REMARKS), suppress(BadImage):
        name = sniff(content[:HEAD])
        return name is not None and _orientation(_opened(name, BytesIO(content))) in _UPRIGHT
    return False


@contextmanager
def silenced(remarks: tuple[Any, ...]) -> Iterator[None]:
    """Keep what a library remarks from becoming an error, or noise, by somebody's warning filters.

    remarks: an entry of `warnings.filters`. warnings.catch_warnings would do, but not in several threads: there it
    leaves filters behind.
    """
    filters: list[Any] = warnings.filters  # pyright: ignore[reportAssignmentType]
    filters.insert(0, remarks)
    try:
        yield
    finally:
        with suppress(ValueError):
            filters.remove(remarks)


@contextmanager
def _pillow_on(name: str) -> Iterator[None]:
    """Raise BadImage for whatever Pillow raises inside; nothing else may happen there, lest our bug look like that."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise BadImage("too_large", name) from None
    except OSError as error:
        raise (BadImage("damaged", name) if error.errno is None else file_problem(error)) from error
    except Exception as error:  # the plugins raise whatever their format suggests
        raise BadImage("damaged", name) from error


def _from_stream(stream: BinaryIO, contract: ImageContract) -> Image.Image:
    with _pillow_on("file"):
        head = stream.read(HEAD)
        stream.seek(0)
    if not head:
        raise BadImage("empty")
    name = sniff(head)
    if name is None:
        raise BadImage("no_image")
    _demand_format(name, contract)
    return _to_rgb(_opened(name, stream), contract)


def _opened(name: str, stream: BinaryIO) -> ImageFile.ImageFile:
    with _pillow_on(name):
        overlong = name == "TIFF" and longest_tag(stream) > MOST_NUMBERS
    if overlong:
        raise BadImage("damaged", "a tag of more numbers than an image can need")
    with _pillow_on(name):
        return OPENERS[name](stream)


def _demand_format(name: str, contract: ImageContract) -> None:
    if name not in contract.formats:
        raise BadImage("format", name)
    if name in ("WEBP", "AVIF") and not features.check(name.lower()):
        raise BadImage("format", f"{name}, which this build of Pillow cannot read")


def _from_memory(source: Any, contract: ImageContract) -> Image.Image:
    """A PIL image, or an array as one. Raises TypeError for anything else."""
    demand_source(source)
    if isinstance(source, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(source))
    if source.format is not None:
        _demand_format("JPEG" if source.format == "MPO" else source.format, contract)
    if isinstance(source, ImageFile.ImageFile) and source.tile and source.fp is None:
        raise ValueError("the file of this PIL image was closed before its pixels were read: call load() first")
    return source


def _to_rgb(image: Image.Image, contract: ImageContract) -> Image.Image:
    name = image.format or "PIL image"
    _demand_size(image.size, contract)
    with _pillow_on(name):
        tags = _tiff_tags(image)
        several = name != "MPO" and getattr(image, "is_animated", False)
    if several:
        raise BadImage("frames", name)
    stored = _stored_as(image)
    _demand_kind(image, stored, tags)
    with _pillow_on(name):
        image.load()
    orientation = _orientation(image)  # of TIFF Pillow has turned the pixels by now, and forgotten the tag
    image = _eight_bits(image, stored, tags)
    image = _composite(image, contract) if image.has_transparency_data else image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _demand_size(size: tuple[int, int], contract: ImageContract) -> None:
    short, long = sorted(size)
    if short < 1:
        raise BadImage("damaged", "no pixels")
    if short * long > contract.max_pixels:
        raise BadImage("too_large", f"{size[0]} × {size[1]}; max_pixels is {contract.max_pixels}")
    if long > contract.max_aspect * short:
        raise BadImage("too_thin", f"{size[0]} × {size[1]}; max_aspect is {contract.max_aspect}")


def _demand_kind(image: Image.Image, stored: str, tags: dict[int, tuple[int, ...]]) -> None:
    if tags[_SUBFILE][0] & 1:
        raise BadImage("preview")
    if image.mode in ("I", "F") or set(tags[_SAMPLES]) != {1}:
        raise BadImage("depth")
    if ";16" in stored and "transparency" in image.info:
        raise BadImage("key_depth")
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise BadImage("colors", image.mode)


def _tiff_tags(image: Image.Image) -> dict[int, tuple[int, ...]]:
    found = getattr(image, "tag_v2", {})
    return _PLAIN | {tag: tuple(int(value) for value in np.ravel(found[tag])) for tag in _PLAIN if tag in found}


def _stored_as(image: Image.Image) -> str:
    """Pillow's name for the samples in a PNG file, such as "L;2" for two bits of grey; "" elsewhere."""
    tiles = getattr(image, "tile", [])
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def _eight_bits(image: Image.Image, stored: str, tags: dict[int, tuple[int, ...]]) -> Image.Image:
    """Bring samples to eight bits where Pillow does not: the transparent grey of a PNG, and long greys."""
    if stored in _KEY_STEPS and "transparency" in image.info:
        image = image.copy()
        image.info["transparency"] *= _KEY_STEPS[stored]
    if not image.mode.startswith("I;16"):
        return image
    bits = tags[_BITS][0] if tags[_BITS][0] > 8 else 16
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if tags[_POLARITY][0] == 0 else grey)


def _composite(image: Image.Image, contract: ImageContract) -> Image.Image:
    """Blend with the contract's colour: beneath transparent pixels files keep colours that nobody sees."""
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (0, 0):
        raise BadImage("transparent")
    ground = Image.new("RGB", image.size, contract.alpha_color)
    ground.paste(rgba.convert("RGB"), mask=alpha)
    return ground


def _orientation(image: Image.Image) -> int:
    """1 to 8. Metadata that nobody can read turns nothing, since no viewer would turn the image either."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow's parser raises whatever the bytes suggest
        return 1
