"""What a benchmark returns, and how times are taken."""

from collections.abc import Callable
from dataclasses import dataclass
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


def fastest(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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
