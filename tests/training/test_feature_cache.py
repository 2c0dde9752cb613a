"""The feature cache: a file that cannot be written is named, and features are those of their own batches."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.training.feature_cache import cached_features


def features(pictures: Path, folder: Path, batch_size: int = 8) -> np.ndarray:
    torch.manual_seed(0)
    backbone, spec = load_backbone("random:test_efficientnet", 24)
    paths = sorted(map(str, pictures.glob("*.png")))
    settings = {"batch_size": batch_size, "workers": 0, "device": torch.device("cpu")}
    return cached_features(backbone, spec, paths, paths, folder, progress=lambda *_: None, **settings)


def test_a_file_that_cannot_grow_is_named_and_leaves_nothing(pictures, tmp_path):
    """Not the signal of a page that the disk has no room for, which would end the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as failed:
            features(pictures, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(failed.value.filename).endswith(".npy")
    assert list((tmp_path / "cache").iterdir()) == []
    found = features(pictures, tmp_path / "cache")
    assert found.shape[0] == 60
    np.testing.assert_array_equal(found, features(pictures, tmp_path / "cache"))


def test_other_batches_are_other_features(pictures, tmp_path):
    found = [features(pictures, tmp_path, batch_size) for batch_size in (8, 60)]
    assert len(list(tmp_path.iterdir())) == 2  # the last bits differ, and a training could not be repeated
    np.testing.assert_allclose(*found, atol=1e-5)
