"""Image files on disk: which files hold images, and in which words one is refused.

The content of a file decides its format, never its name.
"""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import PurePath
from typing import BinaryIO, TypeGuard

REASONS = {
    "missing": "no such file",
    "not_a_file": "not a file but a folder, a pipe or a device",
    "no_access": "permission denied",
    "io_error": "the disk or the network did not deliver the file",
    "empty": "the file is empty",
    "no_image": "the content is not an image",
    "format": "the image format is not accepted",
    "frames": "more than one frame or page",
    "preview": "only the preview of a raw photo",
    "depth": "the pixels are signed, 32-bit or floating-point numbers",
    "key_depth": "16 bits a sample together with one transparent colour",
    "colors": "the colours cannot be converted to RGB",
    "transparent": "every pixel is fully transparent",
    "too_large": "the image has too many pixels",
    "too_thin": "the image is too thin",
    "damaged": "the file is truncated or damaged",
    "channels": "the files of its channels differ in size or place",
    "other_kind": "it has other dimensions or channels than the cases that the network was trained on",
    "voxels": "the voxels are colours or complex numbers",
    "affine": "the affine does not say where the voxels lie",
    "dimensions": "a volume has three dimensions, or four with channels, and not this many",
    "not_finite": "the image holds values that are not finite",
    "lossy_mask": "a mask must be PNG, TIFF, BMP or NIfTI, since other formats change its values",
    "mask_channels": "the mask is coloured, and no channel says which class is meant: write class numbers into one",
    "mask_values": "the mask holds values that are not whole numbers",
}
"""Why an image cannot be read: code → words. The list is closed."""
PIECE = 1 << 20
"""Bytes that are asked for at once of a file that does not come in one."""

CONTENT = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8[79]a",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1).{4}(.{4})*?avi[fs])",
    "HEIC": rb"....ftyp(he[iv][cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"(\xef\xbb\xbf)?\s*<(svg|!DOCTYPE svg|\?xml.*<svg)",
    "PSD": rb"8BPS",
    "ICO": rb"\0\0\x01\0",
    "PPM": rb"P[1-7]\s",
    "DICOM": rb".{128}DICM",
    "OpenEXR": rb"v/1\x01",
}
"""How the content of an image begins, by format, as a regular expression over bytes; the first that matches names it.
Most of the formats are listed only so that a refusal can name them."""

HEAD = 512
"""Bytes at the beginning that tell a format."""

_KINDS = (
    "jpg jpeg jpe jfif png apng webp bmp dib tif tiff gif avif heic heif jp2 j2k jxl ppm pgm pbm pnm eps svg psd ico "
    "dcm exr dng cr2 cr3 nef arw orf raf rw2"
)
SUFFIXES = frozenset("." + kind for kind in _KINDS.split())
"""Suffixes of files that claim to be images: one that cannot be read is reported, never left out."""

NOTHING = ("\0",)
"""Suffixes of no file."""

HIDDEN = frozenset({"__MACOSX", "@eaDir"})
"""Folders of copies and thumbnails (macOS, Synology), hidden like every name that begins with a dot."""

_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in CONTENT.items()}
_FILE_ERRORS = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP), "missing"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "no_access"),
    **dict.fromkeys((errno.EISDIR, errno.ENXIO), "not_a_file"),
}
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the process ran out of something; the file is not to blame


class BadImage(Exception):
    """One image that cannot be read.

    code: a key of REASONS; `str(BadImage("format", "EPS"))` is "the image format is not accepted: EPS".
    """

    def __init__(self, code: str, detail: str = ""):
        super().__init__(code, detail)
        self.code, self.detail = code, detail

    def __str__(self) -> str:
        return REASONS[self.code] + (f": {self.detail}" if self.detail else "")


def is_url(place: str | None) -> TypeGuard[str]:
    """Return whether a place is a URL, such as s3://bucket/folder, and not a path."""
    return place is not None and "://" in place


