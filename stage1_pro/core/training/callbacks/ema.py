"""Exponential moving average of what training moves, in place of the raw tensors during validation."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from stage1_pro.core.models.parameters import trainable


class ExponentialMovingAverage(pl.Callback):
    """Average the trainable tensors after every optimizer step; validate with the average.

    decay: its final value; the decay in use is min(decay, (1 + t) / (10 + t)) t steps after its beginning, so that a
    run of a few hundred steps is not still averaging its first weights. Checkpoints hold raw weights,
    and the average in this callback's state.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.step = self.first_step = 0
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._current: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tensors = dict(_moving(pl_module))
        start = self.average or snapshot(pl_module)
        self.average = {name: start[name].to(tensor.device) for name, tensor in tensors.items()}
        self._current = []

    def restart(self, module: pl.LightningModule) -> None:
        """Forget what was averaged: the average begins at the module's present weights."""
        self.first_step, self.average = self.step, snapshot(module)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # gradients are still accumulating
            return
        self.step = trainer.global_step
        age = self.step - self.first_step
        # .1 at first, .9 after 80 steps, .99 after 900: at .9999 from the start the average would be the first weights
        decay = min(self.decay, (1 + age) / (10 + age))
        if not self._current:  # found once: a walk over all modules would cost every step milliseconds
            current = dict(_moving(pl_module))
            self._current = [current[name] for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), self._current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # validation, and with it every choice, is of the averaged weights; training goes on from the raw ones
        self._raw = snapshot(pl_module)
        assign(pl_module, self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._raw is not None:
            assign(pl_module, self._raw)
            self._raw = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "begun": self.first_step, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.first_step, self.average = state_dict["step"], state_dict.get("begun", 0), state_dict["average"]


def snapshot(module: pl.LightningModule) -> dict[str, Tensor]:
    """Copies of what training moves."""
    return {name: tensor.detach().clone() for name, tensor in _moving(module)}


def _moving(module: pl.LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Return what training moves: trainable tensors, and the running statistics of norms that are not frozen.

    Averaged weights with raw statistics would be a network that was never trained.
    """
    yield from trainable(module)
    for name, owner in module.named_modules():
        if any(parameter.requires_grad for parameter in owner.parameters(recurse=False)):
            for key, buffer in owner.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    yield f"{name}.{key}", buffer


@torch.no_grad()
def assign(module: pl.LightningModule, values: dict[str, Tensor]) -> None:
    """Give a module's moving tensors these values."""
    for name, tensor in _moving(module):
        tensor.copy_(values[name])
