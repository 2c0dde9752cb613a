"""state.json, the authority on an incremental run, and the tables that are derived from it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.errors import counted, raise_problems
from stage1_pro.core.incremental.consistency import contradictions
from stage1_pro.core.incremental.machine import Pick, Scored, Stage, State, Suspect

STATE, STAGES, SELECTIONS, SUSPECTS = "state.json", "stages.csv", "selections.csv", "stage_suspects.csv"
POOL = "pool.csv"
"""Ids of the cases that the stages draw from, as the digest in state.json knows them."""
RULES = ("selection_threshold", "max_difficulty", "w_dice", "w_uncertainty", "w_diversity", "strategy")
"""What chose the cases, as state.json repeats it for each scoring."""
LISTS = ("nonfinite", "kept_out", "difficulty_histogram", "uncertainty_histogram")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a state belongs to; a resumed run must have the same. pool_digest: of the cases of the training split;
    pool_file_digest: of pool.csv, which names them."""

    run_id: str
    config_digest: str
    pool_digest: str
    pool_cases: int
    pool_file_digest: str
    seed: int
    monitor: str
    mode: str


def pool_table(case_id: Iterable[str]) -> bytes:
    """The content of pool.csv. case_id: (N,) of the training split, sorted."""
    return artifacts.csv_text(({"case_id": case} for case in case_id), ("case_id",)).encode()


def to_json(state: State, origin: Origin, params: IncrementalParams, now: str) -> dict[str, Any]:
    """The content of state.json. now: time stamp of this writing."""
    written = {"schema_version": artifacts.SCHEMA_VERSION, "updated_at": now, "pool_file": POOL}
    return {**written, **dataclasses.asdict(origin), **plain(state, params)}


def plain(state: State, params: IncrementalParams) -> dict[str, Any]:
    """The machine's state as JSON values."""
    rules = {name: getattr(params, name) for name in RULES}
    return {
        "revision": state.revision,
        "phase": state.name,
        "stop": state.stop,
        "rules": rules,
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
    write_tables(folder, state)


def write_tables(folder: Path, state: State) -> None:
    """Write the tables that follow from a state."""
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
    problems = [*contradictions(state), *_rule_contradictions(data)]
    raise_problems(f"{path}: {counted(len(problems), 'problem')}", problems, artifacts.mend("state", path))
    return state


def _rule_contradictions(data: dict[str, Any]) -> Iterator[str]:
    """Problems of what state.json repeats for each scoring."""
    for index, stage in enumerate(data["stages"]):
        found = stage["scored"]
        if found is None:
            continue
        where = f"$.stages[{index}].scored"
        if found["added"] != len(found["picks"]):
            yield f"{where}.added is {found['added']}, and there are {len(found['picks'])} picks"
        for name, value in data.get("rules", {}).items():
            if found[name] != value:
                yield f"{where}.{name} is {found[name]}, and $.rules.{name} is {value}"


def demand_same_origin(
    found: Mapping[str, Any],
    path: Path,
    origin: Origin,
    params: IncrementalParams,
    mend: str = "Restore the config and the cases, or begin a new run.",
) -> None:
    """Raise UserError with every difference where a state belongs to another config or pool.

    found: content of state.json, or the checkpoint's copy; path: of the file that holds it; mend: what to do.
    """
    now = {**dataclasses.asdict(origin), "rules": {name: getattr(params, name) for name in RULES}}
    # a run may be renamed or moved; all else decides what is admitted
    different = [name for name in now if name != "run_id" and found.get(name) != now[name]]
    raise_problems(
        f"{path}: this training cannot go on from it",
        [f"$.{name} is {_short(found.get(name))}, and now it is {_short(now[name])}" for name in different],
        mend,
    )


STAGE_COLUMNS = (
    "stage",
    "first_epoch",
    "epochs",
    "active_cases",
    "best_metric",
    "best_epoch",
    "lr",
    "end",
    "candidates",
    "eligible",
    "added",
    "nonfinite",
    "stop",
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
