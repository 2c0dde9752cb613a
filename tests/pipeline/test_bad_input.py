"""Every mistake gets one message that says what, where and the mend, status 2, and nothing half-written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from chain import evaluate, files_of, reconfigured, refused

from stage1_pro.core.records.run import Run

ADAPTED = ["--phase", "4", "--exit_policy", "gate", "--peft_type", "lora"]


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--learning_rate", "1"], ["learning_rate is not a known setting"]),
        (["--dataset_params.img_size", "32"], ["dataset_params.img_size", "did you mean 'image_size'?"]),
        (["--exit_threshold", ".9"], ["legacy_exit_threshold_for_logging"]),
        (["--target_coverage", ".9"], ["coverage is maximised under target_fnr_exit"]),
        (["--target_fnr_exit", "0"], ["$.target_fnr_exit is 0.0"]),
        (["--target_fnr_exit", "-1"], ["$.target_fnr_exit is -1.0"]),
        (["--target_fnr_exit", "0.2"], ["up to 0.1"]),
        (["--target_fnr_exit", "abc"], ['$.target_fnr_exit is "abc"']),
        (["--false_alarm_price", "1"], ["$.false_alarm_price is 1.0; allowed number, 2 or more"]),
        (
            ["--false_alarm_price", "-5", "--miss_price", "-1"],
            ["2 problems", "$.miss_price is -1.0; allowed number, 0"],
        ),
        (
            ["--dataset_params.class_names", "[blue, red, green]", "--answer_placement", "auto"],
            ["answer_placement is auto, and dataset_params.class_names holds 3 classes"],
        ),
        (["--phase", "1", "--exit_policy", "gate"], ["Phase 1 only supports exit_policy='softmax'", "Phase 3+"]),
        (["--phase", "1", "--exit_policy", "scrc"], ["Phase 1 only supports exit_policy='softmax'", "Phase 6"]),
        (["--phase", "2", "--head_ensemble", "3"], ["$.head_ensemble is a setting from phase 3 on"]),
        (["--phase", "3", "--peft_type", "lora"], ["$.peft_type is a setting from phase 4 on, and this is phase 3"]),
        ([*ADAPTED, "--peft_targets", "attention"], ["has no attention; it has all_linear, conv, conv_exp, conv_pwl"]),
        ([*ADAPTED, "--peft_blocks", "99"], ["$.peft_blocks is 99; this backbone has 5 blocks: allowed 1 to 5"]),
        ([*ADAPTED, "--peft_type", "doran"], ["for linear layers, and blocks.0.0.conv is a convolution"]),
        ([*ADAPTED, "--freeze_backbone", "false"], ["adapters are trained on a frozen backbone"]),
        (["--backbone_license", "mit"], ["$.backbone_license is 'mit', but the weights are under 'none: random"]),
        (["--phase", "9"], ["phase 9 is not available; available: 1, 2, 3"]),
        (["--phase", "3", "--optimizer", "fsam"], ["$.optimizer is fsam", "phase 5 on", "set optimizer: adamw"]),
        (
            ["--phase", "5", "--optimizer", "fsam", "--precision", "16-mixed"],
            ["$.precision is 16-mixed", "32, bf16-mixed"],
        ),
        (
            ["--phase", "5", "--optimizer", "fsam", "--fsam_target", "adapter"],
            ["$.fsam_target is 'adapter'", "set peft_type, or fsam_target: all"],
        ),
        (["--strategy", "telepathy"], ["devices, num_nodes, strategy or precision", "telepathy"]),
        (["--strategy", "random"], ["set incremental_params.strategy random"]),
        (["--w_dice", "1"], ["w_dice is not a known setting (did you mean 'incremental_params.w_dice'?)"]),
        (
            ["--early_stopping_patience", "4"],
            ["did you mean 'incremental_params.early_stopping_patience' or 'early_stop_patience'?"],
        ),
        (
            ["--freeze_backbone", "false", "--batch_size", "1"],
            ["$.batch_size is 1", "set batch_size: 2 or more, or freeze_backbone: true"],
        ),
        (["--epochs", "0", "--bach_size", "3"], ["2 problems", "$.epochs is 0", "did you mean 'batch_size'?"]),
        (["--epochs"], ["--epochs", "expected --setting VALUE"]),
        (["--model_path", "random:resnet18x"], ["timm has no architecture 'resnet18x'", "did you mean"]),
        (["--model_path", "timm:resnet18.nope"], ["timm has no weights"]),
        (["--model_path", "file:/nowhere.pth:resnet18"], ["/nowhere.pth does not exist"]),
        (["--run", "/nowhere/run"], ["/nowhere/run does not exist", "00_make_splits.py"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml does not exist"]),
    ],
)
def test_settings(flags, fragments, config, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(script("20_train", "--config", config, *flags, "--dry_run"), *fragments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "fragments"),
    [
        ("", ["no cases"]),
        ("path,label\n", ["holds no cases"]),
        ("picture,label\n000.png,red\n", ["no column 'path'"]),
        ("path,label\n000.png,red\n002.png,red\n", ["class has no cases: blue"]),
        ("path,label\nnope.png,red\n000.png,blue\n", ["1 file is missing"]),
        (
            "path,label\n000.png,red\n001.png,green\n002.png,blue\n",
            ["1 label outside the classes, with cases: green (1)", "classes: blue, red"],
        ),
        ("path,label,group\n000.png,red,g\n000.png,red,h\n001.png,blue,i\n", ["1 case id occurs more than once"]),
        ("path,label,split\n000.png,red,tset\n001.png,blue,train\n", ["1 unknown split, with cases: tset (1)"]),
    ],
)
def test_labels(labels, fragments, config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "labels.csv"
    file.write_text(labels)
    source = f"[{{name: bad, root: {images}, labels: {file}}}]"
    refused(script("00_make_splits", "--config", config, "--dataset_params.sources", source), *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_missing_labels_file_and_corrupt_image(config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = script("00_make_splits", "--config", config, "--dataset_params.sources", "[{labels: nope.csv}]")
    refused(outcome, "nope.csv does not exist")
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes()[:100])
    source = f"[{{labels: {folder}/labels.csv}}]"
    outcome = script("00_make_splits", "--config", config, "--dataset_params.sources", source)
    refused(outcome, "1 image cannot be read: 003.png", "on_bad_image: skip")
    outcome = script(
        "00_make_splits",
        "--config",
        config,
        "--dataset_params.sources",
        source,
        "--dataset_params.on_bad_image",
        "skip",
    )
    assert outcome.status == 0
    assert "1 unreadable image left out: 003.png" in outcome.out


def test_a_split_without_positives(config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["train"] * 40 + ["val_select", "val_calib", "val_test", "val_test"]
    rows = [f"{i:03d}.png,{('blue', 'red')[i % 2]},{name}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    source = f"[{{root: {images}, labels: labels.csv}}]"
    refused(
        script("00_make_splits", "--config", config, "--dataset_params.sources", source),
        "val_select has no case of red",
        "val_calib has no case of blue",
    )


def test_a_run_is_never_overwritten(trained, config, script):
    before = files_of(trained)
    refused(script("20_train", "--config", config, "--run", trained), "trained already", "--resume")
    told = script("00_make_splits", "--config", config, "--run", trained)
    refused(told, "never overwritten")
    assert told.out == ""  # before minutes of reading
    refused(script("20_train", "--resume", trained, "--seed", "3"), "no other option")
    assert files_of(trained) == before


def test_changed_images_are_refused(config, script, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(images, tmp_path / "images")
    source = f"[{{labels: {folder}/labels.csv}}]"
    script("00_make_splits", "--config", config, "--dataset_params.sources", source, "--run", "runs/a")
    shutil.copy(folder / "000.png", tmp_path / "kept.png")
    (folder / "000.png").write_bytes((folder / "001.png").read_bytes() + b" ")
    flags = ["--config", config, "--dataset_params.sources", source, "--run", "runs/a"]
    refused(script("20_train", *flags), "have changed since the splits were drawn")


def test_calibrating_twice_or_with_the_wrong_script(calibrated, script):
    refused(script("25_threshold_sweep", "--run", calibrated), "calibrated already")
    before = (calibrated.parent / "calibrations.csv").read_bytes()
    (calibrated / "thresholds.json").unlink()
    reconfigured(calibrated, target_fnr_exit=0.5)
    refused(script("25_threshold_sweep", "--run", calibrated), "$.target_fnr_exit is 0.5")
    assert (calibrated.parent / "calibrations.csv").read_bytes() == before


def test_scores_of_other_weights(trained, script):
    with open(trained / "model_best.pth", "ab") as file:
        file.write(b" ")
    refused(script("25_threshold_sweep", "--run", trained), "of other weights", "20_train.py --resume")


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda text: text[: len(text) // 2], "not a whole JSON file"),
        (lambda text: text.replace('"exit_threshold": 0.', '"exit_threshold": 1.'), "allowed 0 to 1"),
        (lambda text: text.replace('\n "misses": ', '\n "misses": 9'), "do not certify target_fnr_exit"),
        (lambda text: text.replace('"guarantee"', '"guarantees"'), "did you mean 'guarantee'?"),
        (lambda text: text.replace('"coverage": ', '"coverage": NaN, "coverage": ', 1), "NaN"),
        (lambda text: text.replace("{", '{"coverage": 1,', 1), "duplicate key"),
    ],
)
def test_damaged_policy(calibrated, script, damage, fragment):
    path = calibrated / "thresholds.json"
    path.write_text(damage(path.read_text()))
    refused(script("40_eval_selective", "--run", calibrated), fragment)
    assert not (calibrated / "eval.json").exists()


def test_export_needs_one_policy_and_its_evaluation(calibrated, script):
    refused(script("50_export_bundle", "--run", calibrated), "eval.json does not exist", "40_eval_selective.py")
    evaluate(calibrated)
    (calibrated / "gateparams.json").write_text("{}")
    refused(
        script("50_export_bundle", "--run", calibrated),
        "Multiple policy files found! Only thresholds.json should exist",
    )
    assert not (calibrated / "bundle").exists()


def _alter(bundle: Path) -> None:
    with open(bundle / "config.json", "a") as file:
        file.write(" ")


def _link(bundle: Path) -> None:
    os.rename(bundle / "splits.json", bundle.parent / "elsewhere.json")
    os.symlink(bundle.parent / "elsewhere.json", bundle / "splits.json")


def _manifest(**changes):
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / "bundle.json").read_text())
        (bundle / "bundle.json").write_text(json.dumps({**manifest, **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (_alter, "config.json has been altered"),
        (lambda bundle: (bundle / "model_best.pth").unlink(), "model_best.pth is missing"),
        (lambda bundle: (bundle / "gateparams.json").write_text("{}"), "gateparams.json is not part of the bundle"),
        (_link, "splits.json is not a plain file"),
        (_manifest(model_file="../model_best.pth"), "$.model_file is"),
        (_manifest(schema_version=99), "newer version"),
        (_manifest(active_exit_policy="gate"), "needs gateparams.json"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "not a whole JSON file"),
    ],
)
def test_damaged_bundle(bundle, script, images, tmp_path, damage, fragment):
    damage(bundle)
    refused(script("50_export_bundle", "--verify", bundle), fragment)
    refused(script("60_predict", bundle, images, "--out", tmp_path / "d.csv"), fragment)
    assert not (tmp_path / "d.csv").exists()


def test_a_policy_for_other_weights_cannot_be_bundled(evaluated, script):
    """Weights swapped after calibration, with scores and evaluation that do not give it away."""
    with open(evaluated / "model_best.pth", "ab") as file:
        file.write(b" ")
    assert Run(evaluated).policy_path.exists()
    refused(script("50_export_bundle", "--run", evaluated), "model_digest", "other model")
    assert not (evaluated / "bundle").exists()


def test_predicting_nothing(bundle, script, tmp_path):
    refused(script("60_predict", bundle, tmp_path / "nope.png"), "no such image or folder")
    (tmp_path / "empty").mkdir()
    refused(script("60_predict", bundle, tmp_path / "empty"), "no images there")
    refused(script("60_predict", tmp_path / "empty", tmp_path), "empty is not a bundle folder", "50_export_bundle.py")
    refused(script("60_predict", bundle, tmp_path, "--fromat", "csv"), "did you mean '--format'?")
