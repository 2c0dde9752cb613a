"""Incremental training end to end: stages, resume from every phase, and picks that do not hang on how it is run."""

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
from chain import copy, done, keep, killed, reconfigured, refused, same_result, train_run
from PIL import Image
from pool_twin import score_plainly
from shared_folders import made_once

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.incremental.acquisition import CaseMetrics
from stage1_pro.core.incremental.machine import Scored
from stage1_pro.core.training.callbacks import stage_controller
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.callbacks.stage_controller import IncrementalStageController as Controller
from stage1_pro.core.training.modules.base import Stage1Module

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


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> Path:
    folder = made_once(tmp_path_factory, "stages", lambda at: (at / "stages.yaml").write_text(STAGES))
    return folder / "stages.yaml"


@pytest.fixture(scope="session")
def flags(config, stages) -> list[str]:
    return ["--config", str(config), "--config", str(stages), "--phase", "2"]


@contextmanager
def at_each_write(do: Callable[[str], object]) -> Iterator[None]:
    """Within the block do this whenever state.json was written, and whenever the checkpoint has followed it; the moment
    is named as in "SCORING 1", the first one in this state, and "SCORING 1 saved". Also where the second epoch of a
    stage begins, "stage 1 epoch 2", and where the pool is scored, "stage 1 scored"."""
    write, save, score, moments = Controller._write, Controller._save, Controller._scored, Counter()
    epoch = Controller.on_train_epoch_start

    def written(controller: Controller, trainer: pl.Trainer) -> None:
        write(controller, trainer)
        moments[controller.state.name] += 1
        do(f"{controller.state.name} {moments[controller.state.name]}")

    def saved(controller: Controller, trainer: pl.Trainer) -> None:
        save(controller, trainer)
        do(f"{controller.state.name} {moments[controller.state.name]} saved")

    def started(controller: Controller, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        epoch(controller, trainer, module)
        if controller.state.stage.epochs == 1:
            do(f"stage {controller.state.stage.number} epoch 2")

    def scored(controller: Controller, *parts: Any) -> Scored:
        found = score(controller, *parts)
        do(f"stage {controller.state.stage.number} scored")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Controller, "on_train_epoch_start", started)
        patch.setattr(Controller, "_scored", scored)
        patch.setattr(Controller, "_write", written)
        patch.setattr(Controller, "_save", saved)
        yield


@pytest.fixture(scope="session")
def staged(flags, make_once) -> Path:
    """An uninterrupted run of three stages, and what it would have left if it had been killed."""

    def make(run: Path) -> None:
        with at_each_write(lambda moment: keep(run, moment)):
            train_run(run, flags)

    return make_once("staged", make)


def state_of(run: Path) -> dict:
    """state.json without its time stamp and the name of the run."""
    state = json.loads((run / "state.json").read_text())
    return {name: value for name, value in state.items() if name not in ("updated_at", "run_id")}


def test_three_stages_end_in_a_named_stop_and_the_run_goes_on_like_any_other(staged, runs):
    state = state_of(staged)
    assert (state["phase"], state["stop"]) == ("DONE", "max_stages")
    assert [stage["active_cases"] for stage in state["stages"]] == [16, 24, 32]
    assert len(state["active"]) == 32
    epochs = pd.read_csv(staged / "metrics.csv")
    assert epochs["active_cases"].tolist() == [s["active_cases"] for s in state["stages"] for _ in range(s["epochs"])]
    run = copy(staged, runs)
    for name in ("25_threshold_sweep", "40_eval_selective", "50_export_bundle"):
        done(name, "--run", run)


def test_a_plain_loop_over_the_pool_gives_the_same_run(flags, staged, runs, monkeypatch):
    """Lightning's validation loop, run once more within a fit, leaves no trace in what training does next."""
    monkeypatch.setattr(stage_controller, "score_pool", score_plainly)
    run = train_run(runs / "run", flags)
    demand_same(run, staged)
    same_result(run, staged)


