"""Kill training at any moment: every file is whole, and --resume ends where an uninterrupted run would."""

import errno
import json
import multiprocessing
import os
import random
import re
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
from chain import SCRIPTS, done, files_of, killed, refused, resume, same_result, train_run
from safetensors.torch import save_file


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


def flags(config: Path, run: Path) -> list[str]:
    return ["--config", str(config), "--phase", "2", "--run", str(run)]


def train_in_a_process(config: Path, run: Path) -> subprocess.Popen:
    done("00_make_splits", *flags(config, run))
    command = [sys.executable, str(SCRIPTS / "20_train.py"), *flags(config, run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_killed_in_the_middle_of_training_and_resumed_elsewhere(config, trained_once, tmp_path):
    """A process of its own, whose run goes on in this one."""
    run = tmp_path / "run"
    process = train_in_a_process(config, run)
    assert any("epoch 4/" in line for line in process.stdout)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    demand_whole(run)
    moved = Path(shutil.move(run, tmp_path / "moved"))
    resume(moved)
    same_result(moved, trained_once)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_end_in_the_middle_of_training(number, status, config, script, trained_once, tmp_path):
    run = tmp_path / "run"
    done("00_make_splits", *flags(config, run))
    outcome = script("20_train", *flags(config, run), at={"epoch 4/": lambda: os.kill(os.getpid(), number)})
    assert outcome.status == status
    assert "epoch 5/" not in outcome.out
    assert re.search(rf"resume with: \S+ \S+/20_train.py --resume {run}$", outcome.err, re.MULTILINE)
    assert "Traceback" not in outcome.err
    demand_whole(run)
    resume(run)
    same_result(run, trained_once)


def test_a_full_disk_in_the_middle_of_training_leaves_a_run_that_goes_on(config, script, trained_once, tmp_path):
    run = tmp_path / "run"
    done("00_make_splits", *flags(config, run))
    with pytest.MonkeyPatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        outcome = script("20_train", *flags(config, run), at={"epoch 4/": lambda: patch.setattr(os, "fsync", full)})
    refused(
        outcome,
        "best.ckpt: No space left on device",
        f"stage1_pro/scripts/20_train.py --resume {run}",
    )
    demand_whole(run)
    resume(run)
    same_result(run, trained_once)


def test_resuming_a_finished_run_changes_nothing(trained):
    before = files_of(trained)
    resume(trained)
    assert files_of(trained) == before


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


def test_the_best_epoch_so_far_is_part_of_what_is_resumed(trained_once, tmp_path):
    """Wherever the directory lies now: after ten of twelve epochs the best one is most likely behind."""
    run = killed(trained_once, "epoch 10/", tmp_path / "moved")
    demand_whole(run)
    resume(run)
    same_result(run, trained_once)


MOMENTS = ["epoch 2/", "answers placed"]


@pytest.fixture(scope="session")
def augmented(config) -> list[str]:
    more = ["--dataset_params.augmentation", "moderate", "--dataset_params.num_workers", "2", "--epochs", "3"]
    return ["--config", str(config), "--phase", "2", *more]


@pytest.fixture(scope="session")
def augmented_once(augmented, make_once) -> Path:
    return make_once("augmented", lambda run: train_run(run, augmented, *MOMENTS))


@pytest.mark.parametrize("moment", MOMENTS)
def test_resuming_with_augmentation_in_workers_repeats_no_epoch(moment, augmented_once, tmp_path):
    """Workers prefetch before Lightning sets the epoch; the order after a resume must not be that of epoch 0. Killed
    after the last epoch, it lists the suspects by the features which its epochs computed."""
    run = killed(augmented_once, moment, tmp_path / "run")
    resume(run)
    same_result(run, augmented_once)


@pytest.mark.parametrize("oldest", [True, False])
def test_without_a_process_that_reads_images_it_ends_and_goes_on(oldest, augmented, augmented_once, script, tmp_path):
    """Of training, whose processes came first, or of what was begun last."""

    def kill_one() -> None:
        readers = sorted(process.pid for process in multiprocessing.active_children())
        os.kill(readers[0 if oldest else -1], signal.SIGKILL)

    flags = [*augmented, "--run", str(tmp_path / "run")]
    done("00_make_splits", *flags)
    refused(
        script("20_train", *flags, at={"epoch 2/": kill_one}),
        "a process that reads images was ended",
        "most likely memory ran out",
        f"stage1_pro/scripts/20_train.py --resume {tmp_path / 'run'}",
    )
    resume(tmp_path / "run")
    same_result(tmp_path / "run", augmented_once)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(config, trained_once, tmp_path):
    """The window is that of the whole process, from its imports to the last score file."""
    begun = time.monotonic()
    assert train_in_a_process(config, tmp_path / "timed").communicate()[0]
    duration = time.monotonic() - begun
    draw = random.Random(5)
    for index in range(20):
        run = tmp_path / f"run{index}"
        process = train_in_a_process(config, run)
        time.sleep(draw.uniform(0.3, 1.0) * duration)
        process.kill()
        process.communicate()
        demand_whole(run)
        if (run / "config.json").exists():
            done("20_train", "--resume", run)
        else:
            done("20_train", *flags(config, run))
        same_result(run, trained_once)
        shutil.rmtree(run)
