"""What training keeps of an epoch, and when it stops."""

import math
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.models.stage1 import read_tensors, write_tensors
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.modules.base import Stage1Module

# killed at a transition, a training goes back into the stage before, and scores by its best again
KEPT_STAGES = 2
LAST = "last"
"""Name of the checkpoint that training goes on from."""
FEATURES = "LastReading"
"""Name by which a checkpoint holds the features of the training images."""
DEVICES = "devices"
"""Key of a checkpoint: on how many devices, over all nodes, the training runs."""
Kind = TypeVar("Kind", bound=ModelCheckpoint)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through our own door: a kill leaves the previous file whole. Training goes on, and ends,
    from the last one alone, so the others are kept without the moments of the optimizer, two thirds of their bytes, and
    without the features for suspects.csv."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).stem != LAST:
            states = {name: state for name, state in checkpoint["callbacks"].items() if name != FEATURES}
            checkpoint = {**checkpoint, "optimizer_states": [], "callbacks": states}
        write_tensors(Path(path), checkpoint)


class RunCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, whose state stays valid when the run directory is moved or copied.

    By itself it would forget the best score, and let a worse epoch overwrite best.ckpt. An epoch that does
    not log the monitor (a gate's warm-up), or logs NaN, is no candidate. Of equally good epochs the latest is kept:
    where classes separate perfectly all epochs tie, and the first one's probabilities have hardly left one half.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_candidate(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_candidate(trainer):
            super().on_validation_end(trainer, pl_module)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        kept = self.best_k_models.get(self.kth_best_model_path)
        tied = current is not None and kept is not None and bool(current == kept)
        # all ranks have decided the first question together, so they also ask the second one together
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(tied)

    def _is_candidate(self, trainer: pl.Trainer) -> bool:
        return self.monitor is None or math.isfinite(trainer.callback_metrics.get(self.monitor, math.nan))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class SameDevices(pl.Callback):
    """Refuses to go on from a checkpoint on another number of devices than it began on."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[DEVICES] = trainer.world_size

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        then, now = checkpoint.get(DEVICES, trainer.world_size), trainer.world_size
        if then != now:
            # an epoch has other steps there: the schedule would run at another pace
            raise UserError(
                f"training began on {counted(then, 'device')} and would go on on {now}: resume it on {then}, or begin "
                "a new run."
            )


class StageCheckpoint(RunCheckpoint):
    """The best weights of the current stage, in a file of its own; the latest two stages' files are kept."""

    @property
    def state_key(self) -> str:
        return f"StageCheckpoint{{'monitor': {self.monitor!r}}}"

    @property
    def path(self) -> Path:
        """Of the current stage's file, which exists once an epoch of the stage was judged."""
        return Path(str(self.dirpath)) / f"{self.filename}.ckpt"

    def name(self, stage: int) -> None:
        self.filename = f"stage-{stage:02d}"

    def open(self, stage: int) -> None:
        """Forget the last stage's best, and the file of the one that is no longer kept."""
        self.name(stage)
        self.best_k_models, self.best_model_score, self.current_score = {}, None, None
        self.best_model_path = self.kth_best_model_path = ""
        self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        (Path(str(self.dirpath)) / f"stage-{stage - KEPT_STAGES:02d}.ckpt").unlink(missing_ok=True)


class Patience(EarlyStopping):
    """Lightning's early stopping, counting from the epoch in which the phase's own loss is in force: neither a
    warm-up nor a warm start uses patience up, or stops a run before its loss was tried."""

    def restart(self) -> None:
        """Count anew, for a new stage or schedule."""
        fresh = EarlyStopping(self.monitor, mode=self.mode)
        self.wait_count, self.stopped_epoch, self.best_score = 0, 0, fresh.best_score

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage1Module)
        if trainer.current_epoch in pl_module.config.schedule_restarts:
            self.restart()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage1Module)
        if trainer.current_epoch >= pl_module.settled_epoch:
            super().on_validation_end(trainer, pl_module)


def way_back(run: Run, config: Stage1ProConfig) -> str:
    """What to do where a checkpoint of a run is damaged."""
    if config.incremental_params.enabled:
        return "Restore it from a copy, or begin a new run."
    return (
        f"Restore it from a copy, or remove {run.checkpoints_path}: 20_train.py --resume {run.path} then begins at the "
        "first epoch."
    )


def judged_weights(checkpoint: Path, way_out: str = "Restore it from a copy.") -> dict[str, torch.Tensor]:
    """The weights that a checkpoint was judged by, their average where EMA is on, by the names of the module.

    way_out: what to do where the file is damaged.
    """
    content = read_tensors(checkpoint, way_out)
    averaged = content["callbacks"].get("ExponentialMovingAverage", {}).get("average", {})
    return {**content["state_dict"], **averaged}


def patience(config: Stage1ProConfig, epochs: int, min_delta: float = 0.0) -> Patience:
    """Early stopping by the phase's monitor after this many epochs without a better one."""
    # by itself it would look after the other callbacks of the epoch, too late for the stage controller
    counted: dict[str, Any] = {"patience": epochs, "min_delta": min_delta, "check_on_train_epoch_end": False}
    return Patience(config.monitor, mode=config.monitor_mode, **counted)


def checkpoint(
    kind: type[Kind], folder: Path, name: str, *, at_epoch_end: bool = True, judged_by: Stage1ProConfig | None = None
) -> Kind:
    """A checkpoint of this name: the best by the config's monitor, or every epoch's where none is given."""
    monitored = {} if judged_by is None else {"monitor": judged_by.monitor, "mode": judged_by.monitor_mode}
    # a version counter would put last-v1.ckpt beside a file that a resumed run must overwrite
    settings: dict[str, Any] = {"save_on_train_epoch_end": at_epoch_end, "enable_version_counter": False, **monitored}
    return kind(folder, filename=name, **settings)
