"""A monitor in words: what an audit buys before it starts, what a reading found, and how 65 ends."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.errors import CertificateExpired, PromiseAlarm, UserError, counted
from stage1_pro.core.monitor.days import awaited, open_days
from stage1_pro.core.monitor.opening import certified_groups
from stage1_pro.core.monitor.state import ALARM, EXPIRED, IN_FORCE, Monitor, day_text, time_text
from stage1_pro.core.monitor.watching import TO_LABEL, Reading, unlabelled
from stage1_pro.core.monitor.wealth import Delay, PromiseTest, delays
from stage1_pro.core.policies.words import promised_fnr

SHARES = (0.01, 0.05, 0.2, 1.0)
"""Audit shares that the plan speaks of where none is chosen yet."""
SCORES = {"confidence": "confidence of the answers", "signed": "probability of the positive class"}


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
