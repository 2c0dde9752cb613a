"""Phase 5 in training: what is logged, that a kill changes nothing, and F-SAM stage by stage."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import killed, resume, same_result, train_run

from stage1_pro.core.models.stage1 import read_tensors

FLAGS = ["--phase", "5", "--optimizer", "fsam", "--head_ensemble", "2", "--epochs", "4", "--grad_accum_steps", "2"]


@pytest.fixture(scope="session")
def sharp_once(config, make_once) -> Path:
    return make_once("sharp", lambda run: train_run(run, ["--config", str(config), *FLAGS], "epoch 2/"))


def test_norm_gap_and_cosine_are_logged(sharp_once):
    metrics = pd.read_csv(sharp_once / "metrics.csv")
    assert (metrics["sharpness_gradient_norm"] > 0).all()
    assert metrics["sharpness_cosine"].between(-1, 1).all()
    assert np.isfinite(metrics["sharpness_loss_gap"]).all()
    assert metrics["step"].iloc[-1] == read_tensors(sharp_once / "checkpoints" / "last.ckpt")["global_step"]


def test_a_killed_run_ends_where_an_uninterrupted_one_does(sharp_once, tmp_path):
    """Moments, average and windows come back."""
    run = killed(sharp_once, "epoch 2/", tmp_path / "run")
    resume(run)
    same_result(run, sharp_once)


def test_stages_begin_with_a_fresh_optimizer(config, runs):
    stages = {"enabled": "true", "max_stages": "2", "max_epochs_per_stage": "2", "selection_threshold": "1"}
    flags = [word for name, value in stages.items() for word in (f"--incremental_params.{name}", value)]
    run = train_run(runs / "run", ["--config", str(config), *FLAGS, *flags])
    assert json.loads((run / "state.json").read_text())["phase"] == "DONE"
    (optimizer,) = read_tensors(run / "checkpoints" / "last.ckpt")["optimizer_states"]
    metrics = pd.read_csv(run / "metrics.csv")
    in_last_stage = metrics["step"].iloc[-1] - metrics.loc[metrics["stage"] == 1, "step"].iloc[-1]
    assert {int(state["step"]) for state in optimizer["inner"]["state"].values()} == {in_last_stage}
