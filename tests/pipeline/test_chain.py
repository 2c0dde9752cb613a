"""The whole chain on real files: what each script leaves behind is what the next one and the host need."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from chain import train_run

from stage1_pro.core.bundle.contents import load_exit_policy
from stage1_pro.core.inference import preparing
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks import last_reading

VOLATILE = ("created_at", "run_id", "calib_use_count")


def read(path):
    return json.loads(path.read_text())


def test_training_leaves_every_file_of_the_contract_and_names_the_next_script(trained, script):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        "splits.json",
        "config.json",
        "environment.json",
        "metrics.csv",
        "model_best.pth",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "scores/val_select.parquet",
        "scores/val_calib.parquet",
    } <= names
    metrics = pd.read_csv(trained / "metrics.csv")
    assert list(metrics["epoch"]) == list(range(12))
    assert metrics["train_loss"].iloc[-1] < metrics["train_loss"].iloc[0]
    outcome = script("25_threshold_sweep", "--run", trained)
    assert outcome.status == 0
    assert re.fullmatch(rf"next  \S+ \S+/40_eval_selective.py --run {trained}", outcome.out.splitlines()[-1])


def test_scores_hold_every_case_of_their_split_once_sorted(trained):
    run = Run(trained)
    for split in ("val_select", "val_calib"):
        scores = run.scores(split)
        assert len(scores) == len(run.splits.indices(split))
        assert list(scores.case_id) == sorted(set(scores.case_id))


def test_the_policy_says_what_was_certified_and_the_attempt_is_in_the_ledger(calibrated):
    policy = read(calibrated / "thresholds.json")
    certified = [row for row in policy["sweep_results"] if row["certified"]]
    assert policy["exit_threshold"] == certified[-1]["threshold"]
    assert policy["fnr_upper_bound"] <= policy["target_fnr_exit"] == 0.1
    assert "exchangeable" in policy["guarantee"]["words"]
    ledger = pd.read_csv(calibrated.parent / "calibrations.csv")
    assert list(ledger["outcome"]) == ["certified"]
    assert policy["calib_use_count"] == 1


def test_suspects_are_the_training_cases_ranked_and_no_others(trained):
    table = pd.read_csv(trained / "suspects.csv")
    splits, config = read(trained / "splits.json"), read(trained / "config.json")
    cases = pd.read_csv(config["dataset_params"]["sources"][0]["labels"]).sort_values("path", ignore_index=True)
    expected = cases.iloc[splits["train_indices"]].set_index("path")["label"]
    assert table.set_index("case_id")["label"].to_dict() == expected.to_dict()
    assert table["probability"].is_monotonic_increasing
    assert table["rank"].tolist() == list(range(1, len(expected) + 1))
    assert set(table["split"]) == {"train"}
    assert (table["suggested_label"] != table["label"]).all()


@pytest.mark.parametrize(
    ("more", "room", "again"),
    [([], 10**6, False), ([], 10, True), (["--dataset_params.class_balanced_sampling", "true"], 10**6, True)],
)
def test_after_training_its_images_are_read_only_where_features_are_missing(
    more, room, again, config, runs, monkeypatch
):
    monkeypatch.setattr(last_reading, "MOST_KEPT", room)
    read_again = []
    decoding = preparing.decode
    monkeypatch.setattr(preparing, "decode", lambda path, **rest: read_again.append(path) or decoding(path, **rest))
    flags = ["--config", str(config), "--phase", "2", "--epochs", "2", "--dataset_params.augmentation", "moderate"]
    run = Run(train_run(runs / "run", [*flags, *more]))
    splits = ["val_select", "val_calib"] + ["train"] * again
    assert len(read_again) == len(set(read_again)) == sum(len(run.splits.indices(split)) for split in splits)
    assert len(pd.read_csv(run.suspects_path)) == len(run.splits.indices("train"))


def test_the_same_chain_twice_gives_the_same_policy(trained, tmp_path, script):
    other = shutil.copytree(trained, tmp_path / "elsewhere" / "other")
    for run in (trained, other):
        script("25_threshold_sweep", "--run", run)
    first, second = (
        {key: value for key, value in read(run / "thresholds.json").items() if key not in VOLATILE}
        for run in (trained, other)
    )
    assert first == second


def test_nothing_certified_is_status_3_without_a_policy_and_can_be_tried_again(trained, script):
    outcome = script("25_threshold_sweep", "--run", trained, "--target_fnr_exit", "0.001")
    assert outcome.status == 3
    assert "nothing certified" in outcome.err
    assert not (trained / "thresholds.json").exists()
    assert script("25_threshold_sweep", "--run", trained, "--target_fnr_exit", "0.09").status == 0
    policy = read(trained / "thresholds.json")
    assert policy["target_fnr_exit"] == 0.09
    assert policy["calib_use_count"] == 2


def test_decisions_are_the_same_from_scores_run_and_bundle(bundle, script, images, tmp_path):
    run = Run(bundle.parent)
    scores = run.scores("val_test")
    expected = load_exit_policy(bundle).decide(scores)
    outcome = script(
        "60_predict", bundle, images, "--format", "parquet", "--out", tmp_path / "d.parquet", "--batch_size", "7"
    )
    assert outcome.status == 0
    table = pd.read_parquet(tmp_path / "d.parquet")
    table.index = [path.rsplit("/", 1)[1] for path in table["id"]]
    table = table.loc[list(scores.case_id)]
    assert list(table["decision"] == "exit") == list(expected.exits)
    assert list(table["answer"] == "red") == list(expected.predictions == 1)
    np.testing.assert_allclose(table["score"], expected.scores, atol=1e-5)


def test_decisions_close_with_their_count_their_cost_and_the_report(bundle, script, images, tmp_path):
    outcome = script("60_predict", bundle, images, "--out", tmp_path / "d.csv")
    table, exits = pd.read_csv(tmp_path / "d.csv"), read(bundle / "eval.json")["exits"]
    assert f"{(table['decision'] == 'exit').sum()} exit, {(table['decision'] == 'defer').sum()} deferred" in outcome.out
    assert f" = {1000 * (1 - exits['utility']['value']):,.0f}; without stage 1 1,000" in outcome.out
    assert f"right exits {exits['right_exits']['value']:.1%}" in outcome.out
    assert str(bundle.parent / "report.html") in outcome.out


def test_logits_do_not_depend_on_batch_size_workers_or_source(bundle, images):
    paths = sorted(map(str, images.glob("*.png")))[:40]
    predictors = [Stage1Predictor.load(bundle, "cpu"), Stage1Predictor.from_run(Run(bundle.parent), "cpu")]
    batches = [(1, 0), (40, 0), (16, 2)]
    logits = [
        np.concatenate([part.logits for part in predictor.outputs(paths, batch_size=size, workers=workers)])
        for predictor in predictors
        for size, workers in batches
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=1e-4)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_unreadable_images_are_deferred_with_their_reason_and_status_4(bundle, script, tmp_path, images, format):
    folder = tmp_path / "inbox"
    folder.mkdir()
    shutil.copy(images / "000.png", folder / "a.png")
    (folder / "b.png").write_bytes((images / "001.png").read_bytes()[:90])
    (folder / "c.jpg").write_text("not an image")
    out = tmp_path / f"d.{format}"
    outcome = script("60_predict", bundle, folder, "--format", format, "--out", out)
    assert outcome.status == 4
    assert "2 of 3 images could not be read" in outcome.err
    table = pd.read_csv(out) if format == "csv" else pd.read_json(out, lines=True)
    assert list(table["decision"][1:]) == ["defer", "defer"]
    assert list(table["reason"][1:]) == ["the file is truncated or damaged: PNG", "the content is not an image"]


def test_the_logging_threshold_of_the_config_decides_nothing(evaluated, script, images, tmp_path):
    """The same run exported with another logging threshold gives the same decisions."""
    results = []
    for name, value in (("low", 0.0), ("high", 1.0)):
        run = shutil.copytree(evaluated, tmp_path / name)
        config = read(run / "config.json")
        (run / "config.json").write_text(json.dumps({**config, "legacy_exit_threshold_for_logging": value}))
        assert script("50_export_bundle", "--run", run).status == 0
        script("60_predict", run / "bundle", images, "--out", tmp_path / f"{name}.csv")
        results.append((tmp_path / f"{name}.csv").read_bytes())
    assert results[0] == results[1]


def test_the_evaluation_carries_intervals_and_the_verdict(evaluated):
    evaluation = read(evaluated / "eval.json")
    fnr, coverage = evaluation["exits"]["fnr_on_exits"], evaluation["exits"]["coverage"]
    assert fnr["low"] <= fnr["value"] <= fnr["high"]
    assert coverage["low"] <= coverage["value"] <= coverage["high"]
    verdict = "agrees" if fnr["high"] <= 0.1 else "contradicts" if fnr["low"] > 0.1 else "too_few"
    assert evaluation["promise"]["verdict"] == verdict
    exits = {name: estimate["value"] for name, estimate in evaluation["exits"].items()}
    assert exits["right_exits"] == pytest.approx(exits["coverage"] * exits["accuracy_on_exits"])
    assert exits["utility"] < exits["right_exits"] <= exits["coverage"]
    confusion = np.array(evaluation["confusion"]["exits"]) + evaluation["confusion"]["deferred"]
    assert confusion.sum() == evaluation["cases"]
    report = (evaluated / "report.html").read_text()
    assert evaluation["promise"]["words"].split(":")[0] in report


def test_a_dry_run_prints_the_plan_and_writes_nothing(config, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = script("20_train", "--config", config, "--dry_run")
    assert outcome.status == 0
    assert "trainable" in outcome.out
    assert "independent positives" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_run_are_a_start_only_on_equal_splits(trained, config, script, tmp_path):
    flags = ["--config", config, "--phase", "2", "--epochs", "1", "--warmup_epochs", "0"]
    for name, seed in (("same", 42), ("other", 7)):
        script("00_make_splits", *flags, "--seed", seed, "--run", tmp_path / "runs" / name)
    same = script("20_train", *flags, "--run", tmp_path / "runs/same", "--init_from", trained)
    assert same.status == 0
    other = script("20_train", *flags, "--seed", "7", "--run", tmp_path / "runs/other", "--init_from", trained)
    assert other.status == 2
    assert "splits differ" in other.err
    assert not (tmp_path / "runs/other/config.json").exists()
    metrics = pd.read_csv(tmp_path / "runs/same/metrics.csv")
    cold = pd.read_csv(trained / "metrics.csv")
    assert metrics["train_loss"].iloc[0] < cold["train_loss"].iloc[0]


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_fine_tuning_with_everything_on(config, script, tmp_path, precision):
    """Unfrozen backbone, augmentation in workers, accumulation, balanced sampling, with and without autocast."""
    flags = ["--config", config, "--phase", "1", "--run", tmp_path / "runs" / "tuned"]
    script("00_make_splits", *flags)
    flags += ["--freeze_backbone", "false", "--epochs", "2", "--grad_accum_steps", "2", "--precision", precision]
    flags += ["--dataset_params.augmentation", "aggressive", "--dataset_params.num_workers", "2"]
    outcome = script("20_train", *flags, "--dataset_params.class_balanced_sampling", "true")
    assert outcome.status == 0, outcome.err
    metrics = pd.read_csv(tmp_path / "runs/tuned/metrics.csv")
    assert list(metrics["step"]) == [3, 6]  # 160 cases, batches of 32, two a step
    assert {"lr-AdamW_backbone", "lr-AdamW_head", "data_wait_share"} <= set(metrics)


def test_training_from_the_cache_is_training_from_images(config, runs):
    flags = ["--config", str(config), "--phase", "2", "--epochs", "3", "--feature_cache"]
    columns = ["train_loss", "val_loss", "val_augrc"]
    live, cached = (train_run(runs / name, [*flags, f"'{name}'"]) / "metrics.csv" for name in ("off", "auto"))
    np.testing.assert_allclose(pd.read_csv(live)[columns], pd.read_csv(cached)[columns], atol=1e-4)
    assert (runs / ".feature_cache").exists()
