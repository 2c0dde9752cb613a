"""Training by stages: its callbacks, what they must know about the pool, and whom a trained model would admit."""

import lightning.pytorch as pl
import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import to_dict
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.data.cases import rows_digest
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.machine import Rules, start
from stage1_pro.core.incremental.plan import admission_lines
from stage1_pro.core.incremental.scoring import judge
from stage1_pro.core.incremental.state import Origin, demand_same_origin
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.checkpoints import StageCheckpoint, checkpoint, patience
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage
from stage1_pro.core.training.callbacks.epochs import EpochTable
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.callbacks.stage_controller import (
    Helpers,
    IncrementalStageController,
    LRFloorStop,
    StageLine,
)
from stage1_pro.core.training.modules.base import Stage1Module


def stage_callbacks(
    run: Run, config: Stage1ProConfig, average: ExponentialMovingAverage | None, table: EpochTable
) -> list[pl.Callback]:
    """The callbacks of an incremental training: the controller after those that it listens to, and the table of epochs
    between it and its words."""
    params, folder = config.incremental_params, run.checkpoints_path
    helpers = Helpers(
        patience=patience(config, params.early_stopping_patience, params.early_stopping_min_delta),
        floor=LRFloorStop(params.min_lr_to_continue),
        stage_best=checkpoint(StageCheckpoint, folder, "stage", at_epoch_end=False, judged_by=config),
        average=average,
    )
    controller = IncrementalStageController(run.path, config, helpers)
    return [helpers.patience, helpers.floor, controller, table, StageLine(controller), helpers.stage_best]


def demand_same_pool(run: Run, config: Stage1ProConfig, data: Stage1DataModule) -> None:
    """Raise UserError where the run has a state.json that belongs to another config or pool."""
    demand_same_origin(run.path, _origin(run, config, data))


def _origin(run: Run, config: Stage1ProConfig, data: Stage1DataModule) -> Origin:
    frame = data.frames["train"]
    return Origin(
        run_id=run.name,
        config_digest=artifacts.digest_json(to_dict(config)),
        pool_digest=rows_digest(frame),
        pool_cases=len(frame),
        seed=config.seed,
        monitor=config.monitor,
        mode=config.monitor_mode,
    )


def prepare_stages(trainer: pl.Trainer, run: Run, config: Stage1ProConfig, data: Stage1DataModule) -> None:
    """Tell the controller about the pool."""
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    controller = next(one for one in callbacks if isinstance(one, IncrementalStageController))
    controller.of_pool(_origin(run, config, data), data)


def print_first_admission(config: Stage1ProConfig, module: Stage1Module, data: Stage1DataModule) -> None:
    """Whom a trained model would admit to the initial cases, after one scoring of the training split."""
    device = fastest_device()
    metrics = score_pool(module.to(device), data, lambda batch: Batch(*(part.to(device) for part in batch)))
    assert metrics is not None
    params = config.incremental_params
    initial = metrics.case_id[initial_cases(data.labels("train"), metrics.content, data.classes, params, config.seed)]
    rules = Rules(params, config.monitor_mode, len(np.unique(metrics.content)))
    for line in admission_lines(judge(metrics, start(initial.tolist()), rules, config.seed, "cpu")):
        say(line)
