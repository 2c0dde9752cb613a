"""Dividing delta among attempts."""

import pytest

from stage1_pro.core.metrics.error_budget import attempt_delta


def test_all_attempts_there_will_ever_be_spend_delta_together() -> None:
    spent = sum(attempt_delta(0.05, attempt) for attempt in range(1, 20_000))
    assert 0.0499 < spent < 0.05
    with pytest.raises(ValueError, match="attempt"):
        attempt_delta(0.05, 0)
