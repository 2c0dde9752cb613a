"""The machine of the stages: INIT → TRAINING → SCORING → TRANSITION → TRAINING … → DONE.

Frozen states and pure functions from one to the next; what happens in the world arrives as events. Nothing is read
from a clock, a file or a generator of random numbers, so equal events give equal states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from stage1_pro.core.config.sections import IncrementalParams

INIT, TRAINING, SCORING, TRANSITION, DONE = STATES = ("INIT", "TRAINING", "SCORING", "TRANSITION", "DONE")
"""Names of the machine's states; files call them `phase`, a word that elsewhere means the phases 1 to 6."""
STAGE_ENDS = ("plateau", "max_epochs", "lr_floor")
"""Why a stage ends; of several in one epoch the first of this list is recorded."""
RUN_STOPS = (
    "pool_exhausted",
    "no_eligible_cases",
    "max_stages",
    "max_active",
    "lr_floor",
    "nonfinite_metric",
    "no_finite_candidates",
    "interrupted",
    "dry_run",
    "error",
)


FROM_OUTSIDE = ("interrupted", "error")
"""Run stops that are no decision: what they stopped can go on."""


@dataclass(frozen=True, slots=True)
class Pick:
    """An admitted case with its components at the time of the pick."""

    case_id: str
    difficulty: float
    uncertainty: float
    diversity: float
    acq: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """A case whose label may be wrong: in training for two stages or more and still failing, or kept out by
    max_difficulty at two scorings in a row.

    admitted_after: the stage after which it was admitted, 0 for the initial cases, None for one that is kept out;
    dice: p(true class) at the latest scoring.
    """

    case_id: str
    admitted_after: int | None
    dice: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What one scoring of the pool found. kept_out: cases above max_difficulty; histograms: of the candidates, counts
    in equal bins from 0 to 1."""

    candidates: int
    eligible: int
    nonfinite: tuple[str, ...]
    scale: float
    picks: tuple[Pick, ...]
    suspects: tuple[Suspect, ...] = ()
    kept_out: tuple[str, ...] = ()
    difficulty_histogram: tuple[int, ...] = ()
    uncertainty_histogram: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. first_epoch counts over the whole run; best_epoch too, and it is the latest of equals."""

    number: int
    first_epoch: int
    active_cases: int
    epochs: int = 0
    best_metric: float | None = None
    best_epoch: int | None = None
    lr: float | None = None
    end: str | None = None
    checkpoint: str | None = None
    scored: Scored | None = None


@dataclass(frozen=True, slots=True)
class State:
    """Where the machine is.

    name: one of STATES; active: case ids in the order of their admission; revision: steps so far.
    """

    name: str = INIT
    active: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    stop: str | None = None
    revision: int = 0

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.stages[-1]

    def admitted_after(self) -> dict[str, int]:
        """Case id → stage after which it was admitted, 0 for the initial cases."""
        initial = self.active[: self.stages[0].active_cases] if self.stages else self.active
        picked = {pick.case_id: s.number for s in self.stages if s.scored for pick in s.scored.picks}
        return {**dict.fromkeys(initial, 0), **picked}


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """A validated epoch. metric: the monitor, None where it is not judged yet, NaN where it is broken; lr: the largest
    rate of all groups; plateau, floor: what early stopping and the learning-rate floor say."""

    epoch: int
    metric: float | None
    lr: float
    plateau: bool = False
    floor: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What does not change in a run. mode: min or max, which way the monitor is better; pool_cases: distinct images of
    the training split."""

    params: IncrementalParams
    mode: str
    pool_cases: int

    def as_good(self, metric: float, best: float | None) -> bool:
        """Whether an epoch takes the best one's place: the later of equals does, as in the checkpoint."""
        if best is None:
            return True
        return metric >= best if self.mode == "max" else metric <= best

    def room(self, active: int) -> int:
        """Return how many cases may be admitted next."""
        limit = self.pool_cases if self.params.max_active is None else self.params.max_active
        return max(0, min(self.params.add_cases, limit - active))


def start(initial: Sequence[str], epoch: int = 0) -> State:
    """INIT → TRAINING with the initial cases."""
    state = State(active=tuple(initial))
    return _step(state, TRAINING, stages=(Stage(1, epoch, len(state.active)),))


