"""The weights at the end of a stage: those that score the pool, and those that the next stage starts from."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from stage1_pro.core.training.callbacks.checkpoints import judged_weights
from stage1_pro.core.training.callbacks.ema import ExponentialMovingAverage, assign, snapshot

Weights = dict[str, Tensor]
"""Name in the module → value, of what training moves."""


def untrained_weights(module: pl.LightningModule) -> Weights:
    """Copies of all that training will move, the loss's own state included: what `stage_init: scratch` goes back to."""
    return {**snapshot(module), **{name: buffer.clone() for name, buffer in _loss_state(module).items()}}


def scoring_weights(module: pl.LightningModule, best: Path | None, average: ExponentialMovingAverage | None) -> Weights:
    """The weights that score the pool.

    best: checkpoint of the stage's best epoch, None for the module's present weights, averaged where there is an
    average. What a checkpoint leaves out (a frozen backbone) is as it is in the module.
    """
    present = snapshot(module)
    if best is None:
        return present if average is None else {**present, **average.average}
    found = judged_weights(best)
    return {**present, **{name: found[name].to(present[name].device) for name in present.keys() & found.keys()}}


@torch.no_grad()
def start_over(module: pl.LightningModule, untrained: Weights) -> None:
    """Bring a module back to where it was before training, multipliers and bank of the loss included."""
    assign(module, untrained)
    # other multipliers would go on punishing the new weights for what the old ones did
    for name, buffer in _loss_state(module).items():
        buffer.copy_(untrained[name])


def _loss_state(module: pl.LightningModule) -> Weights:
    """Buffers of the loss that training moves: multipliers, running constraint, bank of positives."""
    kept = {name for name in module.state_dict() if name.startswith("loss.")}
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}
