"""The header of a TIFF file, read before Pillow reads it: a tag may name millions of numbers for a tiny image."""

import struct
from typing import BinaryIO

MOST_NUMBERS = 1_000_000
"""Of one tag. The longest honest ones are the strips of an image of a row each, some hundred thousand; Pillow makes an
object of every number, eight times the bytes of the file."""
_BYTES = frozenset({1, 2, 6, 7})
"""Types whose values stay bytes."""
_CLASSIC, _BIG = 42, 43


def longest_tag(stream: BinaryIO) -> int:
    """Return how many numbers the longest tag of the first directory names; 0 where the header is none.

    stream: a whole TIFF or BigTIFF file; its position is put back.
    """
    try:
        return max(_counts(stream), default=0)
    except struct.error:  # the file ends early, which Pillow finds too
        return 0
    finally:
        stream.seek(0)


def _counts(stream: BinaryIO) -> list[int]:
    stream.seek(0)
    order = ">" if stream.read(2) == b"MM" else "<"
    (version,) = _read(stream, order + "H")
    if version not in (_CLASSIC, _BIG):
        return []
    word, number, entry = ("I", "H", "HHI4x") if version == _CLASSIC else ("Q", "Q", "HHQ8x")
    stream.seek(4 if version == _CLASSIC else 8)
    stream.seek(*_read(stream, order + word))
    (tags,) = _read(stream, order + number)
    if tags > MOST_NUMBERS:
        return [tags]
    content = stream.read(tags * struct.calcsize(order + entry))
    return [count for _, kind, count in struct.iter_unpack(order + entry, content) if kind not in _BYTES]


def _read(stream: BinaryIO, format: str) -> tuple[int, ...]:
    return struct.unpack(format, stream.read(struct.calcsize(format)))
