"""One case from its files: PNG, TIFF and BMP in 2D, NIfTI in 3D. Values decide, never the type they are stored in.

Volumes are brought to the closest canonical orientation (right, anterior, superior); `Grid` remembers the way back, so
that a mask can be written where its image lies.
"""

import gzip
import os
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stage1_pro.core import artifacts
from stage1_pro.core.data.decoding import decode, samples
from stage1_pro.core.data.image_files import HEAD, BadImage, read_file, sniff
from stage1_pro.core.errors import UserError

CHANNELS = ";"
"""Parts the files of a case that has one for each channel, where no file has that whole name."""
LOSSLESS = frozenset({"PNG", "TIFF", "BMP", "GIF"})
_GZIP, _NIFTI = b"\x1f\x8b", (b"n+1\0", b"n+2\0", b"ni1\0")
_AFFINE_TOLERANCE = 1e-3
_EIGHT_BITS = ("uint8", "bool")


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Where the voxels lie. shape: of the canonical array; spacing: mm a voxel, 1 in 2D; affine, native: (4, 4) of the
    canonical array and of the file, None in 2D."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None
    native: np.ndarray | None = None

    def same_place(self, other: "Grid") -> bool:
        """Return whether both affines agree within a thousandth; True in 2D."""
        if self.affine is None or other.affine is None:
            return self.affine is other.affine
        return np.allclose(self.affine, other.affine, atol=_AFFINE_TOLERANCE)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """values: (C, *shape) float32, 8-bit samples as 0 to 1; joint: whether the channels are the colours of one file."""

    values: np.ndarray
    grid: Grid
    joint: bool = False


def channel_files(path: str) -> list[str]:
    """The files of a case, one for each channel; a file whose own name holds CHANNELS is one."""
    if os.path.lexists(path):
        return [path]
    return [part.strip() for part in path.split(CHANNELS)]


def case_stem(path: Path) -> str:
    """Name of a file without its suffix, .nii.gz being one.

    >>> case_stem(Path("images/a.b.nii.gz"))
    'a.b'
    """
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def read_contents(path: str) -> list[bytes]:
    """The bytes of each file of a case. Raises BadImage."""
    return [read_file(part) for part in channel_files(path)]


def picture_of(contents: list[bytes]) -> Picture:
    """Decode the channels of one case. Raises BadImage for what cannot be read, and for channels that do not fit.

    One raster file has three channels, red, green and blue; several have one each.
    """
    if _is_nifti(contents[0]):
        parts = [_volume(content) for content in contents]
        grid = parts[0][1]
        if any(part[1].shape != grid.shape or not grid.same_place(part[1]) for part in parts):
            raise BadImage("channels")
        return Picture(np.concatenate([part[0] for part in parts]), grid)
    rasters = [_raster(content) for content in contents]
    if len({raster.shape[1:] for raster in rasters}) > 1:
        raise BadImage("channels")
    shape = rasters[0].shape[1:]
    grid = Grid(shape, (1.0,) * len(shape))
    if len(rasters) == 1:
        return Picture(rasters[0], grid, joint=True)
    return Picture(np.concatenate([raster.mean(axis=0, keepdims=True) for raster in rasters]), grid)


def labels_of(content: bytes) -> tuple[np.ndarray, Grid]:
    """(values, grid) of a mask file: int32 of the grid's shape. Raises BadImage where its values are no class numbers.

    The indices of a palette are the classes. A colour image is a mask only where its channels are equal.
    """
    if _is_nifti(content):
        values, grid = _volume(content, exact=True)
        if len(values) != 1:
            raise BadImage("mask_channels")
        return _integral(values[0]), grid
    if content and sniff(content[:HEAD]) not in LOSSLESS:
        raise BadImage("lossy_mask", sniff(content[:HEAD]) or "no image")
    stored = samples(content)
    if stored.ndim == 3:
        colours = stored[..., :3] if stored.shape[2] > 2 else stored[..., :1]
        if (colours != colours[..., :1]).any():
            raise BadImage("mask_channels")
        stored = colours[..., 0]
    return _integral(stored), Grid(stored.shape, (1.0,) * stored.ndim)


