"""Golden inputs of a bundle of masks: images or volumes of the kind that its network takes.

What they must give are the logits of cases, which hang on every voxel of the mask: on how a file is decoded, on
orientation, spacing and intensity, and on the windows.
"""

import gzip
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.inference.golden import Case, file_of, golden_file, golden_images, scene
from stage1_pro.core.inference.masks import mask_scorer

if TYPE_CHECKING:
    from stage1_pro.core.records.run import Run

SIDES = ((36, 30, 24), (25, 41, 18), (33, 20, 28), (40, 40, 16))
"""Voxels of the volumes before they are turned."""
SPACINGS = ((1.0, 1.0, 1.0), (0.8, 1.2, 2.0), (1.5, 1.0, 0.7), (1.0, 1.0, 3.0))
AXES = (((0, 1), (1, 1), (2, 1)), ((0, -1), (1, 1), (2, 1)), ((1, 1), (2, -1), (0, 1)), ((2, -1), (0, 1), (1, -1)))
"""Of each volume in its file: which axis of space, and which way."""


def golden_of_masks(run: "Run", forward_batch: int | None = None) -> bytes:
    """The content of golden.npz for a run of masks, on the CPU. forward_batch: has no meaning for masks."""
    predictor = mask_scorer(run, "cpu")
    return golden_file(predictor, list(golden_cases(predictor.model.spec.preprocessing)))


def golden_cases(made: MaskPreprocessing) -> Iterator[Case]:
    """Small cases of the network's dimensions and channels, the same every time."""
    if made.dims == 3:
        yield from (_volume(number, made.channels) for number in range(len(SIDES)))
    elif made.joint:
        yield from golden_images()
    else:
        for number in range(4):
            yield [file_of(scene(10 * number + at, 60 + 9 * number, 77)[..., 0], "PNG") for at in range(made.channels)]


def _volume(number: int, channels: int) -> bytes:
    """A NIfTI file of whole numbers with a scale, in an orientation of its own."""
    import nibabel  # pyright: ignore[reportMissingImports]

    width, height, depth = SIDES[number]
    slices = [
        np.stack([scene(100 * number + 10 * at + level // 8, width, height)[..., level % 3] for level in range(depth)])
        for at in range(channels)
    ]
    values = np.moveaxis(np.stack(slices), 1, 3).astype(np.int16)  # (C, X, Y, Z)
    affine = np.diag([*SPACINGS[number], 1.0])
    affine[:3, 3] = 7.0 * number, -11.0, 3.0
    plain = nibabel.Nifti1Image(np.moveaxis(values, 0, 3) if channels > 1 else values[0], affine)
    turned: Any = plain.as_reoriented(np.array(AXES[number]))  # pyright: ignore[reportArgumentType]
    turned.header.set_slope_inter(0.5, 4.0)
    content = turned.to_bytes()
    return gzip.compress(content, mtime=0) if number % 2 else content
