"""Whether suspects.csv finds wrong labels: 5 % of the training labels flipped, on road works and on stop signs.

    python benchmarks/suspects.py gtsrb_roadwork_32px.zip
    python benchmarks/suspects.py gtsrb_roadwork_32px.zip --trained moderate     # minutes on a GPU
reads   a zip of crops with manifest.csv (file, class_id, track), weights of EfficientNet-Lite0 (`make data`)
writes  runs/.feature_cache/, one file; nothing with --trained

Splits are drawn by track, as 00 draws them by default; P labels of the training split are flipped at random. The
features are those of the frozen backbone, or, with --trained, those of a run of 20_train.py that trains it for three
epochs on images augmented like that, on labels of which 5 % are wrong in all splits. Of the first 100 listed, and of
the P within the first 1.5 P, .7 must be planted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
TASKS = {"road works": 25, "stop": 14}
FLIPPED, SEEDS, TARGET, SIDE = 0.05, 3, 0.7, 64
WEIGHTS = f"file:{ROOT}/data/demo/efficientnet_lite0.safetensors:tf_efficientnet_lite0"
TRAINED = {
    "phase": 2,
    "model_path": WEIGHTS,
    "freeze_backbone": "false",
    "epochs": 3,
    "lr_backbone": 1e-4,
    "lr_head": 1e-3,
    "dataset_params.class_names": '["other", "sign"]',
    "dataset_params.positive_class": "sign",
    "dataset_params.image_size": SIDE,
}


def main() -> int:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    from result import Result
    from run import print_table

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("zip", type=Path, help="crops of traffic signs with their manifest.csv")
    parser.add_argument("--trained", choices=("none", "moderate", "aggressive"), help="the augmentation of a training")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = unpacked(args.zip, Path(folder))
        features = None if args.trained else features_of(table, Path(folder))

        def shares(positive: int, seed: int) -> tuple[int, float, float]:
            if features is None:
                return after_training(table, Path(folder), positive, seed, args.trained)
            return one(table, features, positive, seed)

        taken = {name: [shares(label, seed) for seed in range(args.seeds)] for name, label in TASKS.items()}
    rows = []
    for name, found in taken.items():
        for what, column in (("planted among the first 100", 1), ("of the planted in the first 1.5 P", 2)):
            each = [row[column] for row in found]
            note = f"least of {len(found)} seeds, mean {np.mean(each):.2f}; P = {found[0][0]}"
            rows.append(Result(f"{name}: {what}", min(each), TARGET, "at least", note))
    print_table(rows)
    return 0 if all(row.passed for row in rows) else 1


def unpacked(archive: Path, folder: Path) -> pd.DataFrame:
    """The manifest of the crops, which go into this folder, with the columns case_id and group."""
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)
    table = pd.read_csv(folder / "manifest.csv", dtype={"track": str})
    table = table.sort_values("file", ignore_index=True).rename(columns={"file": "case_id"})
    table["group"] = table["track"].fillna(table["case_id"])
    return table


def features_of(table: pd.DataFrame, folder: Path) -> np.ndarray:
    """(N, D) by the frozen backbone."""
    import torch

    from stage1_pro.core.console import bar
    from stage1_pro.core.models.backbone import load_backbone
    from stage1_pro.core.training.feature_cache import cached_features

    backbone, spec = load_backbone(WEIGHTS, SIDE)
    with bar("features") as progress:
        return cached_features(
            backbone,
            spec,
            [str(folder / name) for name in table["case_id"]],
            list(table["case_id"]),
            ROOT / "runs" / ".feature_cache",
            batch_size=64,
            workers=0,
            device=torch.device("cpu"),
            progress=progress,
        )


def one(table: pd.DataFrame, features: np.ndarray, positive: int, seed: int) -> tuple[int, float, float]:
    """(P, share of planted among the first 100, share of the P among the first 1.5 P)."""
    from stage1_pro.core.config.load import merge_configs
    from stage1_pro.core.data.cases import CaseTable
    from stage1_pro.core.data.splitting import make_splits
    from stage1_pro.core.training.suspects import suspicion

    frame = table.assign(label=(table["class_id"] == positive).astype(int), split="", content=table["case_id"])
    cases = CaseTable(frame, ("other", "sign"), group_column=True, split_column=False)
    train = make_splits(cases, merge_configs([("benchmark", {"seed": seed})])).indices("train")
    labels, groups = frame["label"].to_numpy()[train], frame["group"].to_numpy()[train]
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(train), round(FLIPPED * len(train)), replace=False)
    labels[wrong] = 1 - labels[wrong]
    found = suspicion(features[train], labels, groups, seed)
    assert found is not None
    return judged(np.isin(found.order, wrong))


def after_training(
    table: pd.DataFrame, folder: Path, positive: int, seed: int, augmentation: str
) -> tuple[int, float, float]:
    """The same of the suspects.csv that a training leaves."""
    rng, run = np.random.default_rng(seed), folder / f"{positive}-{seed}"
    wrong = np.zeros(len(table), dtype=bool)
    wrong[rng.choice(len(table), round(FLIPPED * len(table)), replace=False)] = True
    label = np.where((table["class_id"] == positive) != wrong, "sign", "other")
    labels = folder / f"{run.name}.csv"
    table.assign(path=table["case_id"], label=label)[["path", "label", "group"]].to_csv(labels, index=False)
    settings = {
        **TRAINED,
        "seed": seed,
        "dataset_params.augmentation": augmentation,
        "dataset_params.sources": json.dumps([{"name": "crops", "root": str(folder), "labels": str(labels)}]),
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    for script in ("00_make_splits.py", "20_train.py"):
        command = [sys.executable, str(ROOT / "stage1_pro" / "scripts" / script), "--run", str(run), *flags]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    listed = pd.read_csv(run / "suspects.csv")["case_id"]
    return judged(listed.isin(table["case_id"][wrong]).to_numpy())


def judged(planted: np.ndarray) -> tuple[int, float, float]:
    """Of (N,) whether the case is a planted one, the most suspect first."""
    count = int(planted.sum())
    return count, float(planted[:100].mean()), float(planted[: round(1.5 * count)].sum() / count)


if __name__ == "__main__":
    sys.exit(main())
