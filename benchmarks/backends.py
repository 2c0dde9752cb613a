"""ONNX Runtime against torch: images per second of CPU time, side by side on the same model and images.

    python benchmarks/backends.py
    python benchmarks/backends.py --arch tf_efficientnet_lite0 --size 224 --quantize
Needs the extra `onnx`. Random weights serve: time does not depend on them. Medians of rounds in which each takes its
turn, on one thread. Status 1 where a ratio misses its goal.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.onnx_export import export_onnx
from stage1_pro.core.models.onnx_model import load_onnx
from stage1_pro.core.models.stage1 import Stage1Model

BATCHES = (1, 8, 32)
GOALS = {1: 2.0, 32: 2.0}
"""Batch → least ratio, for the demo's backbone in float32."""

IMAGES_A_TURN = 64


def rates(model: Callable[[torch.Tensor], Any], images: torch.Tensor) -> float:
    """Images per second of CPU time."""
    passes = max(1, IMAGES_A_TURN // len(images))
    model(images)
    start = time.process_time()
    for _ in range(passes):
        model(images)
    return passes * len(images) / (time.process_time() - start)


def built(arch: str, size: int) -> Stage1Model:
    backbone, spec = load_backbone(f"random:{arch}", size)
    model = Stage1Model.new(backbone, spec, ("rest", "red"), dropout=0.3).eval()
    for part in model.modules():  # statistics that let activations through, as trained ones do
        if isinstance(part, torch.nn.BatchNorm2d) and part.running_var is not None:
            part.running_var.uniform_(0.5, 2)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quantize", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    reference = built(args.arch, args.size)
    images = torch.randn(max(BATCHES), 3, args.size, args.size)
    models: dict[str, Callable[[torch.Tensor], Any]] = {"torch": reference}
    with tempfile.TemporaryDirectory() as folder:
        for name, calibration in {"onnx": None, **({"static": images.numpy()} if args.quantize else {})}.items():
            export_onnx(reference, Path(folder) / name, calibration)
            models[name] = load_onnx(Path(folder) / name)
    missed = 0
    for batch in BATCHES:
        taken: dict[str, list[float]] = {name: [] for name in models}
        with torch.inference_mode():
            for _ in range(args.rounds):
                for name, model in models.items():
                    taken[name].append(rates(model, images[:batch]))
        for name in list(models)[1:]:
            ratio = median(own / its for own, its in zip(taken[name], taken["torch"], strict=True))
            goal = GOALS.get(batch) if name == "onnx" else None
            missed += goal is not None and ratio < goal
            wanted = f", at least {goal:g}" if goal else ""
            print(f"{args.arch} {args.size} px, batch {batch:2}: {name} / torch {ratio:.2f}{wanted}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
