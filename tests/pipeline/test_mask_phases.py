"""Training with masks by stages, killed in every phase of the machine, in one process and in two: the same end."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import yaml
from chain import done, keep, killed, train_run
from made_masks import STAGES, settings, write_cases
from shared_folders import made_once
from test_incremental import at_each_write, state_of
from two_ranks import WORLD, on_two_ranks

pytest.importorskip("monai", reason="the extra seg is not installed")
pytestmark = pytest.mark.slow  # tests/pipeline/test_mask_runs.py has three moments of one process

MOMENTS = ["TRAINING 1", "stage 1 epoch 2", "SCORING 1", "SCORING 1 saved", "stage 1 scored", "TRANSITION 1"]
MOMENTS += ["TRANSITION 1 saved", "TRAINING 2", "SCORING 2", "TRANSITION 2", "TRAINING 3", "DONE 1"]
SAME = ("stages.csv", "selections.csv", "stage_suspects.csv", "model_best.pth")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    def make(folder: Path) -> None:
        ratios = {"val_select_ratio": 0.2, "val_calib_ratio": 0.2, "val_test_ratio": 0.1}
        made = settings(write_cases(folder / "discs", 60), **ratios)
        (folder / "stages.yaml").write_text(yaml.safe_dump({**made, "lr_head": 5e-3, "incremental_params": STAGES}))

    return ["--config", str(made_once(tmp_path_factory, "mask-phases", make) / "stages.yaml")]


def demand_same(run: Path, reference: Path) -> None:
    assert state_of(run) == state_of(reference)
    for name in SAME:
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    first, second = (pd.read_parquet(one / "scores" / "val_calib.parquet") for one in (run, reference))
    pd.testing.assert_frame_equal(first, second)


def test_one_process_killed_in_any_phase_ends_the_same(
    flags: list[str], make_once: Callable[..., Path], tmp_path: Path
) -> None:
    def make(run: Path) -> None:
        with at_each_write(lambda moment: keep(run, moment) if moment in MOMENTS else None):
            train_run(run, flags)

    whole = make_once("mask-phases", make)
    for moment in MOMENTS:
        run = killed(whole, moment, tmp_path / moment)
        done("20_train", "--resume", run)
        demand_same(run, whole)


def train(flags: Sequence[str], run: Path, rank: int) -> None:
    with at_each_write(lambda moment: keep(run, moment) if rank == 0 and moment in MOMENTS else None):
        done("20_train", *flags, "--strategy", "ddp", "--devices", str(WORLD), "--run", run)


def resume(runs: Sequence[Path], rank: int) -> None:
    for run in runs:
        done("20_train", "--resume", run)


def test_two_processes_killed_in_any_phase_end_the_same(
    flags: list[str], make_once: Callable[..., Path], tmp_path: Path
) -> None:
    def make(run: Path) -> None:
        done("00_make_splits", *flags, "--run", run)
        on_two_ranks(partial(train, flags, run))

    whole = make_once("mask-phases-spread", make)
    assert [stage["active_cases"] for stage in state_of(whole)["stages"]] == [6, 10, 14]
    resumed = [killed(whole, moment, tmp_path / moment) for moment in MOMENTS]
    on_two_ranks(partial(resume, resumed))
    for run in resumed:
        demand_same(run, whole)
