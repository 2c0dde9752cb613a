"""Adapt a backbone to unlabelled images: from the images to a run trained on it, blocked, killed, resumed, refused."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from chain import SCRIPTS, done, refused
from safetensors.torch import load_file, save_file
from shared_folders import made_once

from stage1_pro.core import artifacts
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import read_tensors

TINY = [
    *("--model_path", "random:test_vit", "--lora_rank", "8", "--local_crops", "1", "--prototypes", "64"),
    *("--steps", "6", "--probe_every", "2", "--probe_cases", "60", "--batch_size", "16"),
]


@pytest.fixture(scope="session")
def few(images, tmp_path_factory) -> Path:
    """Eighty of the labelled images under other names, and ten that are no cases."""
    from PIL import Image

    def make(folder: Path) -> None:
        for index in range(80):
            shutil.copy(images / f"{index:03d}.png", folder / f"u{500 - index}.png")
        for index in range(10):
            Image.new("RGB", (40, 30), (20 * index, 90, 140)).save(folder / f"other{index}.png")

    return made_once(tmp_path_factory, "unlabelled", make)


@pytest.fixture(scope="session")
def flags(config, few) -> list[str]:
    return ["--config", str(config), "--images", str(few), *TINY]


@pytest.fixture(scope="session")
def adapted_once(flags, tmp_path_factory) -> Path:
    """One adaptation; --force, since which way random features go is not the point."""

    def make(folder: Path) -> None:
        done("10_explora_pretrain", *flags, "--force", "--out", folder / "vit")

    return made_once(tmp_path_factory, "backbone", make) / "vit"


@pytest.fixture
def adapted(adapted_once, tmp_path) -> Path:
    return shutil.copytree(adapted_once, tmp_path / "vit")


def same_result(folder: Path, reference: Path) -> None:
    for name in ("backbone.safetensors", "pretraining.json"):
        assert artifacts.digest_file(folder / name) == artifacts.digest_file(reference / name)
    tables = [pd.read_csv(path / "pretraining.csv").drop(columns="images_per_second") for path in (folder, reference)]
    pd.testing.assert_frame_equal(*tables)
    states = [read_tensors(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (folder, reference)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_plan_excludes_by_content_and_writes_nothing(flags, trained, script, tmp_path):
    outcome = script("10_explora_pretrain", *flags, "--run", trained, "--out", tmp_path / "out", "--dry_run")
    assert outcome.status == 0, outcome.err
    from stage1_pro.core.records.run import Run

    splits = Run.open(str(trained)).splits
    held = {split: sum(index < 80 for index in splits.indices(split)) for split in ("val_calib", "val_test")}
    excluded = f"excluded by content: {held['val_calib']} of val_calib, {held['val_test']} of val_test"
    assert min(held.values()) > 5
    assert f"{90 - sum(held.values())} of 90 images; {excluded}; 0 duplicates, 0 unreadable" in outcome.out
    assert not (tmp_path / "out").exists()


def test_the_same_images_are_protected_with_and_without_a_run(adapted, trained, flags, script, tmp_path):
    """Without a run the splits are drawn as 00 would."""
    outcome = script("10_explora_pretrain", *flags, "--run", trained, "--out", tmp_path / "out", "--force")
    assert outcome.status == 0, outcome.err
    words = shlex.split(outcome.out.splitlines()[-1].partition("20_train.py ")[2])  # the next line, as it is printed
    assert f"backbone    local-dir:{tmp_path / 'out'}" in done("20_train", *words, "--dry_run").out
    with_run, without = (json.loads((path / "pretraining.json").read_text()) for path in (tmp_path / "out", adapted))
    assert with_run["pool_digest"] == without["pool_digest"]
    assert with_run["splits_digest"] == without["splits_digest"]
    assert artifacts.digest_file(tmp_path / "out" / "backbone.safetensors") == artifacts.digest_file(
        adapted / "backbone.safetensors"
    )


def test_what_is_exported_loads_and_is_what_was_probed(adapted):
    record = artifacts.read_json(adapted / "backbone.json", "backbone")
    assert record["license"] == record["origin"]["license"] == "none: random weights"
    assert [point["step"] for point in record["probe"]["curve"]] == [0, 2, 4, 6]
    assert record["probe"]["kept"] == max(point["knn"] for point in record["probe"]["curve"][1:])
    assert record["sha256"] == artifacts.digest_file(adapted / "backbone.safetensors")
    backbone, spec = load_backbone(f"local-dir:{adapted}", 32)
    assert (spec.arch, spec.license, spec.preprocessing.size) == ("test_vit", "none: random weights", 32)
    weights = load_file(adapted / "backbone.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.net.state_dict().items())
    best = read_tensors(adapted / "checkpoints" / "best.pth")["tensors"]
    assert torch.equal(weights["cls_token"], best["net.cls_token"])
    named, _ = load_backbone(f"file:{adapted}/backbone.safetensors:test_vit", 32)
    assert torch.equal(named.net.cls_token, backbone.net.cls_token)
    larger, _ = load_backbone(f"local-dir:{adapted}", 64)
    assert larger(torch.rand(1, 3, 64, 64)).shape == (1, 128)
    assert (adapted / "pretraining.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_trains_on_it_and_carries_the_licence(adapted, config, script, tmp_path):
    flags = ["--config", config, "--model_path", f"local-dir:{adapted}", "--run", tmp_path / "run", "--epochs", "1"]
    assert script("00_make_splits", *flags).status == 0
    assert script("20_train", *flags).status == 0
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (facts["backbone"], facts["backbone_license"]) == (f"local-dir:{adapted}", "none: random weights")


def test_other_splits_than_those_it_was_protected_for_are_refused_and_the_way_out_works(
    adapted, config, flags, script, tmp_path
):
    """Another seed draws other splits: images that it has learnt from may certify there."""
    other, run = ["--config", config, "--seed", "43", "--epochs", "1"], tmp_path / "run"
    onto = ["--model_path", f"local-dir:{adapted}"]
    words = (
        "$.pool.splits_digest is",
        "Adapt random:test_vit for these splits",
        "or set model_path to random:test_vit",
    )
    refused(script("20_train", *other, *onto, "--dry_run"), *words)
    done("00_make_splits", *other, *onto, "--run", run)
    refused(script("20_train", *other, *onto, "--run", run), *words)
    again = [*flags, "--seed", "43", "--run", run, "--out", tmp_path / "vit43", "--force"]
    refused(script("10_explora_pretrain", *again, *onto), *words)  # what it has learnt it would pass on
    done("10_explora_pretrain", *again)
    done("20_train", *other, "--model_path", f"local-dir:{tmp_path / 'vit43'}", "--run", run)


def test_a_broken_adaptation_is_blocked_and_force_exports_its_best(flags, script, tmp_path):
    broken = [*flags, "--out", tmp_path / "out", "--objective", "mae", "--lr", "3", "--max_grad_norm", "0"]
    outcome = script("10_explora_pretrain", *broken)
    assert outcome.status == 3, outcome
    assert "guard: not exported. The probe ended at" in outcome.err
    assert "worse at telling your classes apart" in outcome.err
    assert "--force exports that best" in outcome.err
    assert "Traceback" not in outcome.err
    assert "collapsing" in outcome.out
    assert not (tmp_path / "out" / "backbone.json").exists()
    assert not (tmp_path / "out" / "backbone.safetensors").exists()
    before = (tmp_path / "out" / "pretraining.csv").read_bytes()
    outcome = script("10_explora_pretrain", "--resume", tmp_path / "out", "--force")
    assert outcome.status == 0, outcome.err
    assert "ended below step 0 and is exported by --force alone" in outcome.out
    assert (tmp_path / "out" / "pretraining.csv").read_bytes() == before
    assert artifacts.read_json(tmp_path / "out" / "backbone.json", "backbone")["probe"]["forced"] is True


def test_weights_that_diverged_are_never_exported(flags, script, tmp_path):
    broken = [*flags, "--out", tmp_path / "out", "--lr", "1e30", "--max_grad_norm", "0", "--force"]
    outcome = script("10_explora_pretrain", *broken)
    assert outcome.status == 3, outcome
    assert "pretraining diverged" in outcome.err
    assert not (tmp_path / "out" / "backbone.json").exists()


def test_interrupted_and_resumed_it_ends_where_it_would_have(flags, adapted_once, script, tmp_path):
    out = tmp_path / "interrupted"
    at = {"step 4/6": lambda: os.kill(os.getpid(), signal.SIGINT)}  # the checkpoint of step 2 is there
    outcome = script("10_explora_pretrain", *flags, "--out", out, at=at)
    assert outcome.status == 130
    assert re.search(rf"resume with: \S+ \S+/10_explora_pretrain.py --resume {out}$", outcome.err, re.MULTILINE)
    demand_resumable(out, adapted_once)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_where_it_would_have(flags, adapted_once, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, str(SCRIPTS / "10_explora_pretrain.py"), *flags, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert any("step 4/6" in line for line in process.stdout)
    process.kill()
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    demand_resumable(out, adapted_once)


def demand_resumable(out: Path, reference: Path) -> None:
    """What was broken off exports nothing until it is resumed, from its last checkpoint on."""
    assert not (out / "backbone.json").exists()
    resumed = done("10_explora_pretrain", "--resume", out, "--force")
    assert "step 2/6" not in resumed.out
    assert "step 6/6" in resumed.out
    same_result(out, reference)


def test_settings_that_cannot_be(flags, script, tmp_path):
    out = ["--out", tmp_path / "out"]
    refused(script("10_explora_pretrain", *flags[:2]), "--images FOLDER", "--out FOLDER")
    refused(
        script("10_explora_pretrain", *flags, *out, "--steps", "7"),
        "--steps is 7; allowed a multiple of --probe_every (2), such as 8",
    )
    refused(script("10_explora_pretrain", *flags, *out, "--lr", "0", "--colour", "2"), "--lr is 0", "--colour is 2")
    refused(script("10_explora_pretrain", *flags, *out, "--objective", "ibot"), "objective")
    refused(script("10_explora_pretrain", *flags, *out, "--stepz", "7"), "did you mean '--steps'")
    refused(script("10_explora_pretrain", *flags, *out, "--full_blocks", "6"), "--full_blocks is 6; allowed 1 to 5")
    refused(
        script("10_explora_pretrain", *flags, *out, "--model_path", "random:test_efficientnet"), "vision transformer"
    )
    refused(script("10_explora_pretrain", "--resume", tmp_path / "nope"), "no adaptation to resume")
    refused(script("10_explora_pretrain", "--images", flags[3], *out), "dataset_params.sources is empty")
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_learnt_from(flags, few, script, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(
        script("10_explora_pretrain", *flags, "--images", empty, "--out", tmp_path / "out"), "no images in this folder"
    )
    (empty / "bad.png").write_bytes(b"junk")
    refused(script("10_explora_pretrain", *flags, "--images", empty, "--out", tmp_path / "out"), "on_bad_image skip")
    assert not (tmp_path / "out").exists()


def test_an_adaptation_is_never_overwritten_and_resumes_only_as_it_was(adapted, flags, few, script, monkeypatch):
    refused(
        script("10_explora_pretrain", *flags, "--out", adapted), "holds an adaptation already", f"--resume {adapted}"
    )
    refused(
        script("10_explora_pretrain", "--resume", adapted, "--steps", "8", "--seed", "3"),
        "--steps",
        "--config or settings",
    )
    journal = json.loads((adapted / "pretraining.json").read_text())
    for key, words in (
        ("pool_digest", "the pool changed"),
        ("splits_digest", "the splits changed"),
        ("weights_digest", "the weights of model_path"),
    ):
        (adapted / "pretraining.json").write_text(json.dumps({**journal, key: "0" * 64}))
        refused(script("10_explora_pretrain", "--resume", adapted), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sha256": "0" * 64}, "not the file that backbone.json was written for"),
        ({"sha256": "xyz"}, '$.sha256 is "xyz"'),
        ({"license": ""}, "$.license is"),
        ({"licence": "MIT"}, "$.licence is not a known field (did you mean 'license'?)"),
        ({"probe": None}, "$.probe is null"),
        ({"architecture": "vit_tiny_patch16_224"}, "holds weights of test_vit, not of vit_tiny_patch16_224"),
        ({"schema_version": 2}, "newer version"),
    ],
)
def test_records_that_are_refused(adapted, change, words):
    record = json.loads((adapted / "backbone.json").read_text())
    (adapted / "backbone.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(UserError) as refusal:
        load_backbone(f"local-dir:{adapted}", 32)
    assert words in str(refusal.value)


def test_another_architecture_is_told_apart(adapted, config, script, tmp_path):
    path = f"file:{adapted}/backbone.safetensors:vit_tiny_patch16_224"
    outcome = script("20_train", "--config", config, "--model_path", path, "--dry_run")
    refused(outcome, "the file holds weights of test_vit, not of vit_tiny_patch16_224")
    other = timm.create_model("test_efficientnet")
    save_file(other.state_dict(), adapted / "backbone.safetensors")
    outcome = script("20_train", "--config", config, "--model_path", f"local-dir:{adapted}", "--dry_run")
    refused(outcome, "not the file that backbone.json was written for")
    (adapted / "backbone.safetensors").unlink()
    outcome = script("20_train", "--config", config, "--model_path", f"local-dir:{adapted}", "--dry_run")
    refused(outcome, "backbone.safetensors is not there")
