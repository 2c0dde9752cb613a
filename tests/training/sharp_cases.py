"""Trainings that take a second: heads on made-up features, through the project's own trainer."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch import nn

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.models.backbone import BackboneSpec
from stage1_pro.core.models.stage1 import Stage1Model, read_tensors
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.fit import fit_on
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.trainer import make_trainer

FEATURES, CASES = 5, 72
PREPROCESSING = Preprocessing(8, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
SMALL = {
    **{"batch_size": 16, "epochs": 3, "lr_head": 0.01, "head_ensemble": 2, "early_stop_patience": 9, "devices": 1},
    "use_ema": True,  # one more state to come back
}
Weights = dict[str, torch.Tensor]


def config_of(phase: int, **settings: Any) -> Stage1ProConfig:
    return merge_configs([("test", {"phase": phase, **SMALL, **settings})])


def plain_module(optimizer: str, **settings: Any) -> Stage1Module:
    """One class head under cross entropy, a mean over the cases, so batches add up. Both classes weigh the same."""
    config = config_of(5, optimizer=optimizer, **settings)
    return Stage1Module(model_of(None, dropout=0.0), config, np.array([1, 1]), from_features=True)


def data_of(config: Stage1ProConfig) -> Stage1DataModule:
    names = np.array([f"c{index:03d}" for index in range(CASES)], dtype=object)
    columns = {"case_id": names, "label": np.arange(CASES) % 2, "group": names, "content": names, "path": names}
    features = np.random.default_rng(1).normal(size=(CASES, FEATURES)).astype(np.float32)
    features[:, 0] += np.arange(CASES) % 2
    everyone = list(range(CASES))
    splits = Splits({"train_indices": everyone, "val_select_indices": everyone})
    table = CaseTable(pd.DataFrame(columns), ("a", "b"), False, False)
    return Stage1DataModule(table, splits, config, PREPROCESSING, dict.fromkeys(("train", "val_select"), features))


def model_of(members: int | None = 2, dropout: float = 0.3) -> Stage1Model:
    torch.manual_seed(0)
    spec = BackboneSpec("test", {}, PREPROCESSING, "own")
    return Stage1Model(nn.Identity(), spec, ("a", "b"), FEATURES, dropout, members)


def train(folder: Path, config: Stage1ProConfig, *callbacks: pl.Callback) -> dict[str, Any]:
    """Train a gated phase in this run directory, or go on there; returns its last checkpoint."""
    folder.mkdir(exist_ok=True)
    run, model = Run(folder), model_of()
    trainer = make_trainer(run, config)
    trainer.callbacks[:0] = callbacks
    fit_on(run, config, model, data_of(config), trainer)
    return read_tensors(run.checkpoints_path / "last.ckpt")


def train_plainly(module: Stage1Module, **settings: Any) -> pl.Trainer:
    """Train a module with a bare trainer of Lightning's."""
    config = module.config
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=config.epochs,
        limit_val_batches=0,
        use_distributed_sampler=False,
        **quiet,
        **settings,
    )
    trainer.fit(module, data_of(config))
    return trainer


def weights(module: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    different = [name for name, value in found.items() if not torch.equal(value, expected[name])]
    assert different == []


def assert_close(found: Weights, expected: Weights, tolerance: float) -> None:
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
