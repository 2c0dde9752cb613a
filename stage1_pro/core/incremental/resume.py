"""Whether and how a training goes on: state.json is the authority, and the checkpoint must belong to it.

state.json is written first, the checkpoint after it, so a kill leaves the checkpoint at most one revision behind. Then
the machine repeats the step that state.json has seen, or takes it over; any other difference is refused.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError, raise_problems
from stage1_pro.core.incremental.machine import (
    DONE,
    FROM_OUTSIDE,
    SCORING,
    TRAINING,
    TRANSITION,
    State,
    before_stop,
    entered,
    scored,
)

STATE_FIELDS = {"name": "phase"}
"""Names in state.json, where they differ from the machine's."""


@dataclass(frozen=True, slots=True)
class Course:
    """How a training goes on. recorded: of state.json; state: that the machine begins with, None for the initial one.

    What the machine arrives at must be `recorded` once it reaches that revision.
    """

    recorded: State
    state: State | None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.recorded.name == DONE and self.recorded.stop not in FROM_OUTSIDE


def course_of(recorded: State, saved: State | None, folder: Path) -> Course:
    """Return how to go on from state.json and the checkpoint's copy of the state.

    saved: None where there is no checkpoint; folder: the run's. Raises UserError with both values where the two do not
    belong together.
    """
    before = before_stop(recorded)
    if saved is None:
        if before.name != DONE and before.stage.number > 1:
            raise UserError(
                f"{folder}/checkpoints/last.ckpt is gone, and by state.json the training is in stage "
                f"{before.stage.number}. Restore it, or begin a new run."
            )
        return Course(before, None)
    behind = before.revision - saved.revision
    if behind == 0:
        demand_same_state(_with_running_figures(before, saved), saved, folder)
        return Course(before, saved)
    if behind != 1 or (saved.name, before.name) not in STEPS:
        raise UserError(
            f"{folder}: $.revision of state.json is {before.revision} (phase {before.name}), and checkpoints/last.ckpt "
            f"belongs to revision {saved.revision} (phase {saved.name}); allowed the same or one more. "
            f"{_mend(folder)}"
        )
    return STEPS[saved.name, before.name](before, saved, folder)


def demand_same_state(found: State, expected: State, folder: Path) -> None:
    """Raise UserError with both values wherever state.json differs from what training has."""
    here, there = asdict(found), asdict(expected)
    different = [
        f"{path} is {_shown(left)} in state.json, and {_shown(right)} in training"
        for path, left, right in _differences(here, there, "$")
    ]
    raise_problems(f"{folder}: state.json does not belong to the checkpoint", different, _mend(folder))


def _repeated(recorded: State, saved: State, folder: Path) -> Course:
    """The last epoch of a stage is repeated; all before it must be the same."""
    running = replace(recorded, name=saved.name, stop=None, revision=saved.revision)
    demand_same_state(_with_running_figures(running, saved, whole=False), saved, folder)
    return Course(recorded, saved)


def _taken_over(recorded: State, saved: State, folder: Path) -> Course:
    """The picks are taken from state.json; nothing is scored again."""
    found = recorded.stage.scored
    if found is None:
        raise UserError(f"{folder}: state.json has no scoring in phase {recorded.name}. {_mend(folder)}")
    demand_same_state(recorded, scored(saved, found), folder)
    return Course(recorded, recorded)


def _entered(recorded: State, saved: State, folder: Path) -> Course:
    demand_same_state(recorded, entered(saved), folder)
    return Course(recorded, saved)


STEPS = {
    (TRAINING, SCORING): _repeated,
    (TRAINING, DONE): _repeated,
    (SCORING, TRANSITION): _taken_over,
    (SCORING, DONE): _taken_over,
    (TRANSITION, TRAINING): _entered,
}
"""(state of the checkpoint, state of state.json, one revision further) → how to go on."""


def _with_running_figures(recorded: State, saved: State, whole: bool = True) -> State:
    """state.json is not written in every epoch: what an epoch moves in a stage is the checkpoint's."""
    if saved.name != TRAINING or not recorded.stages:
        return recorded
    stage, running = recorded.stage, saved.stage
    moved = {name: getattr(running, name) for name in ("epochs", "best_metric", "best_epoch", "lr")}
    if whole and stage != replace(stage, epochs=0, best_metric=None, best_epoch=None, lr=None):
        return recorded  # an epoch's figures in a stage that has just begun were put there by hand
    more = {} if whole else {"end": running.end, "checkpoint": running.checkpoint}
    return replace(recorded, stages=(*recorded.stages[:-1], replace(stage, **moved, **more)))


def _differences(here: Any, there: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(here, dict) and isinstance(there, dict):
        for key in here:
            yield from _differences(here[key], there.get(key), f"{path}.{STATE_FIELDS.get(key, key)}")
    elif isinstance(here, tuple | list) and isinstance(there, tuple | list) and len(here) == len(there):
        for index, (left, right) in enumerate(zip(here, there, strict=True)):
            yield from _differences(left, right, f"{path}[{index}]")
    elif here != there:
        yield path, here, there


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} entries"
    return "set" if isinstance(value, dict) else repr(value)


def _mend(folder: Path) -> str:
    return f"Undo the edit. {artifacts.mend('state', folder / 'state.json')}"
