"""A step of F-SAM against one of AdamW: two passes instead of one, and what finding the worst weights nearby costs.

    python benchmarks/run.py --only fsam
A ViT-S/16 at 224 px in bfloat16 with 128 images a step where there is a GPU; else a ViT of 3 blocks at 64 px with 64
images in float32. Both go through the optimizer classes that training uses; both clip.
"""

from collections.abc import Callable

import timm
import torch
from result import Result, slowdowns
from torch import nn
from torch.nn.functional import cross_entropy

from stage1_pro.core.optim.fsam import SharpnessAware
from stage1_pro.core.optim.schedule import parameter_groups

TARGET, STEPS = 2.1, 60
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
IMAGES, SIZE = (128, 224) if CUDA else (64, 64)
SMALL = {} if CUDA else {"depth": 3, "embed_dim": 192, "num_heads": 3}


def measure() -> list[Result]:
    steps = {"adamw": adamw_step(), "sam": sharp_step(0.0), "fsam": sharp_step(1.0)}
    for one in steps.values():
        for _ in range(3):
            one()
    where = torch.cuda.get_device_name() + ", bfloat16" if CUDA else f"{torch.get_num_threads()} threads, float32"
    note = f"{IMAGES} images of {SIZE} px, median of {STEPS} steps, {where}"
    return [
        Result(f"{name} step / AdamW step", ratio, TARGET, "at most", note)
        for name, ratio in slowdowns(steps, "adamw", STEPS).items()
    ]


def adamw_step() -> Callable[[], None]:
    model, optimizer, loss_backward = made()

    def run() -> None:
        loss_backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        finish()

    return run


def sharp_step(sigma: float) -> Callable[[], None]:
    model, inner, loss_backward = made()
    optimizer = SharpnessAware(inner, model.parameters(), sigma=sigma)

    def run() -> None:
        loss_backward()
        with optimizer.perturbed():
            loss_backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        finish()

    return run


def made() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", num_classes=2, img_size=SIZE, **SMALL).to(DEVICE).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4, 1e-4, 0.01))
    images, labels = torch.randn(IMAGES, 3, SIZE, SIZE, device=DEVICE), torch.arange(IMAGES, device=DEVICE) % 2

    def loss_backward() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA):
            loss = cross_entropy(model(images), labels)
        loss.backward()

    return model, optimizer, loss_backward


def finish() -> None:
    if CUDA:
        torch.cuda.synchronize()
