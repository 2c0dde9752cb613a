"""Kill training at any moment: every file is whole, and --resume ends where an uninterrupted run would."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from stage1_pro.core.artifacts import digest_file

SCRIPTS = Path(__file__).parents[2] / "stage1_pro" / "scripts"


def begin(config: Path, run: Path) -> list[str]:
    """Prepare a run; returns the command that trains it."""
    flags = ["--config", str(config), "--phase", "2", "--run", str(run)]
    subprocess.run([sys.executable, str(SCRIPTS / "00_make_splits.py"), *flags], check=True, capture_output=True)
    return [sys.executable, str(SCRIPTS / "20_train.py"), *flags]


def resume(run: Path) -> None:
    subprocess.run(
        [sys.executable, str(SCRIPTS / "20_train.py"), "--resume", str(run)], check=True, capture_output=True
    )


def demand_whole(run: Path) -> None:
    """Every artifact can be read; what is not finished is not there."""
    for path in run.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".ckpt", ".pth"):
            torch.load(path, weights_only=True)
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
        elif path.name == "metrics.csv":
            assert pd.read_csv(path)["train_loss"].notna().all()


def same_result(run: Path, reference: Path) -> None:
    assert digest_file(run / "model_best.pth") == digest_file(reference / "model_best.pth")
    for split in ("val_select", "val_calib"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(run / "scores" / f"{split}.parquet"),
            pd.read_parquet(reference / "scores" / f"{split}.parquet"),
        )
    timing = ["images_per_second", "data_wait_share", "epoch_seconds", "peak_rss_mib"]
    pd.testing.assert_frame_equal(
        pd.read_csv(run / "metrics.csv").drop(columns=timing),
        pd.read_csv(reference / "metrics.csv").drop(columns=timing),
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_in_the_middle_of_training(number, status, config, trained_once, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(begin(config, run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "epoch 4/" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status
    if number != signal.SIGKILL:
        assert f"--resume {run}" in errors
        assert "Traceback" not in errors
    demand_whole(run)
    resume(run)
    same_result(run, trained_once)


def test_resuming_a_finished_run_changes_nothing(trained_once, tmp_path):
    run = shutil.copytree(trained_once, tmp_path / "run")
    resume(run)
    same_result(run, trained_once)


def test_frozen_weights_that_changed_are_not_resumed_on(config, script, tmp_path):
    """Checkpoints leave them out: heads of one backbone would go on upon another."""
    weights, run = tmp_path / "weights.safetensors", tmp_path / "run"
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), weights)
        if seed == 0:
            flags = ["--config", config, "--phase", "2", "--model_path", f"file:{weights}:test_efficientnet"]
            assert script("00_make_splits", *flags, "--run", run).status == 0
            assert script("20_train", *flags, "--epochs", "2", "--run", run).status == 0
            (run / "model_best.pth").unlink()
            assert script("20_train", "--resume", run).status == 0
    outcome = script("20_train", "--resume", run)
    assert outcome.status == 2
    assert f"the weights of model_path file:{weights}:test_efficientnet have changed" in outcome.err


def kill_after(command: list[str], line: str) -> None:
    """SIGKILL the training as soon as it prints `line`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for printed in process.stdout:
        if line in printed:
            process.kill()
            break
    process.communicate(timeout=120)


def test_a_run_that_was_moved_resumes_as_if_it_had_not(config, trained_once, tmp_path):
    """The best score so far is part of what is resumed, wherever the directory lies now."""
    first = tmp_path / "first"
    kill_after(begin(config, first), "epoch 10/")
    moved = Path(shutil.move(first, tmp_path / "moved"))
    resume(moved)
    same_result(moved, trained_once)


def test_resuming_with_augmentation_in_workers_repeats_no_epoch(config, tmp_path):
    """Workers prefetch before Lightning sets the epoch; the order after a resume must not be that of epoch 0."""
    flags = ["--dataset_params.augmentation", "moderate", "--dataset_params.num_workers", "2", "--epochs", "4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*begin(config, whole), *flags], check=True, capture_output=True)
    kill_after([*begin(config, killed), *flags], "epoch 3/")
    resume(killed)
    same_result(killed, whole)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(config, trained_once, tmp_path):
    """The window is that of the whole process, from its imports to the last score file."""
    command = begin(config, tmp_path / "timed")
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - begun
    draw = random.Random(5)
    for index in range(20):
        run = tmp_path / f"run{index}"
        process = subprocess.Popen(begin(config, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * duration)
        process.kill()
        process.wait()
        demand_whole(run)
        if (run / "config.json").exists():
            resume(run)
        else:
            subprocess.run([*command[:-1], str(run)], check=True, capture_output=True)
        same_result(run, trained_once)
        shutil.rmtree(run)