def folder_of(name: str) -> str:
    """The folder that an image lies in, of a path or a URL.

    >>> folder_of("s3://bucket/a/1.png"), folder_of("a/1.png")
    ('s3://bucket/a', 'a')
    """
    return name.rpartition("/")[0] if is_url(name) else str(PurePath(name).parent)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that every file can hold: bytes that are not UTF-8 become escapes such as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def sniff(head: bytes) -> str | None:
    """Name of the image format whose content begins like this (the first HEAD bytes), or None."""
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(head)), None)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a pipe is not waited for. Raises BadImage."""
    return os.fdopen(_opened(path)[0], "rb")


def _opened(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(descriptor, bytes) of a regular file."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # a null byte
        raise BadImage("missing") from None
    except OSError as error:
        problem = file_problem(error)
        if problem.code == "no_access" and os.path.isdir(path):
            raise BadImage("no_access", "a folder, with all that is in it") from None
        raise problem from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise BadImage("not_a_file")
    return descriptor, found.st_size


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file. Raises BadImage."""
    descriptor, size = _opened(path)
    try:
        # by itself: a stream asks the system ten times for a file, where four are enough
        parts = [os.read(descriptor, size + 1)]
        if len(parts[0]) != size:  # it has grown or shrunk, or is read in pieces
            while parts[-1]:
                parts.append(os.read(descriptor, PIECE))
        return b"".join(parts)
    except OSError as error:
        raise file_problem(error) from None
    finally:
        os.close(descriptor)


def content_digest(content: bytes) -> str:
    """Digest of an image file: 32 hexadecimal digits."""
    return blake2b(content, digest_size=16).hexdigest()


def file_problem(error: OSError) -> BadImage:
    """Say in our words what the system said of a file. Raises the error again where the file is not to blame."""
    if error.errno in _OURS:
        raise error
    code = _FILE_ERRORS.get(error.errno or 0, "io_error")
    return BadImage(code, error.strerror or "" if code == "io_error" else "")


@dataclass(frozen=True, slots=True)
class Listing:
    """Images below a folder.

    paths: files that hold an image or claim to by their suffix, by folder and name; decoding says which are bad. A
    folder that cannot be entered is among them. hidden: files and folders left out because their names hide them.
    others: suffix → files left out because neither content nor suffix is an image's.
    """

    paths: tuple[str, ...]
    hidden: int
    others: Counter[str]

    def left_out(self) -> str:
        """Say what was left out: "2 hidden, 3 without an image (2 .txt, 1 without suffix)", or ""."""
        kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(self.others.items()))
        parts = [f"{self.hidden} hidden"] if self.hidden else []
        return ", ".join(parts + ([f"{self.others.total()} without an image ({kinds})"] if kinds else []))


def list_images(root: str | os.PathLike[str], also: tuple[str, ...] = ()) -> Listing:
    """List the images below a folder; links are followed, except back to a folder around them.

    also: suffixes, in lower case, of files that are listed whatever they hold.

    `list_images("photos").paths` are strings that begin with "photos/". A name that is not UTF-8 keeps its bytes:
    `os.fsencode` gives them back.
    """
    paths: list[str] = []
    hidden, others = 0, Counter[str]()
    for path, kind in _walk(os.fspath(root), ()):
        if kind == "hidden":
            hidden += 1
        elif kind == "locked" or claims_image(path, also):
            paths.append(path)
        else:
            others[PurePath(path).suffix.lower()] += 1
    return Listing(tuple(paths), hidden, others)


def claims_image(path: str, also: tuple[str, ...] = ()) -> bool:
    """Whether a file holds an image, or claims to by its suffix. also: as of `list_images`."""
    suffix = PurePath(path).suffix.lower()
    return suffix in SUFFIXES or path.lower().endswith(also or NOTHING) or _holds_image(path)


def holds_images(root: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an image at any depth; the first one is enough."""
    return any(kind == "file" and claims_image(path) for path, kind in _walk(os.fspath(root), ()))


def _walk(folder: str, around: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str]]:
    """(path, kind) of what lies below a folder: each "file", and each "hidden" or "locked" entry, by name.

    around: device and inode of the folders around this one; a link to one of them is left out.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        yield folder, "locked"
        return
    place = status.st_dev, status.st_ino
    if place in around:
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name in HIDDEN:
            yield entry.path, "hidden"
        elif entry.is_dir():
            yield from _walk(entry.path, (*around, place))
        else:
            yield entry.path, "file"


def _holds_image(path: str) -> bool:
    """Whether the content is an image's; True where nobody can tell, so that the file is reported."""
    try:
        with open_file(path) as stream:
            return sniff(stream.read(HEAD)) is not None
    except BadImage as bad:
        return bad.code in ("no_access", "io_error")
