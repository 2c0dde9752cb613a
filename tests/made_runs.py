"""Runs that were never trained: made-up scores in a whole run directory, so that no test waits for torch."""

from pathlib import Path
from typing import Any

import numpy as np

from stage1_pro.core import artifacts
from stage1_pro.core.config.sections import DatasetParams, Source
from stage1_pro.core.config.settings import Stage1ProConfig
from stage1_pro.core.policies.gate import calibrate_gate
from stage1_pro.core.policies.scrc import calibrate_scrc
from stage1_pro.core.policies.softmax import calibrate_softmax
from stage1_pro.core.records.looks import Look, begin
from stage1_pro.core.records.policy_file import policy_header
from stage1_pro.core.records.run import Run
from stage1_pro.core.records.scores import Scores
from stage1_pro.core.records.splits import SPLITS

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
PHASE_OF = {"softmax": 1, "gate": 3, "scrc": 6}


def make_run(
    path: Path, policy: str, class_names: tuple[str, str] = ("other", "red"), metrics: str = METRICS, step: float = 0.0
) -> Run:
    """A run with scores of all splits, and no policy yet. step: to which scores are rounded, for a short sweep."""
    path.mkdir()
    run = Run(path)
    params = DatasetParams(
        sources=(Source(labels="labels.csv"),), class_names=class_names, positive_class=class_names[1]
    )
    chosen = {"phase": PHASE_OF[policy], "exit_policy": policy}
    config = Stage1ProConfig(**chosen, target_fnr_exit=0.05, bootstrap_samples=100, dataset_params=params)
    artifacts.write_json(run.splits_path, splits(class_names), "splits")
    run.begin_training(config, MODEL_FACTS)
    run.model_path.write_bytes(b"weights")
    run.metrics_path.write_text(metrics)
    rng = np.random.default_rng(3)
    for split in SPLITS[1:]:
        scores(run, split, rng, gated=policy != "softmax", step=step).write(run.scores_path(split))
    return run


def looked(run: Run, policy: str, outcome: str = "certified", target: float | None = None) -> Look:
    """A look at the run's val_calib that ended so."""
    look = begin(run, policy, run.risk(target))
    look.settle(outcome)
    return look


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


def scores(run: Run, split: str, rng: np.random.Generator, gated: bool, step: float) -> Scores:
    """Two normals that overlap, a gate that knows a little more, and one case whose logits are NaN."""
    z = 2.6 * rng.normal(np.where(LABELS == 1, 1.3, -1.3), 1)
    z = np.round(z / step) * step if step else z
    logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
    logits[0] = np.nan
    ids = np.array([f"case{index:05d}" for index in range(CASES)])
    gate = None
    if gated:
        right = (z >= 0) == (LABELS == 1)
        gate = (0.5 * np.abs(z) + rng.normal(np.where(right, 1, -1), 1)).astype(np.float32)
        gate = np.round(gate / step) * step if step else gate
    return Scores(split, ids, ids, LABELS, logits, gate, run.model_digest, run.splits.digest)


def softmax_fields(run: Run, exit_rule: str = "symmetric") -> dict[str, Any]:
    calibration = calibrate_softmax(run.scores("val_select"), run.scores("val_calib"), run.risk(), exit_rule)
    record = calibration.record()
    return {**record, "exit_threshold": record["sweep_results"][calibration.demand_certified()]["threshold"]}


def gate_fields(run: Run) -> dict[str, Any]:
    return calibrate_gate(run.scores("val_select"), run.scores("val_calib"), run.risk()).fields()


def scrc_fields(run: Run, variant: str = "SCRC-I") -> dict[str, Any]:
    select, calib = run.scores("val_select"), run.scores("val_calib")
    versions = {"model_version": run.model_digest, "splits_version": run.splits.digest}
    return {**calibrate_scrc(select, calib, run.risk(), variant=variant).fields(), **versions}


FIELDS_OF = {"softmax": softmax_fields, "gate": gate_fields, "scrc": scrc_fields}


def calibrate(run: Run) -> dict[str, Any]:
    """The content of the run's policy file, as its script would write it."""
    return {**policy_header(run, run.risk()), **FIELDS_OF[run.config.exit_policy](run)}
