"""Lightning's trainer as a config asks for it."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.tracking.logger import logger_of
from stage1_pro.core.training.callbacks.checkpoints import (
    LAST,
    AtomicCheckpointIO,
    RunCheckpoint,
    SameDevices,
    checkpoint,
    patience,
)
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage
from stage1_pro.core.training.callbacks.epochs import EpochTable, Throughput
from stage1_pro.core.training.stages import stage_callbacks

PRECISION: dict[str, Any] = {"32": "32-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


def make_trainer(run: Run, config: Stage1ProConfig) -> pl.Trainer:
    """The trainer of a run, with the callbacks that its config asks for. Raises what `lightning_trainer` raises."""
    incremental = config.incremental_params
    by_itself = config.sharpness_aware  # such a module accumulates and clips by itself
    average = ExponentialMovingAverage(config.ema_decay) if config.use_ema else None
    plain, shown = not sys.stdout.isatty(), config.task.shown
    table = EpochTable(run.metrics_path, config.monitor, plain, shown)
    callbacks: list[pl.Callback] = [
        Throughput(),
        SameDevices(),
        *([average] if average else []),
        LearningRateMonitor(logging_interval="epoch"),
        *(
            stage_callbacks(run, config, average, table)
            if incremental.enabled
            else [patience(config, config.early_stop_patience), table]
        ),
        checkpoint(RunCheckpoint, run.checkpoints_path, "best", at_epoch_end=not incremental.enabled, judged_by=config),
        # after the best, whose score and path are part of what it holds
        checkpoint(RunCheckpoint, run.checkpoints_path, LAST),
    ]
    return lightning_trainer(
        config,
        run.path,
        callbacks,
        max_epochs=incremental.max_stages * incremental.max_epochs_per_stage if incremental.enabled else config.epochs,
        # 1 or never: at other intervals Lightning counts wrongly after a resume
        reload_dataloaders_every_n_epochs=int(incremental.enabled),
        accumulate_grad_batches=1 if by_itself else config.grad_accum_steps,
        gradient_clip_val=None if by_itself else config.max_grad_norm or None,
        logger=logger_of(run, config),
    )


def demand_trainer(config: Stage1ProConfig) -> None:
    """Raise UserError for devices, a strategy or a precision that training would refuse."""
    lightning_trainer(config, Path(), [], logger=False, enable_checkpointing=False)


def scoring_trainer(config: Stage1ProConfig) -> pl.Trainer:
    """A trainer that validates on one device and writes nothing."""
    alone = replace(config, devices=1, num_nodes=1, strategy="auto")
    return lightning_trainer(alone, Path(), [], logger=False, enable_checkpointing=False)


def lightning_trainer(
    config: Stage1ProConfig, folder: Path, callbacks: Sequence[pl.Callback], **asked: Any
) -> pl.Trainer:
    """Lightning's trainer on the config's devices, with checkpoints that are whole at any moment.

    asked: further arguments of Trainer. Raises UserError for devices, a strategy or a precision that it refuses.
    """
    quiet_lightning()
    live = sys.stdout.isatty()
    try:
        return pl.Trainer(
            accelerator="auto",
            devices=config.devices,
            num_nodes=config.num_nodes,
            strategy=config.strategy,
            precision=PRECISION[config.precision],
            deterministic="warn" if config.deterministic else None,
            callbacks=[*callbacks, *([RichProgressBar()] if live else [])],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder,
            enable_progress_bar=live,
            enable_model_summary=False,
            num_sanity_val_steps=0,  # our callbacks take each validation for that of an epoch
            use_distributed_sampler=False,  # our samplers share out the cases themselves
            **asked,
        )
    except (ValueError, MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"devices, num_nodes, strategy or precision: {reason}") from None


def quiet_lightning() -> None:
    """Our own lines say what a user needs; Lightning's hints about other products do not."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*in eval mode at the start of training.*",  # a frozen backbone is meant to be
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # validation figures are computed from all ranks' cases already
        ".*AccumulateGrad node's stream.*",
        ".*persistent_workers=True.*reload_dataloaders_every_n_epochs.*",  # ours stay the same within a stage
    ):
        warnings.filterwarnings("ignore", message=message)
