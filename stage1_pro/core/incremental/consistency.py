"""What must hold within a state, whoever wrote it: the steps that the machine has made, retraced."""

from collections.abc import Iterator

from stage1_pro.core.incremental.machine import (
    DONE,
    FROM_OUTSIDE,
    INIT,
    SCORING,
    TRAINING,
    TRANSITION,
    Stage,
    State,
    before_stop,
)

STEPS_OF_A_STAGE = 3
STEPS_INTO = {TRAINING: 0, SCORING: 1, TRANSITION: 2}


def contradictions(state: State) -> Iterator[str]:
    """Say what in a state cannot be: each rule that is broken, with what was found.

    >>> from stage1_pro.core.incremental.machine import start
    >>> list(contradictions(start(["a", "b"])))
    []
    """
    if (state.stop is None) == (state.name == DONE):
        yield f"$.stop is {state.stop!r} in phase {state.name}: a run that is DONE has a reason, no other"
        return
    if state.name == INIT:
        yield f"$.phase is {INIT}: nothing is written before the first stage"
        return
    yield from _cases(state)
    yield from _course(state)
    yield from _revision(state)


def _cases(state: State) -> Iterator[str]:
    """Active cases: the initial ones and after them the picks."""
    if len(set(state.active)) < len(state.active):
        yield "$.active holds a case twice"
    picks = [pick.case_id for stage in state.stages if stage.scored for pick in stage.scored.picks]
    if list(state.active[len(state.active) - len(picks) :]) != picks:
        yield "$.active does not end with the picks of the stages, in their order"
    expected = len(state.active) - len(picks)
    for index, stage in enumerate(state.stages):
        if stage.active_cases != expected:
            yield f"$.stages[{index}].active_cases is {stage.active_cases}; by $.active and the picks it is {expected}"
        expected += len(stage.scored.picks) if stage.scored else 0


def _course(state: State) -> Iterator[str]:
    """Stages: one after the other, all ended and scored but the last."""
    epoch, last = 0, len(state.stages) - 1
    for index, stage in enumerate(state.stages):
        where = f"$.stages[{index}]"
        for name, expected in (("number", index + 1), ("first_epoch", epoch)):
            if getattr(stage, name) != expected:
                yield f"{where}.{name} is {getattr(stage, name)}; by the stages before it is {expected}"
        epoch = stage.first_epoch + stage.epochs
        yield from _figures(stage, where)
        if index < last and (stage.end is None or not stage.scored or not stage.scored.picks):
            yield f"{where} has no end or no picks, and a stage follows it"
    stage = state.stages[last]
    found = (stage.end is not None, stage.scored is not None)
    allowed = {TRAINING: (False, False), SCORING: (True, False), TRANSITION: (True, True)}
    if state.name in allowed and found != allowed[state.name]:
        words = f"end {stage.end!r} and {'a' if stage.scored else 'no'} scoring"
        yield f"$.stages[{last}] has {words}, which phase {state.name} cannot have"


def _figures(stage: Stage, where: str) -> Iterator[str]:
    if (stage.best_metric is None) != (stage.best_epoch is None):
        yield f"{where}: best_metric is {stage.best_metric} and best_epoch {stage.best_epoch}; both are set or neither"
    if stage.best_epoch is not None and not stage.first_epoch <= stage.best_epoch < stage.first_epoch + stage.epochs:
        yield f"{where}.best_epoch is {stage.best_epoch}, which is none of the stage's epochs"
    found = stage.scored
    if found and not len(found.picks) <= found.eligible <= found.candidates:
        counts = f"{len(found.picks)} picks, {found.eligible} eligible, {found.candidates} candidates"
        yield f"{where}.scored has {counts}; allowed no more of each than of the next"


def _revision(state: State) -> Iterator[str]:
    """Three steps a stage, and one into it."""
    steps = 1 + STEPS_OF_A_STAGE * (len(state.stages) - 1)
    if state.stop in FROM_OUTSIDE:
        steps += STEPS_INTO.get(before_stop(state).name, 0) + 1
    elif state.name == DONE:
        steps += 2 if state.stage.scored else 1
    else:
        steps += STEPS_INTO[state.name]
    if state.revision != steps:
        yield f"$.revision is {state.revision}; by phase and stages it is {steps}"
