"""Samplers and loaders: what a step sees is a function of (seed, epoch, rank), and of nothing else."""

import random
from collections import Counter
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.transforms_factory import create_transform

from stage1_pro.core.data.batches import Draw, EpochSampler, FeatureDataset, ImageDataset, make_loader
from stage1_pro.core.data.decoding import decode
from stage1_pro.core.data.transforms import AUGMENTATIONS, Preprocessing
from stage1_pro.core.devices import isolated_seed
from stage1_pro.core.seeds import seed_of

PREPROCESSING = Preprocessing(16, 0.9, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def positions(sampler: EpochSampler, epoch: int = 0) -> list[int]:
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    assert {draw.epoch for draw in draws} <= {epoch}
    return [draw.position for draw in draws]


@pytest.mark.parametrize(
    ("size", "batch", "world"), [(33, 32, 1), (65, 32, 2), (1, 32, 1), (7, 3, 1), (7, 7, 1), (6, 1, 1)]
)
def test_no_case_is_alone_in_a_batch_where_that_is_asked(size: int, batch: int, world: int) -> None:
    samplers = [EpochSampler(size, 0, shuffle=True, never_alone=batch, rank=rank, world=world) for rank in range(world)]
    epochs = [[positions(sampler, epoch) for sampler in samplers] for epoch in range(8)]
    for drawn, sampler in zip(epochs[0], samplers, strict=True):
        assert len(drawn) == len(sampler)
        assert batch == 1 or len(drawn) % batch != 1
    everyone = {position for epoch in epochs for drawn in epoch for position in drawn}
    assert everyone == set(range(size))  # who is left out in one epoch is there in another


def test_every_epoch_is_another_permutation_and_always_the_same_one() -> None:
    epochs = [positions(EpochSampler(50, 3, shuffle=True), epoch) for epoch in range(5)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 5
    one = EpochSampler(50, 3, shuffle=True)
    assert [positions(one, epoch) for epoch in (4, 2, 4)] == [epochs[4], epochs[2], epochs[4]]  # no history
    assert positions(EpochSampler(50, 4, shuffle=True)) != epochs[0]


def test_evaluation_keeps_the_order() -> None:
    assert positions(EpochSampler(9, 3, shuffle=False), 7) == list(range(9))


@pytest.mark.parametrize(("size", "world"), [(10, 3), (12, 4), (3, 4), (2, 8), (1, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_out_all_cases_equally(size: int, world: int, shuffle: bool) -> None:
    samplers = [EpochSampler(size, 0, shuffle=shuffle, rank=rank, world=world) for rank in range(world)]
    shards = [positions(sampler, 1) for sampler in samplers]
    # or the ranks would wait for each other
    assert [len(shard) for shard in shards] == [len(sampler) for sampler in samplers] == [-(-size // world)] * world
    assert set(chain(*shards)) == set(range(size))


def test_weights_balance_the_classes_also_over_ranks() -> None:
    labels = np.arange(4000) % 10 == 0
    weights = np.where(labels, 1 / labels.sum(), 1 / (~labels).sum()) / 2
    ranks = [EpochSampler(4000, 0, shuffle=True, weights=weights, rank=rank, world=2) for rank in (0, 1)]
    drawn = [position for rank in ranks for position in positions(rank)]
    assert len(drawn) == 4000
    assert abs(np.mean(labels[drawn]) - 0.5) < 0.03
    assert Counter(drawn).most_common(1)[0][1] > 1  # with replacement


def images(pictures: Path, augmentation: str, seed: int = 0) -> ImageDataset:
    paths = [str(path) for path in sorted(pictures.glob("*.png"))[:12]]
    return ImageDataset(paths, np.arange(12) % 2, PREPROCESSING.transform(augmentation), seed)


def tensors(dataset: ImageDataset, workers: int, epochs: tuple[int, ...] = (0, 1)) -> list[torch.Tensor]:
    sampler = EpochSampler(len(dataset), 1, shuffle=True)
    loader = make_loader(dataset, sampler, batch_size=5, workers=workers)
    seen = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert torch.equal(torch.cat([b.labels for b in batches]), torch.cat([b.positions for b in batches]) % 2)
        by_position = torch.cat([b.positions for b in batches]).argsort()
        seen.append(torch.cat([b.inputs for b in batches])[by_position])
    return seen


@pytest.mark.parametrize("augmentation", ["moderate", "aggressive"])
def test_augmentation_is_a_function_of_seed_epoch_and_case(pictures: Path, augmentation: str) -> None:
    dataset = images(pictures, augmentation)
    first, second = tensors(dataset, workers=0)
    assert not torch.equal(first, second)  # another epoch
    assert not torch.equal(first, tensors(images(pictures, augmentation, seed=1), workers=0)[0])
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002 the global generators are what is tested
    torch.manual_seed(99)
    for again in (tensors(dataset, workers=0), tensors(dataset, workers=2)):
        assert torch.equal(first, again[0])
        assert torch.equal(second, again[1])
    assert torch.equal(dataset[Draw(1, 7)][0], second[7])  # in whatever order


def test_a_loader_that_begins_early_gives_the_same_epochs(pictures: Path) -> None:
    dataset, seen = images(pictures, "moderate"), {}
    for epochs in (None, 3):
        sampler = EpochSampler(len(dataset), 1, shuffle=True)
        loader = make_loader(dataset, sampler, batch_size=5, workers=2, epochs=epochs)
        seen[epochs] = []
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            batches = iter(loader)
            seen[epochs] += [next(batches) for _ in range(len(loader))]  # as Lightning does: never one more
        assert loader.begun is None  # nothing is begun after the last epoch
        sampler.set_epoch(1)
        list(loader)
        sampler.set_epoch(0)  # another epoch than the one that was begun
        assert torch.equal(next(iter(loader)).inputs, seen[epochs][0].inputs)
    for early, late in zip(seen[3], seen[None], strict=True):
        assert torch.equal(early.inputs, late.inputs)
        assert torch.equal(early.positions, late.positions)


def test_a_pass_begun_by_an_idle_loader_gives_the_same_batches(pictures: Path) -> None:
    dataset, order = images(pictures, "none"), EpochSampler(12, 1, shuffle=False)
    expected = list(make_loader(dataset, order, batch_size=5, workers=0))
    second = make_loader(dataset, order, batch_size=5, workers=1)
    sampler = EpochSampler(12, 1, shuffle=True)
    first = make_loader(images(pictures, "moderate"), sampler, 2, workers=1, epochs=2, idle=second.begin)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        # the worker has two batches at a time
        assert [second.begun is not None for _ in first] == [False] * 3 + [True] * 3
        batches = iter(second)
        for batch in expected:
            assert all(torch.equal(*pair) for pair in zip(next(batches), batch, strict=True))


def test_no_augmentation_is_the_evaluation_transform(pictures: Path) -> None:
    from torchvision.transforms import functional

    first, second = tensors(images(pictures, "none"), workers=0)
    assert torch.equal(first, second)
    image = decode(sorted(pictures.glob("*.png"))[3])
    resized = functional.resize(image, int(16 / 0.9), functional.InterpolationMode.BICUBIC)
    pixels = functional.to_tensor(functional.center_crop(resized, [16, 16]))
    expected = (pixels - torch.tensor(PREPROCESSING.mean).view(3, 1, 1)) / torch.tensor(PREPROCESSING.std).view(3, 1, 1)
    torch.testing.assert_close(first[3], expected)
    assert first.dtype == torch.float32


@pytest.mark.parametrize("augmentation", ["none", "aggressive"])
def test_the_transform_is_timms_to_the_bit(pictures: Path, augmentation: str) -> None:
    expected = create_transform(
        input_size=(3, 16, 16),
        is_training=augmentation != "none",
        interpolation=PREPROCESSING.interpolation,
        mean=PREPROCESSING.mean,
        std=PREPROCESSING.std,
        crop_pct=PREPROCESSING.crop_pct,
        **AUGMENTATIONS.get(augmentation, {}),
    )
    for number, path in enumerate(sorted(pictures.glob("*.png"))[:12]):
        with isolated_seed(number):
            found = PREPROCESSING.transform(augmentation)(decode(path))
        with isolated_seed(number):
            assert torch.equal(found, expected(decode(path)))


def global_state() -> tuple:
    accelerators = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return random.getstate(), legacy, torch.get_rng_state().tolist(), accelerators


def test_the_global_generators_are_left_alone(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(_: int) -> None:
        raise AssertionError("the accelerators' generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched)
    before = global_state()
    images(pictures, "aggressive")[Draw(0, 1)]
    list(EpochSampler(10, 0, shuffle=True))
    assert global_state() == before
    with suppress(KeyError), isolated_seed(1, 2):
        raise KeyError(random.random(), torch.rand(3))
    assert global_state() == before


def test_seeds_of_different_keys_differ() -> None:
    keys = [(a, b, c) for a in range(8) for b in range(8) for c in range(8)]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_features_are_gathered_a_batch_at_a_time() -> None:
    features = np.arange(40, dtype=np.float32).reshape(10, 4)
    sampler = EpochSampler(10, 0, shuffle=True)
    batches = list(make_loader(FeatureDataset(features, np.arange(10) % 3), sampler, batch_size=4, workers=2))
    order = torch.cat([batch.positions for batch in batches])
    assert [len(batch.inputs) for batch in batches] == [4, 4, 2]
    assert order.tolist() == positions(EpochSampler(10, 0, shuffle=True))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), torch.from_numpy(features)[order])
    assert torch.equal(torch.cat([batch.labels for batch in batches]), order % 3)


def test_preprocessing_goes_round_as_json() -> None:
    data = PREPROCESSING.to_dict()
    assert Preprocessing.from_dict(data) == PREPROCESSING
    assert data["color_order"] == "RGB"
    assert isinstance(data["mean"], list)
