"""What rules between settings look at: a config with what follows from it, and what one rule is."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stage1_pro.core.config.phases import OPTIMIZERS, PHASES, POLICY_TABLE, OptimizerRow, PolicyRow
from stage1_pro.core.config.sections import DatasetParams, IncrementalParams, SegmentationParams
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.config.tasks import Task

OF_MASKS = ("ignore_label", "target_spacing", "intensity", "patch_size", "patches_per_case", "foreground_share")
"""Settings of dataset_params that only masks have."""


@dataclass(frozen=True)
class Facts:
    """What the rules look at: a config and what is derived from it, under the names that their messages use."""

    c: Stage1ProConfig
    trains: bool
    data: DatasetParams
    stages: IncrementalParams
    policy: PolicyRow
    policies: tuple[str, ...]
    """Those that the phase supports; none where there is no such phase."""
    gated: bool
    optimizer: OptimizerRow
    sharp: bool
    """Whether the optimizer takes two passes a step, in a phase that has it."""
    changed: list[str]
    """Settings that differ from their defaults."""
    idle: list[str]
    """Settings of incremental training that differ from their defaults although it is not enabled."""
    restarts: str
    """Epochs after which the schedule begins anew."""
    limit: str
    """The setting that `schedule_epochs` comes from."""
    held_out: float
    """Share of the cases that is not for training."""
    least_dice: float
    """Of a case that incremental training may admit."""
    names: tuple[str, ...]
    """Of the classes, where they are given."""
    classes: int
    positives: tuple[str, ...]
    """Labels that must not be missed, where they are given."""
    task: Task
    masks: bool
    """Whether the task has masks."""
    phases: tuple[int, ...]
    """Those of the task."""
    columns: tuple[str, ...]
    """Values of checkpoint_by that the task has."""
    unused: list[str]
    """Settings of masks that differ from their defaults although the task has none."""

    @classmethod
    def of(cls, c: Stage1ProConfig, trains: bool) -> "Facts":
        data, stages = c.dataset_params, c.incremental_params
        phase, optimizer = PHASES.get(c.phase), OPTIMIZERS[c.optimizer]
        return cls(
            c=c,
            trains=trains,
            data=data,
            stages=stages,
            policy=POLICY_TABLE[c.exit_policy],
            policies=phase.policies if phase else (),
            gated=phase is not None and phase.gated,
            optimizer=optimizer,
            sharp=optimizer.sharp and c.phase >= optimizer.first_phase,
            changed=_changed(c, Stage1ProConfig()),
            idle=[] if stages.enabled else _changed(stages, IncrementalParams()),
            restarts=", ".join(map(str, c.schedule_restarts)),
            limit=_limit(c),
            held_out=data.val_select_ratio + data.val_calib_ratio + data.val_test_ratio,
            least_dice=1 - stages.max_difficulty,
            names=data.class_names or (),
            classes=len(data.class_names or ()),
            positives=data.positives,
            task=c.task,
            masks=c.task.has_masks,
            phases=c.task.phases,
            columns=("auto", *c.task.columns),
            unused=_unused(c),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: when the rule is broken, and the message, which names the setting, its value and the remedy."""

    broken: Callable[[Facts], Any]
    message: str
    """A format string of the names in Facts."""


def _changed(found: Any, defaults: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(found)]
    return [name for name in names if getattr(found, name) != getattr(defaults, name)]


def _limit(c: Stage1ProConfig) -> str:
    if c.incremental_params.enabled:
        return "incremental_params.max_epochs_per_stage"
    return "the first of schedule_restarts" if c.schedule_restarts else "epochs"


def _unused(c: Stage1ProConfig) -> list[str]:
    if c.task.has_masks:
        return []
    data = [f"dataset_params.{name}" for name in _changed(c.dataset_params, DatasetParams()) if name in OF_MASKS]
    own = _changed(c.segmentation_params, SegmentationParams())
    return data + [f"segmentation_params.{name}" for name in own]
