"""Phase 6 in training: what is logged, which epoch is kept, and that a kill changes nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SCRIPTS
from test_interruption import kill_after, resume, same_result

from stage1_pro.core.models.stage1 import read_tensors

FLAGS = ["--phase", "6", "--exit_policy", "softmax", "--head_ensemble", "2", "--epochs", "6", "--positive_bank", "1000"]
WARM = 2  # a quarter of the epochs, rounded up


def command(config: Path, run: Path, *more: str) -> list[str]:
    """Prepare the run; returns the command that trains it."""
    flags = ["--config", str(config), *FLAGS, *more, "--run", str(run)]
    subprocess.run([sys.executable, str(SCRIPTS / "00_make_splits.py"), *flags], check=True, capture_output=True)
    return [sys.executable, str(SCRIPTS / "20_train.py"), *flags]


@pytest.fixture(scope="session")
def conformal_once(config, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("conformal") / "run"
    subprocess.run(command(config, run), check=True, capture_output=True)
    return run


def test_thresholds_are_logged_after_the_warm_start(conformal_once):
    metrics = pd.read_csv(conformal_once / "metrics.csv")
    columns = [name for name in metrics if name.startswith("conformal_")]
    assert len(columns) == 5
    assert metrics.loc[:2, columns].isna().all(axis=None)
    shares = metrics.loc[3:, ["conformal_infeasible_share", "conformal_edge_share"]]
    assert shares.sum(axis=1).between(0, 1).all()
    np.testing.assert_allclose(metrics.loc[3:, "conformal_temperature"], [0.5, 0.05**0.5, 0.1])


def test_no_checkpoint_is_chosen_from_the_warm_up(config, tmp_path, conformal_once):
    """Nor does it use patience up: one bad epoch would end this run at its second."""
    metrics = pd.read_csv(conformal_once / "metrics.csv")
    assert metrics["val_gate_augrc"].isna().tolist() == [True] * WARM + [False] * 4
    best = read_tensors(conformal_once / "checkpoints" / "best.ckpt")
    assert best["epoch"] >= WARM
    run = tmp_path / "impatient"
    subprocess.run(command(config, run, "--early_stop_patience", "1"), check=True, capture_output=True)
    assert len(pd.read_csv(run / "metrics.csv")) > 3  # the phase's own loss began


def test_a_killed_run_ends_where_an_uninterrupted_one_does(config, conformal_once, tmp_path):
    """Bank, multipliers and halves come back."""
    run = tmp_path / "run"
    kill_after(command(config, run), "epoch 5/")
    state = read_tensors(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert {"loss.bank", "loss.selective.multiplier"} <= set(state)
    resume(run)
    same_result(run, conformal_once)


def test_accumulation_and_bf16_train(config, tmp_path):
    run = tmp_path / "run"
    flags = ["--grad_accum_steps", "2", "--precision", "bf16-mixed", "--conformal_after", "2", "--epochs", "3"]
    subprocess.run(command(config, run, *flags), check=True, capture_output=True)
    metrics = pd.read_csv(run / "metrics.csv")
    assert np.isfinite(metrics["train_loss"]).all()
    assert np.isfinite(metrics["conformal_infeasible_share"].iloc[-1])


def test_nothing_of_the_training_threshold_is_shipped(conformal_once):
    model = read_tensors(conformal_once / "model_best.pth")["state_dict"]
    assert not [name for name in model if "bank" in name or "threshold" in name or "loss" in name]
