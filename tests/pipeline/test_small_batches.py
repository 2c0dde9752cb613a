"""Trainings that batches of one case, or a full disk, would have ended in a traceback or an empty folder."""

import errno
import os

import pandas as pd
import pytest
from chain import call, done, refused

STAGES = ("--incremental_params.enabled", "true", "--incremental_params.initial_cases", "22")
STAGES += ("--incremental_params.add_cases", "1", "--incremental_params.max_stages", "2")
STAGES += ("--incremental_params.max_epochs_per_stage", "2", "--incremental_params.selection_threshold", "1")


@pytest.mark.parametrize("stages", [(), STAGES], ids=["all cases", "stages"])
def test_a_last_batch_of_one_case_does_not_end_a_training_of_batch_norms(config, tmp_path, stages):
    run = tmp_path / "run"
    flags = ["--config", config, "--freeze_backbone", "false", "--epochs", 2, "--run", run, *stages]
    flags += ["--batch_size", 11 if stages else 53]  # 160 = 3 · 53 + 1, and 23 = 2 · 11 + 1 in the second stage
    done("00_make_splits", *flags)
    done("20_train", *flags)
    table = pd.read_csv(run / "metrics.csv")
    assert list(table["step"].diff()[1:]) == ([2.0] * 3 if stages else [3.0])
    assert table["train_loss"].notna().all()


def test_a_full_disk_is_named_and_leaves_no_empty_run(config, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for name in (["--run", "runs/mine"], []):
            outcome = call("00_make_splits", "--config", config, *name)
            refused(outcome, "splits.json: No space left on device")
            assert "None:" not in outcome.err
            assert not [path for path in (tmp_path / "runs").glob("**/*") if path.name != "latest"]
            assert not (tmp_path / "runs" / "latest").is_symlink()
    done("00_make_splits", "--config", config, "--run", "runs/mine")
