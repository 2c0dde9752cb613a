"""One reading from files to files: what 65 does with a bundle, decisions and labels."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.calib_scores import read_calib_scores
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.errors import CertificateExpired, PromiseAlarm, UserError, counted
from stage1_pro.core.monitor.audit import Audit, demand_groups
from stage1_pro.core.monitor.days import awaited, open_days
from stage1_pro.core.monitor.files import MONITOR, locked, read_monitor, write_monitor
from stage1_pro.core.monitor.opening import (
    CHOSEN,
    certified_groups,
    demand_settings,
    digest_or_none,
    first_settings,
    reader_of,
)
from stage1_pro.core.monitor.state import ALARM, EXPIRED, IN_FORCE, Monitor, day_text, time_text
from stage1_pro.core.monitor.tables import Decisions
from stage1_pro.core.monitor.update import update
from stage1_pro.core.monitor.wealth import Delay, PromiseTest, delays
from stage1_pro.core.policies.words import promised_fnr

TO_LABEL = "to_label.csv"
SHARES = (0.01, 0.05, 0.2, 1.0)
"""Audit shares that the plan speaks of where none is chosen yet."""


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
    if folder.resolve().is_relative_to(contents.path.resolve()):
        raise UserError(f"--out {folder} lies in the bundle, whose set of files is closed. Name a folder beside it.")
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


# ---- in words


def reading_lines(reading: Reading, folder: Path) -> Iterator[str]:
    """What was read, what is waited for, and what it says of the promise."""
    monitor = reading.monitor
    last = monitor.readings[-1]
    yield f"reading {monitor.revision} at {last['at']}"
    yield f"decisions {_counts(last['decisions'])}" + _others(reading.others)
    yield f"labels    {_counts(last['labels'])}" + (f", {reading.blank} rows without a label" if reading.blank else "")
    yield f"days      {_days(monitor)}"
    waiting = int(awaited(monitor).sum())
    if waiting:
        yield f"awaited   {counted(waiting, 'label')}: {folder / TO_LABEL}"
    for stream in monitor.streams:
        row = standing(monitor, stream.name)
        name = "" if len(monitor.streams) == 1 else f"{stream.name}: "
        yield (
            f"evidence  {name}{row['misses']} of {counted(row['exited_positives'], 'audited exited positive')} missed; "
            f"FNR on exits {row['lower']:.2%} to {row['upper']:.2%} at every look"
        )
        yield f"alarm     {name}at {np.exp(monitor.settings.test.bar):.4g}; the wealth is {_wealth(row['log_wealth'])}"
    if lost := unlabelled(monitor):
        yield (
            f"warning   {counted(lost, 'audited case')} of closed days without a label in time: a positive answer "
            "counts as a hit in the alarm, a negative one as a miss in the upper end of FNR on exits"
        )
    if monitor.overdue and not monitor.alarmed:
        yield f"warning   {overdue_words(monitor)}"
    for name in ("confidence", "signed"):
        day = getattr(monitor.drift, name).alarm_day
        if day is not None:
            yield f"drift     the {SCORES[name]} drifts since {day_text(day)} or before (advisory)"


def overdue_words(monitor: Monitor) -> str:
    """What a monitor says that has seen more than it was started for."""
    return (
        f"more audited exited positives than were planned ({monitor.settings.planned:,}): a change from now on is "
        "noticed late, and hardly moves the rate since the start. Certify anew with 38_recalibrate.py --from_audit, "
        "and start a new monitor for the new bundle"
    )


SCORES = {"confidence": "confidence of the answers", "signed": "probability of the positive class"}


def standing(monitor: Monitor, stream: str) -> dict[str, Any]:
    """The stream at the end of the last closed day, as monitor.json has it; before the first day nothing is known."""
    for row in monitor.days[-1]["streams"] if monitor.days else ():
        if row["name"] == stream:
            return row
    return {"name": stream, "exited_positives": 0, "misses": 0, "log_wealth": 0.0, "upper": 1.0, "lower": 0.0}


def _counts(counts: dict[str, int]) -> str:
    more = [f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if number and name != "read"]
    return f"{counts['read']} read" + (f": {', '.join(more)}" if more else "")


def _others(others: int) -> str:
    return f", {others} of other bundles left out" if others else ""


def _days(monitor: Monitor) -> str:
    if monitor.closed_through is None:
        return "none closed yet: a day closes when its labels have come, or when it is past the longest delay"
    return f"closed through {day_text(monitor.closed_through)}, {counted(open_days(monitor), 'day')} open"


def _wealth(log_wealth: float) -> str:
    return f"{np.exp(log_wealth):.4g}" if log_wealth < 700 else f"10^{log_wealth / np.log(10):.0f}"


def outcome(monitor: Monitor, page: Path) -> UserError | None:
    """The end of a reading that is no plain success: the alarm, or the end of the certificate."""
    if monitor.certificate == IN_FORCE:
        return None
    target = monitor.settings.target_fnr
    if monitor.certificate == EXPIRED:
        return CertificateExpired(
            f"the certificate has expired{_expiry(monitor)}. Certify anew with 38_recalibrate.py. {page}"
        )
    assert monitor.certificate == ALARM
    several = len(monitor.streams) > 1
    days = [day_text(s.alarm.day) + (f" ({s.name})" if several else "") for s in monitor.streams if s.alarm]
    return PromiseAlarm(
        f"ALARM: at some time FNR on exits was above {target:g}, seen at {', '.join(days)}. Such an alarm is false at "
        f"most once in {1 / monitor.settings.delta:.4g} deployments. It stays: look at the misses, certify anew with "
        f"38_recalibrate.py, and start a new monitor for the new bundle. {page}"
    )


def _expiry(monitor: Monitor) -> str:
    settings = monitor.settings
    if settings.expires_at is not None and monitor.as_of >= settings.expires_at:
        return f" on {time_text(settings.expires_at)}"
    return f" after {settings.expires_after} audited exited positives"


# ---- before the start


def prevalence_among_exits(contents: BundleContents) -> float | None:
    """Share of positives among the test split's exits; None where none exits."""
    negatives, positives = artifacts.read_json(contents.path / "eval.json", "eval")["confusion"]["exits"]
    exits = sum(negatives) + sum(positives)
    return sum(positives) / exits if exits else None


