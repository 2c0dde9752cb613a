"""cascade.json: a run at prices as plain JSON, None for what is not known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.cascade.economy import Cascade, Row
from stage1_pro.core.cascade.stage_two import Predictions
from stage1_pro.core.cascade.study import Interval
from stage1_pro.core.records.provenance import utc_now


def record(cascade: Cascade) -> dict[str, Any]:
    """The content of cascade.json."""
    bench, second = cascade.bench, cascade.second
    found = isinstance(second, Predictions)
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "run_id": bench.run.name,
        "created_at": utc_now(),
        "split": "val_test",
        "exit_policy": bench.run.policy_row.name,
        "model_digest": bench.run.model_digest,
        "policy_digest": artifacts.digest_file(bench.run.policy_path),
        "scores_digest": artifacts.digest_file(bench.run.scores_path("val_test")),
        "target_fnr_exit": bench.artifact["target_fnr_exit"],
        "cases": len(bench.labels),
        "groups": bench.groups,
        "bootstrap": {"samples": cascade.samples, "confidence": cascade.confidence},
        "prices": {
            **asdict(cascade.prices),
            "false_alarm_price": cascade.prices.false_alarm_price,
            "miss_price": cascade.prices.miss_price,
        },
        "prevalence": cascade.prevalence,
        "prevalence_stated": cascade.demand.prevalence is not None,
        "stage2": {
            "source": second.where if found else "assumed",
            **{name: _estimate(value) for name, value in cascade.on_deferred.items()},
        },
        "rows": {key: _row(row) for key, row in cascade.rows.items()},
        "least_recall": _number(cascade.least_recall),
        "capacity": _capacity(cascade),
    }


def _row(row: Row) -> dict[str, Any]:
    one = row.measured
    figures = {
        "coverage": row.coverage,
        "fnr_on_exits": _number(row.fnr),
        "deferrals": None if row.deferrals is None else {"mean": row.deferrals[0], "busy_day": row.deferrals[1]},
        "break_even": None
        if row.break_even is None
        else {"stage1_running": row.break_even[0], "without_stage1": row.break_even[1]},
        **dict.fromkeys(("cost", "saved", "recall", "precision", "misses", "false_alarms"), None),
    }
    if one is None:
        return figures
    intervals = {name: _estimate(getattr(one, name)) for name in ("cost", "saved", "recall")}
    return {
        **figures,
        **intervals,
        **{name: _number(getattr(one, name)) for name in ("precision", "misses", "false_alarms")},
    }


def _capacity(cascade: Cascade) -> dict[str, Any] | None:
    demand, found = cascade.demand, cascade.capacity
    if found is None:
        return None
    return {
        "volume": demand.volume,
        "capacity": demand.capacity,
        "coverage_floor": found.floor,
        "certified_coverage": found.certified,
        "over": found.over,
        "smallest_target": cascade.smallest,
    }


def _estimate(interval: Interval) -> dict[str, float] | None:
    if np.isnan(interval[0]):
        return None
    return dict(zip(("value", "low", "high"), interval, strict=True))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
