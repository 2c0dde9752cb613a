"""A bundle certified anew for another site: no training, nothing of what it has seen, and a run to go on with."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import chain
import numpy as np
import pandas as pd
import pytest
from chain import refused
from shared_folders import made_once

from stage1_pro import Stage1Predictor, load_exit_policy, verify_bundle
from stage1_pro.core.bundle.contents import BundleContents
from stage1_pro.core.errors import UserError
from stage1_pro.core.records.run import Run
from stage1_pro.core.sites.cases import read_site

SEEN_BEFORE = 40


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def yaml_of(folder: Path, extra: str = "") -> Path:
    path = folder / "site.yaml"
    path.write_text(f"dataset_params:\n  sources: [{{name: site, labels: {folder}/labels.csv}}]\n{extra}")
    return path


def some_seen(folder: Path, images: Path, bundle: Path) -> None:
    """Add images of the old training to the site's, under other names."""
    splits = read(bundle / "splits.json")
    old = pd.read_csv(images / "labels.csv").sort_values("path", ignore_index=True)
    indices = [
        *splits["train_indices"][: SEEN_BEFORE - 2],
        splits["val_select_indices"][0],
        splits["val_calib_indices"][0],
    ]
    lines = []
    for number, row in enumerate(old.iloc[indices].itertuples()):
        shutil.copy(images / str(row.path), folder / f"again{number}.png")
        lines.append(f"again{number}.png,{row.label}\n")
    with open(folder / "labels.csv", "a") as labels:
        labels.writelines(lines)


@pytest.fixture(scope="session")
def site_once(tmp_path_factory, images, exported_once) -> Path:
    """A folder with images of a darker, bluer camera, and the run that 38 made of them in runs/site."""

    def make(folder: Path) -> None:
        chain.draw(folder, cases=400, seed=5, light=0.8, cast=30)
        some_seen(folder, images, exported_once / "bundle")
        out = chain.done(
            "38_recalibrate", exported_once / "bundle", "--config", yaml_of(folder), "--out", folder / "runs" / "site"
        )
        (folder / "said.txt").write_text(out.out)

    return made_once(tmp_path_factory, "site", make)


def test_the_new_bundle_is_certified_on_the_new_site_alone(site_once, exported_once):
    run, old = Run(site_once / "runs" / "site"), exported_once / "bundle"
    contents = verify_bundle(run.bundle_path)
    origin = contents.manifest["provenance"]["recalibrated_from"]
    assert origin["run_id"] == "trained"
    assert origin["model_digest"] == read(old / "bundle.json")["files"]["model_best.pth"]["sha256"]
    assert run.splits.indices("train") == []
    assert not run.checkpoints_path.exists()
    assert sum(len(run.splits.indices(split)) for split in ("val_select", "val_calib", "val_test")) == 400
    ids = np.concatenate([run.scores(split).case_id for split in ("val_select", "val_calib", "val_test")])
    assert not [name for name in ids if "again" in str(name)]
    assert f"left out: {SEEN_BEFORE} cases that the bundle has seen before" in (site_once / "said.txt").read_text()
    assert read(run.policy_path)["calib_use_count"] == 1
    assert list(pd.read_csv(site_once / "runs" / "calibrations.csv")["outcome"]) == ["certified"]


def test_what_the_old_bundle_promised_is_contradicted_there_and_the_new_one_promises_it(site_once):
    said = (site_once / "said.txt").read_text()
    assert "with the old bundle: The test split CONTRADICTS the promise" in said
    assert re.search(
        "with the new bundle: The test split (agrees with the promise|has too few positives to tell)", said
    )
    assert read(site_once / "runs" / "site" / "thresholds.json")["target_fnr_exit"] == 0.1


def test_the_scores_are_those_that_the_new_bundle_gives(site_once):
    run = Run(site_once / "runs" / "site")
    predictor = Stage1Predictor.load(run.bundle_path)
    assert predictor.model.answer_shift == run.scores("val_calib").answer_shift
    for split in ("val_select", "val_test"):
        scores = run.scores(split)
        parts = predictor.outputs([str(site_once / name) for name in scores.case_id])
        np.testing.assert_array_equal(np.concatenate([part.logits for part in parts]), scores.logits)


