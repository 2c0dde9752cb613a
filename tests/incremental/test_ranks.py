"""Two gloo processes score the pool as one does, whatever its size, and so admit the same cases."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from two_ranks import WORLD, group, on_two_ranks

from stage1_pro.core.config.load import merge_configs
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.data.batches import BlockSampler
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.datamodule import Stage1DataModule
from stage1_pro.core.data.transforms import Preprocessing
from stage1_pro.core.incremental.machine import Rules, start
from stage1_pro.core.incremental.scoring import judge
from stage1_pro.core.models.backbone import BackboneSpec
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.records.splits import Splits
from stage1_pro.core.training.callbacks.pool import score_pool
from stage1_pro.core.training.modules.base import Stage1Module
from stage1_pro.core.training.trainer import lightning_trainer

FEATURES = 5
SIZES = (3, 8, 37)


def config_of(phase: int = 2) -> Stage1ProConfig:
    stages = {"enabled": True, "initial_cases": 2, "add_cases": 6, "score_batch_size": 8}
    return merge_configs([("test", {"phase": phase, "incremental_params": stages})])


def scored(cases: int, rank: int, world: int) -> Any:
    """What this rank decides about a pool of this many cases; None where it is not the one that decides."""
    config, preprocessing = config_of(), Preprocessing(8, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    names = np.array([f"c{index:03d}" for index in range(cases)], dtype=object)
    columns = {"case_id": names, "label": np.arange(cases) % 2, "group": names, "content": names, "path": names}
    table = CaseTable(pd.DataFrame(columns), ("a", "b"), False, False)
    everyone = list(range(cases))
    features = {"train": np.random.default_rng(1).normal(size=(cases, FEATURES)).astype(np.float32)}
    splits = Splits({"train_indices": everyone, "val_select_indices": everyone})
    data = Stage1DataModule(table, splits, config, preprocessing, features)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)
    torch.manual_seed(0)
    spec = BackboneSpec("test", {}, preprocessing, "own")
    model = Stage1Model(nn.Identity(), spec, ("a", "b"), FEATURES, 0.3)
    module = Stage1Module(model, config, np.array([1, 1]), from_features=True)
    spread = replace(config, devices=world, strategy="ddp" if world > 1 else "auto")
    trainer = lightning_trainer(spread, Path(), [], logger=False, enable_checkpointing=False)
    metrics = score_pool(trainer, module, data)
    assert module.training
    if metrics is None:
        return None
    return judge(metrics, start(["c000", "c001"]), Rules(config.incremental_params, "min", cases), 1, "cpu")


def one_rank(rank: int) -> list[Any]:
    with group(rank):
        return [scored(cases, rank, WORLD) for cases in SIZES]


def test_two_processes_decide_as_one() -> None:
    """Fewer cases than a block, exactly one block, and blocks that do not come out even."""
    expected = [scored(cases, 0, 1) for cases in SIZES]
    assert all(one.picks for one in expected)
    assert on_two_ranks(one_rank) == [expected, [None] * len(SIZES)]


@pytest.mark.parametrize(
    ("size", "block", "world"), [(1, 4, 3), (10, 4, 1), (10, 4, 2), (10, 4, 5), (12, 4, 2), (9, 1, 4)]
)
def test_blocks_are_whole_equally_many_and_cover_the_pool(size: int, block: int, world: int) -> None:
    ranks = [[draw.position for draw in BlockSampler(size, block, rank, world)] for rank in range(world)]
    whole = [list(range(start, min(start + block, size))) for start in range(0, size, block)]
    batches = [[rank[start : start + block] for start in range(0, len(rank), block)] for rank in ranks]
    assert {position for rank in ranks for position in rank} == set(range(size))
    assert len({len(rank) for rank in batches}) == 1
    assert all(batch in whole for rank in batches for batch in rank)
