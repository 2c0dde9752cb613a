"""One self-contained page about a promise monitor after its last reading."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.commands import spoken
from stage1_pro.core.errors import counted
from stage1_pro.core.monitor.days import awaited, open_days
from stage1_pro.core.monitor.state import ALARM, EXPIRED, IN_FORCE, Monitor, Stream, day_text, time_text
from stage1_pro.core.monitor.watching import unlabelled
from stage1_pro.core.monitor.wealth import BROKEN, remaining
from stage1_pro.core.monitor.words import SCORES, overdue_words, standing
from stage1_pro.core.report.common.cells import DIGEST_SHOWN, Cell, MeasureRow, percent, thousands
from stage1_pro.core.report.common.sides import Chart, draw_charts
from stage1_pro.core.report.common.template import fill

PAGE = "monitor.html"
TONES = {
    IN_FORCE: ("unsure", "In force, not all clear yet"),
    ALARM: ("bad", "Alarm"),
    EXPIRED: ("unsure", "Expired"),
}
ALL_CLEAR = ("good", "In force, all clear")
OVERDUE = ("unsure", "In force, more audited than planned")
"""Green is for a rate above the target being ruled out: that nothing was noticed yet is no good news, and where more
was audited than planned a change would not be noticed soon."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The first thing on the page, of one certified group."""

    name: str
    tone: str
    verdict: str
    wealth: str
    bar: str
    rate: str
    rate_words: str
    evidence: str
    sentence: str


def write_page(monitor: Monitor, bundle: Path, folder: Path) -> Path:
    """Write monitor.html and figures/*.png into the monitor's folder; returns the page's path."""
    from markupsafe import Markup

    charts = draw_charts(_charts(monitor), monitor, 1, folder) if monitor.days else []
    html = fill(
        "monitor.html",
        title=f"Promise monitor: FNR on exits ≤ {100 * monitor.settings.target_fnr:g}%",
        words=f"bundle {bundle} · reading {monitor.revision}",
        date=time_text(monitor.as_of)[:10],
        notices=list(_notices(monitor)),
        answers=[_answer(monitor, stream) for stream in monitor.streams],
        charts=[(chart, Markup(svg)) for chart, svg in charts],
        tables=[
            ("What would be noticed next", ["audited exited positives"], list(_next_rows(monitor))),
            ("Read so far", ["last reading", "all readings"], list(_count_rows(monitor))),
        ],
        remarks=_remarks(monitor),
        facts=list(_facts(monitor)),
        next_title="Certify anew" if monitor.alarmed or monitor.overdue else "The next reading",
        command=spoken(f"python stage1_pro/scripts/{_next_command(monitor, bundle, folder)}"),
    )
    artifacts.write_bytes(folder / PAGE, html.encode())
    return folder / PAGE


def _next_command(monitor: Monitor, bundle: Path, folder: Path) -> str:
    if monitor.alarmed or monitor.overdue:
        again = folder.with_name("again")
        return (
            f"38_recalibrate.py {bundle} --from_audit {folder} --since DAY --decisions … --labels … --audit_salt … "
            f"--out {again}"
        )
    return f"65_monitor.py {bundle} --out {folder} --decisions … --labels …"


def _answer(monitor: Monitor, stream: Stream) -> Answer:
    row, since = standing(monitor, stream.name), _since_alarm(monitor, stream)
    state = ALARM if stream.alarm else monitor.certificate if monitor.certificate != ALARM else IN_FORCE
    clear = row["upper"] <= monitor.settings.target_fnr
    tone, verdict = TONES[state]
    if state == IN_FORCE and (clear or monitor.overdue):
        tone, verdict = OVERDUE if monitor.overdue else ALL_CLEAR
    return Answer(
        name="" if len(monitor.streams) == 1 else stream.name,
        tone=tone,
        verdict=verdict,
        wealth=f"{np.exp(min(row['log_wealth'], 700)):.3g}",
        bar=f"{np.exp(monitor.settings.test.bar):.4g}",
        rate=f"{100 * since[0] / since[1]:.1f}%" if since else _interval(row["lower"], row["upper"]),
        rate_words="missed after the alarm" if since else "FNR on exits, not ruled out",
        evidence=thousands(row["exited_positives"]),
        sentence=_sentence(monitor, stream, row, since),
    )


