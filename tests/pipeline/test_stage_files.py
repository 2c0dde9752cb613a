"""state.json is the authority on an incremental training: what was edited, lost or cut is refused, or comes back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import copy, done, killed, refused
from test_incremental import demand_same, flags, staged, stages  # noqa: F401 (fixtures)

TABLES = ("stages.csv", "selections.csv", "stage_suspects.csv", "pool.csv")


def edited(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = run / "state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))


def another_pick(state: dict[str, Any]) -> None:
    """A case of the pool in another's place, wherever state.json names it."""
    state["stages"][0]["scored"]["picks"][-1]["case_id"] = state["active"][-1] = "another.png"


EDITS = {
    "an active case": (
        lambda s: s["active"].__setitem__(0, "another.png"),
        "$.active[0] is 'another.png' in state.json",
    ),
    "a pick alone": (lambda s: s["active"].__setitem__(-1, "another.png"), "does not end with the picks"),
    "a pick everywhere": (another_pick, "$.stages[0].scored.picks[7].case_id is 'another.png' in state.json, and '"),
    "the stop": (lambda s: s.update(stop="max_stages"), "$.stop is 'max_stages' in phase TRAINING"),
    "the phase": (lambda s: s.update(phase="SCORING"), "has end None and no scoring, which phase SCORING cannot have"),
    "the revision": (lambda s: s.update(revision=9), "$.revision is 9; by phase and stages it is 4"),
    "a weight": (
        lambda s: s["rules"].update(w_dice=0.9),
        "$.stages[0].scored.w_dice is 0.5, and $.rules.w_dice is 0.9",
    ),
    "a metric": (
        lambda s: s["stages"][0].update(best_metric=0.0),
        "$.stages[0].best_metric is 0.0 in state.json, and 0.",
    ),
    "the pool": (lambda s: s.update(pool_file_digest="0" * 64), "$.pool_file_digest is 000000000000…, and now it is"),
    "the seed": (lambda s: s.update(seed=7), "$.seed is 7, and now it is 42\nRun 20_train.py --resume"),
    "a difficulty": (
        lambda s: s["stages"][0]["scored"]["picks"][0].update(difficulty=0.123),
        "$.stages[0].scored.picks[0].difficulty is 0.123 in state.json, and 0.",
    ),
    "the epochs so far": (lambda s: s["stages"][1].update(epochs=3), "$.stages[1].epochs is 3 in state.json, and 1"),
}


@pytest.fixture
def in_stage_2(staged: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Killed in the second epoch of stage 2: state.json and last.ckpt are of one revision."""
    return killed(staged, "stage 2 epoch 2", tmp_path / "run")


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_state_is_refused_with_both_values_and_comes_back(what, in_stage_2, staged, script):  # noqa: F811
    edit, words = EDITS[what]
    edited(in_stage_2, edit)
    before = (in_stage_2 / "state.json").read_bytes()
    refused(script("20_train", "--resume", in_stage_2), words)
    assert (in_stage_2 / "state.json").read_bytes() == before
    if what in ("a pick everywhere", "the seed"):
        done("20_train", "--resume", in_stage_2, "--restore_state")
        demand_same(in_stage_2, staged)


def lost(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def cut(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-200])


BROKEN = {
    "state.json lost": (lost("state.json"), "state.json does not exist", True),
    "state.json cut": (cut("state.json"), "not a whole JSON file", True),
    "config.json lost": (
        lost("config.json"),
        "config.json is gone, and training had begun (there is state.json)",
        False,
    ),
    "last.ckpt lost": (
        lost("checkpoints/last.ckpt"),
        "last.ckpt is gone, and by state.json the training is in stage 2",
        False,
    ),
    "last.ckpt cut": (cut("checkpoints/last.ckpt"), "not a safe, whole tensor file", False),
    "best.ckpt lost": (lost("checkpoints/best.ckpt"), "best.ckpt is gone", False),
    "the stage's weights lost": (lost("checkpoints/stage-02.ckpt"), "stage-02.ckpt is gone", False),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_lost_or_cut_file_is_refused_and_the_advice_works(what, in_stage_2, staged, script):  # noqa: F811
    harm, words, restorable = BROKEN[what]
    harm(in_stage_2)
    refused(script("20_train", "--resume", in_stage_2), words)
    if restorable:
        assert f"20_train.py --resume {in_stage_2} --restore_state" in script("20_train", "--resume", in_stage_2).err
        done("20_train", "--resume", in_stage_2, "--restore_state")
        demand_same(in_stage_2, staged)


def test_without_a_checkpoint_stage_1_begins_anew_and_says_so(staged, tmp_path):  # noqa: F811
    run = killed(staged, "TRAINING 1", tmp_path / "run")
    assert "no checkpoint is there: stage 1 begins anew" in done("20_train", "--resume", run).out
    demand_same(run, staged)


def test_tables_of_a_finished_run_come_back_and_so_does_its_state(staged, script, runs):  # noqa: F811
    run = copy(staged, runs)
    for name in (*TABLES, "metrics.csv"):
        (run / name).unlink()
    done("20_train", "--resume", run)
    for name in (*TABLES, "metrics.csv"):
        assert (run / name).read_bytes() == (staged / name).read_bytes()
    (run / "state.json").unlink()
    refused(script("20_train", "--resume", run), "--restore_state")
    done("20_train", "--resume", run, "--restore_state")
    demand_same(run, staged)
    edited(run, lambda state: state.update(stop="pool_exhausted"))
    refused(
        script("20_train", "--resume", run), "$.stop is 'pool_exhausted' in state.json, and 'max_stages' in training"
    )


def test_an_interruption_is_undone_whatever_was_written_last(staged, tmp_path):  # noqa: F811
    """state.json of an interrupted run is one revision further, and so two ahead of a checkpoint one behind."""
    from stage1_pro.core.incremental.machine import before_stop, stopped
    from stage1_pro.core.incremental.state import read_state

    for moment in ("TRAINING 2", "SCORING 1", "TRANSITION 1 saved"):
        run = killed(staged, moment, tmp_path / moment)
        state = read_state(run)
        assert before_stop(stopped(state, "interrupted")) == state
        shutil.rmtree(run)


def test_a_checkpoint_of_more_devices_is_refused(in_stage_2, script):
    """Their epochs have fewer steps, so the learning rates would run at another pace."""
    last = in_stage_2 / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), "devices": 2}, last)
    refused(script("20_train", "--resume", in_stage_2), "training began on 2 devices and would go on on 1")


def test_restoring_without_a_run_is_refused(script):
    refused(script("20_train", "--restore_state"), "--restore_state goes with --resume RUN")
