"""When the selective module speaks up, and when it stays silent."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_heads import gated_model

from stage1_pro.core.config import config_from_dict
from stage1_pro.core.models.selective_module import SelectiveModule

WELL = {"train_accuracy": 0.9, "val_gate_soft_coverage_pos": 0.5, "val_gate_std": 1.0}


def alarms(epoch: int, correct: torch.Tensor | None = None, **figures: float) -> list[str]:
    config = config_from_dict({"phase": 3, "epochs": 8}, "test")
    module = SelectiveModule(gated_model(2), config, np.array([80, 20]), True, correct)
    metrics = {name: torch.tensor(value) for name, value in {**WELL, **figures}.items()}
    module._trainer = SimpleNamespace(callback_metrics=metrics, current_epoch=epoch)
    return module._alarms()


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"train_accuracy": 0.99}, "training accuracy is 0.990, so the gate's target is nearly constant"),
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
    assert alarms(2, torch.ones(5), train_accuracy=0.99) == []
