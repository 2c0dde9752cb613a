"""A run whose images have moved: every step says so, goes on when told where they are, and takes no others."""

import json
import re
import shutil

import chain
import pytest
from chain import reconfigured, refused

from stage1_pro.core.records.run import Run


def lose_data(run, tmp_path):
    """Let the run's config name a place where nothing is."""
    params = json.loads((run / "config.json").read_text())["dataset_params"]
    params["sources"][0]["labels"] = str(tmp_path / "gone" / "labels.csv")
    reconfigured(run, dataset_params=params)


@pytest.fixture
def moved(calibrated, tmp_path):
    lose_data(calibrated, tmp_path)
    return calibrated


def test_the_advice_leads_to_the_figures_of_the_run_that_did_not_move(moved, images, evaluated_once, script):
    told = script("40_eval_selective", "--run", moved)
    refused(told, "its data is not where it was", "gone/labels.csv (source noise)")
    option, value = re.search(r"(--root) (\S+=FOLDER)", told.err).groups()
    done = script("40_eval_selective", "--run", moved, option, value.replace("FOLDER", str(images)))
    assert done.status == 0, done
    found, expected = (json.loads((run / "eval.json").read_text()) for run in (moved, evaluated_once))
    for name in ("exits", "confusion", "promise", "scores_digest"):
        assert found[name] == expected[name]
    assert script("50_export_bundle", "--run", moved).status == 0  # reads no images


def test_steps_that_read_no_images_do_not_ask_for_them(trained, evaluated_once, tmp_path, script):
    lose_data(trained, tmp_path)
    assert script("25_threshold_sweep", "--run", trained).status == 0
    (trained / "scores" / "val_test.parquet").write_bytes((evaluated_once / "scores" / "val_test.parquet").read_bytes())
    for name in ("40_eval_selective", "50_export_bundle"):
        told = script(name, "--run", trained)
        assert told.status == 0, told
        assert ("warning: no pictures in the report" in told.out) == (name == "40_eval_selective")


def test_a_training_goes_on_elsewhere(trained_once, images, tmp_path):
    run = chain.killed(trained_once, "epoch 10/", tmp_path / "runs" / "trained")
    lose_data(run, tmp_path)
    refused(chain.call("20_train", "--resume", run), "its data is not where it was", "--root noise=FOLDER")
    chain.done("20_train", "--resume", run, "--root", f"noise={images}")
    chain.same_result(run, trained_once)


def test_other_images_of_these_names_are_refused_and_missing_ones_named(moved, images, tmp_path, script):
    copy = shutil.copytree(images, tmp_path / "copy")
    name = json.loads((moved / "splits.json").read_text())["val_test_indices"][0]
    (copy / f"{name:03d}.png").write_bytes((copy / f"{name:03d}.png").read_bytes() + b"saved again")
    refused(script("40_eval_selective", "--run", moved, "--root", f"noise={copy}"), "images or labels have changed")
    (copy / f"{name:03d}.png").unlink()
    told = script("40_eval_selective", "--run", moved, "--root", f"noise={copy}")
    refused(told, "file is missing", "If they have moved, name the new folder with --root NAME=PATH; sources: noise in")
    assert not Run(moved).scores_path("val_test").exists()


def test_roots_go_with_a_run(moved, script):
    refused(script("20_train", "--root", "noise=.", "--phase", "2"), "--root goes with --resume RUN")
    refused(script("40_eval_selective", "--compare", moved, moved, "--root", "noise=."), "a comparison reads no images")
    refused(
        script("40_eval_selective", "--run", moved, "--root", "noisy=."), "no source 'noisy' (did you mean 'noise'?)"
    )
