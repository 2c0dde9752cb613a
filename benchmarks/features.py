"""A training step from the feature cache against one with the live frozen backbone, at batch 512 on CPU.

Both take the project's own datasets, loader, model and optimizer groups on the demo images (96 px,
EfficientNet-Lite0) and do the same head step; the live one decodes the images and runs the backbone
first. Filling the cache costs one such pass and is not timed: it happens once, and epochs follow.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
import torch
from result import Result
from torch import Tensor
from torch.nn.functional import cross_entropy

from stage1_pro.core.data.batches import Batch, EpochSampler, FeatureDataset, ImageDataset, make_loader
from stage1_pro.core.models.backbone import load_backbone
from stage1_pro.core.models.stage1 import Stage1Model
from stage1_pro.core.optim.schedule import parameter_groups
from stage1_pro.core.training.feature_cache import cached_features

DEMO = Path(__file__).parents[1] / "data" / "demo"
BATCH, SIZE = 512, 96
ROUNDS, CACHED_EPOCHS = 3, 20


def measure() -> list[Result]:
    cases = pd.read_csv(DEMO / "labels.csv")[: 2 * BATCH]  # whole batches only
    paths = [str(DEMO / path) for path in cases["path"]]
    labels = (cases["label"] == "red").to_numpy().astype(np.int64)
    backbone, spec = load_backbone(f"file:{DEMO}/efficientnet_lite0.safetensors:tf_efficientnet_lite0", SIZE)
    model = Stage1Model.new(backbone, spec, ("other", "red"), dropout=0.3)
    model.freeze_backbone()
    with tempfile.TemporaryDirectory() as folder:
        features = cached_features(
            model.backbone,
            spec,
            paths,
            paths,  # named by their paths: no digests are needed for one run
            Path(folder),
            batch_size=BATCH,
            workers=0,
            device=torch.device("cpu"),
            progress=lambda done, total: None,
        )
        cached = FeatureDataset(features, labels)
        live = ImageDataset(paths, labels, spec.preprocessing.transform(), seed=0)
        cached_steps, live_steps = [], []
        for _ in range(ROUNDS):  # in turns, so that a busy moment hits both
            cached_steps += step_seconds(model, cached, CACHED_EPOCHS)
            live_steps += step_seconds(model, live, epochs=1)
    note = f"medians; {features.shape[1]} features, batch {BATCH}, {torch.get_num_threads()} threads"
    return [Result("live step / cached step", median(live_steps) / median(cached_steps), 100, "at least", note)]


def step_seconds(model: Stage1Model, dataset: ImageDataset | FeatureDataset, epochs: int) -> list[float]:
    """Seconds of each step, loading included, over whole epochs."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.0, 0.01), fused=True)
    forward = model.head if isinstance(dataset, FeatureDataset) else model
    model.train()
    moments = [perf_counter()]
    for batch in batches(dataset, epochs):
        head_step(forward(batch.inputs).logits, batch.labels, optimizer)
        moments.append(perf_counter())
    return np.diff(moments).tolist()


def batches(dataset: ImageDataset | FeatureDataset, epochs: int) -> Iterator[Batch]:
    sampler = EpochSampler(len(dataset), 0, shuffle=True)
    loader = make_loader(dataset, sampler, BATCH, workers=0)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from loader


def head_step(logits: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    cross_entropy(logits, labels, label_smoothing=0.1).backward()
    optimizer.step()
