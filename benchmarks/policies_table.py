"""From the lines of the study of policies to its table, losers included."""

from pathlib import Path

import numpy as np
import pandas as pd

CELL = ["recipe", "arm", "positive", "target"]
BASE = "softmax"
TOLERANCE = 0.005
HEADER = (
    "| recipe | arm | class | target | policy | coverage | gain over softmax | FPR | accuracy | FNR on exits "
    "| false certificates | none | worse runs |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def write_table(lines: Path, page: Path) -> str:
    """Write the table as markdown; returns it."""
    frame = pd.read_json(lines, lines=True)
    rows = [
        _row(cell, column, policy, base)
        for cell, group in frame.groupby(CELL, sort=False)
        for base in [group[group["column"] == BASE].set_index(["split", "seed"])]
        for column, policy in group.groupby("column", sort=False)
    ]
    text = "\n".join([HEADER, *rows]) + "\n"
    page.write_text(text)
    return text


def _row(cell: tuple, column: str, policy: pd.DataFrame, base: pd.DataFrame) -> str:
    """One policy in one cell. Differences are paired by split and seed; ± is the standard error of the mean over
    splits, whose seeds share their cases."""
    own = policy.set_index(["split", "seed"])
    base = base.loc[own.index]
    gain, fpr, accuracy = (own[name] - base[name] for name in ("coverage", "fpr", "accuracy"))
    by_split = gain.groupby("split").mean()
    error = by_split.std(ddof=1) / np.sqrt(len(by_split)) if len(by_split) > 1 else np.nan
    worse = int(((fpr > TOLERANCE) | (accuracy < -TOLERANCE)).sum())
    target = cell[-1]
    return (
        f"| {' | '.join(map(str, cell))} | {column} | {own['coverage'].mean():.3f} | {gain.mean():+.4f} ± {error:.4f} "
        f"| {own['fpr'].mean():.4f} ({fpr.mean():+.4f}) | {own['accuracy'].mean():.4f} ({accuracy.mean():+.4f}) "
        f"| {own['fnr'].mean():.4f} | {int((own['fnr'] > target).sum())} of {len(own)} "
        f"| {int((own['coverage'] == 0).sum())} | {worse} |"
    )
