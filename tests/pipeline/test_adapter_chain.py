"""Phase 4 from training to a bundle: small checkpoints, plain weights in the end, and resuming in between."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chain import copy, demand_placed, done, killed, resume, same_result, train_run

from stage1_pro.core.artifacts import digest_file
from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.errors import UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.parameters import is_adapter
from stage1_pro.core.models.stage1 import load_model, read_tensors
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.fit import build_model
from stage1_pro.core.training.modules.base import Stage1Module

PHASE4 = str(Path(__file__).parents[2] / "configs" / "phase4.yaml")
FLAGS = ["--phase", "4", "--head_ensemble", "2", "--epochs", "4", "--peft_lr", "3e-3", "--layer_decay", "0.5"]


def flags(config: Path) -> list[str]:
    return ["--config", PHASE4, "--config", str(config), *FLAGS]


@pytest.fixture(scope="session")
def adapted_once(config, make_once) -> Path:
    """One phase-4 run with LoRA, trained and scored; tests take copies."""
    return make_once("adapted", lambda run: train_run(run, flags(config), "epoch 2/"))


@pytest.fixture
def adapted(adapted_once, runs) -> Path:
    return copy(adapted_once, runs)


def test_checkpoints_hold_adapters_and_heads_alone_and_the_average_covers_them(adapted_once):
    content = read_tensors(adapted_once / "checkpoints" / "last.ckpt")
    kept = {name for name in content["state_dict"] if name.startswith("model.backbone.")}
    assert kept
    assert all(is_adapter(name) for name in kept)
    average = content["callbacks"]["ExponentialMovingAverage"]["average"]
    assert kept <= set(average)
    assert any(not torch.equal(average[name], content["state_dict"][name]) for name in kept)
    assert not (adapted_once.parent / ".feature_cache").exists()


def test_labels_are_ranked_without_a_cache_too(adapted_once):
    run = Run(adapted_once)
    assert len(pd.read_csv(run.suspects_path)) == len(run.splits.indices("train"))


def test_the_model_file_holds_plain_weights_with_the_adapters_in_them(adapted_once):
    content = read_tensors(adapted_once / "model_best.pth")
    assert not [name for name in content["state_dict"] if "lora" in name or "base_layer" in name]
    config = Run(adapted_once).config
    merged = load_model(adapted_once / "model_best.pth").backbone
    begun = build_model(config, ("blue", "red"))
    before = {name.replace("base_layer.", ""): tensor for name, tensor in begun.backbone.named_parameters()}
    changed = {name for name, tensor in merged.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed
    assert {name.rpartition(".")[2] for name in changed} == {"weight"}
    assert not any("conv_dw" in name or ".bn" in name or "head" in name for name in changed)


def test_what_ships_is_the_judged_average_merged(adapted_once):
    """best.ckpt's averaged adapters, put into the wrapped model, answer as model_best.pth does, placed."""
    demand_placed(adapted_once)


def test_every_layer_has_a_column_of_its_own_rate(adapted_once):
    rates = pd.read_csv(adapted_once / "metrics.csv").filter(like="lr-AdamW_backbone_layer").iloc[:-1]
    assert rates.shape[1] > 2
    below = rates.iloc[0].to_numpy()
    np.testing.assert_allclose(np.sort(below)[1:] / np.sort(below)[:-1], 2.0)
    np.testing.assert_allclose(rates.div(rates.iloc[:, -1], axis=0), np.tile(below / below[-1], (len(rates), 1)))


def test_a_killed_run_ends_where_an_uninterrupted_one_does(adapted_once, tmp_path):
    run = killed(adapted_once, "epoch 2/", tmp_path / "run")
    resume(run)
    same_result(run, adapted_once)


def test_a_checkpoint_without_the_adapters_is_refused(adapted_once):
    config = Run(adapted_once).config
    module = Stage1Module(build_model(config, ("blue", "red")), config, np.array([5, 5]), from_features=False)
    checkpoint = read_tensors(adapted_once / "checkpoints" / "last.ckpt")
    module.on_load_checkpoint(checkpoint)
    name = next(name for name in checkpoint["state_dict"] if is_adapter(name))
    del checkpoint["state_dict"][name]
    with pytest.raises(UserError, match="the checkpoint has no model"):
        module.on_load_checkpoint(checkpoint)


def test_the_chain_ends_in_a_bundle_that_names_the_licence(adapted, script):
    assert script("33_calibrate_gate", "--run", adapted).status == 0
    assert script("40_eval_selective", "--run", adapted).status == 0
    outcome = script("50_export_bundle", "--run", adapted)
    assert outcome.status == 0, outcome
    assert script("50_export_bundle", "--verify", adapted / "bundle").status == 0
    assert "## Licence of the weights\nThe backbone began with random" in (adapted / "bundle" / "README.md").read_text()
    assert merge_configs([("bundle", adapted / "bundle" / "config.json")]).backbone_license == "none: random weights"
    report = (adapted / "report.html").read_text()
    assert "LoRA, rank 8, alpha 16, on all_linear of all blocks" in report


def test_a_phase_3_run_begins_a_phase_4_run(config, runs):
    three = ["--config", config, "--phase", "3", "--exit_policy", "gate", "--head_ensemble", "2", "--epochs", "1"]
    third = train_run(runs / "p3", [*three, "--freeze_backbone", "false", "--lr_backbone", "1e-3"])
    fourth = runs / "p4"
    four = [*flags(config), "--epochs", "1", "--run", fourth]
    done("00_make_splits", *four)
    done("20_train", *four, "--init_from", third)
    begun = build_model(merge_configs([("run", fourth / "config.json")]), ("blue", "red"), Run(third)).eval()
    source, images = load_model(third / "model_best.pth"), torch.rand(4, 3, 32, 32)
    untrained = load_backbone("random:test_efficientnet", 32)[0].eval()
    with torch.inference_mode():
        features = source.backbone(images)
        assert begun.answer_shift == 0 != source.answer_shift  # placed for the other run's val_select and prices
        torch.testing.assert_close(begun.backbone(images), features, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(untrained(images), features, rtol=1e-2)
    assert digest_file(third / "model_best.pth") != digest_file(fourth / "model_best.pth")


def test_stages_reset_the_rates_of_all_layers_in_proportion(config, runs):
    """Also where norms train without an average: then a stage's checkpoint lacks the norms' running statistics."""
    stages = {"enabled": "true", "initial_cases": 64, "max_stages": 2, "max_epochs_per_stage": 2}
    more = [word for key, value in stages.items() for word in (f"--incremental_params.{key}", value)]
    more += ["--peft_norms", "true", "--use_ema", "false"]
    run = train_run(runs / "stages", [*flags(config), *more])
    rates = pd.read_csv(run / "metrics.csv").filter(like="lr-AdamW_backbone_layer")
    assert len(rates) == 4
    of_norms = rates.columns[rates.columns.str.endswith("_no_decay")]
    assert len(of_norms)
    adapters = rates.drop(columns=of_norms)
    for name in of_norms:  # as the adapters of their layer
        np.testing.assert_array_equal(rates[name], adapters[name.removesuffix("_no_decay")])
    rates = adapters
    peaks = 3e-3 * 0.5 ** np.arange(rates.shape[1])[::-1]
    np.testing.assert_allclose(rates.div(rates.iloc[:, -1], axis=0), np.tile(peaks / peaks[-1], (4, 1)))
    assert rates.iloc[2, -1] < rates.iloc[1, -1]  # warm-up again
