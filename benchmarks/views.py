"""Several frames of a track against one: what is certified for speed limits, and what road works would cover.

    python benchmarks/views.py --data gtsrb_roadwork_32px.zip
reads   a zip of German traffic signs (Stallkamp et al., 2012): images, and manifest.csv with file, class_id, track and
        split
prints  two tables: right exits at the certified threshold, and coverage at FNR <= .05 without a certificate

Features are gradient histograms, the model is a logistic regression; splits, answers, certificates and views are the
project's own. Every frame of a split has a score, and only what is decided differs.
"""

import argparse
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from stage1_pro.core.data.splitting import drawn_splits
from stage1_pro.core.metrics.exits import count_decisions, count_exits
from stage1_pro.core.metrics.risk import Risk
from stage1_pro.core.metrics.views import Views
from stage1_pro.core.policies.dirichlet import class_margin
from stage1_pro.core.policies.independence import counted_positives, independence
from stage1_pro.core.policies.placement import Prices, place_answers
from stage1_pro.core.policies.softmax import SoftmaxExitPolicy, calibrate_softmax
from stage1_pro.core.records.group_scores import in_groups
from stage1_pro.core.records.scores import Scores

SPEED_LIMITS, ROAD_WORKS = (0, 1, 2, 3, 4, 5, 7, 8), (25,)
WAYS: dict[str, Views | None] = {
    "every frame by itself": None,
    "the first frame": Views(1, "first"),
    "mean of 3": Views(3),
    "mean of 10": Views(10),
    "mean of all": Views(),
}
SHARES = {"val_calib": 0.45, "val_select": 0.15, "val_test": 0.2}
RISK = Risk(0.1, 0.95)
MOST_FNR = 0.05
BINS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the zip")
    parser.add_argument("--splits", type=int, default=12, help="random splits of the tracks")
    parser.add_argument("--cell", type=int, default=4, help="pixels of a cell, a divisor of 32: larger is weaker")
    args = parser.parse_args()
    frame, features = read(args.data, args.cell)
    certified = pd.concat(speed_limits(frame, features, seed) for seed in range(args.splits))
    print(f"speed limits, target {RISK.target_fnr:g} at confidence {RISK.confidence:g}, {args.splits} splits\n")
    print(table(certified, "right exits", ["right exits", "coverage", "FNR", "FPR", "nothing"]))
    against = certified.pivot(index="seed", columns="way", values="right exits")
    for way in list(WAYS)[2:]:
        gain = against[way] - against["every frame by itself"]
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        ahead = f"ahead in {(gain > 0).sum()} of {len(gain)}"
        print(f"{way} less every frame by itself: {gain.mean():+.3f} ± {error:.3f}, {ahead}")
    covered = pd.concat(road_works(frame, features, seed) for seed in range(args.splits))
    print(f"\nroad works, coverage at FNR <= {MOST_FNR:g} on the test tracks themselves: no certificate\n")
    print(table(covered, "coverage", ["coverage", "FPR"]))


def read(data: Path, cell: int) -> tuple[pd.DataFrame, np.ndarray]:
    """The frames of the training tracks in their order, and their features (N, D)."""
    with zipfile.ZipFile(data) as archive:
        rows = pd.read_csv(BytesIO(archive.read("manifest.csv")))
        rows = rows[rows["split"] == "train"].sort_values("file").reset_index(drop=True)
        pixels = [np.asarray(Image.open(BytesIO(archive.read(name))).convert("L"), np.float32) for name in rows["file"]]
    rows["order"] = rows.groupby("track").cumcount().astype(float)
    return rows, histograms(np.stack(pixels), cell)


def histograms(images: np.ndarray, cell: int) -> np.ndarray:
    """(N, D) histograms of gradients: BINS directions in cells of so many pixels, blocks of four cells of norm 1."""
    down, right = np.gradient(images, axis=(1, 2))
    size, angle = np.hypot(down, right), np.arctan2(down, right) % np.pi
    place = angle / np.pi * BINS
    low = np.floor(place).astype(int) % BINS
    share = place - np.floor(place)
    cells = images.shape[1] // cell
    found = np.zeros((len(images), cells, cells, BINS), np.float32)
    for bin in range(BINS):
        weight = size * np.where(low == bin, 1 - share, np.where((low + 1) % BINS == bin, share, 0))
        found[..., bin] = weight.reshape(len(images), cells, cell, cells, cell).sum(axis=(2, 4))
    corners = [found[:, a : cells - 1 + a, b : cells - 1 + b] for a in (0, 1) for b in (0, 1)]
    blocks = np.concatenate(corners, axis=-1)
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-3
    return blocks.reshape(len(images), -1)


