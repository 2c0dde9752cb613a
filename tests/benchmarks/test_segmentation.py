"""The benchmark of masks: what it reads off runs."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import segmentation


def test_cases_until_a_level_are_those_of_the_first_stage_that_reaches_it() -> None:
    stages = [(12, 0.7), (24, 0.86), (36, 0.84), (48, 0.9)]
    assert segmentation.cases_to(stages, 0.85) == 24
    assert segmentation.cases_to(stages, 0.9) == 48
    assert segmentation.cases_to(stages, 0.95) is None


def test_arms_differ_in_what_ranks_the_cases() -> None:
    assert len({str(sorted(arm.items())) for name, arm in segmentation.ARMS.items() if name != "entropy"}) == 5
