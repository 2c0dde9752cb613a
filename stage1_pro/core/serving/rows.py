"""A decision as the server gives and logs it: one row, whose schema is decision.schema.json."""

import math
from datetime import UTC, datetime
from typing import Any, Protocol

from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.inference.records import NO_ANSWER, Decision


class Watch(Protocol):
    """What is audited, and what holds of the certificate."""

    @property
    def audits(self) -> bool: ...

    def audited(self, name: str) -> tuple[bool | None, float | None]:
        """Whether the group of this name is audited, and with which probability; None, None: nothing is audited."""
        ...

    def certificate(self, now: int) -> str:
        """in force, alarm, expired or none. now: seconds since 1970."""
        ...


class Unwatched:
    """No audit and no monitor."""

    audits = False

    def audited(self, name: str) -> tuple[bool | None, float | None]:
        return None, None

    def certificate(self, now: int) -> str:
        return "none"


def row_of(
    decision: Decision, *, id: str, group: str | None, now: datetime, bundle: str, watch: Watch
) -> dict[str, Any]:
    """The row of one decision. now: UTC; bundle: SHA-256 of bundle.json."""
    audited, probability = watch.audited(id if group is None else group)
    row = {
        "id": id,
        "group": group,
        "time": now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "answer": decision.answer,
        "probability": _number(decision.probability),
        "decision": decision.decision,
        "score": _number(decision.score),
        "reason": decision.reason,
        "audit": audited,
        "audit_probability": probability,
        "certificate": watch.certificate(int(now.timestamp())),
        "bundle": bundle,
    }
    return row if decision.prediction_set is None else row | {"prediction_set": list(decision.prediction_set)}


def unreadable(bad: BadImage) -> Decision:
    """The decision on an image that cannot be read, as 60 writes it."""
    return Decision(NO_ANSWER, math.nan, "defer", math.nan, str(bad))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
