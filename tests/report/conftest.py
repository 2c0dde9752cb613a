"""A calibrated and evaluated run with made-up scores: nothing is trained, no torch is imported."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1_pro.core import artifacts
from stage1_pro.core.config import DatasetParams, Source, Stage1ProConfig
from stage1_pro.core.evaluation import evaluate_run
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.run import Run
from stage1_pro.core.scores import SCORE_SPLITS, Scores
from stage1_pro.core.splits import SPLITS

CASES = 2000
LABELS = (np.arange(CASES) % 5 < 2).astype(np.int8)
MODEL_FACTS = {
    "backbone": "random:tiny",
    "backbone_license": "Apache-2.0",
    "preprocessing": {
        "size": 16,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "color_order": "RGB",
    },
}
METRICS = "epoch,step,train_loss,val_accuracy,val_augrc,val_loss\n0,7,.7,.8,.05,.6\n1,14,,.9,.02,.4\n2,21,.3,.9,,.5\n"


def splits(class_names: tuple[str, str]) -> dict[str, Any]:
    negatives, positives = np.bincount(LABELS).tolist()
    counts = {name: dict(zip(class_names, (negatives, positives), strict=True)) for name in SPLITS}
    return {
        **{f"{name}_indices": list(range(index * CASES, (index + 1) * CASES)) for index, name in enumerate(SPLITS)},
        "seed": 1,
        "class_balance": {name: dict.fromkeys(class_names, 0.5) for name in SPLITS},
        "metadata": {
            "cases": 4 * CASES,
            "counts": counts,
            "class_names": list(class_names),
            "positive_class": class_names[1],
            "case_table_digest": "0" * 64,
            "val_calib_digest": "1" * 64,
        },
    }


def scores(run: Run, split: str, rng: np.random.Generator) -> Scores:
    """Two normals that overlap, and one case whose logits are NaN."""
    labels = LABELS
    z = 2.6 * rng.normal(np.where(labels == 1, 1.3, -1.3), 1)
    logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
    logits[0] = np.nan
    ids = np.array([f"case{index:05d}" for index in range(CASES)])
    return Scores(split, ids, ids, labels, logits, None, run.model_digest, run.splits.digest)


def calibrate(run: Run) -> dict[str, Any]:
    risk = run.risk()
    record = calibrate_softmax(run.scores("val_select"), run.scores("val_calib"), risk).record()
    threshold = next(row["threshold"] for row in reversed(record["sweep_results"]) if row["certified"])
    return {**run.policy_header(risk, 1), **record, "exit_threshold": threshold}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Callable[..., tuple[Run, dict[str, Any], dict[str, Any]]]:
    """Make (run, policy, evaluation). name: of the run; threshold: in place of the certified one."""

    def make(
        name: str = "run",
        class_names: tuple[str, str] = ("other", "red"),
        threshold: float | None = None,
        metrics: str = METRICS,
    ) -> tuple[Run, dict[str, Any], dict[str, Any]]:
        path: Path = tmp_path_factory.mktemp("runs") / name
        path.mkdir()
        run = Run(path)
        params = DatasetParams(
            sources=(Source(labels="labels.csv"),), class_names=class_names, positive_class=class_names[1]
        )
        config = Stage1ProConfig(target_fnr_exit=0.05, bootstrap_samples=100, dataset_params=params)
        artifacts.write_json(run.splits_path, splits(class_names), "splits")
        run.begin_training(config, MODEL_FACTS)
        run.model_path.write_bytes(b"weights")
        run.metrics_path.write_text(metrics)
        rng = np.random.default_rng(3)
        for split in SCORE_SPLITS:
            scores(run, split, rng).write(run.scores_path(split))
        policy = calibrate(run)
        if threshold is not None:
            policy["exit_threshold"] = threshold
        run.write_policy(policy)
        return run, policy, evaluate_run(run, policy)

    return make
