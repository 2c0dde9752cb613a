"""One pass of Lightning's validation loop over the whole training split: what the present weights say of every case."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch.utils.data import DataLoader

from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.devices import gather_on_first
from stage1_pro.core.incremental.acquisition import CaseMetrics
from stage1_pro.core.training.modules.base import Stage1Module


def score_pool(trainer: pl.Trainer, module: Stage1Module, data: Stage1DataModule) -> CaseMetrics | None:
    """Score with the module's present weights every case of the training split, in float32, in fixed blocks.

    trainer: one that fits this module at the moment, between two epochs, or one that does nothing yet. Every rank
    scores its blocks; the first one has them all, the others have None.
    """
    # one pass over all of the split, not over the candidates alone: distances are measured from the cases in training,
    # and those among them that still fail are the suspects
    loader = data.pool_dataloader()
    with _full_float32(), module.scoring_pool() as parts:
        if trainer.state.fn == TrainerFn.FITTING:
            _validate_within_fit(trainer, loader)
        else:
            trainer.validate(module, loader, verbose=False)
    found = gather_on_first(tuple(torch.cat(part) for part in zip(*parts, strict=True)))
    if found is None:
        return None
    _, dice, entropy, embedding = found
    frame = data.frames["train"]
    return CaseMetrics(
        case_id=frame["case_id"].to_numpy(),
        content=frame["content"].to_numpy(),
        dice=dice.numpy(),
        entropy=entropy.numpy(),
        embedding=embedding.numpy(),
    )


def _validate_within_fit(trainer: pl.Trainer, loader: DataLoader) -> None:
    """What `trainer.validate` would do, which may not be called within a fit."""
    epochs, callbacks = trainer.fit_loop.epoch_loop, trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    validation = epochs.val_loop
    # a loop of the same kind in the place of training's: its loader, its counts, which are part of every checkpoint,
    # and its figures stay as they were
    epochs.val_loop = type(validation)(
        trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
    )
    epochs.val_loop._data_source.instance = loader
    # average, patience, controller and checkpoints take each validation for that of an epoch
    trainer.callbacks = [one for one in callbacks if isinstance(one, ProgressBar)]  # pyright: ignore[reportAttributeAccessIssue]
    trainer.validating = True
    try:
        epochs.val_loop.run()
        epochs.val_loop.teardown()
    finally:
        trainer.training = True
        trainer.callbacks = callbacks  # pyright: ignore[reportAttributeAccessIssue]
        epochs.val_loop = validation


@contextmanager
def _full_float32() -> Iterator[None]:
    """Full float32 on a GPU."""
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    # TF32 keeps 10 bits: near ties would be decided by the device
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
