"""The Lightning datamodule: training and validation loaders of one run, from images or cached features."""

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader, Sampler

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import BlockSampler, EpochLoader, EpochSampler, FeatureDataset, make_loader
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datasets import finish_of, image_dataset
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.records.splits import Splits


class Stage1DataModule(pl.LightningDataModule):
    """Loaders over the `train` and `val_select` splits; no other split is ever read here.

    preprocessing: what the model expects, as its spec has it; features: split name → (N, D) cached features, or None
    to decode images. An incremental training trains on the active cases of `train`; which they are is part of this
    module's state.
    """

    def __init__(
        self,
        cases: CaseTable,
        splits: Splits,
        config: Stage1ProConfig,
        preprocessing: Any,
        features: dict[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.next_epoch = 0
        self.config, self.preprocessing, self.features = config, preprocessing, features
        self.frames = {split: cases.frame.iloc[splits.indices(split)] for split in ("train", "val_select")}
        self.classes = len(cases.class_names)
        # here and in no dataset or sampler: loaders are made anew for every stage, and this state is restored before
        self.active = np.arange(len(self.frames["train"]))
        self.loaders: dict[str, DataLoader] = {}

    @property
    def class_counts(self) -> np.ndarray:
        """(C,) cases in training per class."""
        return np.bincount(self.labels("train")[self.active], minlength=self.classes)

    def activate(self, positions: np.ndarray) -> None:
        """Train on these positions of the `train` split, from the next loader on."""
        self.active = np.sort(positions)  # the order of admission must not enter the order of batches
        self.loaders.pop("train", None)

    def labels(self, split: str) -> np.ndarray:
        return self.frames[split]["label"].to_numpy()

    def train_dataloader(self) -> DataLoader:
        data = self.config.dataset_params
        weights = None
        if data.class_balanced_sampling:  # by the cases in training, of which a stage may hold few of a class
            weights = 1 / self.class_counts[self.labels("train")[self.active]]
            weights = weights / weights.sum()
        return self._kept("train", data.augmentation, self.active, shuffle=True, weights=weights)

    def val_dataloader(self) -> DataLoader:
        return self._kept("val_select", "none", np.arange(len(self.frames["val_select"])), shuffle=False)

    def pool_dataloader(self) -> DataLoader:
        """The whole `train` split without augmentation, in blocks that are the same for any number of ranks."""
        dataset, block = self._dataset("train", "none"), self.config.incremental_params.score_batch_size
        return self._of(dataset, BlockSampler(len(dataset), block, **self._place()), block)

    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch on the active cases."""
        cases = len(self._sampler(self.active, shuffle=True, weights=None))
        return math.ceil(math.ceil(cases / self.config.batch_size) / self.config.grad_accum_steps)

    def state_dict(self) -> dict[str, Any]:
        # not current_epoch + 1: a stage's end that is finished after a resume is saved before its epoch begins
        epochs: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer else None
        return {"next_epoch": epochs.processed if epochs else 0, "active": self.active.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.next_epoch, self.active = state_dict["next_epoch"], np.array(state_dict["active"], dtype=np.int64)

    def _place(self) -> dict[str, Any]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return {"rank": rank, "world": world}

    def _kept(
        self, split: str, augmentation: str, subset: np.ndarray, *, shuffle: bool, weights: np.ndarray | None = None
    ) -> DataLoader:
        """The loader of the epoch to come: the one before it, with its workers, unless a stage has begun meanwhile."""
        if split not in self.loaders:
            sampler = self._sampler(subset, shuffle, weights)
            data = self._dataset(split, augmentation)
            self.loaders[split] = self._of(data, sampler, self.config.batch_size, trains=shuffle)
        # workers prefetch before Lightning sets the epoch: after a resume, and where it asks for loaders every epoch
        sampler: Any = self.loaders[split].sampler
        sampler.set_epoch(max(self.next_epoch, self.trainer.current_epoch if self.trainer else 0))
        return self.loaders[split]

    def _sampler(self, subset: np.ndarray, shuffle: bool, weights: np.ndarray | None) -> EpochSampler:
        # a frozen backbone keeps its statistics; one that is trained may take them from the batch
        never_alone = None if self.config.freeze_backbone else self.config.batch_size
        drawn: dict[str, Any] = {"shuffle": shuffle, "weights": weights, "subset": subset, "never_alone": never_alone}
        return EpochSampler(len(subset), self.config.seed, **drawn, **self._place())

    def _of(self, dataset: Any, sampler: Sampler, batch_size: int, trains: bool = False) -> DataLoader:
        device = self.trainer.strategy.root_device if self.trainer else fastest_device()
        # a stage may end with any epoch, so that none is begun before it is asked for
        training = self.trainer if trains and not self.config.incremental_params.enabled else None
        return make_loader(
            dataset,
            sampler,
            batch_size,
            self.config.dataset_params.num_workers,
            pin_memory=self.trainer is not None and device.type == "cuda",
            epochs=training.max_epochs if training else None,
            idle=self._begin_validation if training else None,
            finish=finish_of(dataset, device),
        )

    def _begin_validation(self) -> None:
        loader = self.val_dataloader()
        assert isinstance(loader, EpochLoader)
        loader.begin()

    def _dataset(self, split: str, augmentation: str) -> Any:
        if self.features is not None:
            return FeatureDataset(self.features[split], self.labels(split))
        paths, seed = list(self.frames[split]["path"]), self.config.seed
        return image_dataset(paths, self.labels(split), self.preprocessing, augmentation, seed)
