"""The whole machine on synthetic scores: every stage end, every run stop, and a resume from every state."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.incremental.machine import (
    DONE,
    RUN_STOPS,
    SCORING,
    STAGE_ENDS,
    STATES,
    TRAINING,
    TRANSITION,
    EpochEnd,
    Pick,
    Rules,
    Scored,
    State,
    Suspect,
    entered,
    epoch_ended,
    scored,
    start,
    stopped,
    walk,
)
from stage1_pro.core.incremental.state import Origin, from_json, to_json

POOL = [f"c{index:03d}" for index in range(60)]
ORIGIN = Origin("run", "0" * 64, "1" * 64, len(POOL), "3" * 64, 1, "val_augrc", "min")
PARAMS = IncrementalParams(enabled=True, initial_cases=8, add_cases=5, max_epochs_per_stage=4, max_stages=6)


def rules(**settings: object) -> Rules:
    return Rules(replace(PARAMS, **settings), "min", len(POOL))


class World:
    """Events as training would give them: early stopping after two epochs without a better metric."""

    def __init__(self, rules: Rules, metrics: list[float | None] | None = None, eligible: int = 99, floor_at: int = 99):
        self.rules, self.metrics, self.eligible, self.floor_at = rules, metrics or [0.5], eligible, floor_at

    def epoch(self, state: State) -> EpochEnd:
        done = state.stage.epochs
        metric = self.metrics[min(done, len(self.metrics) - 1)]
        seen = [self.metrics[min(epoch, len(self.metrics) - 1)] for epoch in range(done + 1)]
        judged = [value for value in seen if value is not None]
        idle = bool(judged) and done - seen.index(min(judged)) >= 2
        return EpochEnd(state.stage.first_epoch + done, metric, 1e-3, idle, done + 1 >= self.floor_at)

    def score(self, state: State) -> Scored:
        rest = [case for case in POOL if case not in state.active]
        able = rest[: self.eligible]
        picks = tuple(Pick(case, 0.5, 0.25, 1.0, 0.625) for case in able[: self.rules.room(len(state.active))])
        suspects = (Suspect(state.active[0], 0, 0.1),) if state.stage.number > 1 else ()
        return Scored(len(rest), len(able), ("c059",), 1.25, picks, suspects, ("c058",), (1, 2), (3, 0))

    def step(self, state: State) -> State:
        if state.name == TRAINING:
            return epoch_ended(state, self.epoch(state), self.rules)
        if state.name == SCORING:
            return scored(state, self.score(state))
        return entered(state)

    def course(self, state: State | None = None) -> Iterator[State]:
        """Every state up to the last, the first included."""
        state = start(POOL[:8]) if state is None else state
        yield state
        while state.name != DONE:
            state = self.step(state)
            yield state


def end_of(world: World) -> State:
    return list(world.course())[-1]


def test_a_course_goes_round_the_states_in_order() -> None:
    states = list(World(rules(max_stages=3)).course())
    seen = [state.name for state in states if state.name != TRAINING or state.stage.epochs == 0]
    assert seen == [TRAINING, SCORING, TRANSITION, TRAINING, SCORING, TRANSITION, TRAINING, DONE]
    assert {state.name for state in states} | {"INIT"} == set(STATES)
    assert [stage.active_cases for stage in states[-1].stages] == [8, 13, 18]
    assert [stage.first_epoch for stage in states[-1].stages] == [0, 3, 6]
    assert states[-1].active == tuple(POOL[:18])


def test_revisions_count_steps_and_nothing_else() -> None:
    states = list(World(rules()).course())
    for before, after in pairwise(states):
        assert after.revision - before.revision == (after.name != before.name)


@pytest.mark.parametrize(
    ("world", "end"),
    [
        (World(rules()), "plateau"),
        (World(rules(), metrics=[0.4, 0.3, 0.2, 0.1]), "max_epochs"),
        (World(rules(lr_floor_action="end_stage"), floor_at=2), "lr_floor"),
        (World(rules(max_epochs_per_stage=3)), "plateau"),  # both in one epoch
    ],
)
def test_stage_ends(world: World, end: str) -> None:
    state = end_of(world)
    assert [stage.end for stage in state.stages] == [end] * 6
    assert end in STAGE_ENDS
    assert state.stop == "max_stages"


@pytest.mark.parametrize(
    ("world", "stop", "stages"),
    [
        (World(rules(max_stages=2)), "max_stages", 2),
        (World(rules(add_cases=26, max_stages=99)), "pool_exhausted", 3),
        (World(rules(max_active=15)), "max_active", 3),
        (World(rules(), floor_at=2), "lr_floor", 1),
        (World(rules(), eligible=0), "no_eligible_cases", 1),
        (World(rules(), metrics=[0.5, float("nan")]), "nonfinite_metric", 1),
        (World(rules(), metrics=[float("inf")]), "nonfinite_metric", 1),
    ],
)
def test_run_stops(world: World, stop: str, stages: int) -> None:
    state = end_of(world)
    assert (state.stop, len(state.stages)) == (stop, stages)
    assert stop in RUN_STOPS


def test_a_pool_without_finite_cases_stops() -> None:
    world = World(rules())
    state = next(state for state in world.course() if state.name == SCORING)
    assert scored(state, Scored(0, 0, tuple(POOL[8:]), 0.0, ())).stop == "no_finite_candidates"


@pytest.mark.parametrize("reason", ["interrupted", "dry_run", "error"])
def test_what_stops_from_outside_can_stop_any_state(reason: str) -> None:
    for state in World(rules()).course():
        assert (stopped(state, reason).name, stopped(state, reason).stop) == (DONE, reason)
        assert stopped(state, reason).revision == state.revision + 1


def test_admission_never_exceeds_the_limits() -> None:
    for state in World(rules(max_active=15)).course():
        assert len(state.active) <= 15
    assert len(end_of(World(rules(max_active=15))).active) == 15


def test_min_epochs_hold_a_plateau_back() -> None:
    state = end_of(World(rules(min_epochs_per_stage=4)))
    assert [stage.epochs for stage in state.stages] == [4] * 6


@pytest.mark.parametrize(("mode", "best", "epoch"), [("min", 0.2, 3), ("max", 0.5, 2)])
def test_the_latest_of_equal_metrics_is_the_best(mode: str, best: float, epoch: int) -> None:
    state, told = start(POOL[:8]), Rules(PARAMS, mode, 60)
    for index, metric in enumerate([None, 0.5, best, 0.2]):
        state = epoch_ended(state, EpochEnd(index, metric, 1e-3), told)
    assert (state.stage.best_metric, state.stage.best_epoch) == (best, epoch)


@pytest.mark.parametrize("settings", [{}, {"max_active": 15}, {"add_cases": 26, "max_stages": 99}])
def test_resumed_from_every_state_it_ends_the_same(settings: dict) -> None:
    """Through JSON, as a kill leaves it."""
    world = World(rules(**settings))
    states = list(world.course())
    for state in states:
        stored = json.dumps(to_json(state, ORIGIN, world.rules.params, "now"))
        again = from_json(json.loads(stored))
        assert again == state
        assert list(world.course(again))[-1] == states[-1]


def test_an_event_in_the_wrong_state_is_our_bug() -> None:
    state = start(POOL[:8])
    with pytest.raises(ValueError, match="in TRAINING, not in SCORING"):
        scored(state, Scored(1, 0, (), 0.0, ()))
    with pytest.raises(ValueError, match="in TRAINING, not in TRANSITION"):
        entered(state)


def test_who_was_admitted_when() -> None:
    state = end_of(World(rules(max_stages=3)))
    after = state.admitted_after()
    assert list(after) == list(state.active)
    assert list(after.values()) == [0] * 8 + [1] * 5 + [2] * 5


def test_the_plan_is_the_longest_course() -> None:
    plan = walk(rules(max_stages=99), POOL[:8], POOL)
    assert (plan.stop, plan.active) == ("pool_exhausted", tuple(POOL))
    assert [stage.epochs for stage in plan.stages] == [4] * len(plan.stages)
    assert len(plan.stages) == 12  # 8, 13, … 58, 60
    assert walk(rules(max_stages=2), POOL[:8], POOL).stop == "max_stages"
