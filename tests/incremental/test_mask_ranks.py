"""Cases with masks are judged alike in one process and in two, in batches of any size, with and without workers."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_masks import disc_case, settings
from PIL import Image
from two_ranks import WORLD, group, on_two_ranks

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.devices import mean_of_ranks, whole_batch
from stage1_pro.core.losses.dice import MaskLoss
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.trainer import lightning_trainer

pytest.importorskip("monai", reason="the extra seg is not installed")
pytestmark = pytest.mark.slow  # each process imports MONAI

SIDES = (32, 19, 41, 32, 32, 27, 19)
"""Seven cases: an odd number for two ranks, and sizes that are no multiples of what the network divides by."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As each rank has: another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for index, side in enumerate(SIDES):
        image, mask = disc_case(index, side)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{index}.png")
    return tmp_path


def judged(folder: Path, rank: int, world: int, batch: int, workers: int, patch: int | None) -> Any:
    """(figures of an epoch, rows of the pool) as this rank has them; the rows are None where it does not decide."""
    stages = {"enabled": True, "initial_cases": 2, "add_cases": 2, "score_batch_size": batch}
    made = settings(folder, num_workers=workers, patch_size=patch and [patch, patch])
    config = merge_configs([("test", {**made, "batch_size": batch, "incremental_params": stages})])
    cases = config.task.part("read_cases")(config, decode=True)
    everyone = list(range(len(cases)))
    splits = Splits({"train_indices": everyone, "val_select_indices": everyone})
    model = config.task.part("build_model")(config, cases, splits, None)
    data = config.task.part("data_module")(config, model, cases, splits)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, current_epoch=0)
    module = config.task.part("module")(config, model, data)
    spread = replace(config, devices=world, strategy="ddp" if world > 1 else "auto")

    def trainer() -> Any:
        return lightning_trainer(spread, Path(), [], logger=False, enable_checkpointing=False)

    (figures,) = trainer().validate(module, data.val_dataloader(), verbose=False)
    found = score_pool(trainer(), module, data)
    rows = None if found is None else (found.case_id.tolist(), found.dice, found.entropy, found.embedding)
    return figures, rows


def one_rank(folder: Path, ways: list[tuple[int, int, int | None]], rank: int) -> list[Any]:
    with group(rank):
        return [judged(folder, rank, WORLD, *way) for way in ways]


@pytest.mark.parametrize("patch", [None, 16])
def test_neither_batches_nor_workers_nor_ranks_change_a_row(folder: Path, patch: int | None) -> None:
    ways = [(1, 0, patch), (3, 0, patch), (7, 2, patch)]
    figures, expected = judged(folder, 0, 1, *ways[0])
    assert expected[0] == [str(index) for index in range(len(SIDES))]
    assert len(np.unique(expected[1])) > 3
    others = [judged(folder, 0, 1, *way) for way in ways[1:]]
    first, second = on_two_ranks(partial(one_rank, folder, ways[:2]))
    for other, rows in [*others, *first]:
        assert {name: other[name] for name in figures} == figures
        assert rows[0] == expected[0]
        for own, found in zip(expected[1:], rows[1:], strict=True):
            np.testing.assert_array_equal(found, own)
    assert [rows for _, rows in second] == [None] * 2


def loss_and_gradient(rank: int, world: int) -> tuple[float, torch.Tensor]:
    """Of a part of six cases, the gradient averaged over ranks as a strategy does. Ignored pixels lie in one part."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 4, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (6, 8, 8), generator=generator)
    labels[0], labels[2, :, :5] = 0, -1
    weights = torch.randn(3, 4, generator=generator, requires_grad=True)
    logits = torch.einsum("kc,bchw->bkhw", weights, inputs[rank::world])
    loss = MaskLoss(ce_weight=1, dice_weight=2)(logits, labels[rank::world], whole_batch)
    loss.backward()
    assert weights.grad is not None
    return loss.item(), mean_of_ranks(weights.grad)


def loss_on_a_rank(rank: int) -> Any:
    with group(rank):
        return loss_and_gradient(rank, WORLD)


def test_two_ranks_learn_from_a_batch_what_one_does() -> None:
    loss, gradient = loss_and_gradient(0, 1)
    for found, its in on_two_ranks(loss_on_a_rank):
        assert found == pytest.approx(loss, abs=1e-6)
        assert torch.allclose(its, gradient, atol=1e-6)
