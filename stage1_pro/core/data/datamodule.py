"""The Lightning datamodule: training and validation loaders of one run, from images or cached features."""

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import DataLoader

from stage1_pro.core.config import Stage1ProConfig
from stage1_pro.core.data.batches import EpochSampler, FeatureDataset, ImageDataset, make_loader
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.splits import Splits


class Stage1DataModule(pl.LightningDataModule):
    """Loaders over the `train` and `val_select` splits; no other split is ever read here.

    features: split name → (N, D) cached features, or None to decode images.
    """

    def __init__(
        self,
        cases: CaseTable,
        splits: Splits,
        config: Stage1ProConfig,
        preprocessing: Preprocessing,
        features: dict[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.next_epoch = 0
        self.config, self.preprocessing, self.features = config, preprocessing, features
        self.frames = {split: cases.frame.iloc[splits.indices(split)] for split in ("train", "val_select")}
        self.class_counts = np.bincount(self.labels("train"), minlength=len(cases.class_names))

    def labels(self, split: str) -> np.ndarray:
        return self.frames[split]["label"].to_numpy()

    def train_dataloader(self) -> DataLoader:
        data = self.config.dataset_params
        weights = None
        if data.class_balanced_sampling:
            weights = 1 / self.class_counts[self.labels("train")]
            weights = weights / weights.sum()
        return self._loader("train", data.augmentation, shuffle=True, weights=weights)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val_select", "none", shuffle=False)

    def state_dict(self) -> dict[str, int]:
        return {"next_epoch": self.trainer.current_epoch + 1 if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.next_epoch = state_dict["next_epoch"]

    def _loader(self, split: str, augmentation: str, *, shuffle: bool, weights: np.ndarray | None = None) -> DataLoader:
        dataset = self._dataset(split, augmentation)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(dataset), self.config.seed, shuffle=shuffle, weights=weights, rank=rank, world=world)
        sampler.set_epoch(self.next_epoch)  # after a resume workers prefetch before Lightning sets the epoch
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return make_loader(dataset, sampler, self.config.batch_size, self.config.dataset_params.num_workers, pin)

    def _dataset(self, split: str, augmentation: str) -> ImageDataset | FeatureDataset:
        if self.features is not None:
            return FeatureDataset(self.features[split], self.labels(split))
        transform = self.preprocessing.transform(augmentation)
        return ImageDataset(list(self.frames[split]["path"]), self.labels(split), transform, self.config.seed)
