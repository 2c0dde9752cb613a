"""00 --plan: what the positives certify, what would be enough, what follows, and nothing written."""

import re
from pathlib import Path

import pytest
from chain import done

from stage1_pro.core.metrics.binomial import p_value
from stage1_pro.core.training.forecast import needed_positives


def test_the_plan_names_the_steps_of_the_run_and_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = done("00_make_splits", "--config", config, "--phase", "3", "--exit_policy", "gate", "--plan").out
    assert list(Path().iterdir()) == []
    steps = re.findall(r"^  (\d\d_\w+\.py) +(\S+)", out, re.MULTILINE)
    names = ["00_make_splits", "20_train", "33_calibrate_gate", "40_eval_selective", "50_export_bundle", "60_predict"]
    assert [name for name, _ in steps] == [f"{name}.py" for name in names]
    assert all(float(how_long) >= 0 for name, how_long in steps if name[:2] in ("00", "20", "40", "60"))
    # 96 positives of val_calib, and the target .1: the figures of the table in docs/data.md
    row = next(line.split() for line in out.splitlines() if line.strip().startswith("misses a quarter"))
    assert row[4] == "76"
    assert 0.07 < float(row[3]) < 0.1
    assert int(row[5]) == pytest.approx(76 * 320 / 96, abs=1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_a_boundary_wants_a_little_more_than_a_single_test(share):
    single = needed_positives(share, 0.05, 0.05, "one_sided")
    nested = needed_positives(share, 0.05, 0.05, "symmetric")
    assert single < nested < 1.6 * single
    assert p_value(0, needed_positives(0, 0.05, 0.05, "one_sided"), 0.05) <= 0.05