def test_lightning_scores_the_pool_as_a_plain_loop_does_with_a_live_backbone(flags, runs, monkeypatch):
    scorings = []

    def both(trainer: pl.Trainer, module: Stage1Module, data: Stage1DataModule) -> CaseMetrics:
        found, expected = score_pool(trainer, module, data), score_plainly(trainer, module, data)
        for name in ("case_id", "content", "dice", "entropy", "embedding"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        scorings.append(found)
        return found

    monkeypatch.setattr(stage_controller, "score_pool", both)
    more = ["--freeze_backbone", "false", "--incremental_params.max_epochs_per_stage", "1", "--precision", "bf16-mixed"]
    train_run(runs / "run", [*flags, *more, "--dataset_params.num_workers", "2"])
    assert len(scorings) == 2
    assert (scorings[0].dice != scorings[1].dice).all()


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


def demand_same(run: Path, reference: Path) -> None:
    """Both ended with the same stages and weights."""
    assert state_of(run) == state_of(reference)
    assert digest_file(run / "model_best.pth") == digest_file(reference / "model_best.pth")
    for name in ("stages.csv", "selections.csv", "stage_suspects.csv", "suspects.csv"):
        assert (run / name).read_bytes() == (reference / name).read_bytes()


MOMENTS = ["TRAINING 1", "TRAINING 2", "SCORING 1", "SCORING 1 saved", "SCORING 2 saved", "TRANSITION 1"]
MOMENTS += ["stage 1 epoch 2", "stage 1 scored", "TRANSITION 2", "TRANSITION 2 saved", "TRAINING 3", "DONE 1"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_any_phase_and_resumed_it_ends_the_same(moment, staged, tmp_path):
    """Between state.json and its checkpoint, and after both."""
    run = killed(staged, moment, tmp_path / "run")
    assert state_of(run)["phase"] == {"stage 1 epoch 2": "TRAINING", "stage 1 scored": "SCORING"}.get(
        moment, moment.split()[0]
    )
    done("20_train", "--resume", run)
    demand_same(run, staged)


def test_killed_again_before_a_checkpoint_could_follow_it_ends_the_same(staged, tmp_path):
    run = killed(staged, "TRANSITION 1", tmp_path / "once" / "run")
    with at_each_write(lambda moment: keep(run, "again") if moment == "TRAINING 1" else None):
        done("20_train", "--resume", run)
    again = killed(run, "again", tmp_path / "again")
    done("20_train", "--resume", again)
    demand_same(again, staged)


def test_asked_to_end_it_says_so_and_goes_on_later(flags, staged, script, tmp_path):
    run = tmp_path / "run"
    done("00_make_splits", *flags, "--run", run)
    with at_each_write(lambda moment: moment == "TRANSITION 1" and os.kill(os.getpid(), signal.SIGTERM)):
        assert script("20_train", *flags, "--run", run).status == 143
    assert (state_of(run)["phase"], state_of(run)["stop"]) == ("DONE", "interrupted")
    done("20_train", "--resume", run)
    demand_same(run, staged)


def admitted_by(source: Path, flags: list[str], *more: str) -> list[str]:
    """What a dry run says that a trained model would admit first."""
    outcome = done("20_train", *flags, "--init_from", source, *more, "--incremental_params.dry_run", "true")
    lines = outcome.out.splitlines()
    return lines[next(index for index, line in enumerate(lines) if line.startswith("would admit")) :]


def test_batch_size_and_workers_change_no_pick_at_equal_weights(flags, staged):
    expected = admitted_by(staged, flags)
    assert re.fullmatch(r"would admit 8 of \d+ eligible of 144 candidates:", expected[0])
    assert len(expected) == 10
    assert admitted_by(staged, flags, "--batch_size", "128") == expected
    assert admitted_by(staged, flags, "--batch_size", "16", "--dataset_params.num_workers", "2") == expected


def test_a_dry_run_prints_the_stages_and_writes_nothing(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = done("20_train", *flags, "--incremental_params.dry_run", "true")
    assert "    3     32               5             10" in outcome.out
    assert "stop        dry_run; training would end at the latest with max_stages, 32 cases" in outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--incremental_params.initial_cases", "500"], "is 500, and the training split has 160 different images"),
        (["--incremental_params.initial_cases", "1"], "fewer than the 2 classes"),
        (["--incremental_params.selection_threshold", "1.5"], "selection_threshold is 1.5; allowed 0 to 1"),
    ],
)
def test_bad_settings_end_with_status_2(settings, words, flags, script, tmp_path):
    run = tmp_path / "run"
    done("00_make_splits", *flags, "--run", run)
    refused(script("20_train", *flags, *settings, "--run", run), words)
    assert [path.name for path in run.iterdir()] == ["splits.json"]  # it can be trained with better ones


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_config_is_not_resumed(finished, staged, script, runs):
    run = copy(staged, runs)
    saved = json.loads((run / "config.json").read_text())
    reconfigured(run, incremental_params={**saved["incremental_params"], "add_cases": 9})
    if not finished:
        (run / "checkpoints" / "last.ckpt").unlink()
    refused(script("20_train", "--resume", run), "$.config_digest is", "begin a new run")


@pytest.mark.parametrize(("phase", "policy"), [(1, "softmax"), (3, "gate"), (6, "scrc")])
def test_every_phase_can_train_by_stages(phase, policy, flags, runs):
    run = train_run(runs / "run", [*flags, "--phase", str(phase), "--exit_policy", policy])
    state = state_of(run)
    assert (state["stop"], len(state["stages"])) == ("max_stages", 3)
    assert all(np.isfinite(stage["best_metric"]) for stage in state["stages"])


def test_where_the_monitor_is_perfect_a_stage_starts_from_trained_weights(flags, runs, tmp_path):
    """All epochs tie there, and the first one's weights have hardly left where the stage began."""
    for index in range(120):
        name, colour = (("blue", (40, 40, 220)), ("red", (220, 40, 40)))[index % 2]
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (*colour[:1], 40 + index, *colour[2:])).save(tmp_path / name / f"{index}.png")
    sources = ["--dataset_params.sources", f"[{{name: plain, root: {tmp_path}}}]", "--lr_head", "1e-2"]
    run = train_run(runs / "run", [*flags, *sources, "--phase", "1", "--incremental_params.selection_threshold", "1"])
    perfect = [stage for stage in state_of(run)["stages"] if stage["best_metric"] == 1]
    assert len(perfect) >= 2
    for stage in perfect:
        assert stage["epochs"] > 1
        assert stage["best_epoch"] == stage["first_epoch"] + stage["epochs"] - 1


def test_scratch_goes_back_to_the_first_weights_and_keep_goes_on_with_the_rates(flags, runs):
    settings = ["--incremental_params.stage_init", "scratch", "--incremental_params.stage_lr", "keep"]
    run = train_run(runs / "run", [*flags, *settings])
    epochs = pd.read_csv(run / "metrics.csv")
    rate = next(epochs[name] for name in epochs if name.startswith("lr-"))
    begins = np.flatnonzero(epochs["stage"].diff() > 0)
    assert (np.diff(rate[1:]) <= 0).all()  # one cosine over all stages
    assert (rate[begins] < 1e-5).all()  # so the epoch is that of the weights that the stage began with
    assert (epochs["val_loss"][begins] > epochs["val_loss"][: begins[0]].max()).all()
