"""From the lines of the study of policies to its table, losers included."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

CELL = ["recipe", "arm", "positive", "target"]
BASE = "softmax"
MARKERS = "<!-- policies table: begin -->", "<!-- policies table: end -->"
TITLES = (
    "recipe",
    "features",
    "class",
    "target",
    "policy",
    "right exits",
    "gain over softmax",
    "utility",
    "coverage",
    "FPR on exits",
    "accuracy",
    "FNR on exits",
    "above target",
    "none",
)
MEANS = {"right exits": "right_exits", "utility": "utility", "coverage": "coverage", "FPR on exits": "fpr"}
"""Columns of the table of means, and of the study's lines."""


def write_table(lines: Path, page: Path) -> str:
    """Put the table into the page, between its markers where it has them; returns it."""
    frame = pd.read_json(lines, lines=True)
    rows = [
        _row(cell, str(column), policy, base)
        for cell, group in frame.groupby(CELL, sort=False)
        for base in [group[group["column"] == BASE]]
        for column, policy in group.groupby("column", sort=False)
        if len(base)
    ]
    means = list(_means(frame))
    table = (
        f"Means over the cells, in each of which the runs are averaged first:\n\n{_markdown(means)}\n\n"
        f"<details><summary>Every cell</summary>\n\n{_markdown([TITLES, *rows])}\n\n</details>"
    )
    before, after = "", ""
    if page.exists() and all(marker in (text := page.read_text()) for marker in MARKERS):
        before, after = text.split(MARKERS[0])[0], text.split(MARKERS[1])[1].lstrip("\n")
    page.write_text(f"{before}{MARKERS[0]}\n\n{table}\n\n{MARKERS[1]}\n{after}")
    return table


def _markdown(rows: list[tuple[str, ...]]) -> str:
    """rows: the titles first."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]))


def _means(frame: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Titles, then one row a policy."""
    yield "policy", *MEANS, "none"
    cells = frame.groupby([*CELL, "column"], sort=False)[list(MEANS.values())].mean()
    for column, own in cells.groupby("column", sort=False):
        runs = frame.loc[frame["column"] == column, "coverage"]
        yield str(column), *(f"{value:.3f}" for value in own.mean()), f"{int((runs == 0).sum())} of {len(runs)}"


def _row(cell: tuple, column: str, policy: pd.DataFrame, base: pd.DataFrame) -> tuple[str, ...]:
    """One policy in one cell, paired with softmax by split and seed."""
    keys = ["split", "seed"]
    both = policy.merge(base, on=keys, suffixes=("", "_base"))
    names = ("right_exits", "utility", "fpr", "accuracy")
    gain, utility, fpr, accuracy = (both[name] - both[f"{name}_base"] for name in names)
    return (
        *map(str, cell),
        column,
        f"{both['right_exits'].mean():.4f}",
        f"{gain.mean():+.5f} ± {_error(gain, both['split']):.5f}",
        _figure(both["utility"], utility),
        f"{both['coverage'].mean():.4f}",
        _figure(both["fpr"], fpr),
        _figure(both["accuracy"], accuracy),
        _figure(both["fnr"]),
        f"{int((both['fnr'] > cell[-1]).sum())} of {len(both)}",
        str(int((both["coverage"] == 0).sum())),
    )


def _figure(values: pd.Series, difference: pd.Series | None = None) -> str:
    """The mean over the runs that have the figure, and its mean difference from softmax; a dash for none."""
    if values.isna().all():
        return "–"
    return f"{values.mean():.4f}" + ("" if difference is None else f" ({difference.mean():+.4f})")


def _error(gain: pd.Series, splits: pd.Series) -> float:
    """Standard error of the mean over splits, whose seeds share their cases."""
    means = gain.groupby(splits).mean()
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")
