"""Tiny data sets with masks: bright discs on noise, easy enough to be learned in seconds."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 32
STAGES = {
    "enabled": True,
    "initial_cases": 6,
    "add_cases": 4,
    "max_stages": 3,
    "max_epochs_per_stage": 3,
    "lr_floor_action": "end_stage",
    "selection_threshold": 1.0,
}
"""incremental_params of a training with masks that takes seconds."""


def disc_case(index: int, side: int = SIDE, empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(image (side, side, 3) uint8, mask (side, side) uint8 of 0 and 1) of one case; every index another one."""
    rng = np.random.default_rng(index)
    rows, columns = np.mgrid[:side, :side]
    middle, radius = rng.uniform(side * 0.3, side * 0.7, 2), rng.uniform(side * 0.15, side * 0.28)
    mask = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 <= radius**2) & (not empty)
    noise = rng.normal(0, 25, (side, side, 1))
    image = np.clip(90 + 90 * mask[..., None] * rng.uniform(0.5, 1) + noise, 0, 255)
    return np.repeat(image, 3, axis=2).astype(np.uint8), mask.astype(np.uint8)


def write_cases(folder: Path, count: int, empty: int = 0) -> Path:
    """images/NNN.png and masks/NNN.png of this many cases, the first `empty` of them without a disc."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        image, mask = disc_case(index, empty=index < empty)
        Image.fromarray(image).save(folder / "images" / f"{index:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{index:03}.png")
    return folder


def settings(root: Path, **data: Any) -> dict[str, Any]:
    """Settings of a run on such a folder, minutes shorter than the defaults."""
    return {
        "model_path": "monai:unet:channels=8-16-32,res_units=1",
        "epochs": 2,
        "batch_size": 4,
        "bootstrap_samples": 100,
        "target_fnr_exit": 0.1,
        "dataset_params": {
            "task": "segmentation",
            "sources": [{"name": "discs", "root": str(root)}],
            "class_names": ["background", "disc"],
            "positive_class": "disc",
            "num_workers": 0,
            **data,
        },
    }
