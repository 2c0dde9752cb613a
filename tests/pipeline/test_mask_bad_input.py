"""Data sets with masks that cannot be used, as a user meets them: all problems at once, status 2, nothing written."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from chain import call, refused
from made_masks import settings, write_cases
from PIL import Image


def config_of(root: Path, **data: object) -> Path:
    path = root.parent / "masks.yaml"
    path.write_text(yaml.safe_dump(settings(root, **data)))
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of images and masks with one mistake of each kind."""
    folder = write_cases(tmp_path / "cells", 10)
    images, masks = folder / "images", folder / "masks"
    Image.open(images / "000.png").crop((0, 0, 30, 32)).save(images / "000.png")
    mask = np.asarray(Image.open(masks / "001.png"))
    Image.fromarray(mask * 7).save(masks / "001.png")
    (masks / "002.png").unlink()
    Image.fromarray(mask).save(masks / "003.jpg")
    (masks / "003.png").unlink()
    Image.fromarray(mask.astype(np.float32) / 2).save(masks / "004.tif")
    (masks / "004.png").unlink()
    pixels = np.full((32, 32), 0.5, np.float32)
    pixels[3, 3] = np.nan
    Image.fromarray(pixels).save(images / "005.tif")
    (images / "005.png").unlink()
    shutil.copy(images / "006.png", images / "007.png")
    return folder


@pytest.mark.parametrize("script", ["00_make_splits", "20_train"])
def test_all_mistakes_of_images_and_masks_come_at_once_and_nothing_is_written(
    damaged: Path, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(damaged, class_names=["background", "disc", "ring"], positive_class="ring")
    run = ["--run", tmp_path / "run"] if script == "00_make_splits" else []
    outcome = call(script, "--config", config, *run)
    refused(
        outcome,
        "1 image without a mask in",
        "1 mask does not fit its image: 000 (image 32 × 30, mask 32 × 32)",
        "3 cases cannot be read: 003 (mask: a mask must be PNG, TIFF, BMP or NIfTI, since other formats change its",
        "004 (mask: the mask holds values that are not whole numbers: such as 0.5)",
        "005 (image: the image holds values that are not finite)",
        "1 mask holds values outside 0 to 2: 001 (7); write class numbers, name all classes in",
        "2 identical images have different masks: 006, 007",
        "no mask holds the positive class (ring)",
    )
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()


def test_volumes_that_lie_elsewhere_than_their_masks(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="the extra seg is not installed")
    root = tmp_path / "volumes"
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(5):
        image, mask = rng.normal(size=(9, 8, 7)).astype(np.float32), np.ones((9, 8, 7), np.uint8)
        affine = np.diag([1.0, 1, 1, 1])
        nibabel.save(nibabel.Nifti1Image(mask, affine), root / "labelsTr" / f"v{index}.nii.gz")
        if index == 1:
            affine[0, 3] = 5.0
        if index == 2:
            image[0, 0, 0] = np.nan
        nibabel.save(nibabel.Nifti1Image(image, affine), root / "imagesTr" / f"v{index}.nii.gz")
    whole = (root / "imagesTr" / "v3.nii.gz").read_bytes()
    (root / "imagesTr" / "v3.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 8, 7, 2), np.uint8), np.eye(4)), root / "labelsTr" / "v4.nii.gz")
    outcome = call("00_make_splits", "--config", config_of(root, patch_size=[8, 8]), "--run", tmp_path / "run")
    refused(
        outcome,
        "1 mask does not fit its image: v1 (other affines)",
        "v2 (image: the image holds values that are not finite)",
        "v3 (image: ",
        "v4 (mask: ",
        "dataset_params.patch_size has 2 numbers, and the cases have 3 dimensions",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("module", ["monai", "nibabel"])
def test_what_is_not_installed_is_told_before_a_run_begins(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(write_cases(tmp_path / "cells", 40))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    refused(call("20_train", "--config", config), f"{module} not installed: pip install 'stage1-pro[seg]'")
    assert not (tmp_path / "runs").exists()
