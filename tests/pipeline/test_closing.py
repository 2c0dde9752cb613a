"""What 60 says at its end."""

from collections import Counter
from pathlib import Path

import pytest

from stage1_pro.core.inference import closing
from stage1_pro.core.inference.tables import Tally

EXITS = {"coverage": {"value": 1.0}, "fnr_on_exits": {"value": 0.0}, "fpr_on_exits": {"value": None}}


@pytest.mark.parametrize(("utility", "costs"), [(0.9, True), (None, False)])
def test_a_test_split_that_has_no_utility_has_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, utility: float | None, costs: bool
) -> None:
    files = {
        "eval": {"exits": {**EXITS, "utility": {"value": utility}}},
        "config": {"false_alarm_price": 5.0, "miss_price": 0.0},
    }
    monkeypatch.setattr(closing.artifacts, "read_json", lambda path, kind: files[kind])
    lines = closing.closing_lines(Tally(images=4, exits=Counter({"disc": 3})), tmp_path)
    assert any(line.startswith("cost ") for line in lines) == costs
    assert any("FPR on exits undefined" in line for line in lines)
