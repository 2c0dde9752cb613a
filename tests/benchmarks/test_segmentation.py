"""The benchmark of masks: what it reads off runs, and what it says of arms that differ from random or do not."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import segmentation_admission as admission

SIZES = {1: 12, 2: 24, 3: 36}


def write(path: Path, header: list[str], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def make_runs(folder: Path, gain: dict[str, float], seeds: int) -> Path:
    """Runs of all arms: 0.7, 0.8, 0.9 on common cases and .3 less on rare ones, and an arm's own gain over all."""
    cases = [(f"c{index}", "common" if index < 3 else "rare") for index in range(4)]
    write(folder / "cases.csv", ["case_id", "kind"], cases)
    for seed in range(seeds):
        noise = np.random.default_rng(seed).normal(0, 0.001)
        for arm in (admission.FULL, *admission.ARMS):
            run, more = folder / f"{arm}-{seed}", gain.get(arm, 0.0) + noise * (arm == "diversity")
            dice = {0: 0.9, 1: 0.7 + more, 2: 0.8 + more, 3: 0.9 + more}
            rows = [
                (stage, case, value - 0.3 * (kind == "rare")) for stage, value in dice.items() for case, kind in cases
            ]
            write(run / "stage_dice.csv", ["stage", "case_id", "dice"], rows)
            write(run / "stages.csv", ["stage", "active_cases"], list(SIZES.items()))
    return folder


def test_cases_until_a_level_are_those_of_the_first_stage_that_reaches_it() -> None:
    curve = {12: 0.7, 24: 0.86, 36: 0.84, 48: 0.9}
    assert admission.cases_to(curve, 0.85) == 24
    assert admission.cases_to(curve, 0.9) == 48
    assert admission.cases_to(curve, 0.95) is None


def test_each_kind_of_image_is_measured_by_its_own_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_runs(tmp_path, {"uncertainty": 0.06, "difficulty": -0.05}, seeds=3)
    rows = list(admission.results(runs, runs / "cases.csv", range(3)))
    assert list(dict.fromkeys(row["kind"] for row in rows)) == ["all", "common", "rare"]
    of = {(row["arm"], row["kind"]): row for row in rows if row["seed"] == 0}
    assert (of["random", "common"]["judged"], of["random", "rare"]["judged"]) == (3, 1)
    assert of["random", "rare"]["full"] == pytest.approx(0.6)
    assert of["random", "common"]["to_0.95"] == 36  # .855 of .9
    assert of["uncertainty", "common"]["to_0.95"] == 24
    assert of["uncertainty", "rare"]["to_0.95"] == 36  # .56 of .6 is not .57
    assert of["difficulty", "common"]["to_0.95"] is None
    admission.print_tables(rows)
    page = capsys.readouterr().out
    common, rare = page.partition("\ncommon:")[2].split("\nrare:")
    assert "3 to 3 cases judged, 3 seeds; Dice of all cases 0.900" in common
    assert "| difficulty | never (0 of 3 runs) | never (0 of 3 runs) | -0.0500 | -0.0500 to -0.0500 |" in common
    assert "| uncertainty | 36 (3 of 3 runs) |" in rare
    last = page.strip().splitlines()[-1]
    assert last.startswith("not worse than random within error, the best first: uncertainty, ")
    assert "difficulty" not in last
    assert "diversity" in last


def test_one_seed_has_no_error_and_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = make_runs(tmp_path, {}, seeds=1)
    admission.print_tables(list(admission.results(runs, runs / "cases.csv", range(1))))
    page = capsys.readouterr().out
    assert "needs two seeds" in page
    assert "none, so random" in page


def test_arms_differ_in_what_ranks_the_cases() -> None:
    made = [str(sorted(admission.settings_of(arm).items())) for arm in admission.ARMS]
    assert len(set(made)) == 6
