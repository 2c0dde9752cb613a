"""What training keeps of an epoch, and when it stops."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stage1_pro.core import artifacts
from stage1_pro.core.models.module import Stage1Module
from stage1_pro.core.models.stage1 import dump_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through our own door: a kill leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_bytes(Path(path), dump_tensors(checkpoint))


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, whose state stays valid when the run directory is moved or copied.

    By itself it would forget the best score, and let a worse epoch overwrite best.ckpt. An epoch that does
    not log the monitor (a gate's warm-up), or logs NaN, is no candidate.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is None or math.isfinite(trainer.callback_metrics.get(self.monitor, math.nan)):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Lightning's early stopping, counting from the epoch in which the phase's own loss is in force: neither a
    warm-up nor a warm start uses patience up, or stops a run before its loss was tried."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage1Module)
        if trainer.current_epoch >= pl_module.settled_epoch:
            super().on_validation_end(trainer, pl_module)
