"""The images that are read once more after the last epoch, begun while that epoch is validated and saved."""

import lightning.pytorch as pl
import pandas as pd

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.inference.preparing import Announced, preparing_of
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.records.run import Run

READ_AT_ONCE = 32
"""Images that a process prepares before it hands them on, filled up to whole forward passes."""


class LastReading(pl.Callback):
    """What placing the answers, scoring and the list of suspects read, in their order, by processes that go on reading
    from one to the next."""

    def __init__(self, run: Run, config: Stage1ProConfig, model: Stage1Model, cases: CaseTable):
        self.run, self.config, self.model, self.cases = run, config, model, cases
        self.begun: Announced | None = None

    @property
    def places(self) -> bool:
        """Whether answers are placed."""
        return self.config.places_answers and len(self.cases.class_names) == 2

    @property
    def refits(self) -> bool:
        """Whether the gate is fitted again."""
        return self.model.heads is not None and self.config.gate_refit

    def frame(self, split: str) -> pd.DataFrame:
        return self.cases.frame.iloc[self.run.splits.indices(split)]

    @property
    def images(self) -> Announced:
        """The images as they are read; begun at the first call."""
        if self.begun is None:
            self.begun = self._announced()
        return self.begun

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._begin(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.should_stop:
            self._begin(trainer)

    def _begin(self, trainer: pl.Trainer) -> None:
        # with stages, and at several devices, an end is not known by now, or the others are still busy
        if trainer.world_size == 1 and not self.config.incremental_params.enabled:
            _ = self.images

    def _announced(self) -> Announced:
        config = self.config
        # onnx scores what torch's features have placed
        selects = 2 if config.scoring_backend == "onnx" and (self.places or self.refits) else 1
        order = ["val_select"] * selects + ["val_calib"] + ([] if config.reads_cached_features else ["train"])
        whole = config.forward_shape or READ_AT_ONCE
        size = whole * max(1, READ_AT_ONCE // whole)
        preparing = preparing_of(self.model.spec.preprocessing, fastest_device(mps=True))
        return Announced(
            preparing, [list(self.frame(split)["path"]) for split in order], size, config.dataset_params.num_workers
        )
