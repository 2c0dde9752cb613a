"""Training by stages in two gloo processes: the picks of one process, and resume after a kill in every phase."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chain import done, keep, killed, same_result, train_run
from test_incremental import at_each_write, demand_same, flags, stages, state_of  # noqa: F401 (fixtures)
from two_ranks import WORLD, on_two_ranks

from stage1_pro.core.inference import preparing
from stage1_pro.core.records.run import Run

pytestmark = pytest.mark.slow  # what they decide from one scoring is in tests/incremental/test_ranks.py
SPREAD = ["--strategy", "ddp", "--devices", str(WORLD)]
MOMENTS = ["TRAINING 1", "stage 1 epoch 2", "SCORING 1", "SCORING 1 saved", "stage 1 scored", "TRANSITION 1"]
MOMENTS += ["TRANSITION 1 saved", "TRAINING 2", "TRANSITION 2", "TRAINING 3", "DONE 1"]


def train(flags: Sequence[str], run: Path, rank: int) -> None:  # noqa: F811
    with at_each_write(lambda moment: keep(run, moment) if rank == 0 and moment in MOMENTS else None):
        done("20_train", *flags, *SPREAD, "--run", run)


def resume(runs: Sequence[Path], rank: int) -> None:
    for run in runs:
        done("20_train", "--resume", run)


@pytest.fixture(scope="module")
def alike(flags) -> list[str]:  # noqa: F811
    """Flags with which a step is of the same cases, whether one process takes 16 or each of two takes 8 of them."""
    return [*flags, "--dropout", "0"]


@pytest.fixture(scope="module")
def spread(alike, make_once) -> Path:
    """An uninterrupted run of two processes, and what it would have left if it had been killed."""

    def make(run: Path) -> None:
        more = [*alike, "--batch_size", str(16 // WORLD)]
        done("00_make_splits", *more, "--run", run)
        on_two_ranks(partial(train, more, run))

    return make_once("spread", make)


def test_two_processes_admit_the_cases_of_one_and_end_with_its_scores(spread, alike, runs):
    alone = train_run(runs / "alone", [*alike, "--batch_size", "16"])
    state, expected = state_of(spread), state_of(alone)
    assert state["active"] == expected["active"]
    assert [stage["epochs"] for stage in state["stages"]] == [stage["epochs"] for stage in expected["stages"]]
    for split in ("val_select", "val_calib"):
        scores, others = (pd.read_parquet(run / "scores" / f"{split}.parquet") for run in (spread, alone))
        logits = [name for name in scores if name.startswith("logit_")]
        np.testing.assert_allclose(scores[logits], others[logits], atol=1e-4)


def test_two_processes_killed_in_any_phase_end_the_same(spread, tmp_path):
    resumed = [killed(spread, moment, tmp_path / moment) for moment in MOMENTS]
    on_two_ranks(partial(resume, resumed))
    for run in resumed:
        demand_same(run, spread)
        same_result(run, spread)


def train_on_images(flags: Sequence[str], run: Path, rank: int) -> None:  # noqa: F811
    read_again = []
    decoding = preparing.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "decode", lambda path, **rest: read_again.append(path) or decoding(path, **rest))
        done("20_train", *flags, *SPREAD, "--run", run)
    splits = Run(run).splits
    assert len(read_again) == (0 if rank else len(splits.indices("val_select")) + len(splits.indices("val_calib")))


def test_what_two_processes_saw_of_the_training_images_is_enough_for_the_suspects(config, runs):
    chosen = ["--config", str(config), "--phase", "2", "--epochs", "2", "--dataset_params.augmentation", "moderate"]
    run = Run(runs / "run")
    done("00_make_splits", *chosen, "--run", run.path)
    on_two_ranks(partial(train_on_images, chosen, run.path))
    assert len(pd.read_csv(run.suspects_path)) == len(run.splits.indices("train"))
