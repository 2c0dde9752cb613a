"""Looks at val_calib: one at a time, written down before their outcome is used, and what they leave of confidence."""

import json
import subprocess
import sys
from pathlib import Path

import chain
import pandas as pd
import pytest
from chain import SCRIPTS, refused
from made_runs import make_run

from stage1_pro.core import finish_calibration
from stage1_pro.core.records.looks import alone
from stage1_pro.core.records.run import Run


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def ledger_of(run: Path) -> list[dict]:
    return pd.read_csv(run.parent / "calibrations.csv", keep_default_na=False).to_dict("records")


@pytest.fixture
def run(tmp_path) -> Path:
    """Made-up scores for a softmax policy, with nothing certified yet."""
    (tmp_path / "runs").mkdir()
    return make_run(tmp_path / "runs" / "a", "softmax").path


def test_two_calibrations_at_once_end_with_one(run, script):
    with alone(Run(run)):
        refused(script("25_threshold_sweep", "--run", run), "another calibration of this run is under way")
    assert not (run.parent / "calibrations.csv").exists()
    both = [
        subprocess.Popen([sys.executable, SCRIPTS / "25_threshold_sweep.py", "--run", run], stderr=subprocess.PIPE)
        for _ in "ab"
    ]
    told = [one.communicate()[1].decode() for one in both]
    assert sorted(one.returncode for one in both) == [0, 2], told
    assert any(words in "".join(told) for words in ("is under way", "is calibrated already"))
    assert [row["outcome"] for row in ledger_of(run)] == ["certified"]


def test_a_look_that_crashed_counts(run, script, monkeypatch):
    def crash(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(finish_calibration, "valued", crash)
        with pytest.raises(MemoryError):
            script("25_threshold_sweep", "--run", run)
    assert [row["outcome"] for row in ledger_of(run)] == ["begun"]
    outcome = chain.done("25_threshold_sweep", "--run", run)
    policy = read(run / "thresholds.json")
    assert (policy["calib_use_count"], policy["remaining_confidence"], policy["fnr_confidence"]) == (2, 0.9, 0.95)
    for words in (outcome.out, policy["guarantee"]["words"]):
        assert "With probability at least 0.9 over" in words
        assert "0.9 of 0.95" in words
    assert "no number covers that" in outcome.out


def test_a_mistake_before_val_calib_was_read_is_no_look(run, script):
    (run / "scores" / "val_calib.parquet").rename(run / "kept")
    refused(script("25_threshold_sweep", "--run", run), "val_calib.parquet does not exist")
    (run / "kept").rename(run / "scores" / "val_calib.parquet")
    chain.done("25_threshold_sweep", "--run", run)
    assert read(run / "thresholds.json")["calib_use_count"] == 1


def test_a_useless_policy_is_a_look_and_written_all_the_same_is_no_second_one(run, script):
    chain.reconfigured(run, false_alarm_price=1000)
    outcome = script("25_threshold_sweep", "--run", run)
    assert outcome.status == 3
    assert "is no further look" in outcome.err
    assert "no number covers that" in outcome.err
    assert [row["outcome"] for row in ledger_of(run)] == ["useless"]
    chain.done("25_threshold_sweep", "--run", run, "--even_if_useless")
    (row,) = ledger_of(run)
    assert (row["outcome"], row["repeated"]) == ("certified", 1)
    policy = read(run / "thresholds.json")
    assert (policy["calib_use_count"], policy["remaining_confidence"]) == (1, 0.95)
    assert "useless" in policy


def test_a_refusal_says_what_the_next_look_costs_until_nothing_remains(run, script):
    flags = ["--run", run, "--target_fnr_exit", "0.0001", "--fnr_confidence", "0.5"]
    outcome = script("25_threshold_sweep", *flags)
    assert outcome.status == 3
    assert "looked at once; one more look at confidence 0.5, with whatever target, leaves no confidence" in outcome.err
    again = chain.done("25_threshold_sweep", "--run", run, "--fnr_confidence", "0.5")
    policy = read(run / "thresholds.json")
    assert policy["remaining_confidence"] == 0
    assert policy["guarantee"]["words"].startswith("No confidence remains")
    assert "no confidence remains" in again.out
    assert "certified" not in again.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"run_id": "another"}, "$.run_id is another"),
        ({"calib_use_count": 7}, "$.calib_use_count is 7, and 0 other looks are listed"),
        ({"remaining_confidence": 0.99}, "$.remaining_confidence is not what the looks leave"),
        ({"look": "0" * 16}, "is neither in"),
    ],
)
def test_a_bundle_is_of_the_look_that_is_on_record(evaluated, script, change, told):
    path = evaluated / "thresholds.json"
    path.write_text(json.dumps({**read(path), **change}))
    evaluation = read(evaluated / "eval.json")
    evaluation["policy_digest"] = chain.digest_file(path)
    (evaluated / "eval.json").write_text(json.dumps(evaluation))
    refused(script("50_export_bundle", "--run", evaluated), told)
    assert not (evaluated / "bundle").exists()


def test_report_and_bundle_state_what_two_looks_leave_and_a_policy_of_before_the_second_is_refused(evaluated, script):
    path = evaluated / "thresholds.json"
    first = path.read_text()
    path.unlink()
    chain.done("25_threshold_sweep", "--run", evaluated)
    second = path.read_text()
    path.write_text(first)
    refused(script("50_export_bundle", "--run", evaluated), "$.calib_use_count is 1, and 2 looks are in")
    path.write_text(second)
    chain.done("40_eval_selective", "--run", evaluated)
    assert (
        "looked at 2 times, and each look spends confidence: 90% of 95% remains"
        in (evaluated / "report.html").read_text()
    )
    chain.done("50_export_bundle", "--run", evaluated)
    readme = (evaluated / "bundle" / "README.md").read_text()
    assert "With probability at least 0.9 over" in readme
    assert "looked at 2 times: 0.9 of 0.95 confidence remains" in readme
