"""A monitor, drawn day by day."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stage1_pro.core.metrics.arrays import FloatArray
from stage1_pro.core.monitor.state import Monitor
from stage1_pro.core.report.common import style

LOWEST = -3.0
"""Decades of the wealth that the figure shows below 1: further down it only says that all is well."""
LAST = 50
"""Audited exited positives that the recent rate is of, or as many more as the oldest of their days held."""
MARKED = 12
"""Days up to which each is marked, since a line of so few says little."""


def draw_wealth(figure: Figure, monitor: Monitor) -> None:
    """M at the end of each day, with the line at which the alarm goes off."""
    axes = figure.subplots()
    bar = monitor.settings.test.bar / np.log(10)
    for number, stream in enumerate(monitor.streams):
        values = _stream(monitor, stream.name, "log_wealth") / np.log(10)
        colour = style.RUN_COLOURS[number % len(style.RUN_COLOURS)]
        label = "wealth M" if len(monitor.streams) == 1 else stream.name
        _line(axes, monitor, np.maximum(values, LOWEST), colour, label)
    axes.axhline(bar, color=style.RED, linewidth=1.3, linestyle=(0, (5, 3)), label=f"alarm at {10**bar:.4g}")
    axes.set_ylim(min(-1.0, axes.get_ylim()[0]), max(bar + 0.7, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{10**value:g}" if abs(value) < 4 else f"1e{value:g}")
    axes.set_ylabel("wealth M")
    _finish(figure, axes, monitor)


def draw_bounds(figure: Figure, monitor: Monitor) -> None:
    """U and L of the stream with the most evidence against the promise, and what was seen."""
    axes = figure.subplots()
    test, target = monitor.settings.test, monitor.settings.target_fnr
    name = max(monitor.streams, key=lambda stream: test.log_wealth(stream.wealth)).name
    of = "" if len(monitor.streams) == 1 else f", {name}"
    upper, lower = _stream(monitor, name, "upper"), _stream(monitor, name, "lower")
    seen, missed = _stream(monitor, name, "exited_positives"), _stream(monitor, name, "misses")
    days = _days(monitor)
    axes.fill_between(days, lower, upper, color=style.BLUE, alpha=0.15, linewidth=0, label="not ruled out")
    rate = np.divide(missed, seen, out=np.full(seen.shape, np.nan), where=seen > 0)
    _line(axes, monitor, rate, style.BLUE, f"since the start{of}")
    recent = recent_rate(seen, missed)
    if np.isfinite(recent).any():
        _line(axes, monitor, recent, style.PINK, f"last {LAST}")
    style.target_line(axes, target)
    shown = [float(np.nanmax(values)) for values in (upper[-1:], rate, recent) if np.isfinite(values).any()]
    style.fnr_axis(axes, target, *shown)
    _finish(figure, axes, monitor)


def recent_rate(seen: FloatArray, missed: FloatArray) -> FloatArray:
    """(D,) share missed among the last LAST positives at the end of each day, NaN before there were so many."""
    seen, missed = np.append(0, seen), np.append(0, missed)
    before = np.searchsorted(seen, seen[1:] - LAST, side="right") - 1
    known = before >= 0
    of, found = seen[1:] - seen[before], missed[1:] - missed[before]
    return np.divide(found, of, out=np.full(found.shape, np.nan), where=known & (of > 0))


def draw_exits(figure: Figure, monitor: Monitor) -> None:
    """Shares of a day's cases that exit, and that are answered positive and exit."""
    axes = figure.subplots()
    cases = np.array([row["decisions"] for row in monitor.days], dtype=float)
    for name, colour, label in (
        ("exits", style.BLUE, "exits"),
        ("exits_positive", style.PINK, "exits answered positive"),
    ):
        counts = np.array([row[name] for row in monitor.days], dtype=float)
        share = np.divide(counts, cases, out=np.full(cases.shape, np.nan), where=cases > 0)
        _line(axes, monitor, share, colour, label)
    axes.set_ylim(0, 1)
    style.percent_axis(axes.yaxis, "share of the day's cases (%)")
    _finish(figure, axes)


def draw_drift(figure: Figure, monitor: Monitor) -> None:
    """PSI of each day against the calibration cases, and what chance alone reaches."""
    axes = figure.subplots()
    if any(row["drift"]["psi_signed"] is not None for row in monitor.days):
        for name, colour, label in (
            ("psi_signed", style.BLUE, "P(positive)"),
            ("psi_confidence", style.PINK, "confidence"),
            ("psi_noise", style.MUTED, "chance alone, 1 day in 20"),
        ):
            values = [row["drift"][name] for row in monitor.days]
            _line(axes, monitor, np.array([np.nan if v is None else v for v in values]), colour, label)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("PSI against val_calib")
    else:
        axes.set_axis_off()
        style.note(axes, "no day has 50 cases of new groups")
        return
    _finish(figure, axes)


def draw_lag(figure: Figure, monitor: Monitor) -> None:
    """How many days after its end each day was closed, and how many of its labels were missing then."""
    axes = figure.subplots()
    ends = np.array([np.datetime64(row["day"], "D") + 1 for row in monitor.days], dtype="datetime64[s]")
    closed = np.array([row["closed_at"].removesuffix("Z") for row in monitor.days], dtype="datetime64[s]")
    lag = (closed - ends).astype("timedelta64[s]").astype(float) / 86_400
    _line(axes, monitor, lag, style.BLUE, "days until closed")
    longest = monitor.settings.max_label_delay_days
    axes.axhline(longest, color=style.MUTED, linewidth=1.0, linestyle=(0, (5, 3)), label=f"at most {longest}")
    axes.set_ylim(0, max(1.0, 1.15 * longest))
    axes.set_ylabel("days")
    _finish(figure, axes)


def _stream(monitor: Monitor, name: str, field: str) -> np.ndarray:
    return np.array([row[field] for day in monitor.days for row in day["streams"] if row["name"] == name], dtype=float)


def _days(monitor: Monitor) -> np.ndarray:
    return np.array([row["day"] for row in monitor.days], dtype="datetime64[D]")


def _line(axes: Axes, monitor: Monitor, values: np.ndarray, colour: str, label: str) -> None:
    marker = "o" if len(values) <= MARKED else ""
    axes.plot(_days(monitor), values, color=colour, label=label, marker=marker, markersize=4)


def _finish(figure: Figure, axes: Axes, alarmed: Monitor | None = None) -> None:
    """Days along x, a line where an alarm went off, and the legend."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    for stream in () if alarmed is None else alarmed.streams:
        if stream.alarm is not None:
            day = date2num(np.datetime64(stream.alarm.day, "D"))
            axes.axvline(day, color=style.INK, linewidth=0.8, linestyle=":", label="alarm")
    locator = AutoDateLocator(minticks=2, maxticks=5)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    if axes.get_legend_handles_labels()[1]:
        style.legend(figure, axes)
