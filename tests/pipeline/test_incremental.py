"""Incremental training end to end: stages, resume from every phase, and picks that do not hang on how it is run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stage1_pro.core.artifacts import digest_file

SCRIPTS = Path(__file__).parents[2] / "stage1_pro" / "scripts"
STAGES = """
batch_size: 16
incremental_params:
  enabled: true
  initial_cases: 16
  add_cases: 8
  max_stages: 3
  max_epochs_per_stage: 5
  early_stopping_patience: 2
"""
KILLING = """
import os, runpy, sys
phase, count, *sys.argv = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
from stage1_pro.core.callbacks.incremental import IncrementalStageController as Controller
write = Controller._write
def kill(self, trainer):
    global count
    write(self, trainer)
    count -= self.state.phase == phase
    if not count and self.state.phase == phase:
        os.kill(os.getpid(), 9)
Controller._write = kill
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def stages(config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "stages.yaml"
    path.write_text(STAGES)
    return path


def flags(config: Path, stages: Path, run: Path, *more: str, phase: int = 2) -> list[str]:
    return ["--config", str(config), "--config", str(stages), "--phase", str(phase), "--run", str(run), *more]


def call(name: str, arguments: list[str], before: list[str] | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, *(before or []), str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def trained_at(run: Path, config: Path, stages: Path, *more: str, phase: int = 2) -> Path:
    arguments = flags(config, stages, run, *more, phase=phase)
    for name in ("00_make_splits", "20_train"):
        done = call(name, arguments)
        assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def staged(config, stages, tmp_path_factory) -> Path:
    """An uninterrupted run of three stages."""
    return trained_at(tmp_path_factory.mktemp("staged") / "run", config, stages)


def state_of(run: Path) -> dict:
    """state.json without its time stamp and the name of the run."""
    state = json.loads((run / "state.json").read_text())
    return {name: value for name, value in state.items() if name not in ("updated_at", "run_id")}


def test_three_stages_end_in_a_named_stop_and_the_run_goes_on_like_any_other(staged, tmp_path, script):
    state = state_of(staged)
    assert (state["phase"], state["stop"]) == ("DONE", "max_stages")
    assert [stage["active_cases"] for stage in state["stages"]] == [16, 24, 32]
    assert len(state["active"]) == 32
    epochs = pd.read_csv(staged / "metrics.csv")
    assert epochs["active_cases"].tolist() == [s["active_cases"] for s in state["stages"] for _ in range(s["epochs"])]
    run = shutil.copytree(staged, tmp_path / "runs" / "run")
    for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        outcome = script(name, "--run", run)
        assert outcome.status == 0, outcome.err


def test_the_splits_that_certify_are_never_trained_on(staged):
    splits, state = json.loads((staged / "splits.json").read_text()), state_of(staged)
    config = json.loads((staged / "config.json").read_text())
    table = pd.read_csv(config["dataset_params"]["sources"][0]["labels"]).sort_values("path", ignore_index=True)
    train = set(table["path"].iloc[splits["train_indices"]])
    assert set(state["active"]) <= train


def test_learning_rates_begin_anew_with_a_stage(staged):
    epochs = pd.read_csv(staged / "metrics.csv")
    rate = next(epochs[name] for name in epochs if name.startswith("lr-"))
    begins = epochs["stage"].diff().fillna(1) > 0
    warm_up = -(-epochs["active_cases"][begins] // 16)  # one epoch, in steps
    np.testing.assert_allclose(rate[begins], 3e-3 / warm_up, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("phase", ["TRAINING", "SCORING", "TRANSITION"])
def test_killed_in_any_phase_and_resumed_it_ends_the_same(phase, count, config, stages, staged, tmp_path):
    run = tmp_path / "run"
    arguments = flags(config, stages, run)
    assert call("00_make_splits", arguments).returncode == 0
    killed = call("20_train", arguments, before=["-c", KILLING, phase, str(count)])
    assert killed.returncode == -9, killed.stderr
    assert state_of(run)["phase"] == phase
    resumed = call("20_train", ["--resume", str(run)])
    assert resumed.returncode == 0, resumed.stderr
    assert state_of(run) == state_of(staged)
    assert digest_file(run / "model_best.pth") == digest_file(staged / "model_best.pth")
    for name in ("stages.csv", "selections.csv", "suspects.csv"):
        assert (run / name).read_bytes() == (staged / name).read_bytes()
