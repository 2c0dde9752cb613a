"""The stages of an incremental training before it runs: the longest course that the rules allow, in words."""

import math
from collections.abc import Iterator

import numpy as np

from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.machine import Rules, Scored, State, stopped, walk

SHOWN_STAGES = 12


def planned(
    case_id: np.ndarray, labels: np.ndarray, content: np.ndarray, classes: int, params: IncrementalParams, seed: int
) -> State:
    """The machine at the end of its longest course: no plateau, every case eligible.

    case_id, labels, content: (N,) of the training split, sorted by case id. Raises UserError where the initial cases
    cannot be drawn.
    """
    initial = case_id[initial_cases(labels, content, classes, params, seed)].tolist()
    distinct = case_id[np.sort(np.unique(content, return_index=True)[1])].tolist()
    return walk(Rules(params, "min", len(distinct)), initial, distinct)


def plan_lines(plan: State, params: IncrementalParams, batch_size: int) -> Iterator[str]:
    """The plan for people; stages in the middle of many are left out."""
    yield "stage  cases  epochs at most  steps at most"
    for stage in plan.stages:
        if stage.number == SHOWN_STAGES and len(plan.stages) > SHOWN_STAGES + 1:
            yield "    …"
        if stage.number < SHOWN_STAGES or stage.number == len(plan.stages):
            steps = stage.epochs * math.ceil(stage.active_cases / batch_size)
            yield f"{stage.number:>5}  {stage.active_cases:>5}  {stage.epochs:>14}  {steps:>13,}"
    yield f"admission   {_admission(params)}"
    yield f"a new stage starts from the {params.stage_init} weights; learning rates and optimizer: {params.stage_lr}"
    end = stopped(plan, "dry_run")
    yield f"stop        {end.stop}; training would end at the latest with {plan.stop}, {len(plan.active)} cases"


def _admission(params: IncrementalParams) -> str:
    if params.strategy == "random":
        return f"{params.add_cases} a stage, at random"
    weights = f"{params.w_dice:g} difficulty + {params.w_uncertainty:g} uncertainty + {params.w_diversity:g} diversity"
    gate = "" if params.max_difficulty >= 1 else f" and difficulty <= {params.max_difficulty:g}"
    return f"{params.add_cases} a stage by {weights}, where dice <= {params.selection_threshold:g}{gate}"


def admission_lines(found: Scored) -> Iterator[str]:
    """Describe what a trained model would admit first."""
    yield f"would admit {len(found.picks)} of {found.eligible} eligible of {found.candidates} candidates:"
    yield "order  difficulty  uncertainty  diversity  acq     case"
    for order, pick in enumerate(found.picks, 1):
        numbers = f"{pick.difficulty:>10.3f}  {pick.uncertainty:>11.3f}  {pick.diversity:>9.3f}  {pick.acq:.4f}"
        yield f"{order:>5}  {numbers}  {pick.case_id}"
