"""Phase 3 from training to decisions: the same contract as softmax, with a gate in between."""

import json
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from chain import GATED, evaluate, killed, reconfigured, refused, resume, same_result

from stage1_pro.core.bundle.contents import load_exit_policy
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.models.stage1 import load_model, read_tensors
from stage1_pro.core.records.run import Run


@pytest.fixture
def gated(gated_once, runs) -> Path:
    return chain.copy(gated_once, runs)


def test_training_logs_the_gate_and_scores_carry_it(gated):
    metrics = pd.read_csv(gated / "metrics.csv")
    wanted = ["val_gate_augrc", "val_gate_soft_coverage_pos", "val_gate_soft_coverage_neg", "val_gate_coverage_pos"]
    wanted += ["val_gate_exited_positives", "val_gate_misses", "val_gate_fnr", "val_gate_auroc", "val_gate_spearman"]
    assert metrics[[*wanted, "gate_constraint", "gate_multiplier", "train_accuracy"]].shape == (len(metrics), 12)
    assert (metrics["gate_constraint"].iloc[:2] == 0).all()  # warm-up
    assert (metrics["gate_constraint"].iloc[2:] != 0).all()
    for split in ("val_select", "val_calib"):
        scores = Run(gated).scores(split)
        assert scores.gate_logit is not None
        assert np.isfinite(scores.gate_logit).all()


def test_val_select_has_out_of_fold_gate_logits_and_val_calib_the_models_own(gated, images):
    predictor, run = Stage1Predictor.from_run(Run(gated), "cpu"), Run(gated)
    found = {}
    for split in ("val_select", "val_calib"):
        scores = run.scores(split)
        paths = [str(images / name) for name in scores.case_id]
        outputs = next(predictor.outputs(paths, batch_size=len(paths)))
        np.testing.assert_allclose(outputs.logits, scores.logits, atol=1e-4)
        found[split] = np.abs(outputs.gate_logit - scores.gate_logit).max()
    assert found["val_calib"] < 1e-3
    assert found["val_select"] > 1e-2


@pytest.fixture
def exported(exported_gate_once, runs) -> Path:
    """The run after the whole chain, with the calibrator that is taken by default."""
    return chain.copy(exported_gate_once, runs)


def test_the_bundle_is_certified_for_another_site(exported_gate_once, tmp_path):
    chain.draw(tmp_path, cases=400, seed=5, cast=30)
    source = f"{{name: north, labels: {tmp_path}/labels.csv}}"
    (tmp_path / "site.yaml").write_text(f"dataset_params: {{sources: [{source}]}}")
    old, run = exported_gate_once / "bundle", Run(tmp_path / "runs" / "site")
    out = chain.done("38_recalibrate", old, "--config", tmp_path / "site.yaml", "--out", run.path).out
    assert "with the old bundle: The test split CONTRADICTS the promise" in out
    policies = [json.loads((path / "gateparams.json").read_text()) for path in (old, run.bundle_path)]
    assert policies[0]["calibrator_type"] == policies[1]["calibrator_type"]
    assert policies[0]["calibrator_params"] != policies[1]["calibrator_params"]  # fitted on the new val_select
    assert load_exit_policy(run.bundle_path).decide(run.scores("val_test")).exits.any()


def test_the_chain_ends_in_a_bundle_whose_scores_are_those_of_the_run(exported, script, images, tmp_path):
    assert "Reliability of the calibrated gate" in (exported / "report.html").read_text()
    assert (exported / "figures" / "gate_training.png").exists()
    scores = Run(exported).scores("val_test")
    expected = load_exit_policy(exported / "bundle").decide(scores)
    out = tmp_path / "d.parquet"
    assert script("60_predict", exported / "bundle", images, "--format", "parquet", "--out", out).status == 0
    table = pd.read_parquet(out)
    table.index = [path.rsplit("/", 1)[1] for path in table["id"]]
    np.testing.assert_allclose(table.loc[list(scores.case_id), "score"], expected.scores, atol=1e-3)


@pytest.mark.parametrize("calibrator", ["platt", "isotonic", "quantile"])
def test_the_bundle_decides_as_the_run_does(gated, script, calibrator):
    outcome = script("33_calibrate_gate", "--run", gated, "--calibrator", calibrator)
    assert outcome.status == 0, outcome
    assert "softmax policy" in outcome.out
    run, policy = Run(gated), json.loads((gated / "gateparams.json").read_text())
    assert policy["fnr_upper_bound"] <= 0.1
    assert "softmax" in policy["diagnostics"]["baselines"]
    evaluation = evaluate(gated)
    assert script("50_export_bundle", "--run", gated).status == 0
    scores = run.scores("val_test")
    expected = load_exit_policy(gated / "bundle").decide(scores)
    again = Stage1Predictor.from_run(run, "cpu").policy.decide(scores)
    assert np.array_equal(again.exits, expected.exits)
    assert np.array_equal(again.scores, expected.scores)
    assert expected.exits.sum() == sum(map(sum, evaluation["confusion"]["exits"]))


def test_unreadable_images_are_deferred(exported, script, tmp_path, images):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes((images / "001.png").read_bytes()[:90])
    outcome = script("60_predict", exported / "bundle", tmp_path / "in", "--out", tmp_path / "d.csv")
    assert outcome.status == 4
    assert list(pd.read_csv(tmp_path / "d.csv")["decision"]) == ["defer"]


