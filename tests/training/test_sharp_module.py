"""Training by SAM and F-SAM: one step a window, one move of all that has state, and AdamW where the radius is 0."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sharp_cases import (
    CASES,
    assert_close,
    assert_equal,
    config_of,
    data_of,
    model_of,
    plain_module,
    train,
    train_plainly,
    weights,
)
from torch import nn

from stage1_pro.core.errors import Interrupted, UserError
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.optim.fsam import SharpnessAware
from stage1_pro.core.training.fit import build_model, module_class
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.modules.sharp import Moment, still_statistics

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
COSTS = ("images_per_second", "data_wait_share", "epoch_seconds", "peak_rss_mib")  # that differ from run to run
BATCHES = 5  # of 16, 16, 16, 16 and 8 cases


@pytest.mark.parametrize(
    ("phase", "settings"),
    [
        (5, {"optimizer": "fsam", "grad_accum_steps": 2}),
        (5, {"optimizer": "sam", "precision": "bf16-mixed"}),
        (6, {"optimizer": "fsam", "precision": "bf16-mixed", "grad_accum_steps": 2, "conformal_after": 1}),
        (6, {"optimizer": "sam", "conformal_after": 1, "max_grad_norm": 0.1}),
    ],
)
def test_without_a_radius_training_is_that_of_adamw(tmp_path: Path, phase: int, settings: dict[str, Any]) -> None:
    """Bit for bit: weights, duals, bank, moving average, moments, rates, steps, and all figures that AdamW has too."""
    found = train(tmp_path / "found", config_of(phase, fsam_rho=0.0, **settings))
    expected = train(tmp_path / "expected", config_of(phase, **{**settings, "optimizer": "adamw"}))
    assert_equal(found["state_dict"], expected["state_dict"])
    assert any(name.startswith("loss.") for name in found["state_dict"])
    average = "ExponentialMovingAverage"
    assert_equal(found["callbacks"][average]["average"], expected["callbacks"][average]["average"])
    assert found["global_step"] == expected["global_step"] == 3 * -(-BATCHES // settings.get("grad_accum_steps", 1))
    assert found["lr_schedulers"][0]["_last_lr"] == expected["lr_schedulers"][0]["_last_lr"]
    for of_one, of_other in zip(
        found["optimizer_states"][0]["inner"]["state"].values(),
        expected["optimizer_states"][0]["state"].values(),
        strict=True,
    ):
        assert_equal(of_one, of_other)
    rows = zip(found["callbacks"]["EpochTable"]["rows"], expected["callbacks"]["EpochTable"]["rows"], strict=True)
    for row, other in rows:
        shared = [name for name in other if name not in COSTS]
        np.testing.assert_array_equal([row[name] for name in shared], [other[name] for name in shared])


def test_a_radius_and_its_settings_change_what_is_learnt(tmp_path: Path) -> None:
    trained = {
        name: train(tmp_path / name, config_of(5, **settings))
        for name, settings in {
            "adamw": {},
            "sam": {"optimizer": "sam"},
            "fsam": {"optimizer": "fsam"},
            "average": {"optimizer": "fsam", "fsam_lambda": 0.5},
            "share": {"optimizer": "fsam", "fsam_sigma": 0.5},
        }.items()
    }
    first = [one["state_dict"]["model.heads.cls.weight"].flatten() for one in trained.values()]
    assert len(torch.unique(torch.stack(first), dim=0)) == len(trained)
    rows = trained["fsam"]["callbacks"]["EpochTable"]["rows"]
    for row in rows:
        assert row["sharpness_gradient_norm"] > 0
        assert -1 <= row["sharpness_cosine"] <= 1
    assert all("sharpness_cosine" not in row for row in trained["sam"]["callbacks"]["EpochTable"]["rows"])
    assert all(row["sharpness_loss_gap"] > 0 for row in trained["sam"]["callbacks"]["EpochTable"]["rows"])


class Stop(pl.Callback):
    def __init__(self, epoch: int, batch: int):
        self.at = epoch, batch

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx) == self.at:
            raise Interrupted(130)


@pytest.mark.parametrize("phase", [5, 6])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path, phase: int) -> None:
    """In the middle of a window."""
    config = config_of(phase, optimizer="fsam", grad_accum_steps=2)
    whole = train(tmp_path / "whole", config)
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", config, Stop(2, 1))
    resumed = train(tmp_path / "stopped", config)
    assert_equal(resumed["state_dict"], whole["state_dict"])
    found, expected = (one["optimizer_states"][0] for one in (resumed, whole))
    assert torch.equal(found["average"], expected["average"])
    assert resumed["global_step"] == whole["global_step"] == 9


@pytest.mark.parametrize("steps", [1, 4])
def test_accumulated_batches_are_one_big_batch(steps: int) -> None:
    """ε comes from all of the window's gradient, and the last window of 72 cases is a short one."""
    big, small = (plain_module("fsam", fsam_rho=0.5, batch_size=24, epochs=4) for _ in range(2))
    small.config = config_of(
        5, optimizer="fsam", fsam_rho=0.5, batch_size=24 // steps, grad_accum_steps=steps, epochs=4
    )
    assert train_plainly(big).global_step == train_plainly(small).global_step == 4 * 3
    assert_close(weights(small), weights(big), 1e-5)
    plain = plain_module("fsam", fsam_rho=0.0, batch_size=24, epochs=4)
    train_plainly(plain)
    with pytest.raises(AssertionError):
        assert_close(weights(plain), weights(big), 1e-3)


