"""Datasets and samplers. What a step sees is a function of (seed, epoch, rank), never of workers or history."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from stage1_pro.core.data.decoding import decode
from stage1_pro.core.data.image_files import BadImage
from stage1_pro.core.devices import isolated_seed
from stage1_pro.core.errors import UserError
from stage1_pro.core.seeds import rng_of

AHEAD = 2
"""Batches that are made before they are asked for."""

T = TypeVar("T")
U = TypeVar("U")


class Draw(NamedTuple):
    """One case of one epoch: what a sampler hands to a dataset."""

    epoch: int
    position: int


class Batch(NamedTuple):
    """inputs: (B, 3, H, W) images or (B, D) features; labels: (B,) int64; positions: (B,) in the dataset."""

    inputs: Tensor
    labels: Tensor
    positions: Tensor


class ImageDataset(Dataset):
    """Decodes and transforms images; augmentation depends on (seed, epoch, position) alone."""

    def __init__(self, paths: Sequence[str], labels: np.ndarray, transform: Callable, seed: int):
        self.paths, self.transform, self.seed = list(paths), transform, seed
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        epoch, position = draw
        try:
            decoded = decode(self.paths[position])
        except BadImage as bad:
            raise UserError(
                f"{self.paths[position]} cannot be read any more ({bad}). Restore the file and run again."
            ) from None
        # transforms draw from torch's global generators: seeded for each case, neither workers nor a resume move them
        with isolated_seed(self.seed, epoch, position):
            image = self.transform(decoded)
        return image, int(self.labels[position]), position


class FeatureDataset(Dataset):
    """Rows of a feature map, gathered a batch at a time."""

    def __init__(self, features: np.ndarray, labels: np.ndarray):
        self.features = features
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, draws: list[Draw]) -> Batch:
        positions = np.fromiter((draw[1] for draw in draws), dtype=np.int64, count=len(draws))
        taken = torch.from_numpy(positions)
        return Batch(torch.from_numpy(self.features[positions]), self.labels[taken], taken)

    @staticmethod
    def collate(batch: Batch) -> Batch:
        return batch


class EpochSampler(Sampler[Draw]):
    """Draws for one rank: a fresh permutation every epoch, or the fixed order for evaluation.

    weights: (N,) draws with replacement in these proportions, for class-balanced sampling. subset: (N,) the
    positions in the dataset that are drawn from, None for the first N. All ranks get equally many cases: the first
    few of an epoch repeat, which evaluation drops where it gathers them. never_alone: the batch size of a training
    whose last batch must not hold a single case: an epoch leaves that one out, another one every time.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        shuffle: bool,
        weights: np.ndarray | None = None,
        subset: np.ndarray | None = None,
        rank: int = 0,
        world: int = 1,
        never_alone: int | None = None,
    ):
        self.size, self.seed, self.shuffle, self.weights = size, seed, shuffle, weights
        self.never_alone = never_alone
        self.subset = np.arange(size) if subset is None else subset
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        each = -(-self.size // self.world)
        alone = self.shuffle and self.never_alone is not None and each % self.never_alone == 1
        # a lone case of the whole epoch is drawn twice: batch norms need more than one
        return each if not alone else max(2, each - 1)

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.size)
        if self.shuffle:
            rng = rng_of(self.seed, "order", self.epoch)
            order = (
                rng.permutation(self.size) if self.weights is None else rng.choice(self.size, self.size, p=self.weights)
            )
        # every rank takes equally many batches, or the others wait for ever: in training for its gradients, in
        # validation for the buffers that DistributedDataParallel sends around before each forward pass
        order = np.resize(order, len(self) * self.world)
        for position in self.subset[order[self.rank :: self.world]].tolist():
            yield Draw(self.epoch, position)


