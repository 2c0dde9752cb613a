"""Reading labels into a monitor, and what this has in common with decisions: odd rows counted, refusals all at once.

What would bias the evidence is refused: labels of cases that were not audited, a share of audits that no hash draws,
a group that is audited in part. What merely comes late, twice or for an unknown id is counted, and does not count.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from stage1_pro.core.errors import raise_problems
from stage1_pro.core.metrics.arrays import BoolArray, IntArray
from stage1_pro.core.metrics.hashing import hash64
from stage1_pro.core.monitor.state import Monitor, Store
from stage1_pro.core.monitor.tables import DAY, FAR, Audited, Labels, Waiting

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


# ---- labels: to the open audited cases that they belong to, or to those not decided yet


def take_labels(monitor: Monitor, store: Store, labels: Labels, now: int) -> Taken:
    """Add labels to the store: to open audited cases, or to those that wait for their decision."""
    counts = Counter({"read": len(labels)})
    waiting = store.waiting
    key = np.concatenate([waiting.key, hash64(labels.id)])
    positive = np.concatenate([waiting.positive, labels.positive])
    time = np.concatenate([waiting.time, labels.time])
    fresh = np.arange(key.size) >= len(waiting)
    counts["out_of_order"] = _out_of_order(labels.time, store.latest_label)

    other, unasked = places(store.others.key, key)
    exits = np.zeros(key.size, dtype=bool)
    exits[unasked] = store.others.exits[other[unasked]]
    problems = _unasked_problems(labels, (unasked & exits)[fresh])
    counts["stage_2"] = int((unasked & ~exits & fresh).sum())

    position, matched = places(store.audited.key, key)
    late = matched.copy()
    late[matched] = time[matched] > _deadlines(monitor, store.audited)[position[matched]]
    counts["late"], matched = int(late.sum()), matched & ~late
    audited, repeated, contradicting = _labelled(store.audited, position[matched], positive[matched], time[matched])
    closed, past = places(store.closed.key, key)
    used = store.closed.label[closed[past]]
    counts["late"] += int((used == -1).sum())
    counts["repeated"] = repeated + int((used == positive[past]).sum())
    counts["contradicting"] = contradicting + int(((used != -1) & (used != positive[past])).sum())
    counts["new"] = int(matched.sum()) - repeated - contradicting

    unknown = ~(matched | late | unasked | past)
    counts["unknown"] = int((unknown & fresh).sum())
    keep = unknown & (time > now - monitor.settings.max_label_delay_days * DAY)
    left = Waiting(key, positive, time).take(keep)
    latest = max(store.latest_label, int(labels.time.max(initial=0)))
    return Taken(replace(store, audited=audited, waiting=_distinct(left), latest_label=latest), counts, problems)


def _unasked_problems(labels: Labels, refused: BoolArray) -> list[str]:
    if not refused.any():
        return []
    return [
        f"{refused.sum()} labels are of exits that were not audited ({some(labels.id[refused])}): whoever chose them "
        "had a reason, and with it the rate is no longer that of all exits. Leave these rows out."
    ]


def _labelled(audited: Audited, position: IntArray, positive: BoolArray, time: IntArray) -> tuple[Audited, int, int]:
    """The cases with these labels, and how many of the labels came twice or contradict an earlier one."""
    had = audited.negative_at != FAR, audited.positive_at != FAR
    at = audited.negative_at.copy(), audited.positive_at.copy()
    for kind in (0, 1):
        rows = positive == kind
        np.minimum.at(at[kind], position[rows], time[rows])
    case = position * 2 + positive
    again = repeated_rows(case) | np.where(positive, had[1][position], had[0][position])
    contradicting = (at[0] != FAR) & (at[1] != FAR) & ~(had[0] & had[1])
    return replace(audited, negative_at=at[0], positive_at=at[1]), int(again.sum()), int(contradicting.sum())


def _deadlines(monitor: Monitor, audited: Audited) -> IntArray:
    """(N,) the second after which a label comes too late."""
    wait = 1 + monitor.settings.group_days + monitor.settings.max_label_delay_days
    return (audited.group_day() + wait) * DAY


def _distinct(waiting: Waiting) -> Waiting:
    """Waiting labels without repeats: of each id and kind the first."""
    order = np.lexsort((waiting.time, waiting.positive, waiting.key))
    kept = np.ones(len(order), dtype=bool)
    key, positive = waiting.key[order], waiting.positive[order]
    kept[1:] = (key[1:] != key[:-1]) | (positive[1:] != positive[:-1])
    return waiting.take(order[kept])


def _out_of_order(time: IntArray, latest: int) -> int:
    """Labels given before one that was read earlier."""
    return int((time < np.maximum.accumulate(np.concatenate([[latest], time]))[:-1]).sum()) if time.size else 0