def epoch_ended(state: State, event: EpochEnd, rules: Rules) -> State:
    """TRAINING → TRAINING | SCORING | DONE. Only the last two are steps."""
    _demand(state, TRAINING)
    stage = replace(state.stage, epochs=state.stage.epochs + 1, lr=event.lr)
    broken = event.metric is not None and event.metric - event.metric != 0  # NaN or infinite
    if event.metric is not None and not broken and rules.as_good(event.metric, stage.best_metric):
        stage = replace(stage, best_metric=event.metric, best_epoch=event.epoch)
    params = rules.params
    found = {
        "plateau": event.plateau and stage.epochs >= params.min_epochs_per_stage,
        "max_epochs": stage.epochs >= params.max_epochs_per_stage,  # where a cosine ends at 0, which is no floor
        "lr_floor": event.floor,
    }
    end = next((name for name in STAGE_ENDS if found[name]), None)
    going = replace(state, stages=(*state.stages[:-1], replace(stage, end=end)))
    if broken:
        return stopped(going, "nonfinite_metric")
    if end is None:
        return going
    reason = next((reason for reason, holds in AFTER_STAGE.items() if holds(going, rules)), None)
    return stopped(going, reason) if reason else _step(going, SCORING)


AFTER_STAGE: dict[str, Callable[[State, Rules], bool]] = {
    # before the others: the user asked for this stop, the others would come anyway
    "lr_floor": lambda state, rules: state.stage.end == "lr_floor" and rules.params.lr_floor_action == "stop_run",
    "max_stages": lambda state, rules: state.stage.number >= rules.params.max_stages,
    "pool_exhausted": lambda state, rules: len(state.active) >= rules.pool_cases,
    "max_active": lambda state, rules: rules.room(len(state.active)) == 0,
}
"""Run stops that are known when a stage ends, in the order in which they are asked."""


def scored(state: State, found: Scored) -> State:
    """SCORING → TRANSITION with the picks, or DONE without any."""
    _demand(state, SCORING)
    state = replace(state, stages=(*state.stages[:-1], replace(state.stage, scored=found)))
    if not found.candidates:
        return stopped(state, "no_finite_candidates")
    if not found.picks:
        return stopped(state, "no_eligible_cases")
    return _step(state, TRANSITION, active=(*state.active, *(pick.case_id for pick in found.picks)))


def entered(state: State) -> State:
    """TRANSITION → TRAINING: the next stage begins with the epoch after the last one's."""
    _demand(state, TRANSITION)
    last = state.stage
    stage = Stage(last.number + 1, last.first_epoch + last.epochs, len(state.active))
    return _step(state, TRAINING, stages=(*state.stages, stage))


def checkpointed(state: State, file: str) -> State:
    """Name the file of the current stage's best weights; no step."""
    return replace(state, stages=(*state.stages[:-1], replace(state.stage, checkpoint=file)))


def stopped(state: State, reason: str) -> State:
    """Any state → DONE."""
    assert reason in RUN_STOPS
    return _step(state, DONE, stop=reason)


def before_stop(state: State) -> State:
    """Undo `stopped` where it came from outside: the state that training goes on from.

    >>> state = start(["a", "b"])
    >>> before_stop(stopped(state, "interrupted")) == state
    True
    """
    if state.stop not in FROM_OUTSIDE:
        return state
    stage = state.stage
    name = TRANSITION if stage.scored else SCORING if stage.end else TRAINING
    return replace(state, name=name, stop=None, revision=state.revision - 1)


def walk(rules: Rules, initial: Sequence[str], pool: Sequence[str]) -> State:
    """The longest course that the rules allow: no plateau, and whatever is left is eligible. pool: distinct cases."""
    state, rest = start(initial), [case for case in pool if case not in set(initial)]
    while state.name != DONE:
        epochs = rules.params.max_epochs_per_stage
        last = replace(state.stage, epochs=epochs - 1)
        state = replace(state, stages=(*state.stages[:-1], last))
        state = epoch_ended(state, EpochEnd(last.first_epoch + epochs - 1, None, 0.0), rules)
        if state.name == SCORING:
            room = rules.room(len(state.active))
            taken, left = rest[:room], len(rest)
            rest = rest[room:]
            picks = tuple(Pick(case, 0.0, 0.0, 0.0, 0.0) for case in taken)
            state = scored(state, Scored(left, left, (), 0.0, picks))
        if state.name == TRANSITION:
            state = entered(state)
    return state


def _step(state: State, name: str, **changes: object) -> State:
    return replace(state, name=name, revision=state.revision + 1, **changes)  # pyright: ignore[reportArgumentType]


def _demand(state: State, name: str) -> None:
    if state.name != name:
        raise ValueError(f"the machine is in {state.name}, not in {name}")