def plan_lines(contents: BundleContents, share: float | None) -> Iterator[str]:
    """What a share of audits buys, for the promise of this bundle and the prevalence of its test split."""
    policy_file = contents.path / contents.manifest["policy_file"]
    policy = artifacts.read_json(policy_file, policy_file.stem)
    target, delta = promised_fnr(policy), round(1 - policy["fnr_confidence"], 12)
    prevalence = prevalence_among_exits(contents)
    groups = certified_groups(contents)
    found = delays(PromiseTest(target, delta / max(1, len(groups))))
    each = f" in each of {counted(len(groups), 'group')}, which are watched one by one" if groups else ""
    yield (
        f"plan      FNR on exits <= {target:g} is promised{each}. When it rises, half of the deployments alarm after "
        "so many audited exited positives:"
    )
    for delay in found:
        yield f"          to {delay.rate:.3g}: {_wait(delay)}"
    if not prevalence:
        return
    yield f"          positives among exits, on the test split: {prevalence:.2%}. So it takes so many exits in all:"
    for chosen in SHARES if share is None else (share,):
        exits = ", ".join(f"{_exits(delay, prevalence, chosen)} (to {delay.rate:.3g})" for delay in found)
        yield f"          --audit_share {chosen:g}: {exits}"


def first_reading(bundle: Path, folder: Path, share: float) -> str:
    """The line that names the command which begins a monitor."""
    words = [str(bundle), "--out", str(folder), "--audit_share", f"{share:g}"]
    return f"next   python stage1_pro/scripts/65_monitor.py {shlex.join(words)}"


def _wait(delay: Delay) -> str:
    return f"{_number(delay.from_start)} from the start, {_number(delay.after_change)} after {delay.before:,} good ones"


def _exits(delay: Delay, prevalence: float, share: float) -> str:
    return _number(delay.exits(prevalence, share))


def _number(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "never"
