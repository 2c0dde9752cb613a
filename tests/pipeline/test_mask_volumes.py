"""Volumes with masks: windows while scoring, and masks that lie where their images lie."""

import gzip
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from chain import call, done
from made_masks import settings
from PIL import Image

from stage1_pro.core.data.masks.files import labels_of, picture_of
from stage1_pro.core.inference.golden_masks import golden_of_masks
from stage1_pro.core.inference.masks import mask_scorer
from stage1_pro.core.records.run import Run

pytest.importorskip("monai", reason="the extra seg is not installed")
nibabel = pytest.importorskip("nibabel", reason="the extra seg is not installed")

SHAPE = (20, 17, 14)
FLIPPED = np.array([[-1.0, 0, 0, 30], [0, 0, 1.5, -7], [0, 2.0, 0, 4], [0, 0, 0, 1]])
"""Left to right turned round, and two axes swapped."""


def ball(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    middle = rng.uniform(6, 10, 3)
    mask = ((grid - middle[:, None, None, None]) ** 2).sum(axis=0) < rng.uniform(9, 20)
    return (mask * 60 + rng.normal(100, 15, SHAPE)).astype(np.float32), mask


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen volumes; types and affines differ from file to file, as they do in practice."""
    root = tmp_path_factory.mktemp("volumes")
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir()
    for index in range(14):
        image, mask = ball(index)
        affine = FLIPPED if index % 2 else np.diag([1.0, 1.5, 2.0, 1.0])
        labels = mask.astype((np.float64, np.uint8, np.int16)[index % 3])
        nibabel.save(nibabel.Nifti1Image(image, affine), root / "imagesTr" / f"v{index:02}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), root / "labelsTr" / f"v{index:02}.nii.gz")
    return root


@pytest.fixture(scope="module")
def run(volumes: Path) -> Path:
    made = settings(volumes, patch_size=[16, 16, 8], class_names=["background", "ball"], positive_class="ball")
    made["dataset_params"] |= {"val_select_ratio": 0.2, "val_calib_ratio": 0.2, "val_test_ratio": 0.2}
    made |= {"model_path": "monai:unet:channels=8-16,res_units=1", "epochs": 12, "lr_head": 1e-2}
    (volumes / "masks.yaml").write_text(yaml.safe_dump(made))
    done("00_make_splits", "--config", volumes / "masks.yaml", "--run", volumes / "run")
    done("20_train", "--config", volumes / "masks.yaml", "--run", volumes / "run")
    return volumes / "run"


def test_a_spacing_that_no_memory_holds_is_refused_before_training(run: Path, volumes: Path) -> None:
    fine = call(
        "20_train",
        "--config",
        volumes / "masks.yaml",
        "--dataset_params.target_spacing",
        "[.01, .01, .01]",
        "--dry_run",
    )
    assert fine.status == 2
    assert "dataset_params.target_spacing:\n  - v00: the image has too many pixels: 2000 × " in fine.err
    assert "Set a coarser target_spacing" in fine.err


def test_volumes_are_trained_in_patches_and_scored_whole(run: Path) -> None:
    assert pd.read_csv(run / "metrics.csv")["val_dice"].max() > 0.5
    done("40_eval_selective", "--run", run, "--scores_only")
    assert {"fnr_coverage.png", "mask_overlays.png", "soft_dice.png"} <= {
        path.name for path in (run / "figures").iterdir()
    }
    cases = pd.read_csv(run / "cases" / "val_test.csv")
    truth = [ball(int(case[1:]))[1].sum() * 3.0 for case in cases["case_id"]]  # 1 × 1.5 × 2 mm
    np.testing.assert_allclose(cases["true_volume_ball"], truth, rtol=1e-5)


def test_a_mask_lies_where_its_image_lies(run: Path, volumes: Path, tmp_path: Path) -> None:
    predictor = mask_scorer(Run(run), "cpu")
    paths = [str(volumes / "imagesTr" / f"v{index:02}.nii.gz") for index in (0, 1)]
    predictor.draw_into(tmp_path, paths)
    assert all(np.isfinite(part.logits).all() for part in predictor.outputs(paths))
    for index, path in enumerate(paths):
        source, drawn = nibabel.load(path), nibabel.load(tmp_path / f"v{index:02}.nii.gz")
        assert drawn.shape == source.shape
        np.testing.assert_allclose(drawn.affine, source.affine)
        mask, truth = np.asarray(drawn.dataobj) > 0, ball(index)[1]
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.4


def test_both_orientations_of_a_volume_are_one(volumes: Path, tmp_path: Path) -> None:
    image, mask = ball(3)
    turned = tmp_path / "turned.nii"
    plain = nibabel.as_closest_canonical(nibabel.Nifti1Image(image, FLIPPED))
    nibabel.save(plain, turned)
    one = picture_of([(volumes / "imagesTr" / "v03.nii.gz").read_bytes()])
    other = picture_of([turned.read_bytes()])
    np.testing.assert_array_equal(one.values, other.values)
    assert one.grid.same_place(other.grid)
    labels, grid = labels_of((volumes / "labelsTr" / "v03.nii.gz").read_bytes())
    assert labels.sum() == mask.sum()
    assert grid.spacing == pytest.approx((1.0, 1.5, 2.0))


def test_golden_volumes_tell_a_host_that_does_not_turn_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, again = golden_of_masks(Run(run)), golden_of_masks(Run(run))
    assert recorded == again
    monkeypatch.setattr(nibabel, "as_closest_canonical", lambda image: image)
    logits = [np.load(BytesIO(content))["logits"] for content in (recorded, golden_of_masks(Run(run)))]
    off = np.abs(logits[0] - logits[1])[:, 1]
    assert off[0] == 0  # this one lies as it should in its file
    assert (off[1:] > 1e-3).all()


def with_bytes(content: bytes, at: int, form: str, *values: float) -> bytes:
    """A NIfTI file with other values in its header."""
    changed = bytearray(content)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def damaged_volumes() -> dict[str, tuple[bytes, str]]:
    values = ball(0)[0]
    plain = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {
        "colours": (nibabel.Nifti1Image(colours, np.eye(4)).to_bytes(), "colours or complex numbers"),
        "complex": (nibabel.Nifti1Image(values.astype(np.complex64), np.eye(4)).to_bytes(), "colours or complex"),
        "a flat affine": (with_bytes(plain, 280, "<12f", *[0.0] * 12), "affine does not say where"),
        "more voxels than bytes": (with_bytes(plain, 40, "<4h", 3, 30_000, 30_000, 30_000), "truncated or damaged"),
        "nothing within gzip": (gzip.compress(b""), "truncated or damaged"),
        "half of it": (gzip.compress(plain)[: len(plain) // 3], "truncated or damaged"),
        "five dimensions": (nibabel.Nifti1Image(values[..., None, None], np.eye(4)).to_bytes(), "not this many: 5"),
        "a metre a voxel": (with_bytes(plain, 280, "<12f", *(np.eye(4) * 1e4)[:3].ravel()), "too many pixels"),
        "two channels": (nibabel.Nifti1Image(np.stack([values] * 2, 3), np.eye(4)).to_bytes(), "other dimensions or"),
    }


def test_damaged_volumes_are_deferred_with_the_reason(run: Path, tmp_path: Path) -> None:
    made = damaged_volumes()
    for name, (content, _) in made.items():
        (tmp_path / f"{name}.nii").write_bytes(content)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "flat.png")
    paths = [*(tmp_path / f"{name}.nii" for name in made), tmp_path / "flat.png"]
    predictor = mask_scorer(Run(run), "cpu")
    outputs = next(predictor.outputs(paths, batch_size=len(paths)))
    assert np.isnan(outputs.logits).all()
    for position, words in enumerate([*(words for _, words in made.values()), "other dimensions or channels"]):
        assert words in outputs.unreadable[position], (paths[position], outputs.unreadable[position])