def test_a_short_last_window_counts_as_in_automatic_optimization() -> None:
    sharp = plain_module("fsam", fsam_rho=0.0, grad_accum_steps=3)
    plain = plain_module("adamw", grad_accum_steps=3)
    first = train_plainly(sharp)
    second = train_plainly(plain, accumulate_grad_batches=3, gradient_clip_val=1.0)
    assert first.global_step == second.global_step == 3 * 2
    assert_equal(weights(sharp), weights(plain))


def test_training_ends_after_max_steps() -> None:
    assert train_plainly(plain_module("fsam"), max_steps=7).global_step == 7


class Steps(pl.Callback):
    """What the optimizer and the schedule have done after each batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, SharpnessAware)
        moments = [int(state["step"]) for state in optimizer.inner.state.values()]
        schedule = trainer.lr_scheduler_configs[0].scheduler.last_epoch
        assert len(set(moments)) <= 1
        self.seen.append((trainer.global_step, max(moments, default=0), schedule))


def test_a_window_is_one_step_of_everything() -> None:
    steps = Steps()
    train_plainly(plain_module("fsam", grad_accum_steps=2, epochs=2), callbacks=[steps])
    counted = [0, 1, 1, 2, 3, 3, 4, 4, 5, 6]
    assert steps.seen == [(count,) * 3 for count in counted]


@pytest.mark.parametrize("optimizer", ["sam", "fsam"])
def test_duals_bank_and_draws_move_by_the_first_pass_alone(optimizer: str) -> None:
    """After a step they are where AdamW's step, which has no other pass, leaves them."""
    left = []
    for name in (optimizer, "adamw"):
        radius = {} if name == "adamw" else {"fsam_rho": 5.0}
        config = config_of(6, optimizer=name, epochs=1, warmup_epochs=0, grad_accum_steps=2, **radius)
        module = module_class(config)(model_of(), config, np.array([1, 1]), from_features=True)
        module._alarms = list  # they speak of a validation
        accumulated = {} if config.sharpness_aware else {"accumulate_grad_batches": 2}
        train_plainly(module, max_steps=1, **accumulated)
        left.append({**weights(module.loss), "counts": module.loss.counts, "draws": module.loss.generator.get_state()})
        left[-1]["dropout"] = torch.get_rng_state()
    assert left[0]["bank"][-1].any()
    assert left[0]["selective.running"][1].all()
    assert_equal(left[0], left[1])


