"""What a monitor reads, and what it keeps of it, as columns.

Of the audited cases of open days everything is kept; of the others only what recognises a repeated row and a
label that nobody asked for. So the store grows with the audits and with the open days, not with the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.hashing import HashArray

DAY = 86_400
FAR = np.iinfo(np.int64).max
"""The time of a label that has not come."""


def day_of(times: IntArray) -> IntArray:
    """Days since 1970, UTC."""
    return times // DAY


class Table:
    """Columns of equal length in the fields of a frozen dataclass."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def columns(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def take(self, rows: Any) -> Self:
        """The rows at these positions, or where a mask (N,) holds."""
        return type(self)(**{name: column[rows] for name, column in self.columns().items()})

    def joined(self, other: Self) -> Self:
        """The rows of both."""
        pairs = {name: (column, getattr(other, name)) for name, column in self.columns().items()}
        return type(self)(**{name: np.concatenate(pair) for name, pair in pairs.items()})

    @classmethod
    def empty(cls) -> Self:
        kinds = {"np.ndarray": object, "HashArray": np.uint64, "BoolArray": bool, "FloatArray": float}
        return cls(**{f.name: np.zeros(0, kinds.get(str(f.type), np.int64)) for f in fields(cls)})  # type: ignore[arg-type]


Columns = TypeVar("Columns", bound=Table)


def joined(parts: Sequence[Columns], kind: type[Columns]) -> Columns:
    """The rows of all parts, in order; none of `kind` where there are no parts."""
    columns = [part.columns() for part in parts or [kind.empty()]]
    return kind(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})


@dataclass(frozen=True, slots=True, eq=False)
class Decisions(Table):
    """Decisions as they were logged, in any order. time: seconds since 1970, UTC; probability: of the answer, in
    [0, 1]; audit_probability: with which the group was audited; stream: number of the certified group, -1 for a
    group that the bundle does not list. A case without a group has its id there."""

    id: np.ndarray
    group: np.ndarray
    time: IntArray
    answered_positive: BoolArray
    exits: BoolArray
    probability: FloatArray
    audited: BoolArray
    audit_probability: FloatArray
    stream: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Labels(Table):
    """Labels as they came, in any order. time: when each was given, seconds since 1970, UTC."""

    id: np.ndarray
    positive: BoolArray
    time: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Audited(Table):
    """Audited cases of open days. negative_at, positive_at: when the first label of either kind was given."""

    id: np.ndarray
    key: HashArray
    group: HashArray
    time: IntArray
    answered_positive: BoolArray
    exits: BoolArray
    audit_probability: FloatArray
    stream: IntArray
    negative_at: IntArray
    positive_at: IntArray

    def labels(self, until: int) -> IntArray:
        """(N,) 1, 0, or -1 where no label is known at that time, or two that contradict each other."""
        negative, positive = self.negative_at <= until, self.positive_at <= until
        return np.where(negative == positive, -1, positive.astype(np.int64))

    def contradicted(self, until: int) -> BoolArray:
        return np.maximum(self.negative_at, self.positive_at) <= until

    def labelled_at(self) -> IntArray:
        """(N,) when the first label was given."""
        return np.minimum(self.negative_at, self.positive_at)

    def group_day(self) -> IntArray:
        """(N,) the day of the first case of each case's group."""
        groups, index = np.unique(self.group, return_inverse=True)
        first = np.full(groups.size, FAR)
        np.minimum.at(first, index, day_of(self.time))
        return first[index] if groups.size else np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Others(Table):
    """Cases of open days that are not audited."""

    key: HashArray
    time: IntArray
    exits: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class Waiting(Table):
    """Labels of ids that no decision has been read of yet."""

    key: HashArray
    positive: BoolArray
    time: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Sample(Table):
    """The cases of open days whose scores are watched for drift, in log-odds. signed: of the positive class."""

    key: HashArray
    group: HashArray
    time: IntArray
    confidence: FloatArray
    signed: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Tally(Table):
    """Counts of an open day: decisions, exits, exits answered positive, decisions of an unlisted group."""

    day: IntArray
    decisions: IntArray
    exits: IntArray
    exits_positive: IntArray
    unlisted: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Closed(Table):
    """Audited cases of closed days. day: of the case itself; label: 1, 0, or -1 for none in time."""

    key: HashArray
    group: HashArray
    day: IntArray
    label: IntArray
