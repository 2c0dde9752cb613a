"""One reading of a monitor: new decisions, new labels, and what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stage1_pro.core.monitor.audit import Audit
from stage1_pro.core.monitor.days import close_days
from stage1_pro.core.monitor.decisions import take_decisions
from stage1_pro.core.monitor.intake import Taken, demand_sound, take_labels
from stage1_pro.core.monitor.state import Monitor, time_text
from stage1_pro.core.monitor.tables import Decisions, Labels

DECISION_COUNTS = ("read", "new", "repeated", "reused", "late")
LABEL_COUNTS = ("read", "new", "repeated", "contradicting", "late", "out_of_order", "stage_2", "unknown")


def update(monitor: Monitor, decisions: Decisions, labels: Labels, now: int, audit: Audit | None = None) -> Monitor:
    """The monitor after a reading, one revision later.

    now: seconds since 1970, UTC, up to which days may be closed; audit: the rule with its salt where it is at hand,
    to check every row. Files may overlap with earlier ones. Raises UserError, with every problem at once, where
    something would bias the evidence; then the monitor given stands as it was.

    Read once a year or once a day, the same decisions and labels give the same evidence, as long as no day's
    decisions come after the day was closed.
    """
    by_decision = take_decisions(monitor, decisions, audit)
    by_label = take_labels(monitor, by_decision.store, labels, now)
    demand_sound(Taken(by_label.store, by_label.counts, [*by_decision.problems, *by_label.problems]))
    as_of = max(monitor.as_of, now)
    after = close_days(replace(monitor, store=by_label.store, as_of=as_of))
    reading: dict[str, Any] = {
        "revision": monitor.revision + 1,
        "at": time_text(as_of),
        "decisions": {name: by_decision.counts[name] for name in DECISION_COUNTS},
        "labels": {name: by_label.counts[name] for name in LABEL_COUNTS},
        "days_closed": len(after.days) - len(monitor.days),
        "certificate": after.certificate,
    }
    return replace(after, readings=(*after.readings, reading))
