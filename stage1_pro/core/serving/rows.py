"""A decision as the server gives and logs it: one row, whose schema is decision.schema.json."""

import math
from datetime import UTC, datetime
from typing import Any

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.records import NO_ANSWER, Decision


def row_of(decision: Decision, *, id: str, group: str | None, now: datetime, bundle: str) -> dict[str, Any]:
    """The row of one decision. now: UTC; bundle: SHA-256 of bundle.json. Fields of the audit are empty."""
    row = {
        "id": id,
        "group": group,
        "time": now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "answer": decision.answer,
        "probability": _number(decision.probability),
        "decision": decision.decision,
        "score": _number(decision.score),
        "reason": decision.reason,
        "audit": None,
        "audit_probability": None,
        "certificate": "none",
        "bundle": bundle,
    }
    return row if decision.prediction_set is None else row | {"prediction_set": list(decision.prediction_set)}


def unreadable(bad: BadImage) -> Decision:
    """The decision on an image that cannot be read, as 60 writes it."""
    return Decision(NO_ANSWER, math.nan, "defer", math.nan, str(bad))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
