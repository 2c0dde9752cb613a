"""Answers are placed once, after the checkpoint is chosen: whatever was trained, and wherever it was killed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from chain import demand_placed, done, killed, resume, same_result, train_run

from stage1_pro.core.models.stage1 import load_model
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.fit import build_model

SHORT = ["--epochs", "3", "--lr_head", "1e-2"]
GATED = ["--phase", "3", "--exit_policy", "gate", "--head_ensemble", "8"]
STAGED = {"enabled": "true", "initial_cases": "64", "max_stages": "2", "max_epochs_per_stage": "2"}
TRAININGS = {
    "one head": ["--phase", "2"],
    "eight heads": GATED,
    "fine-tuned": ["--phase", "2", "--freeze_backbone", "false"],
    "stages": [
        "--phase",
        "2",
        *(word for key, value in STAGED.items() for word in (f"--incremental_params.{key}", value)),
    ],
}


@pytest.fixture(scope="session")
def gated_run(config, make_once) -> Path:
    return make_once("placed", lambda run: train_run(run, ["--config", str(config), *SHORT, *GATED], "answers placed"))


def test_whatever_was_trained_its_answers_are_placed(config, gated_run, runs) -> None:
    shifts = {}
    for name, flags in TRAININGS.items():
        run = (
            gated_run
            if name == "eight heads"
            else train_run(runs / name[:3], ["--config", str(config), *SHORT, *flags])
        )
        shifts[name] = demand_placed(run)
    assert all(shifts.values()), shifts


def test_killed_after_the_placement_it_ends_with_the_same_weights(gated_run, tmp_path) -> None:
    """Before the model file is written, and between it and the scores."""
    run = killed(gated_run, "answers placed", tmp_path / "before")
    assert not (run / "model_best.pth").exists()
    resume(run)
    same_result(run, gated_run)
    run = shutil.copytree(gated_run, tmp_path / "between", symlinks=True)
    for path in (run / "scores").iterdir():
        path.unlink()
    resume(run)
    same_result(run, gated_run)


def test_other_prices_place_otherwise_and_none_places_nothing(config, gated_run, runs) -> None:
    """Dearer false alarms never move u down; the checkpoint is the same one."""
    flags = ["--config", str(config), *SHORT, *GATED]
    placed = demand_placed(gated_run)
    dear = demand_placed(train_run(runs / "dear", [*flags, "--false_alarm_price", "200"]))
    assert dear < placed
    assert demand_placed(train_run(runs / "none", [*flags, "--answer_placement", "none"])) == 0


def test_init_from_takes_the_weights_without_the_shift(gated_run) -> None:
    source = load_model(gated_run / "model_best.pth")
    begun = build_model(Run(gated_run).config, ("blue", "red"), Run(gated_run)).eval()
    assert begun.answer_shift == 0 != source.answer_shift
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        z = [class_margin(model(images).logits.numpy()) for model in (begun, source)]
    np.testing.assert_allclose(z[0], z[1] - source.answer_shift, atol=1e-4)


def test_phase_6_ships_what_phase_3_does_and_the_plan_says_so(config, gated_run, runs) -> None:
    flags = ["--config", str(config), *SHORT, "--phase", "6", "--exit_policy", "softmax", "--head_ensemble", "8"]
    run = train_run(runs / "sixth", flags)
    assert (run / "model_best.pth").read_bytes() == (gated_run / "model_best.pth").read_bytes()
    plan = done("20_train", *flags, "--dry_run").out
    assert "phase 6 ships the model that phase 3 would ship" in plan
    assert "positive_bank shape the gate trained jointly, and change neither the answers nor the gate" in plan


def test_three_classes_are_not_placed(images, config, runs, tmp_path) -> None:
    lines = [f"{i:03d}.png,{('blue', 'red', 'green')[i % 3]}" for i in range(120)]
    (tmp_path / "three.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    names = ["--dataset_params.class_names", "null", "--epochs", "1"]  # red stays the positive class
    source = ["--dataset_params.sources", f"[{{root: {images}, labels: {tmp_path}/three.csv}}]"]
    run = runs / "three"
    flags = ["--config", str(config), "--phase", "1", *source, *names, "--run", str(run)]
    done("00_make_splits", *flags)
    assert "answers as they are trained" in done("20_train", *flags, "--dry_run").out
    assert "answers placed" not in done("20_train", *flags).out
    assert load_model(run / "model_best.pth").answer_shift == 0
    assert Run(run).scores("val_calib").logits.shape[1] == 3
