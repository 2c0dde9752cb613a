"""What the project adds to the time that MONAI takes by itself: training on images or volumes, and scoring in windows.

Called by segmentation.py. Training: the project's own (Lightning, moving average, checkpoints, its loader) against a
plain loop with MONAI's CacheDataset, transforms and DiceCELoss; the same network, batches, cases, clipping and number
of workers, the fastest epoch of each, in turns. Scoring: a case's row of sums against MONAI's sliding windows alone.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from result import Result, slowdowns

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.data.masks.table import MaskFacts
from stage1_pro.core.models.mask_networks import MaskSpec, named_network
from stage1_pro.core.models.mask_rows import case_row
from stage1_pro.core.models.segmenter import MaskModel
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.fit import fit_on
from stage1_pro.core.training.start import new_run
from stage1_pro.core.training.trainer import make_trainer

CONFIG = Path(__file__).parents[1] / "configs" / "segmentation.yaml"
TRAINING, SCORING = 0.95, 1.1
TURN = 0.26
"""Radians that a volume is turned in plane at most, as the project turns it."""


def measure(settings: dict[str, Any], args: argparse.Namespace) -> Iterator[Result]:
    """settings: of a run on images or volumes; args: epochs, rounds, and of scoring, which volumes alone need windows
    for, side (voxels of the volume) and patch."""
    found = training(settings, args)
    yield found
    if found.name.startswith("3D"):
        yield from scoring(args)


# ---- training


def training(settings: dict[str, Any], args: argparse.Namespace) -> Result:
    settings = {**settings, "epochs": args.epochs, "early_stop_patience": args.epochs}
    config = merge_configs([("segmentation.yaml", yaml.safe_load(CONFIG.read_text())), ("speed", settings)])
    own, by_hand, dims = [], [], 0
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            run, cases = new_run(f"{folder}/run", config)
            dims = cases.masks.dims
            own.append(project(run, config, cases))
            by_hand.append(plain_loop(run, config, cases))
    note = f"{max(own):.1f} against {max(by_hand):.1f} cases a second, batch {config.batch_size}"
    return Result(f"{dims}D training / MONAI loop", max(own) / max(by_hand), TRAINING, "at least", note)


def project(run: Run, config: Stage1ProConfig, cases: Any) -> float:
    """Cases a second in the fastest epoch of the project's training."""
    model = config.task.part("build_model")(config, cases, run.splits, None)
    data = config.task.part("data_module")(config, model, cases, run.splits)
    fit_on(run, config, model, data, make_trainer(run, config))
    return float(pd.read_csv(run.metrics_path)["images_per_second"].max())


def plain_loop(run: Run, config: Stage1ProConfig, cases: Any) -> float:
    """The same of a loop as MONAI's tutorials have it."""
    from monai.data import CacheDataset, DataLoader, pad_list_data_collate  # pyright: ignore[reportMissingImports]
    from monai.losses import DiceCELoss  # pyright: ignore[reportMissingImports]

    model: MaskModel = config.task.part("build_model")(config, cases, run.splits, None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.net.to(device).train()
    frame = cases.frame.iloc[run.splits.indices("train")]
    files = [{"image": image, "label": mask} for image, mask in zip(frame["path"], frame["mask"], strict=True)]
    loader = DataLoader(
        CacheDataset(files, transforms(model.spec.preprocessing.dims, model.spec.divisor), progress=False),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=config.dataset_params.num_workers,
        persistent_workers=config.dataset_params.num_workers > 0,
        collate_fn=pad_list_data_collate,
        pin_memory=device.type == "cuda",
    )
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr_head, weight_decay=config.weight_decay)
    fastest = 0.0
    for _ in range(config.epochs):
        begun, seen = now(), 0
        for batch in loader:
            images, labels = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
            optimizer.zero_grad()
            loss = loss_of(network(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            seen += len(images)
        fastest = max(fastest, seen / (now() - begun))
    return fastest


def transforms(dims: int, divisor: int) -> Any:
    """What the project does to a case, by MONAI: images are flipped and turned by quarters, volumes in plane."""
    from monai import transforms as monai  # pyright: ignore[reportMissingImports]

    both = ["image", "label"]
    flips = [monai.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(2)]
    return monai.Compose(
        [
            monai.LoadImaged(both, ensure_channel_first=True),
            *([monai.Orientationd(both, axcodes="RAS", labels=None)] if dims == 3 else []),
            monai.NormalizeIntensityd("image"),
            *([*flips, monai.RandRotate90d(both, prob=0.75)] if dims == 2 else []),
            monai.RandAffined(
                both,
                prob=1.0,
                rotate_range=(0, 0, TURN) if dims == 3 else None,
                scale_range=(0.15,) * dims,
                mode=("bilinear", "nearest"),
                padding_mode="reflection",
            ),
            monai.RandScaleIntensityd("image", factors=0.25, prob=0.3),
            monai.RandShiftIntensityd("image", offsets=0.2, prob=0.3),
            monai.DivisiblePadd(both, k=divisor),
        ]
    )


# ---- scoring


def scoring(args: argparse.Namespace) -> Iterator[Result]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = MaskFacts(("background", "anterior", "posterior"), (1, 2), None, False, 3, 1, False, False)
    made = MaskPreprocessing(3, 1, False, patch=(args.patch,) * 3)
    model = MaskModel(MaskSpec(*named_network("monai:unet"), 0.0, made), facts, ("no", "yes")).to(device).eval()
    for side in (args.side, args.side * 3 // 4):
        image = torch.randn(1, side, side, side, device=device)
        labels = torch.randint(0, 3, (side,) * 3, device=device)
        jobs: dict[str, Callable[[], object]] = {
            "whole": synchronized(lambda image=image, labels=labels: row(model, image, labels)),
            "alone": synchronized(lambda image=image: windows_alone(model, image)),
        }
        for job in jobs.values():
            job()
        ratio = 1 / slowdowns(jobs, "whole", args.rounds * 5)["alone"]
        note = f"{side}³ voxels in windows of {args.patch}³, {device.type}"
        yield Result("scoring / MONAI's windows", ratio, SCORING, "at most", note)


@torch.inference_mode()
def row(model: MaskModel, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits, _ = next(model.maps([image]))
    return case_row(logits, labels, model.facts.positives)


@torch.inference_mode()
def windows_alone(model: MaskModel, image: torch.Tensor) -> torch.Tensor:
    from monai.inferers import sliding_window_inference  # pyright: ignore[reportMissingImports]

    patch, params = model.spec.preprocessing.patch, model.params
    found: Any = sliding_window_inference(
        image[None], patch, params.window_batch, model.net, overlap=params.window_overlap, mode="gaussian"
    )
    return found


def synchronized(job: Callable[[], object]) -> Callable[[], object]:
    def timed() -> object:
        found = job()
        now()
        return found

    return timed


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
