"""Advice in a message works when it is followed to the letter: nobody is sent in a circle."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from chain import call, copy, done, draw, evaluate, refused, same_result


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path: Path) -> None:
    path.write_text('{"hello": 1}')


def again(script: str, *flags: str):
    return lambda run: done(script, *flags, "--run", run)


def removed_then(name: str, script: str):
    def mend(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        done(script, "--run", run)

    return mend


def next_words(out: str) -> list[str]:
    """The words of the last line, which names the next command."""
    line = out.splitlines()[-1]
    assert re.match(r"next +\S+ \S+/scripts/", line), line
    return shlex.split(line.partition("/scripts/")[2])


def follow(out: str, *scripts: str) -> str:
    """Give each next command as it is printed; returns what the last one says."""
    for script in scripts:
        name, *words = next_words(out)
        assert name == f"{script}.py"
        out = done(script, *words).out
    return out


def test_next_lines_lead_from_training_to_decisions_and_a_monitor(trained, images):
    out = follow(
        done("25_threshold_sweep", "--run", trained).out, "40_eval_selective", "50_export_bundle", "60_predict"
    )
    assert f"decisions {trained}/decisions.csv" in out
    assert len((trained / "decisions.csv").read_text().splitlines()) == 1 + len(list(images.glob("*.png")))
    again = follow(done("50_export_bundle", "--verify", trained / "bundle").out, "60_predict")
    assert f"decisions {trained}/decisions-bundle.csv" in again  # nothing is to be replaced
    follow(done("65_monitor", trained / "bundle").out, "65_monitor")
    assert (trained / "watch" / "monitor.json").is_file()


def test_next_lines_lead_from_another_site_to_its_own_bundle(bundle, tmp_path):
    site, out = tmp_path / "a new site", tmp_path / "runs" / "look at it"
    site.mkdir()
    draw(site, seed=5, cast=60.0)
    said = done("40_eval_selective", "--bundle", bundle, "--on", site / "labels.csv", "--out", out).out
    name, *words = next_words(said)
    assert name == "38_recalibrate.py"
    said = done("38_recalibrate", *words, "--out", tmp_path / "runs" / "site", "--target_fnr_exit", "0.1").out
    follow(said, "60_predict")
    shutil.rmtree(site)  # on another machine there are no images to name
    said = done("50_export_bundle", "--verify", tmp_path / "runs" / "site" / "bundle").out
    assert said.splitlines()[-1].endswith("FOLDER, a folder of your images, or several, or files")


def test_a_calibration_that_ended_before_its_last_line_names_what_follows(calibrated):
    told = call("25_threshold_sweep", "--run", calibrated)
    refused(told, "is calibrated already")
    way = re.search(r"Go on with (\S+)\.py (.*)\. Another look", told.err)
    assert way is not None
    done(way[1], *shlex.split(way[2]))


BROKEN = {
    "policy": (
        "thresholds.json",
        ("40_eval_selective", "--run", "."),
        "thresholds.json: .*Remove this file. Run 25_threshold_sweep.py again for this run",
        removed_then("thresholds.json", "25_threshold_sweep"),
    ),
    "evaluation": (
        "eval.json",
        ("50_export_bundle", "--run", ".", "--out", "again"),
        "eval.json: .*Run 40_eval_selective.py again for this run",
        again("40_eval_selective"),
    ),
    "scores": (
        "scores/val_test.parquet",
        ("40_eval_selective", "--run", "."),
        r"val_test.parquet: .*Remove it and run 40_eval_selective.py --run \S+ to write it",
        removed_then("scores/val_test.parquet", "40_eval_selective"),
    ),
    "manifest": (
        "bundle/bundle.json",
        ("50_export_bundle", "--verify", "bundle"),
        "bundle.json: .*Remove this bundle, then run 50_export_bundle.py again for its run",
        removed_then("bundle", "50_export_bundle"),
    ),
    "file of a bundle": (
        "bundle/config.json",
        ("50_export_bundle", "--verify", "bundle"),
        "config.json has been altered\nRemove it, then copy or export it again",
        removed_then("bundle", "50_export_bundle"),
    ),
}


@pytest.mark.parametrize("damage", [truncated, foreign])
@pytest.mark.parametrize("name", BROKEN)
def test_the_way_out_of_a_damaged_file_leads_out(bundle, monkeypatch, name, damage):
    file, command, words, mend = BROKEN[name]
    run = bundle.parent
    monkeypatch.chdir(run)
    damage(run / file)
    outcome = call(*command)
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.err
    assert re.search(words, outcome.err, re.DOTALL), outcome.err
    mend(run)
    done(*command)


POLICIES = {
    "gate": ("exported_gate_once", "gateparams.json", "33_calibrate_gate"),
    "scrc": ("exported_scrc_once", "scrcparams.json", "36_calibrate_scrc"),
}


@pytest.mark.parametrize(("kind", "damage"), [("gate", truncated), ("scrc", foreign)])
def test_a_damaged_policy_of_another_kind_comes_back(request, runs, kind, damage):
    made, name, calibrates = POLICIES[kind]
    run = copy(request.getfixturevalue(made), runs)
    damage(run / name)
    words = f"Remove this file. Run {calibrates}.py again for this run"
    for script in ("40_eval_selective", calibrates):
        refused(call(script, "--run", run), f"{name}: ", words)
    (run / name).unlink()
    done(calibrates, "--run", run)
    evaluate(run)


def test_damaged_splits_begin_a_new_run(config, runs):
    flags = ["--config", config, "--phase", "2"]
    done("00_make_splits", *flags, "--run", runs / "a")
    for damage in (truncated, foreign):
        damage(runs / "a" / "splits.json")
        refused(call("20_train", *flags, "--run", runs / "a"), "splits.json: ", "Run 00_make_splits.py for a new run")
    done("00_make_splits", *flags, "--run", runs / "b")
    done("20_train", *flags, "--run", runs / "b", "--dry_run")


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_leads_back_to_the_first_epoch(trained_once, runs, name):
    run = copy(trained_once, runs)
    truncated(run / "checkpoints" / name)
    outcome = call("20_train", "--resume", run)
    refused(
        outcome, f"{name}: not a safe, whole tensor file", f"remove {run / 'checkpoints'}: 20_train.py --resume {run}"
    )
    shutil.rmtree(run / "checkpoints")
    done("20_train", "--resume", run)
    same_result(run, trained_once)


def test_a_damaged_model_file_is_written_again_from_the_checkpoint(trained_once, runs):
    run = copy(trained_once, runs)
    truncated(run / "model_best.pth")
    refused(call("25_threshold_sweep", "--run", run), "of other weights", f"20_train.py --resume {run}")
    done("20_train", "--resume", run)
    same_result(run, trained_once)
    done("25_threshold_sweep", "--run", run)


@pytest.mark.parametrize("name", ["backbone.json", "backbone.safetensors"])
def test_a_damaged_backbone_is_adapted_anew(config, images, tmp_path, name):
    tiny = ["--model_path", "random:test_vit", "--steps", "2", "--probe_every", "1", "--probe_cases", "60"]
    few = [*tiny, "--batch_size", "16", "--lora_rank", "4", "--local_crops", "1", "--prototypes", "16", "--force"]
    adapts = ["10_explora_pretrain", "--config", config, "--images", _some(images, tmp_path / "some"), *few, "--out"]
    done(*adapts, tmp_path / "a")
    truncated(tmp_path / "a" / name)
    trains = ["20_train", "--config", config, "--phase", "2", "--dry_run", "--model_path"]
    refused(call(*trains, f"local-dir:{tmp_path}/a"), "Run 10_explora_pretrain.py again in a new folder")
    done(*adapts, tmp_path / "b")
    done(*trains, f"local-dir:{tmp_path}/b")


def _some(images: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in sorted(images.glob("*.png"))[:60]:
        shutil.copy(file, folder)
    return folder


def test_a_damaged_weights_file_names_the_way_round(config, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"half a file")
    flags = ["20_train", "--config", config, "--phase", "2", "--dry_run", "--model_path"]
    refused(call(*flags, f"file:{tmp_path}/w.safetensors:test_efficientnet"), "w.safetensors", "could not be loaded")
    refused(call(*flags, f"file:{tmp_path}/x.safetensors:test_efficientnet"), "x.safetensors does not exist")
    outcome = call(*flags, "timm:test_efficientnet.r160_in1k")
    refused(outcome, "Without a network use file:PATH:NAME or random:NAME.")
    done(*flags, "random:test_efficientnet")


def resealed(bundle: Path, name: str, content: bytes) -> None:
    """Other content for a file of the bundle, with digests that agree with it everywhere."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "bundle.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    if name == manifest["model_file"]:
        policy = json.loads((bundle / "thresholds.json").read_text())
        text = json.dumps({**policy, "model_digest": digest}).encode()
        (bundle / "thresholds.json").write_bytes(text)
        manifest["files"]["thresholds.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


class Anything:
    """What a pickle may hold, and a model file may not."""


def test_a_bundle_is_whole_only_if_its_model_can_be_loaded(bundle, images, tmp_path):
    torch.save({"format": 1, "model": Anything()}, tmp_path / "unsafe.pth")
    unsafe = (tmp_path / "unsafe.pth").read_bytes()
    for content, words in ((unsafe, "holds more than tensors"), (b"no model", "not a safe, whole tensor file")):
        resealed(bundle, "model_best.pth", content)
        for command in (("50_export_bundle", "--verify", bundle), ("60_predict", bundle, images)):
            outcome = call(*command)
            refused(outcome, "model_best.pth", words)
            assert "weights_only" not in outcome.err
            assert "whole, " not in outcome.out


def test_the_config_of_a_bundle_is_checked_by_its_schema(bundle):
    config = json.loads((bundle / "config.json").read_text())
    resealed(bundle, "config.json", json.dumps({**config, "exit_threshold": 0.5}).encode())
    refused(call("50_export_bundle", "--verify", bundle), "$.exit_threshold is not a known field", "Remove this bundle")