def _since_alarm(monitor: Monitor, stream: Stream) -> tuple[int, int] | None:
    """Misses and audited exited positives of the days after the alarm's; None without any.

    The interval is of one fixed rate since the start, which an alarm denies; and the alarm's own day was chosen by its
    misses.
    """
    if stream.alarm is None:
        return None
    before = [day for day in monitor.days if day["day"] <= day_text(stream.alarm.day)]
    rows = [row for day in before for row in day["streams"] if row["name"] == stream.name]
    last, then = standing(monitor, stream.name), rows[-1]
    missed, seen = (last[name] - then[name] for name in ("misses", "exited_positives"))
    return (missed, seen) if seen else None


def _interval(lower: float, upper: float) -> str:
    """In percent, no digits more than the upper end needs, and that one rounded up."""
    digits = 2 if upper < 0.1 else 0 if upper >= 1 else 1
    end = min(100.0, np.ceil(round(upper * 10 ** (2 + digits), 6)) / 10**digits)
    return f"{100 * lower:.{digits}f}–{end:.{digits}f}%"


def _sentence(monitor: Monitor, stream: Stream, row: dict[str, Any], since: tuple[int, int] | None) -> str:
    target, once = monitor.settings.target_fnr, f"once in {1 / monitor.settings.test.delta:.4g} deployments"
    positive = "audited exited positive"
    if stream.alarm:
        return (
            f"At some time FNR on exits was above {100 * target:g}%: the wealth reached its line at case "
            f"{stream.alarm.case} of {day_text(stream.alarm.day)}, after "
            f"{counted(stream.alarm.positives, positive)}. Such an alarm is false "
            f"at most {once}. It does not say that the rate is above the target today, and it stays, since a test "
            "begun anew would spend its error probability again."
            + (f" On the days after it {since[0]} of {counted(since[1], positive)} were missed." if since else "")
        )
    if not row["exited_positives"]:
        return "No audited positive that exits has its label yet, so nothing is known of FNR on exits."
    if row["upper"] <= target and not monitor.overdue:
        return f"All clear: if FNR on exits is one fixed rate, it is at most {100 * target:g}%, at every look."
    return (
        f"{row['misses']} of {counted(row['exited_positives'], positive)} missed. No alarm is no "
        "proof: the interval says what is not ruled out yet."
    )


def _notices(monitor: Monitor) -> Iterator[str]:
    if monitor.alarmed:
        yield (
            "Look at the misses. Then certify anew on the labels that the audits gave since the world changed, from a "
            "day that you know without them, and start a new monitor for the new bundle: the command is below."
        )
    if monitor.overdue:
        words = spoken(overdue_words(monitor))
        yield f"{words[0].upper()}{words[1:]}."
    if monitor.expired:
        yield "The certificate has expired. Decisions go on, each marked so; certify anew."
    if lost := unlabelled(monitor):
        yield (
            f"{counted(lost, 'audited case')} had no label in time: a positive answer counts as a hit in the alarm, a "
            "negative one as a miss in the interval."
        )
    for name, words in SCORES.items():
        day = getattr(monitor.drift, name).alarm_day
        if day is not None:
            yield (
                f"The {words} drifts, seen on {day_text(day)}. That is advisory: drift is no broken promise, and a "
                "broken promise need not show as drift."
            )
    if not monitor.days:
        yield "No day is closed yet: a day closes when its labels have come, or when it is past the longest delay."


def _next_rows(monitor: Monitor) -> Iterator[MeasureRow]:
    test, wealth = monitor.settings.test, monitor.streams[0].wealth
    if monitor.alarmed or test.least is not None:  # how soon doubtful audits see a change depends on where it is
        return
    for multiple in BROKEN:
        rate = min(0.9, multiple * test.target_fnr)
        wait = remaining(test, wealth, rate)
        cell = Cell(f"{wait:,.0f}" if np.isfinite(wait) else "more than planned")
        yield MeasureRow(f"FNR rises to {100 * rate:g}%", "median wait until the alarm, from now on", [cell])