class BlockSampler(Sampler[Draw]):
    """All positions in blocks that never change, for one rank: what a model says of a case may depend on its batch.

    Every rank gets equally many blocks; where they do not come out even, some repeat the first ones.
    """

    def __init__(self, size: int, block: int, rank: int = 0, world: int = 1):
        blocks = [range(start, min(start + block, size)) for start in range(0, size, block)]
        each = -(-len(blocks) // world)
        self.order = [position for index in range(each) for position in blocks[(rank + index * world) % len(blocks)]]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(0, position) for position in self.order)


class EpochLoader(DataLoader):
    """A DataLoader of `Batch`es whose workers read ahead of the pass that asks for them.

    epochs: of the training; the workers begin with the next one when the last batch of this one is taken; None: they do
    not. idle: called once in each of these epochs, when the workers have nothing left to begin. finish: makes a Batch,
    on its device, of what the workers collated; it runs ahead in a thread.
    """

    def __init__(
        self,
        *args: Any,
        epochs: int | None = None,
        idle: Callable[[], None] | None = None,
        finish: Callable[[Any], Batch] | None = None,
        **rest: Any,
    ):
        super().__init__(*args, **rest)
        self.epochs, self.idle, self.finish = epochs if self.num_workers else None, idle, finish
        self.begun: tuple[int, Iterator[Any]] | None = None

    def __iter__(self) -> Any:
        batches: Iterator[Any] = self._started()
        batches = batches if self.epochs is None else self._counted(batches)
        return batches if self.finish is None else ahead(batches, self.finish)

    def begin(self) -> None:
        """Have the workers begin with the epoch that the sampler is set to."""
        if self.num_workers:
            sampler: Any = self.sampler
            self.begun = sampler.epoch, super().__iter__()

    def _started(self) -> Iterator[Any]:
        begun, self.begun = self.begun, None
        sampler: Any = self.sampler
        return begun[1] if begun is not None and begun[0] == sampler.epoch else super().__iter__()

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        last_begun = min(len(self) - 1, self.num_workers * (self.prefetch_factor or 0))
        # never one more than there are: the workers of an iterator that persists may be in the next epoch by then
        for left in reversed(range(len(self))):
            batch = next(batches)
            if left == last_begun and self.idle is not None:
                self.idle()
            if not left:
                self._begin_next()
            yield batch

    def _begin_next(self) -> None:
        sampler: Any = self.sampler
        if self.epochs is not None and sampler.epoch + 1 < self.epochs:
            sampler.set_epoch(sampler.epoch + 1)
            self.begin()


def ahead(items: Iterable[T], work: Callable[[T], U]) -> Iterator[U]:
    """Yield what `work` makes of each item, in order, made in a thread while the caller is busy with earlier ones.

    The items are taken in the caller's thread.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(thread.submit(work, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def make_loader(
    dataset: Dataset,
    sampler: Sampler,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    *,
    epochs: int | None = None,
    idle: Callable[[], None] | None = None,
    finish: Callable[[Any], Batch] | None = None,
    again: bool = True,
) -> EpochLoader:
    """A loader of `Batch`es; feature rows are gathered in this process. epochs, idle, finish: as of EpochLoader; again:
    its workers stay for another pass."""
    features = isinstance(dataset, FeatureDataset)
    workers = 0 if features else workers  # gathering rows is cheaper than sending them between processes
    return EpochLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=getattr(dataset, "collate", _collate),
        pin_memory=pin_memory and finish is None,
        persistent_workers=again and workers > 0,
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),  # the default one is dropout's: an iterator must not draw from it
        epochs=epochs,
        idle=idle,
        finish=finish,
    )


def quiet_worker(_: int) -> None:
    """Ctrl-C is the main process's business; workers end when it closes their pipes."""
    torch.set_num_threads(1)  # one worker a core: more threads would contend for it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(items: list[tuple[Tensor, int, int]]) -> Batch:
    images, labels, positions = zip(*items, strict=True)
    # stacks in memory that the main process shares, where torch.stack would have it copied there
    return Batch(default_collate(list(images)), torch.tensor(labels), torch.tensor(positions))
