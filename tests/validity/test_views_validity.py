"""Several frames, one decision: what is certified for groups holds, and covers more the more frames are looked at."""

from dataclasses import replace

import numpy as np
import pytest
from montecarlo import Outcomes, demand_valid, placed_shift
from population import Population, z_threshold

from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.views import Views
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.group_scores import in_groups
from stage1_pro.core.records.scores import Scores

pytestmark = pytest.mark.mc

FRAMES = Population(positive_share=0.3, mean=1.6, hard_share=0.05, hard_mean=-0.4)
"""Of a single frame."""
ALIKE = 0.4
"""Share of the variance that the frames of a track have in common."""
LENGTH, SELECT, CALIB = 10, 300, 500
RISK = Risk(0.05, 0.9)
DRAWS, CONTROL_DRAWS = 400, 200
BROKEN = pytest.raises(AssertionError, match="false certificates")


def of_means(frames: int) -> tuple[Population, float]:
    """The population of means of so many frames of a track, in units of their standard deviation, and that one."""
    scale = float(np.sqrt(ALIKE + (1 - ALIKE) / frames))
    return replace(FRAMES, mean=FRAMES.mean / scale, hard_mean=FRAMES.hard_mean / scale), scale


def tracks(rng: np.random.Generator, count: int, split: str) -> Scores:
    """Frames of tracks of LENGTH frames each; logits are unscaled."""
    labels = (np.arange(count) < round(FRAMES.positive_share * count)).astype(np.int8)
    hard = rng.random(count) < FRAMES.hard_share
    centre = np.where(labels == 1, np.where(hard, FRAMES.hard_mean, FRAMES.mean), -FRAMES.mean)
    own = centre + np.sqrt(ALIKE) * rng.standard_normal(count)
    z = (own[:, None] + np.sqrt(1 - ALIKE) * rng.standard_normal((count, LENGTH))).ravel()
    names = np.repeat(np.arange(count), LENGTH).astype(str)
    order = np.tile(np.arange(float(LENGTH)), count)
    ids = np.arange(count * LENGTH).astype(str)
    logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
    return Scores(split, ids, names, np.repeat(labels, LENGTH), logits, None, "", "", order=order)


def certified(select: Scores, calib: Scores) -> tuple[float, float] | None:
    """(threshold on |z + shift|, shift) that one-sided exits certify, with answers placed; None where nothing is."""
    shift = placed_shift(select, calib, RISK)
    moved = [replace(split, logits=split.logits + np.array([0, shift], np.float32)) for split in (select, calib)]
    found = calibrate_softmax(*moved, RISK, "one_sided")
    answer = found.walk.answer
    return None if answer is None else (z_threshold(found.parameters[answer]["threshold"]), shift)


def study(views: int, draws: int, seed: int) -> Outcomes:
    """True FNR and coverage of what the mean of so many frames certifies for tracks."""
    rng, (population, scale) = np.random.default_rng(seed), of_means(views)
    fnr, coverage = np.full(draws, np.nan), np.full(draws, np.nan)
    for draw in range(draws):
        select, calib = (in_groups(tracks(rng, count, "x"), Views(views)) for count in (SELECT, CALIB))
        found = certified(select, calib)
        if found is not None:
            cut = found[0] / scale, "one_sided", found[1] / scale
            fnr[draw], coverage[draw] = population.fnr(*cut), population.coverage(*cut)
    return Outcomes(fnr, coverage)


def test_what_is_certified_for_tracks_holds_and_grows_with_the_frames() -> None:
    found = {views: study(views, DRAWS, seed=40 + views) for views in (1, 3, 10)}
    for one in found.values():
        demand_valid(one, RISK)
    means = [one.mean_coverage for one in found.values()]
    assert means[0] + 0.05 < means[1] < means[2] - 0.02, means


def test_control_frames_taken_for_cases() -> None:
    """Ten frames of a track counted as ten: certificates of frames, and too many are false."""
    rng, fnr = np.random.default_rng(50), np.full(CONTROL_DRAWS, np.nan)
    for draw in range(CONTROL_DRAWS):
        frames = [tracks(rng, count, "x") for count in (SELECT, CALIB)]
        found = certified(*(replace(split, group=split.case_id) for split in frames))
        if found is not None:
            fnr[draw] = FRAMES.fnr(found[0], "one_sided", found[1])
    with BROKEN:
        demand_valid(Outcomes(fnr, None), RISK)


def test_control_another_number_of_frames_than_was_certified() -> None:
    """Certified with the mean of ten, decided by one: the promise is of ten."""
    rng, fnr = np.random.default_rng(51), np.full(CONTROL_DRAWS, np.nan)
    for draw in range(CONTROL_DRAWS):
        select, calib = (in_groups(tracks(rng, count, "x"), Views(10)) for count in (SELECT, CALIB))
        found = certified(select, calib)
        if found is not None:
            fnr[draw] = FRAMES.fnr(found[0], "one_sided", found[1])
    with BROKEN:
        demand_valid(Outcomes(fnr, None), RISK)


def test_control_any_positive_frame_makes_a_positive_track() -> None:
    """With a fifth of its frames positive, the mean of a track is that of a negative one: nothing can be certified."""
    rng, found = np.random.default_rng(52), []
    for _ in range(20):
        halves = []
        for count in (SELECT, CALIB):
            frames = tracks(rng, count, "x")
            positive = (frames.labels == 1) & (rng.random(len(frames)) < 0.2)
            z = np.where(positive, 1, -1) * FRAMES.mean + rng.standard_normal(len(frames))
            logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
            halves.append(in_groups(replace(frames, logits=logits), Views()))  # labels: any frame of it
        found.append(calibrate_softmax(*halves, RISK, "symmetric").certified)
    assert not any(found)