def test_the_new_bundle_has_seen_what_it_and_the_old_one_have(site_once, exported_once):
    old, new = (
        set(read(path / "bundle" / "seen.json")["hashes"]) for path in (exported_once, site_once / "runs" / "site")
    )
    run = Run(site_once / "runs" / "site")
    assert old < new
    assert len(new - old) == sum(len(run.splits.indices(split)) for split in ("val_select", "val_calib"))


def test_what_does_not_fit_the_bundle_is_said_at_once_and_nothing_is_written(bundle, tmp_path, script):
    chain.draw(tmp_path, cases=8)
    wrong = "  class_names: [blue, green]\n  positive_class: green\n  image_size: 64\nepochs: 3\n"
    before = chain.files_of(tmp_path)
    out = tmp_path / "runs" / "site"
    told = script("38_recalibrate", bundle, "--config", yaml_of(tmp_path, wrong), "--out", out)
    refused(told, "the bundle answers blue, red", "epochs is 3, and 12", "dataset_params.image_size is 64, and 32")
    turned = yaml_of(tmp_path, "  positive_class: blue\n")
    refused(script("38_recalibrate", bundle, "--config", turned, "--out", out), "positive blue", "positive red")
    (tmp_path / "site.yaml").write_text("target_fnr_exit: 0.05\n")
    refused(script("38_recalibrate", bundle, "--config", tmp_path / "site.yaml", "--out", out), "names no images but")
    refused(script("38_recalibrate", bundle, "--out", out), "name the site's labelled images")
    (tmp_path / "site.yaml").unlink()
    assert chain.files_of(tmp_path) == before
    refused(
        script("38_recalibrate", bundle, "--config", tmp_path / "site.yaml", "--out", bundle), "exists, and nothing is"
    )


@pytest.mark.parametrize("labels", [("blue", "green", "red"), ("blue", "red"), ("rest", "red")], ids="-".join)
def test_classes_that_the_bundle_joined_are_joined_again(bundle, tmp_path, labels):
    """From the labels that people write, whichever of them occur at the site."""
    chain.draw(tmp_path, cases=12, seed=12)
    names = [f"{index:03d}.png,{labels[index % len(labels)]}\n" for index in range(12)]
    (tmp_path / "labels.csv").write_text("".join(names))
    policy, config = load_exit_policy(bundle), read(bundle / "config.json")
    config["dataset_params"] |= {"class_names": None, "rest": True}
    (bundle / "config.json").write_text(json.dumps(config))
    manifest = {**read(bundle / "bundle.json"), "class_names": ["rest", "red"]}
    site = read_site(BundleContents(bundle, manifest, policy), [("site.yaml", yaml_of(tmp_path))])
    assert site.cases.class_names == ("rest", "red")
    assert site.cases.frame["label"].sum() == sum(",red" in line for line in names)


@pytest.mark.parametrize("labels", [("blue", "green", "red"), ("red",)], ids="-".join)
def test_a_site_need_not_have_every_label_that_is_positive(bundle, tmp_path, capsys, labels):
    chain.draw(tmp_path, cases=12, seed=12)
    names = [f"{index:03d}.png,{labels[index % len(labels)]}\n" for index in range(12)]
    (tmp_path / "labels.csv").write_text("".join(names))
    policy, config = load_exit_policy(bundle), read(bundle / "config.json")
    config["dataset_params"] |= {"class_names": None, "positive_class": ["orange", "red"], "rest": True}
    (bundle / "config.json").write_text(json.dumps(config))
    manifest = {**read(bundle / "bundle.json"), "class_names": ["rest", "orange or red"]}
    contents, layers = BundleContents(bundle, manifest, policy), [("site.yaml", yaml_of(tmp_path))]
    site = read_site(contents, layers, certifies=False)
    assert site.cases.class_names == ("rest", "orange or red")
    assert site.cases.frame["label"].sum() == 12 // len(labels)
    assert "warning: no case is labelled 'orange', which is positive" in capsys.readouterr().out
    if len(labels) == 1:
        with pytest.raises(UserError, match="no cases of rest, and a certificate takes cases of both classes"):
            read_site(contents, layers)


def test_a_bundle_of_masks_is_told_what_it_can_do(bundle, tmp_path):
    contents = BundleContents(bundle, {"task": "segmentation"}, load_exit_policy(bundle))
    with pytest.raises(UserError, match=r"its answers are masks.*20_train\.py"):
        read_site(contents, [("site.yaml", yaml_of(tmp_path))])


