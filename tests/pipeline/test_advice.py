"""Advice in a message works when it is followed to the letter: nobody is sent in a circle."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from chain import call, done, refused


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
        "val_test.parquet: .*Remove it and run 40_eval_selective.py to write it",
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
