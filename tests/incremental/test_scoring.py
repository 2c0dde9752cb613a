"""What a scoring means: picks within the room, suspects, and cases that are not finite."""

from dataclasses import replace

import numpy as np
import pytest

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.errors import UserError
from stage1_pro.core.incremental.acquisition import CaseMetrics
from stage1_pro.core.incremental.machine import Pick, Rules, Scored, Stage, State, Suspect, scored
from stage1_pro.core.incremental.scoring import judge

CASES = 30
PARAMS = IncrementalParams(enabled=True, initial_cases=4, add_cases=2, selection_threshold=0.7)
RULES = Rules(PARAMS, "min", CASES)
KEPT_OUT = ("c06", "c20", "c21")
NAMES = [f"c{index:02d}" for index in range(CASES)]


def metrics(**dice: float) -> CaseMetrics:
    """Everything is easy but what is named."""
    rng = np.random.default_rng(0)
    values = np.full(CASES, 0.9)
    for name, value in dice.items():
        values[NAMES.index(name)] = value
    ids = np.array(NAMES, dtype=object)
    return CaseMetrics(ids, ids, values, rng.random(CASES), rng.normal(size=(CASES, 3)).astype(np.float32))


def after_stages(count: int) -> State:
    """Four initial cases, and two admitted after each stage but the running one."""
    stages = []
    for number in range(1, count + 1):
        names = NAMES[2 + 2 * number : 4 + 2 * number]
        picks = tuple(Pick(name, 0.5, 0.5, 0.5, 0.5) for name in names)
        found = Scored(9, 9, (), 1.0, picks) if number < count else None
        stages.append(Stage(number, number, 2 + 2 * number, scored=found))
    return State("SCORING", tuple(NAMES[: 2 + 2 * count]), tuple(stages))


def test_suspects_have_been_in_training_for_two_stages_and_still_fail_the_worst_first() -> None:
    state = after_stages(3)  # c00 to c03 initial, c04 and c05 after stage 1, c06 and c07 after stage 2
    found = judge(metrics(c01=0.4, c02=0.71, c04=0.1, c05=0.7, c06=0.0, c20=0.2), state, RULES, 1, "cpu")
    assert found.suspects == (Suspect("c04", 1, 0.1), Suspect("c01", 0, 0.4), Suspect("c05", 1, 0.7))
    assert [pick.case_id for pick in found.picks] == ["c20"]
    assert not judge(metrics(c01=0.4), after_stages(1), RULES, 1, "cpu").suspects


def test_cases_that_max_difficulty_keeps_out_twice_in_a_row_are_suspect_too() -> None:
    gated = replace(RULES, params=replace(PARAMS, max_difficulty=0.8))
    state = after_stages(3)
    first, second, third = state.stages
    assert second.scored
    state = replace(state, stages=(first, replace(second, scored=replace(second.scored, kept_out=KEPT_OUT)), third))
    now = metrics(
        c00=0.05, c20=0.1, c21=0.5, c22=0.0, c06=0.0
    )  # c21 is not kept out any more, c22 is for the first time
    found = judge(now, state, gated, 1, "cpu")
    assert found.kept_out == ("c20", "c22")
    assert found.suspects == (Suspect("c00", 0, 0.05), Suspect("c20", None, 0.1))
    assert [pick.case_id for pick in found.picks] == ["c21"]
    assert not judge(now, state, RULES, 1, "cpu").kept_out
    at_random = replace(gated, params=replace(gated.params, strategy="random"))
    assert not judge(now, state, at_random, 1, "cpu").kept_out


def test_fewer_eligible_cases_than_are_worth_a_stage_end_the_run() -> None:
    now, state = metrics(c20=0.2, c21=0.3), after_stages(1)
    for least, stop in ((2, None), (3, "no_eligible_cases")):
        rules = replace(RULES, params=replace(PARAMS, add_cases=3, min_add_cases=least))
        after = scored(state, judge(now, state, rules, 1, "cpu"))
        assert (after.stop, after.stage.scored and after.stage.scored.eligible) == (stop, 2)


def test_histograms_are_of_the_cases_outside_training() -> None:
    found = judge(metrics(c20=0.2), after_stages(1), RULES, 1, "cpu")
    assert sum(found.difficulty_histogram) == sum(found.uncertainty_histogram) == CASES - 4
    assert found.difficulty_histogram[16] == 1


def test_cases_that_are_not_finite_are_recorded_or_an_error() -> None:
    broken = metrics(c20=0.2, c21=float("nan"), c22=float("nan"))
    assert judge(broken, after_stages(1), RULES, 1, "cpu").nonfinite == ("c21", "c22")
    strict = replace(RULES, params=replace(PARAMS, nonfinite_policy="error"))
    with pytest.raises(UserError, match="stage 1: the outputs of 2 cases are not finite: c21, c22"):
        judge(broken, after_stages(1), strict, 1, "cpu")


def test_an_active_case_that_the_pool_lacks_is_refused() -> None:
    state = replace(after_stages(1), active=("c00", "c01", "c02", "gone"))
    with pytest.raises(UserError, match="the training split lacks 1 active case \\(gone\\)"):
        judge(metrics(), state, RULES, 1, "cpu")
