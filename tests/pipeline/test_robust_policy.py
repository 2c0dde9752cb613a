"""robust_to: certified lower, so that the promise survives a change of the world of that size."""

import json

import pytest
from chain import call, done, reconfigured, refused


def policy_of(run) -> dict:
    return json.loads((run / "thresholds.json").read_text())


def test_a_policy_with_a_margin_is_certified_below_its_target_and_says_so(trained):
    reconfigured(trained, robust_to=1.5)
    outcome = done("25_threshold_sweep", "--run", trained)
    policy = policy_of(trained)
    level = 0.1 / (0.1 + 1.5 * 0.9)
    assert policy["target_fnr_exit"] == pytest.approx(level)
    assert policy["fnr_upper_bound"] <= level
    found = policy["margins"]
    assert (found["target"], found["robust_to"]) == (0.1, 1.5)
    assert found["ratio"] == pytest.approx(1.5)
    assert found["total_variation"] == pytest.approx(0.1 - level)
    assert (
        "Margin: FNR on exits stays within 10% where densities of positives change by factors of 0.816" in outcome.out
    )
    done("40_eval_selective", "--run", trained)
    assert "Margin: FNR on exits stays within 10%" in (trained / "report.html").read_text()
    done("50_export_bundle", "--run", trained)
    assert "Margin: FNR on exits stays within 10%" in (trained / "bundle" / "README.md").read_text()
    # the monitor watches what is promised, and not the level that leaves room for a change
    assert "plan      FNR on exits <= 0.1 is promised" in done("65_monitor", trained / "bundle").out
    # a margin that its numbers do not carry is noticed
    (trained / "thresholds.json").write_text(json.dumps({**policy, "margins": {**found, "total_variation": 0.5}}))
    refused(call("40_eval_selective", "--run", trained), "$.margins are not those of the level that is certified")
    (trained / "thresholds.json").write_text(json.dumps({**policy, "margins": {**found, "robust_to": 4}}))
    refused(call("40_eval_selective", "--run", trained), "$.margins.target is 0.1, which certifies 0.027027")


def test_without_one_the_file_says_that_there_is_none(calibrated, trained_once):
    found = policy_of(calibrated)["margins"]
    assert found == {"target": 0.1, "robust_to": None, "total_variation": 0.0, "ratio": 1.0, "exit_gamma": 1.0}


def test_another_target_of_the_command_has_the_same_margin(trained):
    reconfigured(trained, robust_to=1.2)
    done("25_threshold_sweep", "--run", trained, "--target_fnr_exit", 0.09)
    policy = policy_of(trained)
    assert policy["margins"]["target"] == 0.09
    assert policy["target_fnr_exit"] == pytest.approx(0.09 / (0.09 + 1.2 * 0.91))


@pytest.mark.parametrize("value", [1, 0.5, 11, "much"])
def test_what_is_no_change_is_refused(config, value, tmp_path):
    outcome = call("20_train", "--config", config, "--phase", 1, "--robust_to", value, "--dry_run")
    refused(outcome, "$.robust_to is")
