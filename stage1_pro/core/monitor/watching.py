"""One reading from files to files: what 65 does with a bundle, decisions and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.calib_scores import read_calib_scores
from stage1_pro.core.bundle.contents import BundleContents, demand_outside
from stage1_pro.core.errors import UserError, counted
from stage1_pro.core.monitor.audit import Audit, demand_groups
from stage1_pro.core.monitor.days import awaited
from stage1_pro.core.monitor.files import MONITOR, locked, read_monitor, write_monitor
from stage1_pro.core.monitor.opening import (
    CHOSEN,
    demand_settings,
    digest_or_none,
    first_settings,
    reader_of,
)
from stage1_pro.core.monitor.state import Monitor, time_text
from stage1_pro.core.monitor.tables import Decisions
from stage1_pro.core.monitor.update import update

TO_LABEL = "to_label.csv"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reading made of a folder. others: decisions of other bundles; blank: rows of labels without a label."""

    monitor: Monitor
    first: bool
    others: int
    blank: int


def read_on(
    contents: BundleContents,
    folder: Path,
    decisions: Sequence[str],
    labels: Sequence[str],
    now: int,
    *,
    clock: int,
    salt: bytes | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> Reading:
    """Read files into the monitor of a folder, which begins with the first reading, and write its next revision.

    now: moment of the reading, and clock: of the machine, seconds since 1970; salt: checks every row where it is at
    hand; chosen: keys of opening.CHOSEN. Raises UserError, and writes nothing, where anything does not fit.
    """
    demand_outside(contents.path, folder, "--out")
    said = {**dict.fromkeys(CHOSEN), **(chosen or {}), "salt_digest": digest_or_none(salt)}
    reader = reader_of(contents, now)
    with locked(folder):
        monitor = read_monitor(folder) if (folder / MONITOR).exists() else None
        if monitor is not None:
            demand_settings(monitor.settings, contents, said, folder / MONITOR)
        (rows, others), (given, blank) = reader.both(decisions, labels)
        _demand_groups(rows)
        before = monitor or Monitor.start(first_settings(contents, rows, said), read_calib_scores(contents.path))
        audit = None if salt is None else Audit(before.settings.audit_share, salt)
        after = update(before, rows, given, now, audit)
        if monitor is None and not len(given):
            _demand_time_for_labels(after)
        _demand_past(before, after, clock)
        write_monitor(folder, after)
        artifacts.write_csv(folder / TO_LABEL, _wanted(after), ("id", "time", "label", "label_time"))
    return Reading(after, monitor is None, others, blank)


def _demand_groups(rows: Decisions) -> None:
    grouped = rows.audited.size and not (rows.group == rows.id).all() and not rows.audited.all()
    if grouped:
        demand_groups(len(set(rows.group.tolist())), len(rows))


def _demand_time_for_labels(monitor: Monitor) -> None:
    """Raise UserError where a monitor would begin with days whose labels nobody had a chance to give."""
    lost = unlabelled(monitor)
    if lost:
        raise UserError(
            f"{counted(lost, 'audited case')} of these decisions are past the longest delay "
            f"({counted(monitor.settings.max_label_delay_days, 'day')}), and no label is given: a monitor that "
            "begins so closes their days for good. Give their labels with --labels, or a longer "
            "--max_label_delay_days. Nothing was written."
        )


def _demand_past(before: Monitor, after: Monitor, clock: int) -> None:
    """Raise UserError where a reading that is dated ahead, as by a wrong year, would give up labels for good."""
    lost = unlabelled(after) - unlabelled(before)
    if after.as_of <= clock or not lost:
        return
    way_out = "give --as_of a moment that has passed"
    if before.as_of > clock:
        way_out = "an earlier reading was dated so; start a new monitor with another --out"
    raise UserError(
        f"as of {time_text(after.as_of)}, which lies ahead of the clock, {counted(lost, 'audited case')} would be "
        f"given up without a label, for good: {way_out}. Nothing was written."
    )


def unlabelled(monitor: Monitor) -> int:
    """Audited cases of closed days whose label did not come in time."""
    return sum(row["unlabelled"] for row in monitor.days)


def _wanted(monitor: Monitor) -> Iterator[dict[str, Any]]:
    """Audited cases whose label is awaited, oldest first; without the answer, which would tell whoever labels them."""
    cases = monitor.store.audited.take(awaited(monitor))
    for at in np.lexsort((cases.key, cases.time)).tolist():
        yield {"id": cases.id[at], "time": time_text(int(cases.time[at]))}
