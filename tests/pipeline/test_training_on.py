"""Training on after an end: the run that results is the one that was planned with both schedules from the start."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import copy, done, keep, killed, reconfigured, refused, same_result, train_run


def flags(config: Path, *more: str) -> list[str]:
    return ["--config", str(config), "--phase", "2", "--epochs", "3", *more]


@pytest.fixture(scope="module")
def short(config, make_once) -> Path:
    """A run that came to its end after three epochs."""
    return make_once("short", lambda run: train_run(run, flags(config)))


@pytest.fixture(scope="module")
def longer(short, make_once) -> Path:
    """The same, trained on to the seventh, and what it would have left if it had been killed after the fifth."""

    def make(run: Path) -> None:
        copy(short, run.parent).rename(run)
        done("20_train", "--resume", run, "--epochs", "7", at={"epoch 5/": lambda: keep(run, "epoch 5")})

    return make_once("longer", make)


def test_it_ends_as_a_run_that_was_planned_with_both_schedules(config, longer, runs):
    planned = train_run(runs / "planned", flags(config, "--epochs", "7", "--schedule_restarts", "[3]"))
    same_result(longer, planned)
    saved = [json.loads((run / "config.json").read_text()) for run in (longer, planned)]
    assert saved[0] == saved[1]
    assert (saved[0]["epochs"], saved[0]["schedule_restarts"]) == (7, [3])


GATED = {
    "a gate trained jointly": ["--phase", "3", "--exit_policy", "gate", "--gate_refit", "false"],
    "sharpness": ["--phase", "5", "--exit_policy", "gate", "--optimizer", "fsam", "--grad_accum_steps", "2"],
    "conformal": ["--phase", "6", "--exit_policy", "scrc", "--gate_refit", "false"],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", GATED)
def test_losses_that_change_with_the_epochs_do_not_begin_anew(what, config, runs):
    """Neither a gate's warm-up nor the change to ConformalRiskLoss: the weights are trained."""
    more = [*GATED[what], "--epochs", "4"]
    run = train_run(runs / "run", flags(config, *more))
    done("20_train", "--resume", run, "--epochs", "9")
    planned = train_run(runs / "planned", flags(config, *more, "--epochs", "9", "--schedule_restarts", "[4]"))
    same_result(run, planned)


def test_warm_up_and_cosine_begin_anew(longer):
    epochs = pd.read_csv(longer / "metrics.csv")
    rate = next(epochs[name] for name in epochs if name.startswith("lr-"))
    assert epochs["epoch"].tolist() == list(range(7))
    assert np.argmax(rate[3:]) == 1  # one epoch of warm-up
    np.testing.assert_allclose(rate[[0, 1]], rate[[3, 4]], rtol=1e-6)
    assert rate[2] < rate[1]


def test_killed_on_the_way_it_goes_on_however_it_is_asked(longer, tmp_path):
    for name, more in (("plainly", ()), ("again", ("--epochs", "7"))):
        run = killed(longer, "epoch 5", tmp_path / name)
        out = done("20_train", "--resume", run, *more).out
        assert "epoch 4/" not in out
        assert "epoch 5/7" in out
        same_result(run, longer)


def test_patience_that_ended_a_training_counts_anew(config, runs):
    impatient = flags(config, "--epochs", "9", "--checkpoint_by", "val_accuracy", "--early_stop_patience", "1")
    run = train_run(runs / "run", impatient)
    ended = len(pd.read_csv(run / "metrics.csv"))
    assert ended < 9
    out = done("20_train", "--resume", run, "--epochs", "9").out  # the planned end, which it never reached
    assert f"training goes on from epoch {ended} to 9: warm-up, cosine and patience begin anew" in out
    assert json.loads((run / "config.json").read_text())["schedule_restarts"] == [ended]
    # counted on, it would end with the first epoch that is no better than the best of before
    accuracy = pd.read_csv(run / "metrics.csv")["val_accuracy"]
    assert accuracy[ended] <= accuracy[:ended].max()
    assert len(accuracy) >= ended + 2


def test_what_cannot_be_trained_on_is_refused_with_a_way_out(short, longer, calibrated, script, tmp_path):
    before = (short / "config.json").read_bytes()
    refused(script("20_train", "--resume", short, "--epochs", "2"), "--epochs is 2", "has trained 3", "allowed 4 or")
    refused(script("20_train", "--resume", short, "--epochs", "many"), '$.epochs is "many"; allowed integer')
    refused(
        script("20_train", "--resume", short, "--epochs", "9", "--seed", "3"),
        "no other option but --root, --restore_state and --epochs N",
    )
    assert (short / "config.json").read_bytes() == before
    run = killed(longer, "epoch 5", tmp_path / "run")
    outcome = script("20_train", "--resume", run, "--epochs", "9")
    refused(outcome, "has not come to its end yet", f"--resume {run} first")
    by_stages = copy(short, tmp_path / "runs")
    reconfigured(by_stages, incremental_params={"enabled": True})
    refused(
        script("20_train", "--resume", by_stages, "--epochs", "9"), "trains by stages, which have ends of their own"
    )
    outcome = script("20_train", "--resume", calibrated, "--epochs", "20")
    refused(outcome, "thresholds.json is certified for the present weights", f"--init_from {calibrated}")


def test_the_way_out_of_a_calibrated_run_leads_out(calibrated):
    new = calibrated.parent / "new"
    settings = ["--config", calibrated / "config.json", "--run", new]
    done("00_make_splits", *settings)
    done("20_train", *settings, "--init_from", calibrated, "--epochs", "1")
    assert (new / "model_best.pth").exists()
