"""60's --num_workers auto against the best number of processes that a hand could set, on crops and on photographs.

The model is the demo's, on random weights: time does not depend on them. `auto` takes a look, whose time counts, and
then does what a hand that sets the same number does: it is not run again, since two runs of one number differ by more
than the target allows. Where its choices differ from look to look, their mean counts.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean

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
    chosen: list[int] = []

    def by_hand(workers: int) -> Callable[[], object]:
        return lambda: [None for _ in predictor.outputs(paths, workers=workers)]

    def look() -> None:
        chosen.append(workers_for("auto", predictor, paths))

    look()
    cores = len(os.sched_getaffinity(0))
    jobs: dict[str, Callable[[], object]] = {"look": look}
    jobs |= {str(workers): by_hand(workers) for workers in sorted({0, 1, 2, cores // 2, cores, *chosen})}
    seconds = fastest(jobs, ROUNDS)
    looked = seconds.pop("look")
    best = min(seconds, key=lambda workers: seconds[workers])
    auto = looked + mean(seconds.get(str(workers), max(seconds.values())) for workers in chosen)
    takes = " or ".join(map(str, sorted(set(chosen))))
    note = f"takes {takes} after {1e3 * looked:.0f} ms, best is {best}; {1e3 * auto / len(paths):.1f} ms an image"
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
