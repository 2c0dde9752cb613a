"""Whether suspects.csv finds wrong labels: 5 % of the training labels flipped, on road works and on stop signs.

    python benchmarks/suspects.py gtsrb_roadwork_32px.zip
reads   a zip of crops with manifest.csv (file, class_id, track), weights of EfficientNet-Lite0 (`make data`)
writes  runs/.feature_cache/, one file

Splits are drawn by track, as 00 draws them by default; the features are those of the frozen backbone; P labels of the
training split are flipped at random. Of the first 100 listed, and of the P within the first 1.5 P, .7 must be planted.
"""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
TASKS = {"road works": 25, "stop": 14}
FLIPPED, SEEDS, TARGET, SIDE = 0.05, 3, 0.7, 64


def main() -> int:
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    from result import Result
    from run import print_table

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("zip", type=Path, help="crops of traffic signs with their manifest.csv")
    with tempfile.TemporaryDirectory() as folder:
        table, features = read(parser.parse_args().zip, Path(folder))
    rows = []
    for name, positive in TASKS.items():
        found = [one(table, features, positive, seed) for seed in range(SEEDS)]
        for what, column in (("planted among the first 100", 1), ("of the planted in the first 1.5 P", 2)):
            shares = [row[column] for row in found]
            note = f"least of {SEEDS} seeds, mean {np.mean(shares):.2f}; P = {found[0][0]}"
            rows.append(Result(f"{name}: {what}", min(shares), TARGET, "at least", note))
    print_table(rows)
    return 0 if all(row.passed for row in rows) else 1


def read(archive: Path, folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """(manifest with the columns case_id and group, features (N, D) in its order)."""
    import torch

    from stage1_pro.core.console import bar
    from stage1_pro.core.models.backbone import load_backbone
    from stage1_pro.core.training.feature_cache import cached_features

    with zipfile.ZipFile(archive) as files:
        files.extractall(folder)
    table = pd.read_csv(folder / "manifest.csv", dtype={"track": str})
    table = table.sort_values("file", ignore_index=True).rename(columns={"file": "case_id"})
    table["group"] = table["track"].fillna(table["case_id"])
    backbone, spec = load_backbone(f"file:{ROOT}/data/demo/efficientnet_lite0.safetensors:tf_efficientnet_lite0", SIDE)
    with bar("features") as progress:
        features = cached_features(
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
    return table, features


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
    planted = np.isin(found.order, wrong)
    return len(wrong), float(planted[:100].mean()), float(planted[: round(1.5 * len(wrong))].sum() / len(wrong))


if __name__ == "__main__":
    sys.exit(main())
