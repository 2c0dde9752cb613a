"""The loaders of one run with masks."""

from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import BlockSampler
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.data.masks.batches import MaskDataset, make_mask_loader
from stage1_pro.core.data.masks.inputs import MaskPreprocessing
from stage1_pro.core.records.splits import Splits


class MaskDataModule(Stage1DataModule):
    """Loaders over the `train` and `val_select` splits of a segmentation.

    The labels of a split are strata, the rarest class in each mask: what the first stage is drawn by. divisor: the
    network takes sizes that are multiples of it.
    """

    def __init__(
        self,
        cases: CaseTable,
        splits: Splits,
        config: Stage1ProConfig,
        preprocessing: MaskPreprocessing,
        divisor: int,
    ):
        assert cases.masks is not None
        super().__init__(cases, splits, config, preprocessing)
        self.facts, self.divisor, self.classes = cases.masks, divisor, cases.strata
        self._datasets: dict[tuple[str, str | None], MaskDataset] = {}

    def labels(self, split: str) -> np.ndarray:
        return self.frames[split]["stratum"].to_numpy()

    def val_dataloader(self) -> DataLoader:
        return self._kept("val_select", "scored", np.arange(len(self.frames["val_select"])), shuffle=False)

    def pool_dataloader(self) -> DataLoader:
        """The whole `train` split as it is; a case's score does not depend on its batch."""
        dataset = self._dataset("train", "scored")
        block = self.config.incremental_params.score_batch_size
        return self._of(dataset, BlockSampler(len(dataset), block, **self._place()), block)

    def _of(self, dataset: Any, sampler: Sampler, batch_size: int, trains: bool = False) -> DataLoader:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        workers = self.config.dataset_params.num_workers
        return make_mask_loader(dataset, sampler, batch_size, workers, pin, self.divisor)

    def _dataset(self, split: str, augmentation: str) -> MaskDataset:
        # one for the whole training: loaders are made anew for every stage, and prepared cases are kept in it
        if (split, augmentation) not in self._datasets:
            data, scored = self.config.dataset_params, augmentation == "scored"
            self._datasets[split, augmentation] = MaskDataset(
                self.frames[split],
                self.facts,
                self.preprocessing,
                self.config.seed,
                None if scored else augmentation,
                data.patches_per_case if self.preprocessing.patch else 1,
                data.foreground_share,
            )
        return self._datasets[split, augmentation]
