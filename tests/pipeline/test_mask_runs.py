"""A run with masks: the scripts of every run, on discs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from chain import call, done
from made_masks import settings, write_cases
from shared_folders import made_once

pytest.importorskip("monai", reason="the extra seg is not installed")

RATIOS = {"val_select_ratio": 0.15, "val_calib_ratio": 0.35, "val_test_ratio": 0.15}


@pytest.fixture(scope="module")
def masks_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        root = write_cases(folder / "discs", 100, empty=4)
        made = settings(root, **RATIOS) | {"epochs": 10, "lr_head": 5e-3}
        (folder / "masks.yaml").write_text(yaml.safe_dump(made))

    return made_once(tmp_path_factory, "masks", make) / "masks.yaml"


@pytest.fixture(scope="module")
def masks_once(masks_config: Path, make_once: Callable[..., Path]) -> Path:
    """A trained and scored run."""

    def make(run: Path) -> None:
        done("00_make_splits", "--config", masks_config, "--run", run)
        done("20_train", "--config", masks_config, "--run", run)

    return make_once("masks", make)


def test_a_run_is_trained_and_scored(masks_once: Path) -> None:
    metrics = pd.read_csv(masks_once / "metrics.csv")
    assert {"val_dice", "val_dice_disc", "val_augrc", "val_loss", "val_share_missed"} <= set(metrics)
    assert metrics["val_dice"].max() > 0.8
    scores = pd.read_parquet(masks_once / "scores" / "val_calib.parquet")
    assert {"missed", "dice", "uncertainty", "logit_0", "logit_1"} <= set(scores)
    assert (scores["logit_0"] == 0).all()
    assert set(scores["missed"][scores["label"] == 0]) <= {-1}
    assert set(scores["missed"][scores["label"] == 1]) <= {0, 1}
    assert scores["dice"].between(0, 1).all()


def test_a_second_training_gives_the_same_weights_and_scores(
    masks_once: Path, masks_config: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    done("00_make_splits", "--config", masks_config, "--run", again)
    done("20_train", "--config", masks_config, "--run", again, "--dataset_params.num_workers", "2")
    first, second = (pd.read_parquet(run / "scores" / "val_calib.parquet") for run in (masks_once, again))
    pd.testing.assert_frame_equal(first, second)


def test_weights_of_another_task_are_refused(
    masks_once: Path, masks_config: Path, trained_once: Path, tmp_path: Path
) -> None:
    done("00_make_splits", "--config", masks_config, "--run", tmp_path / "other")
    refused = call("20_train", "--config", masks_config, "--run", tmp_path / "other", "--init_from", trained_once)
    assert refused.status == 2
    assert "a run of task classification, and" in refused.err
