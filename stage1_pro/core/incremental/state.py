"""state.json, the authority on an incremental run, and the tables that are derived from it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.settings import IncrementalParams
from stage1_pro.core.errors import counted, raise_problems
from stage1_pro.core.incremental.machine import Pick, Scored, Stage, State, Suspect

STATE, STAGES, SELECTIONS, SUSPECTS = "state.json", "stages.csv", "selections.csv", "stage_suspects.csv"
RULES = ("selection_threshold", "max_difficulty", "w_dice", "w_uncertainty", "w_diversity", "strategy")
"""What chose the cases, as state.json repeats it for each scoring."""
LISTS = ("nonfinite", "kept_out", "difficulty_histogram", "uncertainty_histogram")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a state belongs to; a resumed run must have the same. pool_digest: of the cases of the training split."""

    run_id: str
    config_digest: str
    pool_digest: str
    pool_cases: int
    seed: int
    monitor: str
    mode: str


def to_json(state: State, origin: Origin, params: IncrementalParams, now: str) -> dict[str, Any]:
    """The content of state.json. now: time stamp of this writing."""
    written = {"schema_version": artifacts.SCHEMA_VERSION, "updated_at": now}
    return {**written, **dataclasses.asdict(origin), **plain(state, params)}


def plain(state: State, params: IncrementalParams) -> dict[str, Any]:
    """The machine's state as JSON values."""
    rules = {name: getattr(params, name) for name in RULES}
    return {
        "revision": state.revision,
        "phase": state.name,
        "stop": state.stop,
        "active": list(state.active),
        "stages": [_stage_to_json(stage, rules) for stage in state.stages],
    }


def from_json(data: dict[str, Any]) -> State:
    """The machine's state out of what `plain` made of it, or out of state.json."""
    return State(
        name=data["phase"],
        active=tuple(data["active"]),
        stages=tuple(_stage_from_json(stage) for stage in data["stages"]),
        stop=data["stop"],
        revision=data["revision"],
    )


def write_state(folder: Path, state: State, origin: Origin, params: IncrementalParams, now: str) -> None:
    """Write state.json and, from it, the three tables; each file whole or not at all, the authority first."""
    # killed between two files, the tables are older than the state, never newer
    artifacts.write_json(folder / STATE, to_json(state, origin, params, now), "state")
    for name, columns, rows in (
        (STAGES, STAGE_COLUMNS, stage_rows(state)),
        (SELECTIONS, SELECTION_COLUMNS, selection_rows(state)),
        (SUSPECTS, SUSPECT_COLUMNS, suspect_rows(state)),
    ):
        artifacts.write_csv(folder / name, rows, columns)


def read_state(folder: Path) -> State:
    """The state of a run. Raises UserError where state.json is missing or broken, or contradicts itself."""
    path = folder / STATE
    data = artifacts.read_json(path, "state")
    state = from_json(data)
    problems = []
    if len(set(state.active)) < len(state.active):
        problems.append("$.active holds a case twice")
    picks = [pick.case_id for stage in state.stages if stage.scored for pick in stage.scored.picks]
    if list(state.active[len(state.active) - len(picks) :]) != picks:
        problems.append("$.active does not end with the picks of the stages, in their order")
    if (state.stop is None) == (state.name == "DONE"):
        problems.append(f"$.stop is {state.stop!r} in phase {state.name}: a run that is DONE has a reason, no other")
    raise_problems(f"{path}: {counted(len(problems), 'problem')}", problems, artifacts.MENDS["state"])
    return state


def demand_same_origin(folder: Path, origin: Origin) -> None:
    """Raise UserError with every difference where state.json belongs to another config or pool."""
    path = folder / STATE
    if not path.exists():
        return
    data, now = artifacts.read_json(path, "state"), dataclasses.asdict(origin)
    # a run may be renamed or moved; all else decides what is admitted
    different = [name for name in now if name != "run_id" and data[name] != now[name]]
    raise_problems(
        f"{path}: this training cannot go on from it",
        [f"$.{name} is {_short(data[name])}, and now it is {_short(now[name])}" for name in different],
        "Restore the config and the cases, or begin a new run.",
    )


STAGE_COLUMNS = (
    *("stage", "first_epoch", "epochs", "active_cases", "best_metric", "best_epoch", "lr", "end"),
    *("candidates", "eligible", "added", "nonfinite", "stop"),
)
SELECTION_COLUMNS = ("after_stage", "order", "case_id", "difficulty", "uncertainty", "diversity", "acq")
SUSPECT_COLUMNS = ("rank", "case_id", "dice", "why", "admitted_after", "scored_after")


def stage_rows(state: State) -> list[dict[str, Any]]:
    """One row a stage; the last one names the stop."""
    rows = []
    for stage in state.stages:
        names = ("first_epoch", "epochs", "active_cases", "best_metric", "best_epoch", "lr", "end")
        row = {"stage": stage.number, **{name: getattr(stage, name) for name in names}}
        if stage.scored:
            row |= {"candidates": stage.scored.candidates, "eligible": stage.scored.eligible}
            row |= {"added": len(stage.scored.picks), "nonfinite": len(stage.scored.nonfinite)}
        rows.append(row)
    if rows:
        rows[-1]["stop"] = state.stop
    return rows


def selection_rows(state: State) -> list[dict[str, Any]]:
    """One row an admitted case; the initial ones, after stage 0, have no components."""
    initial = state.active[: state.stages[0].active_cases] if state.stages else ()
    rows: list[dict[str, Any]] = [
        {"after_stage": 0, "order": order, "case_id": case} for order, case in enumerate(initial, 1)
    ]
    for stage in state.stages:
        picks = stage.scored.picks if stage.scored else ()
        rows += [
            {"after_stage": stage.number, "order": order, **dataclasses.asdict(pick)}
            for order, pick in enumerate(picks, 1)
        ]
    return rows


def suspect_rows(state: State) -> list[dict[str, Any]]:
    """The suspects of the latest scoring, the most failing first."""
    scorings = [(stage.number, stage.scored) for stage in state.stages if stage.scored]
    if not scorings:
        return []
    number, latest = scorings[-1]
    return [
        {"rank": rank, **dataclasses.asdict(suspect), "why": why(suspect), "scored_after": number}
        for rank, suspect in enumerate(latest.suspects, 1)
    ]


def why(suspect: Suspect) -> str:
    """Return why a case is suspect: it is in training and fails, or max_difficulty keeps it out."""
    return "kept out" if suspect.admitted_after is None else "failing"


def _stage_to_json(stage: Stage, rules: dict[str, Any]) -> dict[str, Any]:
    plain = dataclasses.asdict(stage)
    if stage.scored:
        plain["scored"] = {**{k: _listed(v) for k, v in plain["scored"].items()}, **rules}
        plain["scored"]["added"] = len(stage.scored.picks)
    return plain


def _stage_from_json(data: dict[str, Any]) -> Stage:
    found = data["scored"]
    if found is None:
        return Stage(**data)
    tuples = {name: tuple(found[name]) for name in LISTS}
    scored = Scored(
        candidates=found["candidates"],
        eligible=found["eligible"],
        scale=found["scale"],
        picks=tuple(Pick(**pick) for pick in found["picks"]),
        suspects=tuple(Suspect(**suspect) for suspect in found["suspects"]),
        **tuples,
    )
    return Stage(**{**data, "scored": scored})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 20 else str(value)
