"""When ConformalRiskLoss takes over, and at which temperature."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_models import gated_model

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.training.modules.conformal import ConformalModule


def module_of(**settings: int) -> ConformalModule:
    config = merge_configs([("test", {"phase": 6, "exit_policy": "scrc", "positive_bank": 1000, **settings})])
    return ConformalModule(gated_model(2), config, np.array([80, 20]), True)


def temperatures(module: ConformalModule) -> list[float | None]:
    found = []
    for epoch in range(module.config.epochs):
        module._trainer = SimpleNamespace(current_epoch=epoch, global_rank=0)
        module.on_train_epoch_start()
        found.append(module.loss.temperature)
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 6}, [None, None, None, 0.5, 0.5**0.5 * 0.1**0.5, 0.1]),
        ({"epochs": 4, "conformal_after": 3}, [None, None, None, 0.5]),
        (
            {"epochs": 4, "conformal_after": 0},
            [None, 0.5, 0.5**0.5 * 0.1**0.5, 0.1],
        ),  # after the warm-up at the soonest
        ({"epochs": 1, "warmup_epochs": 0}, [0.5]),
    ],
)
def test_the_temperature_falls_after_the_warm_start(settings: dict[str, int], expected: list[float | None]) -> None:
    assert temperatures(module_of(**settings)) == pytest.approx(expected)


def test_an_epochs_halves_depend_on_seed_and_epoch_alone() -> None:
    drawn = []
    for seed, epochs in ((1, (2, 3)), (1, (3,)), (2, (3,))):
        module = module_of(seed=seed, epochs=4)
        for epoch in epochs:
            module._trainer = SimpleNamespace(current_epoch=epoch, global_rank=epoch)
            module.on_train_epoch_start()
            torch.randn(5)
            half = module.loss._halves(64)
        drawn.append(half)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
