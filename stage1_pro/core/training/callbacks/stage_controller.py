"""Lightning's side of an incremental training: events in, the machine's decisions out.

Order within an epoch: validation; EarlyStopping and LRFloorStop say what they see; the controller hands it to the
machine and takes `should_stop` back; the best checkpoints are saved; at the end of the epoch a stage that has ended is
scored and the next one begins. Each state is written to state.json first and to last.ckpt after it, so the checkpoint
is at most one revision behind, and training goes on from any of them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.errors import Interrupted, UserError, counted
from stage1_pro.core.incremental import machine
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.machine import before_stop
from stage1_pro.core.incremental.resume import Course, demand_same_state
from stage1_pro.core.incremental.scoring import judge, positions_of
from stage1_pro.core.incremental.state import Origin, from_json, plain, write_state
from stage1_pro.core.optim.fsam import forget
from stage1_pro.core.records.provenance import utc_now
from stage1_pro.core.training.callbacks.checkpoints import Patience, StageCheckpoint
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage, assign, snapshot
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.callbacks.stage_weights import (
    Weights,
    scoring_weights,
    start_over,
    untrained_weights,
)
from stage1_pro.core.training.modules.base import Clock, Stage1Module

LAST = Path("checkpoints") / "last.ckpt"


class LRFloorStop(pl.Callback):
    """Says when learning has become too slow: after warm-up, the largest rate of all groups is below `floor`."""

    def __init__(self, floor: float):
        self.floor = floor
        self.reached = False
        self.rate = 0.0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage1Module)
        self.rate = max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups)
        warm = pl_module.clock.epochs(trainer.global_step) < pl_module.config.warmup_epochs
        self.reached = not warm and self.rate < self.floor


@dataclass(frozen=True, slots=True)
class Helpers:
    """The callbacks that the controller listens to and sets back."""

    patience: Patience
    floor: LRFloorStop
    stage_best: StageCheckpoint
    average: ExponentialMovingAverage | None


class IncrementalStageController(pl.Callback):
    """Carries the machine through a training, and carries its decisions out."""

    rules: machine.Rules
    origin: Origin
    course: Course | None = None

    def __init__(self, folder: Path, config: Stage1ProConfig, helpers: Helpers):
        self.folder, self.config, self.helpers = folder, config, helpers
        self.state = machine.State()
        self.clock = Clock(0, 1)
        self.fresh = True
        self.told = ""
        self.written: machine.State | None = None
        self._untrained: Weights = {}

    def of_pool(self, origin: Origin, data: Stage1DataModule, course: Course | None) -> None:
        """Take up the pool, and how training goes on, None for a new one."""
        self.course = course
        distinct = data.frames["train"]["content"].nunique()
        self.origin, self.rules = origin, machine.Rules(self.config.incremental_params, origin.mode, distinct)

    # ---- Lightning's hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before a checkpoint is restored: the weights that `scratch` goes back to."""
        self._untrained = untrained_weights(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, data = _parts(trainer, pl_module)
        if self.course is not None and self.course.state is not None:
            self.state = self.course.state  # the checkpoint's copy may be one step behind
        if self.state.name == machine.INIT:
            self.state = machine.start(self._initial_cases(data))
            self._open_stage(trainer, module, data)
            self._write(trainer)
        else:
            self.written = before_stop(self.state if self.course is None else self.course.recorded)
            self._activate(data)
            self._tell(module, data)
            self.helpers.stage_best.name(self.state.stage.number)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish a stage's end that training was stopped in."""
        if self.state.name not in (machine.SCORING, machine.TRANSITION):
            return
        module, data = _parts(trainer, pl_module)
        number = self.state.stage.number
        self._end_stage(trainer, module, data)
        if self.state.name == machine.DONE:
            self._save(trainer)  # no epoch follows whose end would
        trainer.should_stop = self.state.name == machine.DONE
        trainer.print(self._words(number))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stage = self.state.stage
        figures = {"stage": float(stage.number), "active_cases": float(stage.active_cases)}
        pl_module.log_dict(figures, on_epoch=True, rank_zero_only=True)
        if trainer.current_epoch == self.state.stage.first_epoch:
            trainer.callback_metrics.pop(self.origin.monitor, None)  # the last stage's: a warm-up logs none

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metric = trainer.callback_metrics.get(self.origin.monitor)
        event = machine.EpochEnd(
            epoch=trainer.current_epoch,
            metric=None if metric is None else float(metric),
            lr=self.helpers.floor.rate,
            plateau=trainer.should_stop,
            floor=self.helpers.floor.reached,
        )
        # early stopping means the run; here a stage ends, and whether the run does is for the machine to say
        trainer.should_stop = False
        self.state = machine.epoch_ended(self.state, event, self.rules)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, data = _parts(trainer, pl_module)
        stage = self.state.stage
        if self.state.name == machine.TRAINING:
            return
        if self.helpers.stage_best.path.exists() and stage.best_epoch is not None:
            self.state = machine.checkpointed(self.state, self.helpers.stage_best.path.name)
        self._write(trainer)
        if self.state.name == machine.SCORING:
            self._save(trainer)
            self._end_stage(trainer, module, data)
        trainer.should_stop = self.state.name == machine.DONE
        self.told = self._words(stage.number)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say in state.json that training did not end; it goes on from last.ckpt."""
        # of what was written, not of what was decided since: the checkpoint must stay within one revision of it
        if self.written is not None and self.written.name != machine.DONE and trainer.is_global_zero:
            from_outside = isinstance(exception, Interrupted | KeyboardInterrupt)
            stopped = machine.stopped(self.written, "interrupted" if from_outside else "error")
            write_state(self.folder, stopped, self.origin, self.rules.params, utc_now())

    def state_dict(self) -> dict[str, Any]:
        copy = {**asdict(self.origin), **plain(self.state, self.rules.params)}
        return {"state": copy, "clock": asdict(self.clock), "fresh": self.fresh}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state, self.fresh = from_json(state_dict["state"]), state_dict["fresh"]
        self.clock = Clock(**state_dict["clock"])

    # ---- a stage's end, and the next one's start

    def _end_stage(self, trainer: pl.Trainer, module: Stage1Module, data: Stage1DataModule) -> None:
        """SCORING → TRANSITION → TRAINING, or DONE where no case is admitted."""
        last, scoring = snapshot(module), self._scoring_weights(module)
        if self.state.name == machine.SCORING:
            assign(module, scoring)
            self.state = machine.scored(self.state, self._scored(trainer, module, data))
            assign(module, last)  # the checkpoint to come holds what training left, as that of any epoch does
            self._write(trainer)
            if self.state.name == machine.DONE:
                return
        # also where a kill came between this state and its checkpoint: after the next write it would be two behind
        self._save(trainer)
        self.state = machine.entered(self.state)
        self._start_from(module, {"best": scoring, "last": last, "scratch": self._untrained})
        self._open_stage(trainer, module, data)
        self._write(trainer)

    def _start_from(self, module: Stage1Module, weights: dict[str, Weights]) -> None:
        """Give the new stage its first weights. weights: by the values of `stage_init`."""
        choice, average = self.rules.params.stage_init, self.helpers.average
        self.fresh = choice == "scratch"
        if self.fresh:
            start_over(module, weights[choice])
        else:
            assign(module, weights[choice])
        if average is not None and choice != "last":  # else it would pull the new weights back to the old ones
            average.restart(module)

    def _open_stage(self, trainer: pl.Trainer, module: Stage1Module, data: Stage1DataModule) -> None:
        """Start all that starts anew with a stage: cases, schedule, moments, patience, best checkpoint."""
        self._activate(data)
        self._restart_clock(trainer, data)
        self._tell(module, data)
        # moments of other cases, at the end of a cosine, say little of these
        if self.rules.params.stage_lr == "reset":
            for optimizer in trainer.optimizers:
                forget(optimizer)
        self._set_rates(trainer, module)
        self.helpers.patience.restart()
        self.helpers.stage_best.open(self.state.stage.number)

    def _activate(self, data: Stage1DataModule) -> None:
        """Have the state's active cases trained on."""
        data.activate(positions_of(data.frames["train"]["case_id"].to_numpy(), self.state.active))

    def _restart_clock(self, trainer: pl.Trainer, data: Stage1DataModule) -> None:
        """Count this stage's steps, which are as many as its active cases make; `keep` goes on with the last rates."""
        keeps = self.rules.params.stage_lr == "keep"
        before = self.clock.epochs(trainer.global_step) if keeps else 0.0
        self.clock = Clock(trainer.global_step, data.steps_per_epoch(), before)

    def _tell(self, module: Stage1Module, data: Stage1DataModule) -> None:
        """Tell the module of the state's stage and of its cases."""
        module.start_stage(self.state.stage.first_epoch, self.fresh, self.clock)
        module.train_on(data.active, data.class_counts)

    def _initial_cases(self, data: Stage1DataModule) -> tuple[str, ...]:
        frame, labels = data.frames["train"], data.labels("train")
        params, content = self.rules.params, frame["content"].to_numpy()
        chosen = initial_cases(labels, content, data.classes, params, self.config.seed)
        return tuple(frame["case_id"].to_numpy()[chosen])

    def _set_rates(self, trainer: pl.Trainer, module: Stage1Module) -> None:
        # a scheduler sets rates after a step: a stage's first step would be made at the last rate of the one before
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            for group, peak in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = peak * module.rate(trainer.global_step)

    def _scoring_weights(self, module: Stage1Module) -> Weights:
        """The stage's best, or its last where the next stage goes on from those: what scores is what goes on."""
        best = self.helpers.stage_best.path
        goes_on = self.rules.params.stage_init == "last" or self.state.stage.checkpoint is None
        return scoring_weights(module, None if goes_on else best, self.helpers.average)

    def _scored(self, trainer: pl.Trainer, module: Stage1Module, data: Stage1DataModule) -> machine.Scored:
        """Decided by the first rank, from all ranks' cases, for all ranks."""
        metrics = score_pool(trainer, module, data)
        device = trainer.strategy.root_device.type
        found: machine.Scored | UserError | None = None
        if metrics is not None:
            on = device if device == "cuda" else "cpu"  # others have no float64
            try:
                found = judge(metrics, self.state, self.rules, module.config.seed, on)
            except UserError as error:  # which every rank must hear of, or the others wait for ever
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, UserError):
            raise found
        assert found is not None
        return found

    def _write(self, trainer: pl.Trainer) -> None:
        """Write state.json. Raises UserError where it has seen this revision already, and differs."""
        if self.course is not None and self.course.recorded.revision == self.state.revision:
            demand_same_state(self.course.recorded, self.state, self.folder)
        self.written = self.state
        if trainer.is_global_zero:
            write_state(self.folder, self.state, self.origin, self.rules.params, utc_now())

    def _save(self, trainer: pl.Trainer) -> None:
        """Bring last.ckpt to the state just written. Called by every rank."""
        trainer.save_checkpoint(self.folder / LAST)

    def _words(self, number: int) -> str:
        """Say what became of the stage of this number, in a line."""
        stage = self.state.stages[number - 1]
        best = "" if stage.best_metric is None else f", best {self.origin.monitor} {stage.best_metric:.5f}"
        words = f"  stage {number} ended: {stage.end or 'broken off'}; {counted(stage.epochs, 'epoch')}{best}"
        if stage.scored:
            words += (
                f"; {len(stage.scored.picks)} of {stage.scored.eligible} eligible cases admitted, "
                f"{len(self.state.active)} in training"
            )
        return f"{words}\n  training stopped: {self.state.stop}" if self.state.stop else words


class StageLine(pl.Callback):
    """Prints what became of a stage, after the line of its last epoch."""

    def __init__(self, controller: IncrementalStageController):
        self.controller = controller

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.controller.told:
            trainer.print(self.controller.told)
            self.controller.told = ""


def _parts(trainer: pl.Trainer, module: pl.LightningModule) -> tuple[Stage1Module, Stage1DataModule]:
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(module, Stage1Module)
    assert isinstance(data, Stage1DataModule)
    return module, data
