"""Phase 6 in training: what is logged, which epoch is kept, and that a kill changes nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import killed, resume, same_result, train_run

from stage1_pro.core.models.stage1 import read_tensors

FLAGS = ["--phase", "6", "--exit_policy", "softmax", "--head_ensemble", "2", "--epochs", "6", "--positive_bank", "1000"]
WARM = 2  # a quarter of the epochs, rounded up


def train(config: Path, run: Path, *more: str, killed_at: str = "") -> Path:
    return train_run(run, ["--config", str(config), *FLAGS, *more], *([killed_at] if killed_at else []))


@pytest.fixture(scope="session")
def conformal_once(config, make_once) -> Path:
    return make_once("conformal", lambda run: train(config, run, killed_at="epoch 5/"))


def test_thresholds_are_logged_after_the_warm_start(conformal_once):
    metrics = pd.read_csv(conformal_once / "metrics.csv")
    columns = [name for name in metrics if name.startswith("conformal_")]
    assert len(columns) == 5
    assert metrics.loc[:2, columns].isna().all(axis=None)
    shares = metrics.loc[3:, ["conformal_infeasible_share", "conformal_edge_share"]]
    assert shares.sum(axis=1).between(0, 1).all()
    np.testing.assert_allclose(metrics.loc[3:, "conformal_temperature"], [0.5, 0.05**0.5, 0.1])


def test_no_checkpoint_is_chosen_from_the_warm_up(config, runs, conformal_once):
    """Nor does it use patience up: one bad epoch would end this run at its second."""
    metrics = pd.read_csv(conformal_once / "metrics.csv")
    assert metrics["val_gate_augrc"].isna().tolist() == [True] * WARM + [False] * 4
    best = read_tensors(conformal_once / "checkpoints" / "best.ckpt")
    assert best["epoch"] >= WARM
    run = train(config, runs / "impatient", "--early_stop_patience", "1")
    assert len(pd.read_csv(run / "metrics.csv")) > 3  # the phase's own loss began


def test_a_killed_run_ends_where_an_uninterrupted_one_does(conformal_once, tmp_path):
    """Bank, multipliers and halves come back."""
    run = killed(conformal_once, "epoch 5/", tmp_path / "run")
    state = read_tensors(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert {"loss.bank", "loss.selective.multiplier"} <= set(state)
    resume(run)
    same_result(run, conformal_once)


def test_accumulation_and_bf16_train(config, runs):
    flags = ["--grad_accum_steps", "2", "--precision", "bf16-mixed", "--conformal_after", "2", "--epochs", "3"]
    run = train(config, runs / "run", *flags)
    metrics = pd.read_csv(run / "metrics.csv")
    assert np.isfinite(metrics["train_loss"]).all()
    assert np.isfinite(metrics["conformal_infeasible_share"].iloc[-1])


def test_nothing_of_the_training_threshold_is_shipped(conformal_once):
    model = read_tensors(conformal_once / "model_best.pth")["state_dict"]
    assert not [name for name in model if "bank" in name or "threshold" in name or "loss" in name]
