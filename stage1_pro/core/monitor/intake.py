"""What reading decisions and reading labels have in common: counts of odd rows, and refusals that come all at once.

What would bias the evidence is refused: labels of cases that were not audited, a share of audits that no hash draws,
a group that is audited in part. What merely comes late, twice or for an unknown id is counted, and does not count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from stage1_pro.core.errors import raise_problems
from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.monitor.state import Store

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Taken:
    """A reading so far: the store, what was counted, and what must be refused."""

    store: Store
    counts: Counter[str]
    problems: list[str]


def demand_sound(taken: Taken) -> None:
    """Raise UserError with every problem of a reading."""
    raise_problems(
        "these files cannot be monitored:",
        taken.problems,
        "Nothing was written; the monitor stands as before.",
    )


def repeated_rows(values: np.ndarray) -> BoolArray:
    """(N,) whether a value occurred before."""
    repeated = np.ones(values.size, dtype=bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def places(known: np.ndarray, wanted: np.ndarray) -> tuple[IntArray, BoolArray]:
    """(M,) positions of the wanted values among the known ones, and whether they are there at all."""
    if not known.size:
        return np.zeros(wanted.size, dtype=np.int64), np.zeros(wanted.size, dtype=bool)
    order = np.argsort(known, kind="stable")
    position = order[np.minimum(np.searchsorted(known, wanted, sorter=order), known.size - 1)]
    return position, known[position] == wanted


def some(names: np.ndarray) -> str:
    distinct = list(dict.fromkeys(str(name) for name in names[: 20 * SHOWN].tolist()))
    return ", ".join(distinct[:SHOWN]) + (", …" if len(distinct) > SHOWN else "")
