"""state.json and the tables derived from it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stage1_pro.core import schemas
from stage1_pro.core.config.sections import IncrementalParams
from stage1_pro.core.errors import UserError
from stage1_pro.core.incremental.initial import initial_cases
from stage1_pro.core.incremental.machine import (
    RUN_STOPS,
    STAGE_ENDS,
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
)
from stage1_pro.core.incremental.state import Origin, demand_same_origin, read_state, write_state

PARAMS = IncrementalParams(enabled=True, initial_cases=2, add_cases=2, max_epochs_per_stage=1)
ORIGIN = Origin("run", "0" * 64, "1" * 64, 9, "3" * 64, 1, "val_augrc", "min")
RULES = Rules(PARAMS, "min", 9)


def two_stages() -> State:
    state = epoch_ended(start(["a", "b"]), EpochEnd(0, 0.25, 1e-3), RULES)
    picks = (Pick("d", 0.9, 0.5, 1.0, 0.8), Pick("c", 0.7, 0.5, 0.1, 0.6))
    found = Scored(6, 4, ("x",), 1.5, picks, (Suspect("b", 0, 0.125), Suspect("e", None, 0.5)), ("e",), (5, 1), (6, 0))
    return entered(scored(state, found))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_state(tmp_path, stopped(two_stages(), "max_stages"), ORIGIN, PARAMS, "2026-01-01T00:00:00Z")
    return tmp_path


def change(path: Path, field: str, value: object) -> None:
    data = json.loads(path.read_text())
    data[field] = value
    path.write_text(json.dumps(data))


def test_a_state_reads_back_as_it_was(written: Path) -> None:
    assert read_state(written) == stopped(two_stages(), "max_stages")


def test_the_schema_has_the_closed_lists() -> None:
    properties = schemas.schema("state")["properties"]
    assert properties["stop"]["enum"] == [*RUN_STOPS, None]
    assert properties["stages"]["items"]["properties"]["end"]["enum"] == [*STAGE_ENDS, None]


def test_the_tables_say_what_the_state_says(written: Path) -> None:
    stages = pd.read_csv(written / "stages.csv")
    assert stages["active_cases"].tolist() == [2, 4]
    assert stages["end"].tolist()[0] == "max_epochs"
    assert stages["stop"].tolist()[1] == "max_stages"
    assert stages[["candidates", "eligible", "added", "nonfinite"]].iloc[0].tolist() == [6, 4, 2, 1]
    selections = pd.read_csv(written / "selections.csv")
    assert selections["case_id"].tolist() == ["a", "b", "d", "c"]
    assert selections["after_stage"].tolist() == [0, 0, 1, 1]
    assert selections["acq"].tolist()[2:] == [0.8, 0.6]
    lines = (written / "stage_suspects.csv").read_text().splitlines()
    assert lines == [
        "rank,case_id,dice,why,admitted_after,scored_after",
        "1,b,0.125,failing,0,1",
        "2,e,0.5,kept out,,1",
    ]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("phase", "SLEEPING", '$.phase is "SLEEPING"; allowed one of'),
        ("stop", "bored", '$.stop is "bored"; allowed one of'),
        ("stop", None, "a run that is DONE has a reason"),
        ("revision", -1, "$.revision is -1"),
        ("active", ["a", "a"], "$.active is"),
        ("active", ["a", "b", "c", "d"], "does not end with the picks"),
        ("config_digest", "abc", "$.config_digest is"),
        ("stages", [], "$.stages is []"),
        ("mood", 1, "$.mood is not a known field"),
    ],
)
def test_a_broken_state_is_refused(written: Path, field: str, value: object, words: str) -> None:
    change(written / "state.json", field, value)
    with pytest.raises(UserError) as refused:
        read_state(written)
    assert words in str(refused.value)
    assert "state.json" in str(refused.value)


def test_another_pool_or_config_is_refused_with_all_differences(written: Path) -> None:
    path = written / "state.json"
    found = json.loads(path.read_text())
    demand_same_origin(found, path, replace(ORIGIN, run_id="moved"), PARAMS)
    other = replace(ORIGIN, pool_cases=10, pool_digest="2" * 64, seed=3)
    with pytest.raises(UserError) as refused:
        demand_same_origin(found, path, other, PARAMS)
    for words in ("$.pool_cases is 9, and now it is 10", "$.pool_digest is 111111111111…", "$.seed is 1, and now"):
        assert words in str(refused.value)


LABELS = np.repeat([0, 1, 2], [70, 25, 5])
CONTENT = np.array([f"{index}" for index in range(100)])


@pytest.mark.parametrize(("count", "shares"), [(3, [1, 1, 1]), (10, [7, 2, 1]), (20, [14, 5, 1]), (100, [70, 25, 5])])
def test_initial_cases_are_in_proportion_with_one_of_each_class(count: int, shares: list[int]) -> None:
    params = replace(PARAMS, initial_cases=count)
    found = initial_cases(LABELS, CONTENT, 3, params, 1)
    assert np.bincount(LABELS[found], minlength=3).tolist() == shares
    assert np.array_equal(found, initial_cases(LABELS, CONTENT, 3, params, 1))
    if count == 10:
        assert not np.array_equal(found, initial_cases(LABELS, CONTENT, 3, params, 2))


def test_identical_images_are_drawn_once() -> None:
    content = CONTENT.copy()
    content[:50] = "same"
    for strategy in ("stratified", "random"):
        params = replace(PARAMS, initial_cases=51, initial_strategy=strategy)
        assert np.unique(content[initial_cases(LABELS, content, 3, params, 1)]).size == 51


@pytest.mark.parametrize(
    ("count", "words"), [(101, "has 100 different images. Lower it"), (2, "fewer than the 3 classes")]
)
def test_a_count_that_cannot_be_drawn_is_refused(count: int, words: str) -> None:
    with pytest.raises(UserError) as refused:
        initial_cases(LABELS, CONTENT, 3, replace(PARAMS, initial_cases=count), 1)
    assert words in str(refused.value)
