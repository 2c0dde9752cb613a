"""Score files of a run, written by the code that also runs at inference."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.console import bar
from stage1_pro.core.data.cases import CaseTable
from stage1_pro.core.data.run_cases import own_cases
from stage1_pro.core.devices import fastest_device
from stage1_pro.core.inference.predictor import Stage1Predictor
from stage1_pro.core.inference.preparing import Announced
from stage1_pro.core.models.onnx_model import load_scoring_model
from stage1_pro.core.records.run import Run


def with_forward_batch(config: Stage1ProConfig) -> Stage1ProConfig:
    """The config with a number for forward_batch: where it is auto, the one that suits the device that scores."""
    if config.forward_shape is not None:
        return config
    return replace(config, forward_batch=8 if scoring_device(config).type == "cpu" else 64)


def scoring_device(config: Stage1ProConfig) -> torch.device:
    """The device that computes scores here."""
    return torch.device("cpu") if config.scoring_backend == "onnx" else fastest_device(mps=True)


def write_scores(
    run: Run,
    cases: CaseTable,
    splits: tuple[str, ...],
    held_out: Mapping[str, np.ndarray] | None = None,
    device: str = "auto",
    *,
    images: Announced | None = None,
    features: Tensor | None = None,
) -> None:
    """Score splits of a run with the file that ships.

    held_out: split → (N,) gate logits that take the place of the model's, where its gate was fitted on that split;
    images: read ahead for this; features: (N, D) of val_select, by the backbone of that file, where it is torch's.
    """
    predictor = run.config.task.part("scorer")(run, device)
    if images is not None:
        predictor.images = images
    for split in splits:
        frame = cases.frame.iloc[run.splits.indices(split)]
        digests = {"model_digest": run.model_digest, "splits_digest": run.splits.digest}
        with bar(f"scoring {split}") as progress:
            if features is not None and split == "val_select" and run.config.scoring_backend == "torch":
                scores = predictor.score_features(features, frame, split, **digests)
                progress(len(frame), len(frame))
            else:
                sizes = {"batch_size": run.config.batch_size, "workers": run.config.dataset_params.num_workers}
                scores = predictor.score(frame, split, progress=progress, **digests, **sizes)
        if held_out and split in held_out:
            scores = replace(scores, gate_logit=held_out[split])
        scores.write(run.scores_path(split))


def image_scorer(run: Run, device: str) -> Stage1Predictor:
    """What scores the images of a run."""
    return Stage1Predictor(load_scoring_model(run.scored_path), device=device, **run.config.scoring_options)


def score_test(run: Run, roots: Sequence[str] | None = None) -> None:
    """Write scores/val_test.parquet unless it is there. roots: NAME=PATH of each source whose images have moved."""
    if run.scores_path("val_test").exists():
        return
    write_scores(run, own_cases(run, roots), ("val_test",))