def test_ratios_may_share_all_cases_and_what_is_refused_does_not_speak_of_training(bundle, tmp_path, script):
    chain.draw(tmp_path, cases=40, seed=8)
    out = tmp_path / "runs" / "site"
    ratios = "  val_select_ratio: 0.3\n  val_calib_ratio: 0.5\n  val_test_ratio: {}\n"
    told = script("38_recalibrate", bundle, "--config", yaml_of(tmp_path, ratios.format(0.4)), "--out", out)
    refused(told, "sum to 1.2; allowed up to 1")
    assert "train" not in told.err
    chain.call("38_recalibrate", bundle, "--config", yaml_of(tmp_path, ratios.format(0.2)), "--out", out)
    assert [len(Run(out).splits.indices(split)) for split in ("val_select", "val_calib", "val_test")] == [12, 20, 8]
    assert Run(out).config.dataset_params.val_test_ratio == 0.2


def test_nothing_is_written_into_the_bundle(bundle, tmp_path, script):
    chain.draw(tmp_path, cases=8)
    refused(
        script("38_recalibrate", bundle, "--config", yaml_of(tmp_path), "--out", bundle / "new"), "lies in the bundle"
    )
    assert not (bundle / "new").exists()


def test_an_interruption_leaves_no_half_run_or_a_whole_one_and_the_way_on(bundle, tmp_path):
    chain.draw(tmp_path, cases=400, seed=7)
    out, config = tmp_path / "runs" / "site", yaml_of(tmp_path)

    def stop():
        os.kill(os.getpid(), signal.SIGINT)

    told = chain.call("38_recalibrate", bundle, "--config", config, "--out", out, at={"scoring val_calib": stop})
    assert told.status == 130
    assert not [path for path in out.parent.iterdir() if "site" in path.name]
    told = chain.call("38_recalibrate", bundle, "--config", config, "--out", out, at={"certified: FNR": stop})
    assert told.status == 130
    assert re.search(rf"go on with: \S+ \S+/40_eval_selective.py --run {out}", told.err)
    assert "then 50_export_bundle.py" in told.err
    for script in ("40_eval_selective", "50_export_bundle"):
        chain.done(script, "--run", out)
    assert verify_bundle(out / "bundle").manifest["provenance"]["recalibrated_from"]["run_id"] == "trained"


def test_images_that_the_bundle_has_all_seen_are_no_new_site(bundle, images, tmp_path, script):
    splits = read(bundle / "splits.json")
    names = pd.read_csv(images / "labels.csv").sort_values("path", ignore_index=True)
    lines = names.iloc[splits["train_indices"]].to_csv(index=False, header=False)
    (tmp_path / "labels.csv").write_text(lines)
    config = yaml_of(tmp_path)
    config.write_text(config.read_text().replace("name: site,", f"name: site, root: {images},"))
    told = script("38_recalibrate", bundle, "--config", config, "--out", tmp_path / "new")
    refused(told, f"has seen all {len(splits['train_indices'])} cases already")
    assert not (tmp_path / "new").exists()


def test_too_few_positives_end_with_what_is_missing_and_a_run_to_go_on_with(bundle, tmp_path, script):
    (bundle / "seen.json").unlink()
    manifest = read(bundle / "bundle.json")
    del manifest["files"]["seen.json"]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    folder, run = tmp_path / "few", tmp_path / "runs" / "few"
    folder.mkdir()
    chain.draw(folder, cases=200, seed=6)
    told = script("38_recalibrate", bundle, "--config", yaml_of(folder), "--out", run, "--target_fnr_exit", "0.02")
    assert told.status == 3, told
    assert "the bundle has no seen.json" in told.out
    assert "val_calib holds 40 independent positives; target_fnr_exit 0.02 at confidence 0.95 needs 149" in told.err
    assert not (run / "seen.json").exists()
    chain.done("25_threshold_sweep", "--run", run, "--target_fnr_exit", "0.1")
    chain.done("40_eval_selective", "--run", run)
    chain.done("50_export_bundle", "--run", run)
    assert read(run / "bundle" / "thresholds.json")["calib_use_count"] == 2
    assert read(run / "bundle" / "bundle.json")["provenance"]["recalibrated_from"]["run_id"] == "trained"