def fitted_scores(features: np.ndarray, labels: np.ndarray, train: np.ndarray, balanced: bool) -> np.ndarray:
    """(N,) log-odds by a logistic regression on the training frames. balanced: both classes weigh the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.05, class_weight="balanced" if balanced else None, max_iter=300)
    return model.fit(features[train], labels[train]).decision_function(features)


def scores_of(split: str, frame: pd.DataFrame, z: np.ndarray) -> Scores:
    logits = np.column_stack([-z / 2, z / 2]).astype(np.float32)
    names = (frame[name].to_numpy(dtype=object) for name in ("file", "track"))
    return Scores(
        split, *names, frame["label"].to_numpy(np.int8), logits, None, "", "", order=frame["order"].to_numpy()
    )


def speed_limits(frame: pd.DataFrame, features: np.ndarray, seed: int) -> pd.DataFrame:
    """One split of the tracks: what each way certifies, and what it does on the test tracks."""
    labels = frame["class_id"].isin(SPEED_LIMITS).to_numpy().astype(int)
    cases = frame.assign(label=labels, group=frame["track"])
    split = drawn_splits(cases, SHARES, seed)
    z = fitted_scores(features, labels, split == "train", balanced=True)
    parts = {name: scores_of(name, cases[split == name], z[split == name]) for name in SHARES}
    rows = []
    for way, views in WAYS.items():
        select, calib, test = (
            parts[name] if views is None else in_groups(parts[name], views)
            for name in ("val_select", "val_calib", "val_test")
        )
        rows.append({"seed": seed, "way": way, **certified(select, calib, test, seed)})
    return pd.DataFrame(rows)


def certified(select: Scores, calib: Scores, test: Scores, seed: int) -> dict[str, float]:
    """Place the answers, certify, decide the test cases; nothing certified exits nothing."""
    shift = place_answers(class_margin(select.logits), select.labels, independence(select)[0], counted_positives(calib),
                          RISK, Prices(), seed).shift  # fmt: skip
    moved = [_moved(one, shift) for one in (select, calib, test)]
    found = calibrate_softmax(moved[0], moved[1], RISK, "one_sided")
    if found.walk.answer is None:
        return {"right exits": 0.0, "coverage": 0.0, "FNR": np.nan, "FPR": np.nan, "nothing": 1.0}
    policy = SoftmaxExitPolicy(found.parameters[found.walk.answer]["threshold"], "one_sided")
    decisions = policy.decide(moved[2])
    counts = count_decisions(decisions.exits, decisions.predictions, test.labels)
    shares = {"right exits": counts.right_exits, "coverage": counts.coverage, "FNR": counts.fnr, "FPR": counts.fpr}
    return {**{name: float(value[0]) for name, value in shares.items()}, "nothing": 0.0}


def _moved(split: Scores, shift: float) -> Scores:
    from dataclasses import replace

    return replace(split, logits=split.logits + np.array([-shift / 2, shift / 2], np.float32))


def road_works(frame: pd.DataFrame, features: np.ndarray, seed: int) -> pd.DataFrame:
    """Half of the tracks train, half test: the largest coverage of a symmetric threshold whose FNR is small enough."""
    labels = frame["class_id"].isin(ROAD_WORKS).to_numpy().astype(int)
    cases = frame.assign(label=labels, group=frame["track"])
    test = drawn_splits(cases, {"val_test": 0.5}, seed) == "val_test"
    z = fitted_scores(features, labels, ~test, balanced=False)
    frames = scores_of("val_test", cases[test], z[test])
    return pd.DataFrame(_covered(frames, seed))


def _covered(frames: Scores, seed: int) -> Iterator[dict[str, object]]:
    for way, views in WAYS.items():
        cases = frames if views is None else in_groups(frames, views)
        z = class_margin(cases.logits)
        counts = count_exits(np.abs(z), z >= 0, cases.labels, np.unique(np.abs(z)))
        kept = np.nan_to_num(counts.fnr) <= MOST_FNR
        best = int(np.argmax(np.where(kept, counts.coverage, -1)))
        yield {"seed": seed, "way": way, "coverage": counts.coverage[best], "FPR": counts.fpr[best]}


def table(rows: pd.DataFrame, order_by: str, columns: list[str]) -> str:
    """Means over splits, a line for each way, with the standard error of the first column."""
    lines = [f"| way | {order_by} ± error | " + " | ".join(columns[1:]) + " |", "|---" * (len(columns) + 1) + "|"]
    for way in WAYS:
        own = rows[rows["way"] == way]
        error = own[order_by].std(ddof=1) / np.sqrt(len(own))
        others = " | ".join(f"{own[name].mean():.3f}" for name in columns[1:])
        lines.append(f"| {way} | {own[order_by].mean():.3f} ± {error:.3f} | {others} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
