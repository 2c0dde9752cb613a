"""Unlabelled images in batches: the pool again and again, in an order that depends on the seed alone."""

from collections.abc import Callable, Iterator

import lightning.pytorch as pl
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from stage1_pro.core.data.batches import Draw, ImageDataset, make_loader
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.seeds import rng_of


class PassSampler(Sampler[Draw]):
    """`count` draws an epoch and rank, going through one permutation of the pool after the other, across epochs."""

    def __init__(self, size: int, seed: int, count: int, rank: int, world: int):
        self.size, self.seed, self.count, self.rank, self.world, self.epoch = size, seed, count, rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Draw]:
        first = self.epoch * self.count * self.world
        last = first + self.count * self.world
        passes = range(first // self.size, -(-last // self.size))
        order = np.concatenate([rng_of(self.seed, "pool", n).permutation(self.size) for n in passes])
        start = first - passes[0] * self.size
        for position in order[start : start + last - first][self.rank :: self.world].tolist():
            yield Draw(self.epoch, position)


class PoolModule(pl.LightningDataModule):
    """Loader of the pool as uint8 squares (B, 3, S, S); one epoch is the stretch between two probes."""

    def __init__(
        self, paths: list[str], preprocessing: Preprocessing, seed: int, batch_size: int, steps: int, workers: int
    ):
        super().__init__()
        self.dataset = ImageDataset(paths, np.zeros(len(paths)), _square(preprocessing), seed)
        self.seed, self.batch_size, self.steps, self.workers, self.next_epoch = seed, batch_size, steps, workers, 0

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = PassSampler(len(self.dataset), self.seed, self.steps * self.batch_size, rank, world)
        sampler.set_epoch(max(self.next_epoch, self.trainer.current_epoch))  # workers prefetch before Lightning sets it
        pinned = self.trainer.strategy.root_device.type == "cuda"
        return make_loader(self.dataset, sampler, self.batch_size, self.workers, pinned)

    def state_dict(self) -> dict[str, int]:
        return {"next_epoch": self.trainer.current_epoch + 1 if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.next_epoch = state_dict["next_epoch"]


def _square(preprocessing: Preprocessing) -> Callable[..., Tensor]:
    """PIL image → uint8 tensor (3, S, S): the shorter side resized to S, the centre kept."""
    from torchvision.transforms import v2

    how = v2.InterpolationMode(preprocessing.interpolation)
    resize = v2.Resize(preprocessing.size, interpolation=how, antialias=True)
    return v2.Compose([v2.PILToTensor(), resize, v2.CenterCrop(preprocessing.size)])
