"""The feature cache: what a frozen backbone makes of unaugmented images, computed once.

The file is named by what decides its content (weights, preprocessing, image contents in order, images in a
forward pass), so a mismatch is a miss and never a silent hit. It serves training only; scores never come from it.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0

from stage1_pro.core import artifacts
from stage1_pro.core.data.batches import EpochSampler, make_loader
from stage1_pro.core.data.datasets import finish_of, image_dataset
from stage1_pro.core.models.backbone import Backbone, BackboneSpec, feature_dim, weights_digest


def cached_features(
    backbone: Backbone,
    spec: BackboneSpec,
    paths: list[str],
    contents: list[str],
    folder: Path,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """(N, D) float32 memory map of the features of `paths`, whose file digests are `contents`.

    Computes and stores them where they are not cached yet; `progress(done, total)` is called a batch.
    """
    file = folder / f"{cache_key(backbone, spec, contents, batch_size)}.npy"
    try:
        # copy on write: torch wants arrays that can be written, and the file must not change
        return np.load(file, mmap_mode="c")
    except (OSError, ValueError):  # absent or damaged: a miss
        pass
    folder.mkdir(parents=True, exist_ok=True)
    # of its own name: several runs may fill the cache at once
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    os.close(handle)
    try:
        with artifacts.naming(file):
            _compute(backbone.to(device).eval(), spec, paths, Path(temporary), batch_size, workers, device, progress)
            os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return np.load(file, mmap_mode="c")


def cache_key(backbone: Backbone, spec: BackboneSpec, contents: list[str], batch_size: int) -> str:
    """Digest of all that the features of these images depend on. contents: digests of the image files, in order."""
    # batch_size: the last bits depend on it, and with them whether a training can be repeated
    return artifacts.digest_json(
        {
            "arch": spec.arch,
            "weights": weights_digest(backbone.state_dict()),
            "kwargs": spec.kwargs,
            "preprocessing": spec.preprocessing.to_dict(),
            "contents": contents,
            "batch_size": batch_size,
        }
    )


@torch.inference_mode()
def _compute(backbone, spec, paths, file, batch_size, workers, device, progress) -> None:
    dataset = image_dataset(paths, np.zeros(len(paths)), spec.preprocessing, "none", 0)
    order, finish = EpochSampler(len(paths), 0, shuffle=False), finish_of(dataset, device)
    loader = make_loader(dataset, order, batch_size, workers, device.type == "cuda", finish=finish, again=False)
    shape = len(paths), feature_dim(backbone, spec.preprocessing.size, device)
    # written and not mapped: where the disk is full, a write is refused, and a mapped page ends the process
    with file.open("wb") as cache:
        write_array_header_1_0(cache, {"descr": "<f4", "fortran_order": False, "shape": shape})
        done = 0
        for batch in loader:
            features = backbone(batch.inputs.to(device, non_blocking=True)).float().cpu().numpy()
            cache.write(features.astype("<f4", order="C", copy=False).tobytes())
            done += len(features)
            progress(done, len(paths))
