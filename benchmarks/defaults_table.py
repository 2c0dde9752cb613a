"""From the rows of the study of defaults to its tables, losers included."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

MARKERS = "<!-- defaults tables: begin -->", "<!-- defaults tables: end -->"
HEAD = {"network": "head", "features": "raw", "weighted": True, "loss": "right"}
CHOSEN = {
    **HEAD,
    **{"lr": 3e-4, "smoothing": 0.0, "epochs": 30, "ema": False, "monitor": "nll", "patience": 3, "rule": "one_sided"},
}
BEFORE = {
    **HEAD,
    **{"ema": True, "lr": 1e-4, "smoothing": 0.1, "epochs": 10, "monitor": "augrc_first", "patience": 3},
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
    "smoothing .05": {"smoothing": 0.05},
    "smoothing .1": {"smoothing": 0.1},
    "rate 1e-4": {"lr": 1e-4},
    "rate 1e-3": {"lr": 1e-3},
    "rate 3e-3": {"lr": 3e-3},
    "average of the weights": {"ema": True},
    "average, 10 epochs": {"ema": True, "epochs": 10},
    "average, 100 epochs": {"ema": True, "epochs": 100},
    "average, rate 1e-3, no class weights": {"ema": True, "lr": 1e-3, "weighted": False},
    "the same, checkpoint by utility": {"ema": True, "lr": 1e-3, "weighted": False, "monitor": "utility"},
    "average, standardised features": {"ema": True, "features": "standardised"},
    "average, linear head, rate 1e-3": {"ema": True, "network": "linear", "lr": 1e-3},
    "average, linear head, rate 3e-3": {"ema": True, "network": "linear", "lr": 3e-3},
    "average, linear head, rate 1e-2": {"ema": True, "network": "linear", "lr": 1e-2},
    "patience 10": {"patience": 10},
    **{
        f"checkpoint by {monitor}": {"monitor": monitor}
        for monitor in ("augrc_first", "augrc", "augrc_placed", "auroc", "nll", "utility")
    },
    **{peer: {"network": peer} for peer in PEERS},
}
ROW = {"cell", "split", "seed", "select", "calib", *CHOSEN, "target"}
"""The columns that name a row."""
KEYS = ["cell", "target", "calib", "split"]
MEASURES = ("right_exits", "utility", "certified")


def read_rows(folder: Path) -> pd.DataFrame:
    """The rows of all portions; what two of them trained counts once."""
    rows = pd.concat([pd.read_parquet(file) for file in sorted(folder.glob("rows-*.parquet"))], ignore_index=True)
    return rows.drop_duplicates([name for name in rows if name in ROW])


def write_tables(rows: pd.DataFrame, page: Path) -> str:
    """Put the tables into the page, between its markers where it has them; returns them."""
    text = "\n\n".join([_overall(rows), _by_cell(rows), _grid(rows), _single_arms(rows)])
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


def _overall(rows: pd.DataFrame) -> str:
    """Each column over all cells, and the default less it, paired by cell, evidence and split."""
    base = _means(pick(rows, CHOSEN))
    lines: list[tuple[str, ...]] = [
        ("way", "right exits", "utility", "certified", "useless", "FPR on exits", "default's right exits", "wins")
    ]
    for name, fields in COLUMNS.items():
        chosen = pick(rows, fields)
        both = base.join(_means(chosen), rsuffix="_other", how="inner")
        gains = both["right_exits"] - both["right_exits_other"]
        shown = [f"{chosen.groupby(KEYS[:3])[figure].mean().mean():.3f}" for figure in (*MEASURES, "useless", "fpr")]
        lines.append((name, *shown, _difference(gains), "–" if fields == CHOSEN else _wins(gains)))
    title = "Means over all cells (utility: at 5 deferrals a false alarm; useless: certified, but worth nothing):"
    return f"{title}\n\n{_markdown(lines)}"


def _wins(gains: pd.Series) -> str:
    """Rows of the table by cell in which the default is better, and worse, beyond the error over splits."""
    found = gains.groupby(level=KEYS[:3])
    limit = student.ppf(0.975, found.count() - 1) * found.std() / np.sqrt(found.count())
    return f"{(found.mean() > limit).sum()} better, {(found.mean() < -limit).sum()} worse of {len(limit)}"


def _by_cell(rows: pd.DataFrame) -> str:
    columns = {name: pick(rows, fields).groupby(KEYS[:3])[list(MEASURES)].mean() for name, fields in COLUMNS.items()}
    cells = rows[[*KEYS[:3], "select"]].drop_duplicates().sort_values(["cell", "calib", "target"], ascending=False)
    lines: list[tuple[str, ...]] = [("cell", "positives: val_select, val_calib", "target", *columns)]
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
    """Mean right exits by rate, smoothing and epochs, over the cells that have the whole grid, and over all."""
    own = {name: value for name, value in CHOSEN.items() if name not in ("lr", "smoothing", "epochs", "ema")}
    arms = pick(rows, own)
    arms = arms[(arms["seed"] == 0) & arms["smoothing"].isin((0.0, 0.05, 0.1))]
    averaged, short = arms[arms["ema"] == True], arms[arms["epochs"] == 30]  # noqa: E712, a column of objects
    whole = averaged[averaged["cell"].isin(averaged.loc[averaged["epochs"] == 100, "cell"])]
    parts = []
    for title, part in (
        ("tasks with the whole grid, average of the weights", whole),
        ("all tasks, average of the weights", short[short["ema"] == True]),  # noqa: E712
        ("all tasks, the weights themselves", short[short["ema"] == False]),  # noqa: E712
    ):
        if part.empty:
            continue
        table = part.pivot_table(index=["epochs", "smoothing"], columns="lr", values="right_exits")
        head = ("epochs", "smoothing", *(f"rate {rate:g}" for rate in table.columns))
        lines: list[tuple[str, ...]] = [head]
        for (epochs, smoothing), values in zip(table.index, table.to_numpy(), strict=True):
            told = ("not run" if np.isnan(value) else f"{value:.4f}" for value in values)
            lines.append((f"{epochs:g}", f"{smoothing:g}", *told))
        parts.append(f"Right exits, {title}:\n\n{_markdown(lines)}")
    return "\n\n".join(parts)


def _single_arms(rows: pd.DataFrame) -> str:
    """Each arm alone against the default, paired by cell, evidence and split."""
    base = _means(pick(rows, CHOSEN))
    lines: list[tuple[str, ...]] = [("arm", "right exits", "utility", "certified")]
    for name, changes in SINGLE.items():
        fields = {**CHOSEN, **changes}
        if fields == CHOSEN:
            continue
        other = _means(pick(rows[rows["seed"] == 0], fields))
        both = other.join(_means(pick(rows[rows["seed"] == 0], CHOSEN)), rsuffix="_base", how="inner")
        if both.empty:
            continue
        lines.append((name, *(_difference(both[measure] - both[f"{measure}_base"]) for measure in MEASURES)))
    mean = " / ".join(f"{base[name].mean():.4f}" for name in MEASURES)
    return f"Each arm less the default ({mean}), mean ± standard error over cells:\n\n{_markdown(lines)}"


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(KEYS)[list(MEASURES)].mean()


def _difference(gains: pd.Series) -> str:
    """The error is that of the cells' means: the splits of one cell share its images."""
    cells = gains.groupby(level="cell").mean()
    return f"{cells.mean():+.4f} ± {cells.std() / np.sqrt(len(cells)):.4f}"


def _markdown(lines: list[tuple[str, ...]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *body))
