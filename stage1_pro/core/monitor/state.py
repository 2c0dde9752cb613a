"""What a monitor knows: its settings, what each day brought, and the cases that still wait for labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stage1_pro.core.errors import UserError
from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.metrics.hashing import HashArray
from stage1_pro.core.monitor.drift import DriftWealth
from stage1_pro.core.monitor.tables import Audited, Closed, Others, Sample, Tally, Waiting
from stage1_pro.core.monitor.wealth import PromiseTest, Wealth

IN_FORCE, ALARM, EXPIRED, NONE = "in force", "alarm", "expired", "none"
EVERYTHING = "all"
"""Name of the one stream of a certificate without groups."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Fixed when the monitor starts: another value is another monitor, whose delta counts anew.

    delta: chance of a false alarm, ever, over all streams together; planned: audited exited positives until the
    certificate expires; least: None for a uniform audit; streams: names of the certified groups that are watched;
    group_days: days after a group's first case in which its cases still belong to it; expires_at: seconds since
    1970; expires_after: audited exited positives.
    """

    bundle_digest: str
    target_fnr: float
    delta: float
    audit_share: float
    salt_digest: str | None = None
    planned: int = 2000
    least: float | None = None
    streams: tuple[str, ...] = (EVERYTHING,)
    max_label_delay_days: int = 30
    group_days: int = 0
    drift_delta: float = 0.01
    expires_at: int | None = None
    expires_after: int | None = None

    @property
    def test(self) -> PromiseTest:
        """The test of each stream: G streams have delta / G each."""
        return PromiseTest(self.target_fnr, self.delta / len(self.streams), self.planned, self.least)


@dataclass(frozen=True, slots=True)
class Alarm:
    """When a wealth reached its bar. day: of the exit, days since 1970; case: its id; positives: fed until then."""

    day: int
    case: str
    positives: int
    log_wealth: float


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One certified group. wealth: frozen at the alarm, since a reset would silently spend delta again; best and
    worst: (exited positives, misses) with unknown labels read for and against the promise."""

    name: str
    wealth: Wealth
    alarm: Alarm | None = None
    best: tuple[int, int] = (0, 0)
    worst: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One score watched for drift: its wealth, all earlier scores, and the day of the alarm."""

    wealth: DriftWealth
    past: FloatArray
    alarm_day: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """confidence, signed: two wealths with half of the drift delta each (confidence alone is blind to a jump of
    prevalence); reference: (n, 2) both scores of val_calib, one case a group, () where they are not at hand; seen:
    groups that were watched, since only one case of each counts."""

    confidence: Watch
    signed: Watch
    reference: FloatArray
    seen: HashArray

    @classmethod
    def initial(cls, reference: FloatArray | None) -> Drift:
        scores = np.zeros((0, 2)) if reference is None else np.asarray(reference, dtype=np.float64)
        confidence, signed = (Watch(DriftWealth.initial(), np.sort(column)) for column in scores.T)
        return cls(confidence, signed, scores, np.zeros(0, dtype=np.uint64))


@dataclass(frozen=True, slots=True, eq=False)
class Store:
    """Cases of open days, and what recognises those of closed ones."""

    audited: Audited = field(default_factory=Audited.empty)
    others: Others = field(default_factory=Others.empty)
    waiting: Waiting = field(default_factory=Waiting.empty)
    sample: Sample = field(default_factory=Sample.empty)
    tally: Tally = field(default_factory=Tally.empty)
    closed: Closed = field(default_factory=Closed.empty)
    latest_label: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Monitor:
    """One state of a monitor. closed_through: last closed day, days since 1970, None before the first; days,
    readings: append-only rows as monitor.json has them."""

    settings: Settings
    streams: tuple[Stream, ...]
    drift: Drift
    store: Store = field(default_factory=Store)
    closed_through: int | None = None
    as_of: int = 0
    days: tuple[dict[str, Any], ...] = ()
    readings: tuple[dict[str, Any], ...] = ()

    @classmethod
    def start(cls, settings: Settings, reference: FloatArray | None = None) -> Monitor:
        """A monitor before its first reading. reference: (n, 2) confidence and score of the positive class of
        val_calib, as `read_calib_scores` gives them."""
        streams = tuple(Stream(name, settings.test.initial()) for name in settings.streams)
        return cls(settings, streams, Drift.initial(reference))

    @property
    def revision(self) -> int:
        return len(self.readings)

    @property
    def alarmed(self) -> bool:
        return any(stream.alarm for stream in self.streams)

    @property
    def fed(self) -> int:
        """Audited exited positives so far, those after an alarm too."""
        return sum(stream.best[0] for stream in self.streams)

    @property
    def overdue(self) -> bool:
        """Whether a change would be noticed late: a group has more audited exited positives than were planned."""
        return any(stream.best[0] > self.settings.planned for stream in self.streams)

    @property
    def expired(self) -> bool:
        settings = self.settings
        by_date = settings.expires_at is not None and self.as_of >= settings.expires_at
        return by_date or (settings.expires_after is not None and self.fed >= settings.expires_after)

    @property
    def certificate(self) -> str:
        """in force, alarm or expired; an alarm of an expired certificate is an alarm."""
        return ALARM if self.alarmed else EXPIRED if self.expired else IN_FORCE


def day_text(day: int) -> str:
    """A day as 2026-11-29."""
    return str(np.datetime64(int(day), "D"))


def seconds(text: str) -> int:
    """A time such as 2026-03-01 or 2026-03-01T12:00:00Z in seconds since 1970; without an offset it is UTC.

    >>> seconds("1970-01-02"), seconds("1970-01-01T01:00:00+01:00")
    (86400, 0)
    """
    from datetime import UTC, datetime

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{text} is no time such as 2026-03-01 or 2026-03-01T12:00:00Z") from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


def time_text(time: int) -> str:
    """Seconds since 1970 as 2026-11-29T13:00:00Z."""
    return f"{np.datetime64(int(time), 's')}Z"
