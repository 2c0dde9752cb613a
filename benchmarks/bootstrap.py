"""AUGRC, AURC and coverage with 1,000 bootstrap resamples of 10^5 tied cases, against a plain loop.

The loop draws cases, sorts them and computes all three from that one sort; it runs 40 resamples and is
scaled, its resamples being alike. The vectorised run happens in a process of its own, so that its peak
memory, imports and data included, is its own.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
from population import MAIN
from result import Result
from rivals import draw

from stage1_pro.core.metrics.bootstrap import bootstrap_intervals, group_index, ranking, ratios
from stage1_pro.core.metrics.selective import block_areas, tie_blocks

CASES, SAMPLES, LOOPED = 10**5, 1000, 40
THRESHOLD = 0.75


def measure() -> list[Result]:
    before = plain_loop(LOOPED)[0]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, gigabytes, ours = pool.submit(vectorised).result()
    after, replicates = plain_loop(LOOPED)
    looped = min(before, after) * SAMPLES / LOOPED
    for name, (low, high) in ours.items():  # the same quantity, or the ratio means nothing
        assert low < np.median(replicates[name]) < high, name
    note = f"{CASES:.0e} cases; the loop scaled from {LOOPED} resamples"
    return [
        Result("plain loop / bootstrap, time", looped / seconds, 3, "at least", note),
        Result("bootstrap, peak memory / 2 GB", gigabytes / 2, 1, "at most", f"{SAMPLES} resamples, whole process"),
    ]


def tied_cases() -> tuple[np.ndarray, np.ndarray]:
    """Confidence with some 5,000 distinct values, and whether the answer is wrong."""
    split = draw(MAIN, np.random.default_rng(0), CASES)
    return split.scores.round(4), split.answers != split.labels


def vectorised() -> tuple[float, float, dict[str, tuple[float, float]]]:
    """(seconds, peak gigabytes of this process, intervals)."""
    confidence, wrong = tied_cases()
    start = perf_counter()
    index = group_index(None, CASES)
    coverage = ratios(index, {"coverage": (confidence >= THRESHOLD, np.ones(CASES))})
    statistics = [ranking(index, confidence, wrong), coverage]
    intervals = bootstrap_intervals(statistics, index, SAMPLES, 0.95, np.random.default_rng(1))
    seconds = perf_counter() - start
    return seconds, _peak_gigabytes(), {name: intervals[name] for name in ("augrc", "aurc", "coverage")}


def plain_loop(samples: int) -> tuple[float, dict[str, list[float]]]:
    """(seconds, replicates)."""
    confidence, wrong = tied_cases()
    start = perf_counter()
    rng = np.random.default_rng(1)
    replicates: dict[str, list[float]] = {"augrc": [], "aurc": [], "coverage": []}
    for _ in range(samples):
        drawn = rng.integers(0, CASES, CASES)
        again = confidence[drawn]
        blocks = tie_blocks(again, wrong[drawn])
        augrc, aurc = block_areas(blocks.sums(np.ones(CASES, np.int64)), blocks.sums(blocks.losses))
        replicates["augrc"].append(float(augrc))
        replicates["aurc"].append(float(aurc))
        replicates["coverage"].append(float((again >= THRESHOLD).mean()))
    return perf_counter() - start, replicates


def _peak_gigabytes() -> float:
    """Most memory that this process has held; getrusage would count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
