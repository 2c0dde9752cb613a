"""Phase 6 from training to decisions: pairs of thresholds, prediction sets, and what is refused on the way."""

import json
from dataclasses import replace
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from chain import evaluate, reconfigured, refused

from stage1_pro.core.bundle.contents import load_exit_policy
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.records.run import Run


@pytest.fixture
def scrc(scrc_once, runs) -> Path:
    return chain.copy(scrc_once, runs)


@pytest.fixture
def exported(exported_scrc_once, runs) -> Path:
    """The run after the whole chain, with the variant that is taken by default."""
    return chain.copy(exported_scrc_once, runs)


@pytest.mark.parametrize(
    ("variant", "dirichlet"), [("SCRC-I", "tied"), ("SCRC-I", "free"), ("SCRC-T", "tied")], ids=lambda word: word
)
def test_the_bundle_decides_as_calibration_did(scrc, script, variant, dirichlet):
    outcome = script("36_calibrate_scrc", "--run", scrc, "--scrc_variant", variant, "--dirichlet", dirichlet)
    assert outcome.status == 0, outcome
    words = {"SCRC-I": "candidates use the second threshold", "SCRC-T": "SCRC-I may cover more"}
    assert words[variant] in outcome.out
    policy = json.loads((scrc / "scrcparams.json").read_text())
    assert policy["model_version"] == Run(scrc).model_digest
    assert policy["splits_version"] == Run(scrc).splits.digest
    assert policy["fnr_bound"] == policy["target_fnr_exit"] == 0.1 >= policy["fnr_upper_bound"]
    assert set(policy["diagnostics"]["baselines"]) == {"softmax", "gate"}
    assert ("in expectation, approximately" in outcome.out) == (variant == "SCRC-T")
    evaluate(scrc)
    assert script("50_export_bundle", "--run", scrc).status == 0
    assert policy["guarantee"]["words"] in (scrc / "bundle" / "README.md").read_text()
    assert sorted(path.name for path in (scrc / "bundle").glob("*params.json")) == ["scrcparams.json"]
    run = Run(scrc)
    scores = run.scores("val_calib")
    how = "quantile", variant, dirichlet, 42, run.config.exit_rule
    found = calibrate_scrc(run.scores("val_select"), scores, run.risk(), *how).fields()
    deciding = Stage1Predictor.from_run(run, "cpu").policy, load_exit_policy(scrc / "bundle")
    for chosen in deciding:
        decisions = chosen.decide(scores)
        assert (chosen.lambda1, chosen.lambda2) == (found["lambda1"], found["lambda2"])
        assert decisions.exits.sum() == found["val_calib_metrics"]["exited"] > 0
        assert np.array_equal(
            decisions.exits, (decisions.scores >= found["lambda1"]) & (decisions.prediction_sets.sum(1) == 1)
        )
    test = run.scores("val_test")
    first, second = (chosen.decide(test) for chosen in deciding)
    for name in ("exits", "predictions", "scores", "prediction_sets"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_the_bundle_is_certified_for_another_site(exported_scrc_once, tmp_path):
    chain.draw(tmp_path, cases=400, seed=5, cast=30)
    (tmp_path / "site.yaml").write_text(
        f"dataset_params: {{sources: [{{name: north, labels: {tmp_path}/labels.csv}}]}}"
    )
    old, run = exported_scrc_once / "bundle", Run(tmp_path / "runs" / "site")
    out = chain.done("38_recalibrate", old, "--config", tmp_path / "site.yaml", "--out", run.path).out
    assert "with the old bundle: The test split CONTRADICTS the promise" in out
    policies = [json.loads((path / "scrcparams.json").read_text()) for path in (old, run.bundle_path)]
    for name in ("scrc_variant", "calibrator_type", "exit_rule", "target_fnr_exit"):
        assert policies[0][name] == policies[1][name]
    assert policies[0]["dirichlet_params"] != policies[1]["dirichlet_params"]  # fitted on the new val_select
    scores = run.scores("val_test")
    decisions = Stage1Predictor.load(run.bundle_path, "cpu").predict([str(tmp_path / name) for name in scores.case_id])
    exits = load_exit_policy(run.bundle_path).decide(scores).exits
    assert [one.decision == "exit" for one in decisions] == exits.tolist()
    assert exits.any()


def test_decisions_carry_prediction_sets(exported, script, images, tmp_path):
    assert "Bound in expectation" not in (exported / "report.html").read_text()
    out = tmp_path / "d.parquet"
    assert script("60_predict", exported / "bundle", images, "--format", "parquet", "--out", out).status == 0
    table = pd.read_parquet(out)
    assert set(table["prediction_set"]) <= {"blue", "red", "blue|red"}
    exited = table["decision"] == "exit"
    assert exited.any()
    assert (table["prediction_set"] == table["answer"])[exited].all()
    assert not exited[table["prediction_set"] == "blue|red"].any()


def test_unreadable_images_are_deferred_with_both_classes(exported, script, tmp_path, images):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes((images / "001.png").read_bytes()[:90])
    outcome = script("60_predict", exported / "bundle", tmp_path / "in", "--out", tmp_path / "d.csv")
    assert outcome.status == 4
    (row,) = pd.read_csv(tmp_path / "d.csv").to_dict("records")
    assert (row["decision"], row["prediction_set"]) == ("defer", "blue|red")
    assert row["reason"] == "the file is truncated or damaged: PNG"


def test_the_wrong_script_is_named(scrc, trained, script):
    refused(script("36_calibrate_scrc", "--run", trained), "exit_policy is 'softmax'", "25_threshold_sweep.py")
    for name in ("25_threshold_sweep", "33_calibrate_gate"):
        refused(script(name, "--run", scrc), "exit_policy is 'scrc'", "36_calibrate_scrc.py")
    reconfigured(scrc, exit_policy="gate")
    refused(script("36_calibrate_scrc", "--run", scrc), "exit_policy is 'gate'", "33_calibrate_gate.py")
    refused(
        script("36_calibrate_scrc", "--run", scrc, "--scrc_variant", "SCRC-X"),
        "--scrc_variant SCRC-X: must be SCRC-I or SCRC-T",
    )
    assert not list(scrc.glob("*params.json"))
    assert not (scrc.parent / "calibrations.csv").exists()


@pytest.mark.parametrize("phase", [1, 3])
def test_earlier_phases_have_no_scrc(scrc, script, phase):
    reconfigured(scrc, phase=phase)
    words = "SCRC policy requires Phase 6"
    refused(script("36_calibrate_scrc", "--run", scrc), words, "set exit_policy")
    assert not (scrc / "scrcparams.json").exists()


def test_scores_without_a_gate_are_refused(scrc, script):
    for split in ("val_select", "val_calib"):
        plain = replace(Run(scrc).scores(split), gate_logit=None)
        plain.write(scrc / "scores" / f"{split}.parquet")
    refused(script("36_calibrate_scrc", "--run", scrc), "hold no gate_logit", "single head", "--phase 3")
    assert not (scrc.parent / "calibrations.csv").exists()


def test_tied_scores_at_the_cut_of_the_transductive_variant(scrc, script):
    for split in ("val_select", "val_calib"):
        scores = Run(scrc).scores(split)
        scores.logits[:60] *= -1  # wrong answers, which a gate of two values tells from right ones
        scores.gate_logit[:] = (scores.logits[:, 1] >= scores.logits[:, 0]) == scores.labels
        scores.write(scrc / "scores" / f"{split}.parquet")
    refused(script("36_calibrate_scrc", "--run", scrc, "--scrc_variant", "SCRC-T"), "tie at SCRC-T's cut", "SCRC-I")
    assert not (scrc / "scrcparams.json").exists()
    assert len((scrc.parent / "calibrations.csv").read_text().splitlines()) == 2  # it was a look at val_calib


@pytest.mark.parametrize("variant", ["SCRC-I", "SCRC-T"])
def test_nothing_certified_is_status_3_and_may_be_tried_again(scrc, script, variant):
    flags = ["--run", scrc, "--scrc_variant", variant]
    outcome = script("36_calibrate_scrc", *flags, "--target_fnr_exit", "0.001")
    assert outcome.status == 3
    for words in ("nothing certified", "more calibration positives", "--target_fnr_exit"):
        assert words in outcome.err
    assert not (scrc / "scrcparams.json").exists()
    assert "nothing certified" in (scrc.parent / "calibrations.csv").read_text()
    again = script("36_calibrate_scrc", *flags)
    assert again.status == 0, again
    assert "were looked at 2 times: 0.9 of 0.95 confidence remains" in again.out
    refused(script("36_calibrate_scrc", *flags), "is calibrated already")
