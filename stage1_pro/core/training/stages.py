"""Training by stages: its callbacks, what they must know about the pool, and whom a trained model would admit."""

import hashlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.load import to_dict
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import say
from stage1_pro.core.data.cases import rows_digest
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.errors import UserError
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.machine import DONE, Rules, start
from stage1_pro.core.incremental.plan import admission_lines
from stage1_pro.core.incremental.resume import Course, course_of
from stage1_pro.core.incremental.scoring import judge
from stage1_pro.core.incremental.state import (
    POOL,
    STAGES,
    STATE,
    Origin,
    demand_same_origin,
    from_json,
    pool_table,
    read_state,
    write_state,
    write_tables,
)
from stage1_pro.core.models.stage1 import read_tensors
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.checkpoints import StageCheckpoint, checkpoint, patience
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage
from stage1_pro.core.training.callbacks.epochs import EpochTable
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.callbacks.stage_controller import (
    LAST,
    Helpers,
    IncrementalStageController,
    LRFloorStop,
    StageLine,
)
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.start import is_first_process


def stage_callbacks(
    run: Run, config: Stage1ProConfig, average: ExponentialMovingAverage | None, table: EpochTable
) -> list[pl.Callback]:
    """The callbacks of an incremental training: the controller after those that it listens to, and after the table of
    epochs, whose last row the checkpoint of a stage's end must hold."""
    params, folder = config.incremental_params, run.checkpoints_path
    helpers = Helpers(
        patience=patience(config, params.early_stopping_patience, params.early_stopping_min_delta),
        floor=LRFloorStop(params.min_lr_to_continue),
        stage_best=checkpoint(StageCheckpoint, folder, "stage", at_epoch_end=False, judged_by=config),
        average=average,
    )
    controller = IncrementalStageController(run.path, config, helpers)
    return [helpers.patience, helpers.floor, table, controller, StageLine(controller), helpers.stage_best]


def course_of_run(run: Run, config: Stage1ProConfig, data: Stage1DataModule, restore: bool) -> Course | None:
    """How the stages of a run go on; None for a new run. What follows from state.json is written again.

    restore: state.json is first put back from the checkpoint's copy. Raises UserError where the run's files do not
    belong together, or to this config and these cases.
    """
    origin, params, folder = _origin(run, config, data), config.incremental_params, run.path
    last, writes = folder / LAST, is_first_process()
    copy = _copy_of(last) if last.exists() else None
    if copy is not None:
        demand_same_origin(copy, last, origin, params)
    saved = None if copy is None else from_json(copy)
    if restore:
        if saved is None:
            raise UserError(f"--restore_state: {last} is gone, and with it the copy of the state. Begin a new run.")
        recorded = saved
        if writes:
            write_state(folder, saved, origin, params, utc_now())
    elif saved is None and not (folder / STATE).exists():
        if (folder / STAGES).exists():
            raise UserError(
                f"{folder}: state.json and checkpoints/last.ckpt are gone. Restore them, or begin a new run."
            )
        recorded = None
    else:
        recorded = read_state(folder)
        edited = artifacts.mend("state", folder / STATE)  # the checkpoint's copy is of this config and these cases
        found = artifacts.read_json(folder / STATE, "state")
        demand_same_origin(found, folder / STATE, origin, params, *([edited] if saved is not None else []))
    if writes:
        artifacts.write_bytes(folder / POOL, _pool_file(data))
    if recorded is None:
        return None
    course = course_of(recorded, saved, folder)
    _demand_weights(run, course)
    if writes:
        write_tables(folder, recorded)
    return course


def _copy_of(last: Path) -> dict[str, Any]:
    """The state that a checkpoint belongs to, with its origin."""
    callbacks = read_tensors(last)["callbacks"]
    return callbacks[IncrementalStageController.__name__]["state"]


def _demand_weights(run: Run, course: Course) -> None:
    """Raise UserError where weights are gone that state.json names, and say where a training begins anew."""
    needed = []
    if any(stage.best_epoch is not None for stage in course.recorded.stages):
        needed.append("best.ckpt")
    state = course.state
    if state is not None and state.name != DONE and state.stage.best_epoch is not None:
        needed.append(f"stage-{state.stage.number:02d}.ckpt")
    gone = [name for name in needed if not (run.checkpoints_path / name).exists()]
    if course.state is None and not course.finished:
        say("no checkpoint is there: stage 1 begins anew")
    elif gone:
        raise UserError(f"{run.checkpoints_path}: {', '.join(gone)} is gone. Restore it, or begin a new run.")


def _origin(run: Run, config: Stage1ProConfig, data: Stage1DataModule) -> Origin:
    frame = data.frames["train"]
    return Origin(
        run_id=run.name,
        config_digest=artifacts.digest_json(_settings(run, config)),
        pool_digest=rows_digest(frame),
        pool_cases=len(frame),
        pool_file_digest=hashlib.sha256(_pool_file(data)).hexdigest(),
        seed=config.seed,
        monitor=config.monitor,
        mode=config.monitor_mode,
    )


def _settings(run: Run, config: Stage1ProConfig) -> dict[str, Any]:
    """The config as it was recorded: settings that have come since are not part of the digest."""
    return artifacts.read_json(run.config_path, "config") if run.config_path.exists() else to_dict(config)


def _pool_file(data: Stage1DataModule) -> bytes:
    return pool_table(data.frames["train"]["case_id"])


def prepare_stages(
    trainer: pl.Trainer, run: Run, config: Stage1ProConfig, data: Stage1DataModule, course: Course | None
) -> None:
    """Tell the controller about the pool, and how training goes on."""
    callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    controller = next(one for one in callbacks if isinstance(one, IncrementalStageController))
    controller.of_pool(_origin(run, config, data), data, course)


def print_first_admission(
    config: Stage1ProConfig, module: Stage1Module, data: Stage1DataModule, trainer: pl.Trainer
) -> None:
    """Whom a trained model would admit to the initial cases, after one scoring of the training split."""
    metrics = score_pool(trainer, module, data)
    assert metrics is not None
    params = config.incremental_params
    initial = metrics.case_id[initial_cases(data.labels("train"), metrics.content, data.classes, params, config.seed)]
    rules = Rules(params, config.monitor_mode, len(np.unique(metrics.content)))
    for line in admission_lines(judge(metrics, start(initial.tolist()), rules, config.seed, "cpu")):
        say(line)
