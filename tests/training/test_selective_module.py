"""When the selective module speaks up, and when it stays silent."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_models import gated_model
from sharp_cases import FEATURES, config_of, model_of

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.phases import PHASES
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.errors import UserError
from stage1_pro.core.training.crossfit import GateTargets
from stage1_pro.core.training.fit import module_class
from stage1_pro.core.training.modules.selective import SelectiveModule

WELL = {"train_accuracy": 0.9, "val_gate_soft_coverage_pos": 0.5, "val_gate_std": 1.0}


def alarms(epoch: int, correct: torch.Tensor | None = None, **figures: float) -> list[str]:
    config = merge_configs([("test", {"phase": 3, "epochs": 8, "gate_refit": False})])
    targets: Any = SimpleNamespace(of=lambda active: correct)
    module = SelectiveModule(gated_model(2), config, np.array([80, 20]), True, targets)
    module.train_on(np.arange(100), np.array([80, 20]))
    metrics = {name: torch.tensor(value) for name, value in {**WELL, **figures}.items()}
    module._trainer = SimpleNamespace(callback_metrics=metrics, current_epoch=epoch)
    return module._alarms()


def test_a_constant_target_is_noticed_in_a_stage_of_few_cases() -> None:
    """The cases that are not in training yet say nothing of it."""
    config = merge_configs([("test", {"phase": 3, "epochs": 8, "gate_refit": False, "lr_head": 0.03})])
    labels = np.arange(400) % 2
    features = np.random.default_rng(0).normal(0, 0.1, (400, 8)).astype(np.float32) + labels[:, None].astype(np.float32)
    groups = np.arange(400).astype(str)
    targets = GateTargets(features, labels, groups, config, torch.device("cpu"))
    module = SelectiveModule(gated_model(2), config, np.array([200, 200]), True, targets)
    module.train_on(np.arange(80), np.array([40, 40]))
    module._trainer = SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in WELL.items()}, current_epoch=2
    )
    (found,) = module._alarms()
    assert "so the gate's target is nearly constant" in found


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"train_accuracy": 0.99},
            "0.990 of the training cases are answered rightly, so the gate's target is",
        ),
        ({"val_gate_soft_coverage_pos": 0.04}, "hardly any positive exit: raise coverage_reward"),
        ({"val_gate_std": 0.005}, "the same score: raise gate_loss_weight"),
    ],
)
def test_alarms_name_the_sign_and_the_mend(figures: dict[str, float], words: str) -> None:
    (found,) = alarms(2, **figures)
    assert words in found
    assert alarms(1, **figures) == []  # two of eight epochs are warm-up


def test_no_alarm_where_all_is_well_or_targets_are_out_of_fold() -> None:
    assert alarms(2) == []
    assert alarms(2, torch.tensor([1.0, 0.0]), train_accuracy=0.99) == []


def test_out_of_fold_targets_of_a_backbone_that_has_seen_the_cases_are_constant_too() -> None:
    (found,) = alarms(2, torch.ones(5), train_accuracy=0.9)
    assert "1.000 of the training cases" in found


def test_the_monitor_watches_the_answers_where_the_trained_gate_does_not_ship() -> None:
    for phase in (3, 6):
        joint, refitted = (merge_configs([("test", {"phase": phase, "gate_refit": on})]) for on in (False, True))
        assert (joint.monitor, refitted.monitor) == ("val_gate_augrc", "val_loss")


def test_the_gate_is_clipped_apart_from_the_answers() -> None:
    norms = []
    for steepness in (1.0, 1e4):
        model = gated_model(2)
        module = SelectiveModule(model, merge_configs([("test", {"phase": 3})]), np.array([80, 20]), True)
        for name, parameter in model.heads.named_parameters():
            parameter.grad = torch.full_like(parameter, steepness if name.startswith("gate") else 1.0)
        module.configure_gradient_clipping(torch.optim.SGD(model.parameters()), 1.0)
        grads = {name: parameter.grad.norm() for name, parameter in model.heads.named_parameters()}
        norms.append([float(norm) for name, norm in grads.items() if not name.startswith("gate")])
        assert sum(norm**2 for name, norm in grads.items() if name.startswith("gate")) == pytest.approx(1.0, rel=0.01)
    assert norms[0] == norms[1]
    assert sum(norm**2 for norm in norms[0]) == pytest.approx(1.0, rel=0.01)


def test_heads_side_by_side_have_the_gradient_norm_of_one_head() -> None:
    """Then clipping acts on an ensemble as on a single head."""
    single, norms = gated_model(1), []
    features = torch.randn(30, single.features, generator=torch.Generator().manual_seed(1))
    batch = Batch(features, torch.arange(30) % 2, torch.arange(30))
    for members in (1, 4):
        logged: dict[str, torch.Tensor] = {}
        model = gated_model(members)
        for own, one in zip(model.parameters(), single.parameters(), strict=True):
            own.data = one.detach().repeat(own.shape[0] // one.shape[0], *[1] * (own.ndim - 1))
        module = SelectiveModule(model, merge_configs([("test", {"phase": 3, "epochs": 1})]), np.array([80, 20]), True)
        module._trainer = SimpleNamespace(current_epoch=0)
        module.log_dict = lambda figures, logged=logged, **_: logged.update(figures)
        loss = module.training_step(batch, 0)
        loss.backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.heads.parameters()]).norm()))
        assert float(loss.detach()) == pytest.approx(float(logged["train_loss"].detach()) * members**0.5)
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("phase", [2, 3, 6])
def test_a_stage_weighs_the_classes_that_it_trains_on(phase: int) -> None:
    """In the loss that is descended, not only in the one that is logged."""
    config, members = merge_configs([("test", {"phase": phase})]), 2 if PHASES[phase].gated else None
    batch = Batch(torch.randn(8, FEATURES), torch.tensor([0, 1, 1, 1, 0, 1, 1, 1]), torch.arange(8))
    losses = []
    for first, then in (([900, 100], [10, 30]), ([10, 30], [10, 30]), ([900, 100], None)):
        module = module_class(config)(model_of(members, dropout=0.0), config, np.array(first), True)
        if then is not None:
            module.train_on(np.arange(40), np.array(then))
        losses.append(module.losses(batch)[0].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("phase", [3, 6])
def test_a_checkpoint_without_the_state_of_the_loss_is_refused(phase: int) -> None:
    config = config_of(phase)
    module = module_class(config)(model_of(2), config, np.array([10, 30]), True)
    state = module.state_dict()
    module.on_load_checkpoint({"state_dict": state})
    lost = next(name for name in state if name.startswith("loss."))
    with pytest.raises(UserError, match=f"the checkpoint has no {lost}"):
        module.on_load_checkpoint({"state_dict": {name: value for name, value in state.items() if name != lost}})
