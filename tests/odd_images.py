"""Unusual image files, made in memory: what Pillow cannot write is written here byte by byte."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40
_y, _x = np.mgrid[:HEIGHT, :WIDTH]
PICTURE = np.stack([6 * _x, 10 * _y, 3 * (_x + _y)], axis=2).astype(np.uint8)
"""(24, 40, 3): no two of its eight orientations are alike."""
GREY = PICTURE[..., 2]
DEEP = (GREY.astype(np.uint16) << 8) + np.arange(WIDTH, dtype=np.uint16) * 6
"""(24, 40) uint16 whose high byte is GREY."""
DEEP_PICTURE = (PICTURE.astype(np.uint16) << 8) + 200
ALPHA = (255 - 6 * _x).astype(np.uint8)

TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: stored[::-1, ::-1],
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF orientation → what is seen of the stored pixels (CIPA DC-008, tag 274)."""


def saved(image: Any, format: str, **options: Any) -> bytes:
    """Bytes of a file that Pillow writes; image: an array or a PIL image."""
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def with_alpha(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels.reshape(HEIGHT, WIDTH, -1), alpha[..., None]], axis=2)


def blended(pixels: np.ndarray, alpha: np.ndarray, color: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """(H, W, 3) what is seen in front of a colour; pixels: (H, W, 3) or (H, W)."""
    weight = alpha[..., None].astype(int)
    front = pixels.reshape(*pixels.shape[:2], -1).astype(int)
    return ((2 * (weight * front + (255 - weight) * np.array(color)) + 255) // 510).astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def png(width: int, height: int, bits: int, color_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file. color_type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha; rows: raw samples, row by row."""
    stride = len(rows) // height
    plain = b"".join(b"\0" + rows[start : start + stride] for start in range(0, len(rows), stride))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(plain)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def deep_png(samples: np.ndarray, color_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16 bits a sample; samples: (H, W) or (H, W, C)."""
    return png(samples.shape[1], samples.shape[0], 16, color_type, samples.astype(">u2").tobytes(), *chunks)


def tiff(samples: np.ndarray, order: str = "<", deflate: bool = False, **changed: int) -> bytes:
    """An uncompressed or deflated TIFF file of one strip, samples (H, W) or (H, W, C) in their own depth.

    changed: values of tags under the names below.
    """
    samples = np.atleast_3d(samples)
    height, width, channels = samples.shape
    strip = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    strip = zlib.compress(strip) if deflate else strip
    size = samples.dtype.itemsize * 8
    tags = {
        "subfile": (254, 0), "width": (256, width), "height": (257, height), "bits": (258, size),
        "compression": (259, 8 if deflate else 1), "polarity": (262, 1 if channels == 1 else 2), "offset": (273, 8),
        "channels": (277, channels), "rows": (278, height), "count": (279, len(strip)),
        "format": (339, {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]),
    }  # fmt: skip
    end = 8 + len(strip)
    entries = b""
    lists = end + 2 + 12 * len(tags) + 4
    arrays = b""
    for name, (tag, value) in tags.items():
        value = changed.get(name, value)
        if name in ("bits", "format") and channels > 2:
            entries += struct.pack(order + "HHII", tag, 3, channels, lists + len(arrays))
            arrays += struct.pack(order + "H" * channels, *[value] * channels)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    return magic + struct.pack(order + "I", end) + strip + directory + arrays


def twelve_bits(grey: np.ndarray) -> bytes:
    """A TIFF file of 12 bits a sample, two samples in three bytes; grey: (H, W) uint16 below 4096, W even."""
    first, second = grey[:, ::2].astype(int), grey[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    flat = packed.reshape(len(grey), -1)
    return tiff(flat, width=grey.shape[1], bits=12)


def frames(format: str) -> bytes:
    turned = Image.fromarray(PICTURE[::-1].copy())
    return saved(PICTURE, format, save_all=True, append_images=[turned])


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 24\n%%EndComments\n0 0 40 24 rectfill\nshowpage\n%%EOF\n"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