def with_norm(module: Stage1Module) -> Stage1Module:
    torch.manual_seed(0)
    module.model.cls.insert(0, nn.BatchNorm1d(5))
    return module


def test_running_statistics_move_once_a_batch_and_at_the_weights_themselves() -> None:
    """They are those of AdamW as long as the inputs of the norm are."""
    sharp = with_norm(plain_module("fsam", fsam_rho=2.0, grad_accum_steps=2, epochs=2))
    plain = with_norm(plain_module("adamw", grad_accum_steps=2, epochs=2))
    train_plainly(sharp)
    train_plainly(plain)
    found, expected = sharp.model.cls[0], plain.model.cls[0]
    assert torch.equal(found.running_mean, expected.running_mean)
    assert torch.equal(found.running_var, expected.running_var)
    assert found.num_batches_tracked == expected.num_batches_tracked == 2 * BATCHES
    assert not torch.equal(found.weight, expected.weight)
    assert found.track_running_stats


def test_a_real_backbones_norms_stand_still_and_normalise_alike() -> None:
    model, _ = load_backbone("random:test_efficientnet", 32)
    model.train()
    images = torch.rand(4, 3, 32, 32)
    before = weights(model)
    with still_statistics(model):
        still = model(images)
    assert_equal(weights(model), before)
    assert torch.equal(model(images), still)
    with pytest.raises(AssertionError):
        assert_equal(weights(model), before)
    model.eval()
    expected = model(images)
    with still_statistics(model):
        assert torch.equal(model(images), expected)  # a norm that is not in training goes on as before


def test_a_moment_brings_draws_and_buffers_back() -> None:
    generator, buffer = torch.Generator(), torch.zeros(3)
    moment = Moment.now([torch.default_generator, generator], [buffer])
    drawn = torch.rand(2), torch.rand(2, generator=generator)
    buffer += 1
    moment.restore()
    assert torch.equal(torch.rand(2), drawn[0])
    assert torch.equal(torch.rand(2, generator=generator), drawn[1])
    assert not buffer.any()


def test_both_passes_drop_the_same_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a radius too small to matter leaves no gap between their losses."""
    row = train(tmp_path / "run", config_of(5, optimizer="sam", fsam_rho=1e-7))["callbacks"]["EpochTable"]["rows"][-1]
    assert abs(row["sharpness_loss_gap"]) < 1e-5
    monkeypatch.setattr(Moment, "restore", lambda moment: None)
    row = train(tmp_path / "other", config_of(5, optimizer="sam", fsam_rho=1e-7))["callbacks"]["EpochTable"]["rows"][-1]
    assert abs(row["sharpness_loss_gap"]) > 1e-5


def test_perturbing_the_heads_alone_leaves_the_rest_where_it_is() -> None:
    """The first pass asks for no other gradients."""
    module = plain_module("fsam", fsam_target="heads")
    module.model.backbone, module.from_features = nn.Linear(5, 5), False
    train_plainly(module, max_steps=2)
    (optimizer,) = module.trainer.optimizers
    heads = sum(parameter.numel() for parameter in module.model.cls.parameters())
    assert optimizer.average.numel() == heads
    assert all(optimizer.inner.state[parameter] for parameter in module.model.backbone.parameters())


def test_a_target_that_the_model_does_not_have_is_refused_before_training() -> None:
    settings = {"optimizer": "fsam", "fsam_target": "adapter", "model_path": "random:test_efficientnet"}
    config = config_of(5, **settings, dataset_params={"image_size": 32})
    with pytest.raises(UserError, match="fsam_target is 'adapter'"):
        build_model(config, ("a", "b"))


def test_cases_are_as_many_as_the_tests_say() -> None:
    assert -(-CASES // 16) == len(data_of(config_of(5)).train_dataloader()) == BATCHES
