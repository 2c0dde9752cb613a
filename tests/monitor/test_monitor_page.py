"""The page of a monitor: what it says before an alarm, and that after one it does not hide the rate of today."""

from pathlib import Path

import numpy as np
from streams import START, settings, world

from stage1_pro.core.monitor.state import Monitor, day_text
from stage1_pro.core.monitor.tables import DAY
from stage1_pro.core.monitor.update import update
from stage1_pro.core.monitor.watching import Reading
from stage1_pro.core.monitor.words import reading_lines
from stage1_pro.core.report.monitor.figures import recent_rate
from stage1_pro.core.report.monitor.page import write_page


def test_after_an_alarm_the_page_tells_the_rate_of_the_days_since(tmp_path: Path) -> None:
    rates = np.where(np.arange(60) < 40, 0.005, 0.3)
    stream = world(np.random.default_rng(1), 60, 100, rates, delay_days=1)
    monitor = Monitor.start(settings())
    calm = update(monitor, *stream.until(3), START + 5 * DAY)
    page = write_page(calm, Path("bundle"), tmp_path).read_text()
    assert '<span class="verdict unsure">In force, not all clear yet</span>' in page
    assert "FNR on exits, not ruled out" in page
    assert "The next reading" in page
    assert "65_monitor.py bundle --out" in page
    alarmed = update(monitor, stream.decisions, stream.labels, START + 100 * DAY)
    page = write_page(alarmed, Path("bundle"), tmp_path).read_text()
    alarm = alarmed.streams[0].alarm
    assert alarm is not None
    cases, label = stream.decisions, dict(zip(stream.labels.id, stream.labels.positive, strict=True))
    later = cases.exits & (cases.time // DAY > alarm.day) & np.array([label[name] for name in cases.id])
    missed = int((later & ~cases.answered_positive).sum())
    assert f"{100 * missed / later.sum():.1f}%" in page
    assert "missed after the alarm" in page
    assert f"of {day_text(alarm.day)}" in page
    assert f"{missed} of {later.sum()} audited exited positives were missed" in page
    assert "not ruled out</dt>" not in page
    assert f"38_recalibrate.py bundle --from_audit {tmp_path} --since DAY" in page


def test_green_is_for_all_clear_alone(tmp_path: Path) -> None:
    """With 186 positives without a miss a rate above .02 is ruled out."""
    stream = world(np.random.default_rng(2), 20, 50, 0.0, delay_days=1)
    monitor = update(Monitor.start(settings()), stream.decisions, stream.labels, START + 40 * DAY)
    page = write_page(monitor, Path("bundle"), tmp_path).read_text()
    assert '<span class="verdict good">In force, all clear</span>' in page


def test_past_the_planned_number_nothing_is_green(tmp_path: Path) -> None:
    """Misses that begin late hardly move the rate since the start, and the alarm sees them late."""
    rates = np.where(np.arange(60) < 59, 0.0, 0.3)
    stream = world(np.random.default_rng(4), 60, 100, rates, delay_days=1)
    monitor = update(Monitor.start(settings(planned=300)), stream.decisions, stream.labels, START + 100 * DAY)
    assert monitor.certificate == "in force"
    assert monitor.days[-1]["streams"][0]["upper"] <= monitor.settings.target_fnr
    page = write_page(monitor, Path("bundle"), tmp_path).read_text()
    assert '<span class="verdict unsure">In force, more audited than planned</span>' in page
    assert "All clear:" not in page
    assert "More audited exited positives than were planned (300): a change from now on is noticed late" in page
    assert f"38_recalibrate.py bundle --from_audit {tmp_path} --since DAY" in page
    assert any(
        line.startswith("warning   more audited") for line in reading_lines(Reading(monitor, False, 0, 0), tmp_path)
    )


def test_the_recent_rate_is_of_the_last_fifty_or_a_little_more() -> None:
    seen = np.array([20.0, 45, 75, 75, 130])
    missed = np.array([1.0, 2, 12, 12, 13])
    np.testing.assert_array_equal(recent_rate(seen, missed), [np.nan, np.nan, 11 / 55, 11 / 55, 1 / 55])
