"""60's --num_workers auto against the best number of processes that a hand could set, on crops and on photographs.

The model is the demo's, on random weights: time does not depend on them. The look that `auto` takes counts.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from result import Result, fastest

from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.processes import workers_for
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import Stage1Model

CROP, PHOTO = (48, 48), (1280, 720)
SETS = {"few crops": (CROP, 200), "crops": (CROP, 1200), "photographs": (PHOTO, 400)}
"""Name → size of the images, and how many."""

FILES, ROUNDS = 24, 3


def measure() -> list[Result]:
    backbone, spec = load_backbone("random:tf_efficientnet_lite0", 96)
    predictor = Stage1Predictor(
        Stage1Model.new(backbone, spec, ("rest", "red"), dropout=0.3), device="cpu", forward_batch=8
    )
    with tempfile.TemporaryDirectory() as folder:
        return [row_of(predictor, name, draw(Path(folder), *SETS[name])) for name in SETS]


def row_of(predictor: Stage1Predictor, name: str, paths: list[str]) -> Result:
    def job(asked: int | str) -> Callable[[], object]:
        return lambda: [None for _ in predictor.outputs(paths, workers=workers_for(asked, predictor, paths))]

    cores = len(os.sched_getaffinity(0))
    by_hand = sorted({0, 1, 2, cores // 2, cores})
    seconds = fastest({str(asked): job(asked) for asked in [*by_hand, "auto"]}, ROUNDS)
    auto = seconds.pop("auto")
    best = min(seconds, key=lambda asked: seconds[asked])
    note = f"takes {workers_for('auto', predictor, paths)}, best is {best}; {1e3 * auto / len(paths):.1f} ms an image"
    return Result(
        f"loading: {len(paths)} {name}, images/s, auto / best by hand", seconds[best] / auto, 0.95, "at least", note
    )


def draw(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """So many paths of a few JPEGs that are as hard to decode as photographs."""
    rng, paths = np.random.default_rng(0), []
    for index in range(FILES):
        shapes = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(shapes, dtype=int) + rng.integers(-12, 13, (size[1], size[0], 1))
        paths.append(folder / f"{size[0]}-{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return [str(paths[index % FILES]) for index in range(count)]