def _count_rows(monitor: Monitor) -> Iterator[MeasureRow]:
    meanings = {
        ("decisions", "new"): "cases read for the first time",
        ("decisions", "repeated"): "read before; counted once",
        ("decisions", "reused"): "an id that names a case of another day",
        ("decisions", "late"): "of a day that was closed; not counted",
        ("labels", "new"): "first label of an audited case",
        ("labels", "repeated"): "same label again; counted once",
        ("labels", "contradicting"): "another label than before: the case counts as unlabelled",
        ("labels", "late"): "after the longest delay; not counted",
        ("labels", "out_of_order"): "given before one that was read earlier; no matter",
        ("labels", "stage_2"): "of deferred cases that are not audited; not counted",
        ("labels", "unknown"): "of ids without a decision so far; kept until it comes",
    }
    for (kind, name), meaning in meanings.items():
        numbers = [row[kind][name] for row in monitor.readings]
        cells = [Cell(thousands(numbers[-1])), Cell(thousands(sum(numbers)))]
        yield MeasureRow(f"{kind.capitalize()}: {name.replace('_', ' ')}", meaning, cells)


def _remarks(monitor: Monitor) -> list[str]:
    drift = "This bundle does not hold the scores of val_calib, so drift is seen only as a change since the start."
    return [
        "Only audited positives that exit carry evidence about FNR on exits. Deferred cases say nothing about it.",
        "Labels are taken for the truth. Where stage 2 gives them, the promise is about the positives of stage 2.",
        "The interval is for one fixed rate. The alarm also sees a rate that changes, and says only that at some time "
        f"it was above {100 * monitor.settings.target_fnr:g}%. A rate that swings about the target alarms too.",
        "A label that never came counts for the promise in the alarm, and against it in the upper end of the interval.",
        "Of each group one positive counts, drawn by a hash, as in the certificate.",
        *([] if len(monitor.drift.reference) else [drift]),
    ]


def _facts(monitor: Monitor) -> Iterator[tuple[str, str]]:
    settings = monitor.settings
    yield "Bundle", settings.bundle_digest[:DIGEST_SHOWN]
    yield (
        "Audit",
        f"{percent(settings.audit_share)} of the groups, salt {(settings.salt_digest or 'not given')[:DIGEST_SHOWN]}",
    )
    closed = "none" if monitor.closed_through is None else day_text(monitor.closed_through)
    yield "Days", f"closed through {closed}, {counted(open_days(monitor), 'day')} open"
    yield "Labels awaited", thousands(int(awaited(monitor).sum()))
    yield "Longest delay", counted(settings.max_label_delay_days, "day")
    yield "False alarm, ever", f"at most {percent(settings.delta)}"
    yield "Planned", f"{thousands(settings.planned)} audited exited positives, {thousands(monitor.fed)} so far"
    if settings.expires_at is not None:
        yield "Expires", time_text(settings.expires_at)
    if settings.expires_after is not None:
        yield "Expires after", counted(settings.expires_after, "audited exited positive")
    yield "Read", time_text(monitor.as_of)


def _charts(monitor: Monitor) -> tuple[Chart, ...]:
    from stage1_pro.core.report.monitor import figures as drawings

    return (
        *_charts_of_promise(monitor, drawings),
        Chart("exits", "Exits", "All decisions of a day, audited or not.", lambda _: 3.0, drawings.draw_exits),
        *_charts_of_drift(monitor, drawings),
        Chart(
            "lag",
            "Watermark",
            "A day counts once all its labels are there, or the longest delay is past: in the order of their arrival "
            "labels would be no evidence.",
            lambda _: 3.0,
            drawings.draw_lag,
        ),
    )


def _charts_of_promise(monitor: Monitor, drawings: Any) -> tuple[Chart, ...]:
    return (
        Chart(
            "wealth",
            "Evidence against the promise",
            "What a bet against the promise has made of 1. While the promise holds, it ever reaches the line with at "
            f"most {percent(monitor.settings.delta)} probability, however often one looks.",
            lambda _: 3.0,
            drawings.draw_wealth,
        ),
        Chart(
            "bounds",
            "FNR on exits",
            "Rates that are not ruled out at any look, if there is one fixed rate, and the share of the audited exited "
            f"positives that was missed, since the start and among the last {drawings.LAST}.",
            lambda _: 3.0,
            drawings.draw_bounds,
        ),
    )


def _charts_of_drift(monitor: Monitor, drawings: Any) -> tuple[Chart, ...]:
    if not len(monitor.drift.reference):
        return ()
    return (
        Chart(
            "drift",
            "Drift of the scores, without labels",
            "Advisory: how far the scores of a day are from those of val_calib, one case of each group.",
            lambda _: 3.0,
            drawings.draw_drift,
        ),
    )
