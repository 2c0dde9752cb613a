"""What a benchmark returns, and how times are taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Literal

TURN = 0.2


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table: a ratio of two figures from the same run on the same data, and its target."""

    name: str
    ratio: float
    target: float
    good: Literal["at most", "at least"]
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.ratio <= self.target if self.good == "at most" else self.ratio >= self.target


def fastest(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each job. They take turns of TURN seconds (or one run), so that a busy moment hits all."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds):
        for name, job in jobs.items():
            turn_over = perf_counter() + TURN
            while True:
                start = perf_counter()
                job()
                best[name] = min(best[name], perf_counter() - start)
                if perf_counter() > turn_over:
                    break
    return best


def slowdowns(jobs: dict[str, Callable[[], object]], base: str, rounds: int) -> dict[str, float]:
    """Median over the rounds of each job's time over that of `base`, one run of each after the other.

    For differences of a few per cent: least times of a round here and another there do not resolve them.
    """
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = perf_counter()
            job()
            taken[name].append(perf_counter() - start)
    bases = taken.pop(base)
    return {name: median(own / its for own, its in zip(times, bases, strict=True)) for name, times in taken.items()}