def write_mask(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Write class numbers (*S) uint8 of the grid as PNG, or as NIfTI where the image of the case lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if grid.native is None:
        buffer = BytesIO()
        Image.fromarray(labels).save(buffer, "PNG")
        return artifacts.write_bytes(path, buffer.getvalue())
    nibabel = _nibabel()
    orientation = nibabel.orientations.io_orientation(grid.native)
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation)
    image = nibabel.Nifti1Image(nibabel.orientations.apply_orientation(labels, back), grid.native)
    content = gzip.compress(image.to_bytes(), mtime=0) if path.name.endswith(".gz") else image.to_bytes()
    return artifacts.write_bytes(path, content)


def _integral(stored: np.ndarray) -> np.ndarray:
    if stored.dtype.kind in "bui" and stored.dtype.itemsize < 4:
        return stored.astype(np.int32)
    if not np.isfinite(stored).all():
        raise BadImage("mask_values", "not finite")
    stored = stored.astype(np.float64)
    whole = np.rint(stored)
    if (whole != stored).any():
        raise BadImage("mask_values", f"such as {float(stored[whole != stored].flat[0]):.6g}")
    if whole.size and np.abs(whole).max() > np.iinfo(np.int32).max:
        raise BadImage("mask_values", f"such as {float(np.abs(whole).max()):.6g}")
    return whole.astype(np.int32)


def _raster(content: bytes) -> np.ndarray:
    """(3, H, W) float32. More than eight bits a sample, and floating point, keep all that they hold."""
    if sniff(content[:HEAD]) == "TIFF" or content[:4] == b"\x89PNG":
        stored = samples(content)
        if stored.dtype.name not in _EIGHT_BITS and stored.ndim == 2:
            top = np.iinfo(stored.dtype).max if stored.dtype == np.uint16 else 1.0
            return np.repeat((stored.astype(np.float32) / top)[None], 3, axis=0)
    return np.asarray(decode(content), dtype=np.float32).transpose(2, 0, 1) / 255


def _is_nifti(content: bytes) -> bool:
    return content[:2] == _GZIP or content[344:348] in _NIFTI or content[4:8] in (b"n+2\0", b"ni2\0")


def _volume(content: bytes, exact: bool = False) -> tuple[np.ndarray, Grid]:
    """((C, X, Y, Z) float32, or float64 where exact, and its grid)."""
    nibabel = _nibabel()
    try:
        plain = gzip.GzipFile(fileobj=BytesIO(content)).read() if content[:2] == _GZIP else content
        kind = nibabel.Nifti2Image if plain[4:8] in (b"n+2\0", b"ni2\0") else nibabel.Nifti1Image
        stored: Any = kind.from_bytes(plain)
        _demand_numbers(stored, len(plain))
        canonical = nibabel.as_closest_canonical(stored)
        values = np.asarray(canonical.dataobj, dtype=np.float64 if exact else np.float32)
    except (OSError, EOFError, zlib.error, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise BadImage("damaged", "NIfTI") from error
    except (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError) as error:
        raise BadImage("damaged", "NIfTI") from error
    if values.ndim == 4:
        values = np.moveaxis(values, 3, 0)
    elif values.ndim == 3:
        values = values[None]
    else:
        raise BadImage("dimensions", str(values.ndim))
    spacing = tuple(nibabel.affines.voxel_sizes(canonical.affine).tolist())
    return np.ascontiguousarray(values), Grid(values.shape[1:], spacing, canonical.affine, stored.affine)


def _demand_numbers(stored: Any, length: int) -> None:
    """Raise BadImage for a header that promises more than the file's bytes, no real numbers, or no place in space."""
    if stored.get_data_dtype().kind not in "iuf":
        raise BadImage("voxels")
    if int(np.prod(stored.shape, dtype=np.float64)) * stored.get_data_dtype().itemsize > length:
        raise BadImage("damaged", "NIfTI")
    turn = stored.affine[:3, :3]
    if not np.isfinite(stored.affine).all() or np.linalg.matrix_rank(turn) < 3:
        raise BadImage("affine")


def _nibabel() -> Any:
    try:
        import nibabel  # pyright: ignore[reportMissingImports]
        import nibabel.affines  # pyright: ignore[reportMissingImports]
        import nibabel.filebasedimages  # pyright: ignore[reportMissingImports]
        import nibabel.spatialimages  # pyright: ignore[reportMissingImports]
        import nibabel.wrapstruct  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("volumes are read by nibabel, which is not installed: pip install 'stage1-pro[seg]'.") from None
    return nibabel
