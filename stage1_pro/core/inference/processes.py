"""How many processes decode images beside the model: as many as a look at a few of them says."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.records.provenance import cores

WORTH_A_LOOK = 128
"""Images below which a look costs more than processes save."""

MOST_WORKERS = 16

SAMPLE, SAMPLE_S = 8, 0.03
"""Images that are decoded for a look, and seconds after which no further one is."""

START_S = 0.1
"""Seconds that each process takes to start and to end."""

TRANSFER_S = 3e-4
"""Seconds that an image takes from a process to the model."""

NEAR = 1.03
"""Of numbers of processes whose times are as near as that the smallest is taken."""


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
    prepared, decoding = decoding_of(predictor, paths)
    if len(paths) * decoding < 2 * START_S:  # no number of processes can win
        return 0
    # where every process takes cores from the model its time is added whatever their number: no look at it
    model = model_of(predictor, prepared) if threads < here else 0.0
    return fastest(len(paths), Pace(decoding, model), here, threads)


def fastest(images: int, pace: Pace, cores: int, threads: int) -> int:
    """The number of processes with the shortest time for so many images. threads: those of the model on these cores.

    Threads of a pass wait for the slowest of them. Where processes take cores from some, all stand still: decoding then
    adds to the time of the model, and processes only shorten it by decoding side by side.

    >>> photos, crops = Pace(decoding=0.012, model=0.003), Pace(decoding=0.0006, model=0.003)
    >>> fastest(1000, photos, 2, 2), fastest(1000, crops, 2, 2), fastest(1000, photos, 4, 0)
    (2, 0, 4)
    """

    def seconds(workers: int) -> float:
        if not workers:
            return images * (pace.decoding + pace.model)
        decoding = (pace.decoding + TRANSFER_S) / workers
        beside = threads + workers <= cores
        return START_S * workers + images * (max(decoding, pace.model) if beside else decoding + pace.model)

    taken = {workers: seconds(workers) for workers in range(min(MOST_WORKERS, cores) + 1)}
    return next(workers for workers in taken if taken[workers] <= NEAR * min(taken.values()))


def decoding_of(predictor: Stage1Predictor, paths: Sequence[str]) -> tuple[list[Tensor], float]:
    """Inputs of a few images from all over the list, and the seconds that one takes; 0 where none can be read."""
    prepared, taken, begun = [], [], time.perf_counter()
    for path in paths[:: max(1, len(paths) // SAMPLE)]:
        start = time.perf_counter()
        with suppress(BadImage):
            prepared.append(predictor.prepared(path))
            taken.append(time.perf_counter() - start)
        if time.perf_counter() - begun > SAMPLE_S:
            break
    return prepared, median(taken or [0.0])


def model_of(predictor: Stage1Predictor, prepared: Sequence[Tensor]) -> float:
    """Seconds that the model takes for one image."""
    size = predictor.forward_batch or SAMPLE
    batch = (list(prepared) * size)[:size]
    predictor.outputs_of(batch)  # the first pass of a process takes longer
    start = time.perf_counter()
    predictor.outputs_of(batch)
    return (time.perf_counter() - start) / size
