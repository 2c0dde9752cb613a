"""The images that are read once more after the last epoch, begun while that epoch is validated and saved, and the
features of those that need not be: training has computed them."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import Batch
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.devices import fastest_device, gather_on_first, rank
from stage1_pro.core.inference.preparing import Announced, preparing_of
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.records.run import Run
from stage1_pro.core.training.callbacks.checkpoints import FEATURES
from stage1_pro.core.training.modules.base import Stage1Module

READ_AT_ONCE = 32
"""Images that a process prepares before it hands them on, filled up to whole forward passes."""
TAKEN_AT_ONCE = 4096
"""Cases whose features stay on the device until they are copied: each copy waits for the device."""
LARGEST = 6e4
"""Of a feature, which is kept in 16 bits."""
MOST_KEPT = 2**30
"""Bytes of features that are kept; where they are more, images are read again."""


class MeanFeatures:
    """Features of N training cases as the epochs compute them: their means.

    An epoch has one augmented view of a case, by weights that move meanwhile, and the late ones know wrong labels by
    heart; means rank labels better than features of the images as they are, by the weights that are kept.

    seen: (N,) epochs that showed the case; mean: (N, D) float16, on the first rank, once an epoch has ended.
    """

    def __init__(self, cases: int):
        self.seen = torch.zeros(cases, dtype=torch.int32)
        self.mean: Tensor | None = None
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.on_device: list[tuple[Tensor, Tensor]] = []
        self.parts: list[tuple[Tensor, Tensor]] = []

    def add(self, positions: Tensor, features: Tensor) -> None:
        """Take the features (B, D) of a batch, of cases that this epoch has not shown yet."""
        self.on_device.append((positions, features.clamp(-LARGEST, LARGEST).half()))
        if sum(len(positions) for positions, _ in self.on_device) >= TAKEN_AT_ONCE:
            self._take()

    def end_epoch(self) -> None:
        """Let the cases of all ranks enter the means."""
        self._take()
        found = gather_on_first(tuple(map(torch.cat, zip(*self.parts, strict=True))))
        self.begin_epoch()
        if found is None:
            return
        if self.mean is None:
            self.mean = torch.zeros(len(self.seen), found[1].shape[1], dtype=torch.float16)
        finite = found[1].isfinite().all(dim=1)  # one overflow would stay in a mean for ever
        for positions, features in zip(*(part[finite].split(TAKEN_AT_ONCE) for part in found), strict=True):
            self.seen[positions] += 1
            before = self.mean[positions].float()
            self.mean[positions] = (before + (features.float() - before) / self.seen[positions, None]).half()

    def _take(self) -> None:
        if self.on_device:
            positions, features = zip(*self.on_device, strict=True)
            self.parts.append((torch.cat(positions).cpu(), torch.cat(features).cpu()))
            self.on_device.clear()


class LastReading(pl.Callback):
    """What placing the answers, scoring and the list of suspects read, in their order, by processes that go on reading
    from one to the next."""

    def __init__(self, run: Run, config: Stage1ProConfig, model: Stage1Model, cases: CaseTable):
        self.run, self.config, self.model, self.cases = run, config, model, cases
        self.begun: Announced | None = None
        self.features = MeanFeatures(len(run.splits.indices("train")))

    @property
    def places(self) -> bool:
        """Whether answers are placed."""
        return self.config.places_answers and len(self.cases.class_names) == 2

    @property
    def refits(self) -> bool:
        """Whether the gate is fitted again."""
        return self.model.heads is not None and self.config.gate_refit

    @property
    def keeps_features(self) -> bool:
        """Whether an epoch shows each training case once, but for one that would be alone in its batch, and features of
        all find room."""
        return not (
            self.config.reads_cached_features
            or self.config.incremental_params.enabled
            or self.config.dataset_params.class_balanced_sampling
            or 2 * len(self.features.seen) * self.model.features > MOST_KEPT
        )

    @property
    def unseen(self) -> np.ndarray:
        """(U,) positions of the training cases whose images are read for their features."""
        return np.flatnonzero(self.features.seen.numpy() == 0)

    def frame(self, split: str) -> pd.DataFrame:
        return self.cases.frame.iloc[self.run.splits.indices(split)]

    @property
    def images(self) -> Announced:
        """The images as they are read; begun at the first call."""
        if self.begun is None:
            self.begun = self._announced()
        return self.begun

    @property
    def state_key(self) -> str:
        return FEATURES

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.features.begin_epoch()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Stage1Module)
        if self.keeps_features and pl_module.seen is not None:
            self.features.add(batch.positions, pl_module.seen)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.keeps_features:
            self.features.end_epoch()
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._begin(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.should_stop:
            self._begin(trainer)

    def state_dict(self) -> dict[str, Any]:
        mean = self.features.mean
        return {} if mean is None else {"seen": self.features.seen, "mean": mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict and not rank():
            self.features.seen, self.features.mean = state_dict["seen"], state_dict["mean"]

    def _begin(self, trainer: pl.Trainer) -> None:
        # with stages, and at several devices, an end is not known by now, or the others are still busy
        if trainer.world_size == 1 and not self.config.incremental_params.enabled:
            _ = self.images

    def _announced(self) -> Announced:
        config = self.config
        # onnx scores what torch's features have placed
        selects = 2 if config.scoring_backend == "onnx" and (self.places or self.refits) else 1
        paths = [list(self.frame(split)["path"]) for split in ["val_select"] * selects + ["val_calib"]]
        if not config.reads_cached_features and len(self.unseen):
            paths.append(list(self.frame("train")["path"].iloc[self.unseen]))
        whole = config.forward_shape or READ_AT_ONCE
        size = whole * max(1, READ_AT_ONCE // whole)
        preparing = preparing_of(self.model.spec.preprocessing, fastest_device(mps=True))
        return Announced(preparing, paths, size, config.dataset_params.num_workers)
