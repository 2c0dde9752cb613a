"""How many processes decode images beside the model: as many as a look at a few of them says."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.records.provenance import cores

WORTH_A_LOOK = 128
"""Images below which a look costs more than processes save."""

MOST_WORKERS = 16

SAMPLE, SAMPLE_S = 8, 0.1
"""Images that are decoded for a look, and seconds after which no further one is."""

START_S = 0.1
"""Seconds that each process takes to start and to end."""

TRANSFER_S = 1e-4
"""Seconds that an image takes from a process to the model."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds an image: decoding it in one process, and the model's."""

    decoding: float
    model: float


def workers_for(asked: int | str, predictor: Any, paths: Sequence[str]) -> int:
    """Processes that decode: `asked`, or for "auto" those that come through these images first."""
    if asked != "auto":
        return int(asked)
    here = cores()
    if len(paths) < WORTH_A_LOOK or here == 1:
        return 0
    if not isinstance(predictor, Stage1Predictor):  # a case with a mask may be a volume: too much for a look
        return min(MOST_WORKERS, here // 2)
    threads = torch.get_num_threads() if predictor.device.type == "cpu" else 0
    return fastest(len(paths), pace_of(predictor, paths), here, threads)


def fastest(images: int, pace: Pace, cores: int, threads: int) -> int:
    """The number of processes with the shortest time for so many images. threads: those of the model on these cores.

    >>> photos, crops = Pace(decoding=0.012, model=0.003), Pace(decoding=0.0006, model=0.003)
    >>> fastest(1000, photos, 2, 2), fastest(1000, crops, 2, 2), fastest(150, crops, 2, 2)
    (2, 1, 0)
    """

    def seconds(workers: int) -> float:
        if not workers:
            return images * (pace.decoding + pace.model)
        decoding = pace.decoding + TRANSFER_S
        cores_full = (decoding + threads * pace.model) / cores
        return START_S * workers + images * max(decoding / workers, pace.model, cores_full)

    return min(range(min(MOST_WORKERS, cores) + 1), key=seconds)


def pace_of(predictor: Stage1Predictor, paths: Sequence[str]) -> Pace:
    """Take the time of a few images from all over the list; one that cannot be read costs no decoding."""
    prepared, taken, begun = [], [], time.perf_counter()
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        start = time.perf_counter()
        with suppress(BadImage):
            prepared.append(predictor.prepared(path))
            taken.append(time.perf_counter() - start)
        if time.perf_counter() - begun > SAMPLE_S:
            break
    if not prepared:
        return Pace(0, 0)
    size = predictor.forward_batch or SAMPLE
    batch = (prepared * size)[:size]
    predictor.outputs_of(batch)  # the first pass of a process takes longer
    start = time.perf_counter()
    predictor.outputs_of(batch)
    return Pace(median(taken), (time.perf_counter() - start) / size)