def test_a_killed_run_ends_where_an_uninterrupted_one_does(gated_once, tmp_path):
    """Multipliers, running constraint and out-of-fold targets come back with the checkpoint."""
    run = killed(gated_once, "epoch 4/", tmp_path / "run")
    state = read_tensors(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert {"loss.multiplier", "loss.running"} <= set(state)
    assert bool((state["loss.running"][1] > 0).all())
    resume(run)
    same_result(run, gated_once)


def test_a_single_head_begins_a_gated_run(trained, config, script, tmp_path):
    flags = ["--config", config, *GATED, "--epochs", "1", "--warmup_epochs", "0", "--gate_refit", "false"]
    run = tmp_path / "runs" / "from2"
    script("00_make_splits", *flags, "--run", run)
    assert script("20_train", *flags, "--run", run, "--init_from", trained).status == 0
    model = load_model(run / "model_best.pth")
    assert model.heads.members == 2
    metrics, cold = pd.read_csv(run / "metrics.csv"), pd.read_csv(trained / "metrics.csv")
    assert metrics["val_accuracy"].iloc[0] >= cold["val_accuracy"].iloc[0]


def test_images_train_with_targets_of_their_own_and_the_warning(config, script, tmp_path):
    flags = ["--config", config, *GATED, "--epochs", "3", "--feature_cache", "'off'", "--lr_head", "3e-2"]
    run = tmp_path / "runs" / "images"
    script("00_make_splits", *flags, "--run", run)
    outcome = script("20_train", *flags, "--run", run)
    assert outcome.status == 0, outcome
    last = pd.read_csv(run / "metrics.csv").iloc[-1]
    assert ("nearly constant" in outcome.out) == (last["train_accuracy"] > 0.98)
    assert np.isfinite(Run(run).scores("val_select").gate_logit).all()


def test_too_few_groups_of_a_class_keep_the_trained_gate(config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["train"] * 100 + ["val_select"] * 20 + ["val_calib"] * 80 + ["val_test"] * 40
    rows = [
        f"{i:03d}.png,{('blue', 'red')[i % 2]},g{i % 2 if 100 <= i < 120 else i + 9},{s}" for i, s in enumerate(names)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group,split", *rows]) + "\n")
    flags = ["--config", config, *GATED, "--epochs", "2", "--dataset_params.sources"]
    flags += [f"[{{root: {images}, labels: labels.csv}}]", "--run", "runs/few"]
    script("00_make_splits", *flags)
    outcome = script("20_train", *flags)
    assert outcome.status == 0, outcome
    assert "too few groups of a class to fit the gate again" in outcome.out


def test_the_wrong_script_is_named(gated, trained, script):
    refused(script("33_calibrate_gate", "--run", trained), "exit_policy is 'softmax'", "25_threshold_sweep.py")
    refused(script("25_threshold_sweep", "--run", gated), "exit_policy is 'gate'", "33_calibrate_gate.py")
    refused(script("33_calibrate_gate", "--run", gated, "--calibrator", "beta"), "--calibrator beta", "platt")
    assert not (gated / "gateparams.json").exists()
    assert not (gated.parent / "calibrations.csv").exists()


def test_a_gate_on_a_single_head_checkpoint_is_refused(trained, script):
    reconfigured(trained, phase=3, exit_policy="gate")
    refused(script("33_calibrate_gate", "--run", trained), "hold no gate_logit", "single head", "--phase 3")
    assert not (trained / "gateparams.json").exists()
    assert not (trained.parent / "calibrations.csv").exists()


def test_an_anti_informative_gate_is_refused_with_advice(gated, script):
    for split in ("val_select", "val_calib"):
        scores = Run(gated).scores(split)
        scores.logits[:60] *= -1  # wrong answers enough to tell a slope
        right = (scores.logits[:, 1] >= scores.logits[:, 0]) == scores.labels
        rng = np.random.default_rng(0)
        scores.gate_logit[:] = rng.normal(np.where(right, -2, 2), 1)
        scores.write(gated / "scores" / f"{split}.parquet")
    outcome = script("33_calibrate_gate", "--run", gated, "--calibrator", "platt")
    refused(outcome, "anti-informative", "exit_policy: softmax")
    assert not (gated / "gateparams.json").exists()


def test_nothing_certified_is_status_3(gated, script):
    outcome = script("33_calibrate_gate", "--run", gated, "--target_fnr_exit", "0.001")
    assert outcome.status == 3
    assert "nothing certified" in outcome.err
    assert not (gated / "gateparams.json").exists()
    assert "nothing certified" in (gated.parent / "calibrations.csv").read_text()


def test_three_classes_have_no_gate(config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i:03d}.png,{('blue', 'red', 'green')[i % 3]}" for i in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    source = ["--dataset_params.sources", f"[{{root: {images}, labels: labels.csv}}]"]
    names = ["--dataset_params.class_names", "null"]
    refused(
        script("20_train", "--config", config, *GATED, *source, *names, "--dry_run"),
        "the labels have 3 classes (blue, green, red); phase 3 trains a gate, which needs exactly two classes",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
