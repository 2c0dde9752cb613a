"""The watermark: days are closed one after the other, each once all that will be known of it is known.

A day is closed when every label that can matter has come, or when it is older than the longest delay. Labels
in the order of their arrival would be no evidence: where misses come back in a day and hits in ten, the alarm
goes off in .16 of the runs in which the promise holds, and in .49 where hits take thirty days.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np

from stage1_pro.core.metrics.arrays import BoolArray, FloatArray, IntArray
from stage1_pro.core.metrics.hashing import mixed, unit
from stage1_pro.core.monitor.drift import psi, psi_noise, sequential_ranks
from stage1_pro.core.monitor.outcomes import (
    MISS,
    NOTHING,
    UNKNOWN,
    group_outcomes,
    lower_bound,
    needs_label,
    upper_bound,
)
from stage1_pro.core.monitor.state import Alarm, Drift, Monitor, Store, Stream, Watch, day_text, time_text
from stage1_pro.core.monitor.tables import DAY, FAR, Audited, Closed, Sample, Table, Tally, day_of
from stage1_pro.core.monitor.wealth import PromiseTest

Rows = TypeVar("Rows", bound=Table)
LEAST_DRIFT_CASES = 50
"""Cases of a day below which its PSI says nothing."""


def close_days(monitor: Monitor) -> Monitor:
    """Close every day that can be closed at `monitor.as_of`, in order."""
    store = monitor.store
    slots = store.audited.group_day() + monitor.settings.group_days
    audited, sample = _ByDay(store.audited, slots), _ByDay(store.sample, day_of(store.sample.time))
    closed = store.closed
    for day in np.unique(np.concatenate([store.tally.day, slots])).tolist():
        cases = audited.of(day)
        until = _closing_time(monitor, cases, day)
        if until > monitor.as_of:
            break
        tally = store.tally.take(store.tally.day == day)
        monitor, labels = _close(monitor, day, until, cases, sample.of(day), tally)
        closed = closed.joined(Closed(cases.key, cases.group, day_of(cases.time), labels))
    return replace(monitor, store=_trimmed(store, slots, closed, monitor.closed_through))


class _ByDay(Generic[Rows]):
    """A table split by day, sorted once."""

    def __init__(self, table: Rows, days: IntArray) -> None:
        order = np.argsort(days, kind="stable")
        self._table, self._days = table.take(order), days[order]

    def of(self, day: int) -> Rows:
        low, high = np.searchsorted(self._days, [day, day + 1])
        return self._table.take(slice(low, high))


def open_days(monitor: Monitor) -> int:
    """Days between the last closed one and the last that is over: the lag of the watermark."""
    if monitor.closed_through is None:
        return 0
    return max(0, monitor.as_of // DAY - 1 - monitor.closed_through)


def awaited(monitor: Monitor) -> BoolArray:
    """(N,) the audited cases of open days whose label is needed and has not come."""
    audited = monitor.store.audited
    return needs_label(audited.group, audited.exits) & (audited.labelled_at() == FAR)


def _closing_time(monitor: Monitor, cases: Audited, day: int) -> int:
    """When the day can be closed, in seconds: over, and either labelled or past the longest delay."""
    end = (day + 1) * DAY
    labelled = cases.labelled_at()[needs_label(cases.group, cases.exits)].max(initial=0)
    return min(max(end, int(labelled)), end + monitor.settings.max_label_delay_days * DAY)


def _close(
    monitor: Monitor, day: int, until: int, cases: Audited, sample: Sample, tally: Tally
) -> tuple[Monitor, IntArray]:
    """The monitor after this day, its store untouched, and the labels (N,) of the cases as they were used."""
    inside = day_of(cases.time) <= day  # a group's cases of later days come too late for its draw
    counted = cases.take(inside)
    labels = counted.labels(until)
    streams, rows = _feed(monitor, counted, labels, day)
    drift, drift_row = _watch(monitor, sample, day)
    unlabelled = (labels == UNKNOWN) & needs_label(counted.group, counted.exits)
    row = {
        "day": day_text(day),
        **{name: int(column.sum()) for name, column in tally.columns().items() if name != "day"},
        "audited": len(counted),
        "left_out": int((~inside).sum()),
        "unlabelled": int(unlabelled.sum()),
        "contradicted": int(counted.contradicted(until).sum()),
        "closed_at": time_text(until),
        "streams": rows,
        "drift": drift_row,
    }
    used = np.full(len(cases), UNKNOWN)
    used[inside] = labels
    days = (*monitor.days, row)
    return replace(monitor, days=days, closed_through=day, streams=streams, drift=drift), used


def _trimmed(store: Store, slots: IntArray, closed: Closed, through: int | None) -> Store:
    """The store without the days that are closed."""
    if through is None:
        return store
    return replace(
        store,
        audited=store.audited.take(slots > through),
        others=store.others.take(day_of(store.others.time) > through),
        sample=store.sample.take(day_of(store.sample.time) > through),
        tally=store.tally.take(store.tally.day > through),
        closed=closed,
    )


# ---- evidence


def _feed(
    monitor: Monitor, cases: Audited, labels: IntArray, day: int
) -> tuple[tuple[Stream, ...], list[dict[str, Any]]]:
    """Feed a day's groups to their streams, in the order of each group's first case: fixed without any label."""
    groups, best, worst = group_outcomes(cases.group, cases.key, cases.answered_positive, cases.exits, labels)
    order = np.lexsort((cases.key, cases.time))
    first = order[np.unique(cases.group[order], return_index=True)[1]]  # of each group, ascending as `groups`
    turn = np.lexsort((groups, cases.time[first]))
    best, worst, first = best[turn], worst[turn], first[turn]
    streams = []
    for number, stream in enumerate(monitor.streams):
        mine = cases.stream[first] == number
        streams.append(_fed(stream, monitor.settings.test, cases.take(first[mine]), best[mine], worst[mine], day))
    return tuple(streams), [stream_row(stream, monitor.settings.test) for stream in streams]


def _fed(stream: Stream, test: PromiseTest, cases: Audited, best: IntArray, worst: IntArray, day: int) -> Stream:
    """cases: (G,) the first case of each group, in the order of feeding; best, worst: (G,) outcomes."""
    stream = replace(stream, best=_added(stream.best, best), worst=_added(stream.worst, worst))
    evidence = np.flatnonzero(best != NOTHING)
    if stream.alarm or not evidence.size:
        return stream
    bets = test.bets(best[evidence] == MISS, cases.audit_probability[evidence])
    log_wealth, paths = test.feed(stream.wealth, bets)
    alarmed = np.flatnonzero(log_wealth >= test.bar)
    if not alarmed.size:
        return replace(stream, wealth=test.after(stream.wealth, paths, evidence.size))
    count = int(alarmed[0]) + 1
    wealth = test.after(stream.wealth, paths, count)
    case = str(cases.id[evidence[count - 1]])
    return replace(stream, wealth=wealth, alarm=Alarm(day, case, wealth.fed, float(log_wealth[count - 1])))


def _added(so_far: tuple[int, int], outcomes: IntArray) -> tuple[int, int]:
    return so_far[0] + int((outcomes != NOTHING).sum()), so_far[1] + int((outcomes == MISS).sum())


def stream_row(stream: Stream, test: PromiseTest) -> dict[str, Any]:
    """The stream at the end of a day. The upper bound reads unknown labels against the promise, the lower for it."""
    return {
        "name": stream.name,
        "exited_positives": stream.best[0],
        "misses": stream.best[1],
        "log_wealth": test.log_wealth(stream.wealth),
        "upper": float(upper_bound(stream.worst[1], stream.worst[0], test.delta)),
        "lower": float(lower_bound(stream.best[1], stream.best[0], test.delta)),
    }


# ---- drift


def _watch(monitor: Monitor, sample: Sample, day: int) -> tuple[Drift, dict[str, Any]]:
    """Rank the day's sample, one case of each group that was not watched before, in the order of time."""
    drift = monitor.drift
    place = np.minimum(np.searchsorted(drift.seen, sample.group), max(0, drift.seen.size - 1))
    sample = sample.take(drift.seen[place] != sample.group) if drift.seen.size else sample
    sample = sample.take(np.lexsort((sample.key, sample.time)))
    ties = mixed(sample.key)
    bar = -np.log(monitor.settings.drift_delta / 2)
    confidence, by_confidence = _ranked(drift.confidence, sample.confidence, unit(ties), bar, day)
    signed, by_signed = _ranked(drift.signed, sample.signed, unit(mixed(ties)), bar, day)
    row = {
        "cases": len(sample),
        "log_wealth_confidence": by_confidence,
        "log_wealth_signed": by_signed,
        **_stability(drift.reference, sample),
    }
    groups = sample.group[sample.group != sample.key]  # a case without a group does not come again
    return replace(drift, confidence=confidence, signed=signed, seen=_merged(drift.seen, groups)), row


def _ranked(watch: Watch, scores: FloatArray, ties: FloatArray, bar: float, day: int) -> tuple[Watch, float]:
    largest, wealth = watch.wealth.feed(sequential_ranks(watch.past, scores, ties))
    alarm_day = watch.alarm_day if watch.alarm_day is not None or largest < bar else day
    return Watch(wealth, _merged(watch.past, scores), alarm_day), largest


def _merged(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.sort(np.concatenate([ordered, values]), kind="stable")  # of two runs: Timsort merges in one pass


def _stability(reference: FloatArray, sample: Sample) -> dict[str, float | None]:
    """PSI of both scores against val_calib, and what chance alone exceeds once in twenty days."""
    if not len(reference) or len(sample) < LEAST_DRIFT_CASES:
        return {"psi_confidence": None, "psi_signed": None, "psi_noise": None}
    return {
        "psi_confidence": psi(reference[:, 0], sample.confidence),
        "psi_signed": psi(reference[:, 1], sample.signed),
        "psi_noise": psi_noise(len(reference), len(sample)),
    }
