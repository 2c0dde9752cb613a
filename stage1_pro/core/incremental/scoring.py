"""What a scoring of the pool means: who is admitted, who is suspect, and how the scores are distributed."""

import numpy as np

from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.incremental.acquisition import CaseMetrics, admit, too_difficult
from stage1_pro.core.incremental.machine import Pick, Rules, Scored, State, Suspect
from stage1_pro.core.metrics.arrays import IntArray

HISTOGRAM_BINS = 20
# difficult cases are admitted first, and wrong labels are the most difficult of all
STAGES_IN_TRAINING = 2
"""Stages that a case must have been trained on before failing makes it suspect."""
SCORINGS_KEPT_OUT = 2
"""Scorings in a row at which max_difficulty must have kept a case out, to the same effect."""
SHOWN_CASES = 5


def judge(metrics: CaseMetrics, state: State, rules: Rules, seed: int, device: str) -> Scored:
    """The machine's event out of one scoring.

    metrics: of the whole pool, sorted by case id; device: where distances are computed. Raises UserError where a case
    is not finite and nonfinite_policy is error.
    """
    params, active = rules.params, positions_of(metrics.case_id, state.active)
    found = admit(metrics, active, params, rules.room(len(state.active)), seed, state.stage.number, device)
    nonfinite = tuple(map(str, metrics.case_id[found.nonfinite]))
    if nonfinite and params.nonfinite_policy == "error":
        shown = ", ".join(nonfinite[:SHOWN_CASES]) + (", …" if len(nonfinite) > SHOWN_CASES else "")
        raise UserError(
            f"stage {state.stage.number}: the outputs of {counted(len(nonfinite), 'case')} are not finite: {shown}. "
            "Look at these images, lower the learning rates, or set incremental_params.nonfinite_policy exclude."
        )
    outside = metrics.finite
    outside[active] = False
    kept_out = np.flatnonzero(outside & too_difficult(metrics.dice, params))
    columns = (found.difficulty, found.uncertainty, found.diversity, found.acq)
    rows = zip(metrics.case_id[found.picks], *(column.tolist() for column in columns), strict=True)
    return Scored(
        candidates=found.candidates,
        eligible=found.eligible,
        nonfinite=nonfinite,
        scale=found.scale,
        picks=tuple(Pick(str(case), *numbers) for case, *numbers in rows),
        suspects=_suspects(metrics, state, active, kept_out, params.selection_threshold),
        kept_out=tuple(map(str, metrics.case_id[kept_out])),
        difficulty_histogram=_histogram(1 - metrics.dice[outside]),
        uncertainty_histogram=_histogram(metrics.entropy[outside]),
    )


def positions_of(case_id: np.ndarray, cases: tuple[str, ...]) -> IntArray:
    """Positions of cases in the sorted ids of the pool. Raises UserError where one is not there."""
    index = np.searchsorted(case_id.astype(str), np.array(cases))
    index = np.minimum(index, len(case_id) - 1)
    missing = [case for case, found in zip(cases, case_id[index], strict=True) if case != found]
    if missing:
        raise UserError(
            f"the training split lacks {counted(len(missing), 'active case')} ({', '.join(missing[:SHOWN_CASES])}): "
            "the pool has changed. Restore it, or begin a new run."
        )
    return index


def _suspects(
    metrics: CaseMetrics, state: State, active: IntArray, kept_out: IntArray, threshold: float
) -> tuple[Suspect, ...]:
    """Cases trained on for two stages or more that are still as bad as those that are eligible, and cases that are
    kept out again; the worst first."""
    admitted_after = state.admitted_after()
    found = [
        Suspect(case, admitted_after[case], float(metrics.dice[position]))
        for case, position in zip(state.active, active, strict=True)
        if state.stage.number - admitted_after[case] >= STAGES_IN_TRAINING and metrics.dice[position] <= threshold
    ]
    before = [set(stage.scored.kept_out) for stage in state.stages[-SCORINGS_KEPT_OUT:-1] if stage.scored]
    if len(before) == SCORINGS_KEPT_OUT - 1:
        again = [position for position in kept_out if all(metrics.case_id[position] in cases for cases in before)]
        found += [Suspect(str(metrics.case_id[position]), None, float(metrics.dice[position])) for position in again]
    return tuple(sorted(found, key=lambda suspect: (suspect.dice, suspect.case_id)))


def _histogram(values: np.ndarray) -> tuple[int, ...]:
    return tuple(np.histogram(values, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist())
