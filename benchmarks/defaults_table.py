"""From the rows of the study of defaults to its tables, losers included."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MARKERS = "<!-- defaults tables: begin -->", "<!-- defaults tables: end -->"
HEAD = {"network": "head", "features": "raw", "weighted": True, "ema": True, "loss": "right"}
CHOSEN = {
    **HEAD,
    **{"lr": 1e-3, "smoothing": 0.05, "epochs": 30, "monitor": "augrc_placed", "patience": 10, "rule": "one_sided"},
}
BEFORE = {
    **HEAD,
    **{"lr": 1e-4, "smoothing": 0.1, "epochs": 10, "monitor": "augrc_first", "patience": 3},
    **{"loss": "torch", "rule": "walk"},
}
PEERS = ("logistic", "logistic_tuned")
COLUMNS: dict[str, dict[str, Any]] = {
    "before": BEFORE,
    "placed, one-sided": {**BEFORE, "rule": "one_sided"},
    "loss right as well": {**BEFORE, "rule": "one_sided", "loss": "right"},
    "default": CHOSEN,
    **{peer: {"network": peer} for peer in PEERS},
}
SINGLE: dict[str, dict[str, Any]] = {
    "no smoothing": {"smoothing": 0.0},
    "smoothing .1": {"smoothing": 0.1},
    "rate 1e-4": {"lr": 1e-4},
    "rate 3e-4": {"lr": 3e-4},
    "rate 3e-3": {"lr": 3e-3},
    "10 epochs": {"epochs": 10},
    "100 epochs": {"epochs": 100},
    "no average of the weights": {"ema": False},
    "no class weights": {"weighted": False},
    "standardised features": {"features": "standardised"},
    "standardised features, rate 3e-4": {"features": "standardised", "lr": 3e-4},
    "linear head": {"network": "linear"},
    "linear head, rate 3e-3": {"network": "linear", "lr": 3e-3},
    "linear head, rate 1e-2": {"network": "linear", "lr": 1e-2},
    "linear head, standardised": {"network": "linear", "features": "standardised"},
    "patience 3": {"patience": 3},
    **{
        f"checkpoint by {monitor}": {"monitor": monitor}
        for monitor in ("augrc_first", "augrc", "augrc_placed", "auroc", "nll", "utility")
    },
    **{peer: {"network": peer} for peer in PEERS},
}
KEYS = ["cell", "target", "calib", "split"]
MEASURES = ("right_exits", "utility", "certified")


def write_tables(files: list[Path], page: Path) -> str:
    """Put the tables into the page, between its markers where it has them; returns them."""
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    text = "\n\n".join([_by_cell(rows), _grid(rows), _single_arms(rows)])
    before, after = "", ""
    if page.exists() and all(marker in (found := page.read_text()) for marker in MARKERS):
        before, after = found.split(MARKERS[0])[0], found.split(MARKERS[1])[1].lstrip("\n")
    page.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}\n{after}")
    return text


def pick(rows: pd.DataFrame, fields: dict[str, Any]) -> pd.DataFrame:
    """The rows of one arm; of a peer those of its name."""
    wanted = {"network": fields["network"]} if fields["network"] in PEERS else fields
    chosen = np.ones(len(rows), bool)
    for name, value in wanted.items():
        chosen &= (rows[name] == value).to_numpy()
    return rows[chosen]


def _by_cell(rows: pd.DataFrame) -> str:
    columns = {name: pick(rows, fields).groupby(KEYS[:3])[list(MEASURES)].mean() for name, fields in COLUMNS.items()}
    cells = rows[[*KEYS[:3], "select"]].drop_duplicates().sort_values(["cell", "calib", "target"], ascending=False)
    lines = [("cell", "positives: val_select, val_calib", "target", *columns)]
    for cell, target, calib, select in cells.itertuples(index=False):
        found = [_three(table, (cell, target, calib)) for table in columns.values()]
        lines.append((cell, f"{select}, {calib}", f"{target:g}", *found))
    title = "Right exits / utility / share certified, means over splits, seeds and re-splits:"
    return f"{title}\n\n{_markdown(lines)}"


def _three(table: pd.DataFrame, key: tuple) -> str:
    if key not in table.index:
        return "–"
    return " / ".join(f"{table.loc[key, name]:.3f}" for name in MEASURES)


def _grid(rows: pd.DataFrame) -> str:
    """Mean utility by rate, smoothing and epochs, over the cells that have the whole grid, and over all."""
    own = {name: value for name, value in CHOSEN.items() if name not in ("lr", "smoothing", "epochs")}
    arms = pick(rows, own)
    arms = arms[arms["seed"] == 0]
    whole = arms[arms["cell"].isin(arms.loc[arms["epochs"] == 100, "cell"])]
    parts = []
    for title, part in (("tasks with the whole grid", whole), ("all tasks", arms[arms["epochs"] == 30])):
        table = part.pivot_table(index=["epochs", "smoothing"], columns="lr", values="utility")
        head = ("epochs", "smoothing", *(f"rate {rate:g}" for rate in table.columns))
        lines = [head]
        for (epochs, smoothing), values in zip(table.index, table.to_numpy(), strict=True):
            lines.append((f"{epochs:g}", f"{smoothing:g}", *(f"{value:.4f}" for value in values)))
        parts.append(f"Utility, {title}:\n\n{_markdown(lines)}")
    return "\n\n".join(parts)


def _single_arms(rows: pd.DataFrame) -> str:
    """Each arm alone against the default, paired by cell, evidence and split."""
    base = _means(pick(rows, CHOSEN))
    lines = [("arm", "right exits", "utility", "certified", "cells better", "cells worse")]
    for name, changes in SINGLE.items():
        fields = {**CHOSEN, **changes}
        if fields == CHOSEN:
            continue
        other = _means(pick(rows[rows["seed"] == 0], fields))
        both = other.join(_means(pick(rows[rows["seed"] == 0], CHOSEN)), rsuffix="_base", how="inner")
        if both.empty:
            continue
        shown = [_difference(both[measure] - both[f"{measure}_base"]) for measure in MEASURES]
        gains = (both["utility"] - both["utility_base"]).groupby(level=KEYS[:3])
        limit = 2 * gains.std() / np.sqrt(gains.count())
        better, worse = (gains.mean() > limit).sum(), (gains.mean() < -limit).sum()
        lines.append((name, *shown, str(better), str(worse)))
    mean = " / ".join(f"{base[name].mean():.4f}" for name in MEASURES)
    return f"Each arm less the default ({mean}), mean ± standard error over cells and splits:\n\n{_markdown(lines)}"


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(KEYS)[list(MEASURES)].mean()


def _difference(gains: pd.Series) -> str:
    """The error is that of the cells' means: the splits of one cell share its images."""
    cells = gains.groupby(level="cell").mean()
    return f"{gains.mean():+.4f} ± {cells.std() / np.sqrt(len(cells)):.4f}"


def _markdown(lines: list[tuple[str, ...]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))
