"""Incremental training end to end: stages, resume from every phase, and picks that do not hang on how it is run."""

import json
import shutil
import signal
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
number, phase, count, *sys.argv = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
from stage1_pro.core.training.callbacks.stage_controller import IncrementalStageController as Controller
write = Controller._write
def kill(self, trainer):
    global count
    write(self, trainer)
    count -= self.state.name == phase
    if not count and self.state.name == phase:
        os.kill(os.getpid(), number)
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


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("phase", ["TRAINING", "SCORING", "TRANSITION"])
def test_killed_in_any_phase_and_resumed_it_ends_the_same(phase, count, config, stages, staged, tmp_path):
    run = tmp_path / "run"
    arguments = flags(config, stages, run)
    assert call("00_make_splits", arguments).returncode == 0
    killed = call("20_train", arguments, before=["-c", KILLING, "9", phase, str(count)])
    assert killed.returncode == -9, killed.stderr
    assert state_of(run)["phase"] == phase
    resumed = call("20_train", ["--resume", str(run)])
    assert resumed.returncode == 0, resumed.stderr
    assert state_of(run) == state_of(staged)
    assert digest_file(run / "model_best.pth") == digest_file(staged / "model_best.pth")
    for name in ("stages.csv", "selections.csv", "suspects.csv"):
        assert (run / name).read_bytes() == (staged / name).read_bytes()


def test_asked_to_end_it_says_so_and_goes_on_later(config, stages, staged, tmp_path):
    run = tmp_path / "run"
    arguments = flags(config, stages, run)
    assert call("00_make_splits", arguments).returncode == 0
    ended = call("20_train", arguments, before=["-c", KILLING, str(signal.SIGTERM.value), "TRANSITION", "1"])
    assert ended.returncode == 143, ended.stderr
    assert (state_of(run)["phase"], state_of(run)["stop"]) == ("DONE", "interrupted")
    assert call("20_train", ["--resume", str(run)]).returncode == 0
    assert state_of(run) == state_of(staged)
    assert digest_file(run / "model_best.pth") == digest_file(staged / "model_best.pth")


def admitted_by(source: Path, config: Path, stages: Path, *more: str) -> list[str]:
    """What a dry run says that a trained model would admit first."""
    settings = ["--config", config, "--config", stages, "--phase", 2, "--init_from", source, *more]
    done = call("20_train", [*map(str, settings), "--incremental_params.dry_run", "true"])
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines[next(index for index, line in enumerate(lines) if line.startswith("would admit")) :]


def test_batch_size_and_workers_change_no_pick_at_equal_weights(config, stages, staged):
    expected = admitted_by(staged, config, stages)
    assert expected[0] == "would admit 8 of 144 eligible of 144 candidates:"
    assert len(expected) == 10
    assert admitted_by(staged, config, stages, "--batch_size", "128") == expected
    assert admitted_by(staged, config, stages, "--batch_size", "16", "--dataset_params.num_workers", "2") == expected


def test_a_dry_run_prints_the_stages_and_writes_nothing(config, stages, tmp_path):
    arguments = ["--config", str(config), "--config", str(stages), "--phase", "2"]
    command = [sys.executable, str(SCRIPTS / "20_train.py"), *arguments, "--incremental_params.dry_run", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "    3     32               5             10" in done.stdout
    assert "stop        dry_run; training would end at the latest with max_stages, 32 cases" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--incremental_params.initial_cases", "500"], "is 500, and the training split has 160 different images"),
        (["--incremental_params.initial_cases", "1"], "fewer than the 2 classes"),
        (["--incremental_params.selection_threshold", "1.5"], "selection_threshold is 1.5; allowed 0 to 1"),
    ],
)
def test_bad_settings_end_with_status_2(settings, words, config, stages, tmp_path):
    run = tmp_path / "run"
    assert call("00_make_splits", flags(config, stages, run)).returncode == 0
    done = call("20_train", flags(config, stages, run, *settings))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in run.iterdir()] == ["splits.json"]  # it can be trained with better ones


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_config_is_not_resumed(finished, staged, tmp_path):
    run = shutil.copytree(staged, tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    saved["incremental_params"]["add_cases"] = 9
    (run / "config.json").write_text(json.dumps(saved))
    if not finished:
        (run / "checkpoints" / "last.ckpt").unlink()
    done = call("20_train", ["--resume", str(run)])
    assert done.returncode == 2
    assert "$.config_digest is" in done.stderr
    assert "begin a new run" in done.stderr


@pytest.mark.parametrize(("phase", "policy"), [(1, "softmax"), (3, "gate"), (6, "scrc")])
def test_every_phase_can_train_by_stages(phase, policy, config, stages, tmp_path):
    run = trained_at(tmp_path / "run", config, stages, "--exit_policy", policy, phase=phase)
    state = state_of(run)
    assert (state["stop"], len(state["stages"])) == ("max_stages", 3)
    assert all(np.isfinite(stage["best_metric"]) for stage in state["stages"])


def test_scratch_goes_back_to_the_first_weights_and_keep_goes_on_with_the_rates(config, stages, tmp_path):
    settings = ["--incremental_params.stage_init", "scratch", "--incremental_params.stage_lr", "keep"]
    run = trained_at(tmp_path / "run", config, stages, *settings)
    epochs = pd.read_csv(run / "metrics.csv")
    rate = next(epochs[name] for name in epochs if name.startswith("lr-"))
    begins = np.flatnonzero(epochs["stage"].diff() > 0)
    assert (np.diff(rate[1:]) <= 0).all()  # one cosine over all stages
    first = epochs["val_loss"][0]
    assert epochs["val_loss"][begins].to_numpy() == pytest.approx(first, abs=0.05)
