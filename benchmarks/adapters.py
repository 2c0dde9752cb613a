"""Training steps with adapters: this project's loop (Lightning, moving average, logging) against a hand-written one.

    python benchmarks/adapters.py                                  # ViT-S/16 at 224, batch 128, LoRA, bf16; for a GPU
    python benchmarks/adapters.py --compile
    python benchmarks/adapters.py --model random:test_vit --size 32 --batch 16 --steps 10     # a try on a CPU
Both train the same model with the same loss, batches and clipping, in turns; no image is decoded. Exits with status 1
where the project reaches less than .95 of the images per second.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.models.parameters import trainable
from stage1_pro.core.optim.schedule import parameter_groups
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.fit import build_model
from stage1_pro.core.training.modules.selective import SelectiveModule
from stage1_pro.core.training.trainer import make_trainer

TARGET, WARM_STEPS = 0.95, 8
COUNTS = np.array([500, 500])


class Noise(Dataset):
    """Two batches made beforehand, in memory that the device can copy from, handed out in turn: neither loop waits."""

    def __init__(self, length: int, batch: int, size: int):
        images, labels = torch.randn(2, batch, 3, size, size), torch.arange(2 * batch).view(2, batch) % 2
        self.images = images.pin_memory() if torch.cuda.is_available() else images
        self.labels, self.length = labels, length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, positions: list[int]) -> Batch:
        taken = torch.tensor(positions)
        turn = positions[0] // len(positions) % 2
        return Batch(self.images[turn], self.labels[turn], taken)


def loader(config: Stage1ProConfig, steps: int) -> DataLoader:
    size = config.dataset_params.image_size or 224
    noise = Noise(steps * config.batch_size, config.batch_size, size)
    return DataLoader(noise, batch_size=config.batch_size, collate_fn=lambda batch: batch)


def made(config: Stage1ProConfig) -> SelectiveModule:
    module = SelectiveModule(build_model(config, ("no", "yes")), config, COUNTS, from_features=False)
    if config.compile:
        module.model.compile()
    return module


class Stopwatch(pl.Callback):
    """Seconds of the steps after the first few, when the device has done them."""

    def __init__(self, last: int):
        self.last, self.begun, self.seconds = last, 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *step: Any) -> None:
        if step[-1] == WARM_STEPS - 1:
            self.begun = now()
        elif step[-1] == self.last:
            self.seconds = now() - self.begun


def ours(config: Stage1ProConfig, steps: int) -> float:
    """Seconds that `steps` steps of the project's training take."""
    stopwatch = Stopwatch(WARM_STEPS + steps - 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Run(Path(folder)), config)
        trainer.callbacks.append(stopwatch)  # pyright: ignore[reportAttributeAccessIssue]
        trainer.fit(made(config), loader(config, WARM_STEPS + steps), loader(config, 1))
    return stopwatch.seconds


def by_hand(config: Stage1ProConfig, steps: int) -> float:
    """Seconds that `steps` steps of a plain loop take on the same model, loss and kind of loader."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = made(config).to(device).train()
    rates = config.lr_head, config.backbone_lr
    optimizer = torch.optim.AdamW(parameter_groups(module.model, *rates, config.weight_decay), fused=True)
    tensors = [tensor for _, tensor in trainable(module)]
    begun = 0.0
    for index, batch in enumerate(loader(config, WARM_STEPS + steps)):
        images, labels = batch.inputs.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16):
            loss = module.loss(module.model(images).members, labels, None, warm=False).sum()
        loss.backward()
        module.loss.dual_step()
        torch.nn.utils.clip_grad_norm_(tensors, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if index == WARM_STEPS - 1:
            begun = now()
    return now() - begun


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="random:vit_small_patch16_224", help="backbone, as model_path takes it")
    parser.add_argument("--size", type=int, default=224, help="side of the input, pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="steps timed in a turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of each loop; the fastest counts")
    parser.add_argument("--type", default="lora", choices=("lora", "dora", "doran"), help="kind of adapter")
    parser.add_argument("--compile", action="store_true", help="compile both")
    given = parser.parse_args()
    settings = {
        "phase": 4,
        "exit_policy": "gate",
        "peft_type": given.type,
        "model_path": given.model,
        "batch_size": given.batch,
        "epochs": 1,
        "precision": "bf16-mixed",
        "devices": 1,
        "compile": given.compile,
        "dataset_params": {"image_size": given.size},
    }
    config = merge_configs([("benchmark", settings)])
    seconds = {"by hand": np.inf, "stage1_pro": np.inf}
    for _ in range(given.turns):
        for name, loop in (("by hand", by_hand), ("stage1_pro", ours)):
            seconds[name] = min(seconds[name], loop(config, given.steps))
    speed = {name: given.batch * given.steps / taken for name, taken in seconds.items()}
    ratio = speed["stage1_pro"] / speed["by hand"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{given.model}, {given.type}, batch {given.batch}, bf16, compile {given.compile}, {device}")
    print("  ".join(f"{name} {value:,.0f} images/s" for name, value in speed.items()), f" ratio {ratio:.3f}")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
